"""Traffic that connects to pods directly and in plaintext: probes of the kubelet, and scrapes of Prometheus.

A sidecar refuses it on ports with mode STRICT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Mode, Pod, Ref
from xds.mesh.model.scraping import scraped_ports
from xds.mesh.policy.hops import Clients, Grouping
from xds.mesh.policy.mtls import enforced_mode
from xds.mesh.policy.steps import Steps, finish

METRICS_PORT_NAMES = frozenset(
    {"metrics", "http-metrics", "https-metrics", "tcp-metrics", "prometheus", "http-prometheus", "http-prom"}
)
"""Usual names of container ports that serve metrics."""


class Traffic(StrEnum):
    """Plaintext traffic that connects to pods directly, not to a Service."""

    KUBELET_PROBE = "kubelet-probe"
    """An HTTP or gRPC probe of the kubelet."""
    PROMETHEUS_SCRAPE = "prometheus-scrape"
    """A scrape of Prometheus, which the annotation `prometheus.io/scrape` requests."""
    METRICS_PORT = "metrics-port"
    """A scrape of a port whose name suggests metrics. Whether anything scrapes the port is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Direct traffic to pods that sidecars refuse after the change, because they become STRICT."""

    traffic: Traffic
    """The traffic that sidecars refuse."""
    clients: tuple[Clients, ...]
    """The pods, by service account."""
    port: int
    """Port of the pods."""
    decided_by: Ref
    """Object that sets STRICT."""

    @property
    def breaks(self) -> bool:
        """Whether the traffic exists for certain, and not only probably."""
        return self.traffic is not Traffic.METRICS_PORT


class RefusalKey(NamedTuple):
    """What a refusal of one pod's traffic has in common with those of others."""

    traffic: Traffic
    port: int
    decided_by: Ref


def refused_traffic(mesh: Mesh, pod: Pod) -> Iterator[RefusalKey]:
    """Yield the direct traffic to a pod that its sidecar refuses."""
    for port, traffic in _direct_traffic(pod).items():
        mode = mode_at(mesh, pod, port)
        if mode and mode[0] is Mode.STRICT:
            yield RefusalKey(traffic, port, mode[1])


def refusals(mesh: Mesh, pods: Iterable[Pod]) -> list[Refusal]:
    """Return the direct traffic to pods that exists for certain, and that their sidecars refuse."""
    found: dict[RefusalKey, list[Pod]] = {}
    for pod in pods:
        for key in refused_traffic(mesh, pod):
            found.setdefault(key, []).append(pod)
    return [refusal for refusal in finish(group_refusals(found)) if refusal.breaks]


def group_refusals(found: Mapping[RefusalKey, Sequence[Pod]]) -> Steps[list[Refusal]]:
    """Return refusals of single pods, grouped."""
    ranks = list(Traffic)
    grouping = Grouping(found)
    grouped = []
    for key in sorted(found, key=lambda key: (ranks.index(key[0]), key[1], natural_key(*key[2]))):
        yield
        traffic, port, ref = key
        clients = grouping.merge([key])
        grouped.append(Refusal(traffic=traffic, clients=clients, port=port, decided_by=ref))
    return grouped


def mode_at(mesh: Mesh, pod: Pod, port: int) -> tuple[Mode, Ref] | None:
    """Return the mode that a pod's sidecar enforces at a port, and the object that decided it."""
    decision = enforced_mode(mesh, Endpoint(address=pod.address, port=port, pod=pod))
    return (decision.mode, decision.decided_by) if decision else None


def _direct_traffic(pod: Pod) -> dict[int, Traffic]:
    """Return the ports of a pod that are probed or scraped, each with its most certain traffic."""
    found = {port.port: Traffic.METRICS_PORT for port in pod.ports if port.name in METRICS_PORT_NAMES}
    found |= dict.fromkeys(scraped_ports(pod), Traffic.PROMETHEUS_SCRAPE)
    return found | dict.fromkeys(pod.probe_ports, Traffic.KUBELET_PROBE)
