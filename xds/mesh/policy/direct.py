"""Traffic in plaintext from clients that are not pods of the mesh, as far as objects prove it.

The kubelet probes pods, Prometheus scrapes them, the API server calls webhooks, and clients outside the
cluster call published Services. A sidecar refuses this traffic on ports with mode STRICT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Call, Mode, Pod, Ref, Service, ServicePort, Traffic
from xds.mesh.model.scraping import SCRAPE, scraped_ports
from xds.mesh.policy.hops import Clients, Grouping
from xds.mesh.policy.mtls import enforced_mode
from xds.mesh.policy.steps import Steps, finish

METRICS_PORT_NAMES = frozenset(
    {"metrics", "http-metrics", "https-metrics", "tcp-metrics", "prometheus", "http-prometheus", "http-prom"}
)
"""Usual names of container ports that serve metrics."""


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
    source: Ref | None = None
    """Object that proves the traffic; None if the pods do."""

    @property
    def breaks(self) -> bool:
        """Whether the traffic exists for certain, and not only probably."""
        return self.traffic.is_certain


class RefusalKey(NamedTuple):
    """What a refusal of one pod's traffic has in common with those of others."""

    traffic: Traffic
    port: int
    decided_by: Ref
    source: Ref | None


def refused_traffic(mesh: Mesh, pod: Pod) -> Iterator[RefusalKey]:
    """Yield the direct traffic to a pod that its sidecar refuses."""
    for port, traffic, source in direct_traffic(mesh, pod):
        mode = mode_at(mesh, pod, port)
        if mode and mode[0] is Mode.STRICT:
            yield RefusalKey(traffic, port, mode[1], source)


def refusals(mesh: Mesh, pods: Iterable[Pod]) -> list[Refusal]:
    """Return the direct traffic to pods that exists for certain, and that their sidecars refuse."""
    found: dict[RefusalKey, list[Pod]] = {}
    for pod in pods:
        for key in refused_traffic(mesh, pod):
            found.setdefault(key, []).append(pod)
    return [refusal for refusal in finish(group_refusals(found)) if refusal.breaks]


def group_refusals(found: Mapping[RefusalKey, Sequence[Pod]]) -> Steps[list[Refusal]]:
    """Return refusals of single pods, grouped."""
    grouping = Grouping(found)
    grouped = []
    for key in sorted(found, key=_rank):
        yield
        traffic, port, ref, source = key
        clients = grouping.merge([key])
        grouped.append(Refusal(traffic=traffic, clients=clients, port=port, decided_by=ref, source=source))
    return grouped


def _rank(key: RefusalKey) -> tuple[object, ...]:
    return list(Traffic).index(key.traffic), key.port, *(natural_key(*ref or ()) for ref in key[2:])


def mode_at(mesh: Mesh, pod: Pod, port: int) -> tuple[Mode, Ref] | None:
    """Return the mode that a pod's sidecar enforces at a port, and the object that decided it."""
    decision = enforced_mode(mesh, Endpoint(address=pod.address, port=port, pod=pod))
    return (decision.mode, decision.decided_by) if decision else None


class DirectTraffic(NamedTuple):
    """Traffic to a port of a pod from a client that is not a pod of the mesh."""

    port: int
    """Port of the pod."""
    traffic: Traffic
    """The traffic."""
    source: Ref | None = None
    """Object that proves it; None if the pod does."""


def direct_traffic(mesh: Mesh, pod: Pod) -> list[DirectTraffic]:
    """Return the traffic to a pod from clients that are not pods of the mesh.

    Traffic that is only probable is left out for ports with certain traffic.
    """
    found = [DirectTraffic(port, Traffic.KUBELET_PROBE) for port in pod.probe_ports]
    declared = [port.port for port in pod.ports]
    scraped = scraped_ports(pod.meta.annotations, declared)
    found += (DirectTraffic(port, Traffic.PROMETHEUS_SCRAPE) for port in scraped)
    found += _calls(mesh).get(pod.ref, ())
    certain = {each.port for each in found if each.traffic.is_certain}
    found = [each for each in found if each.traffic.is_certain or each.port not in certain]
    known = {each.port for each in found}
    served = {exposure.target for exposure in mesh.exposures(pod)}
    for port in pod.ports:
        if port.port not in known and port.name in METRICS_PORT_NAMES:
            found.append(DirectTraffic(port.port, Traffic.METRICS_PORT))
        elif port.port not in known | served:
            found.append(DirectTraffic(port.port, Traffic.POD_ADDRESS))
    return found


def _calls(mesh: Mesh) -> Mapping[Ref, list[DirectTraffic]]:
    """Return the traffic that Services and `Caller` objects prove, by pod."""
    found: dict[Ref, list[DirectTraffic]] | None = mesh.lasting.get(_calls)
    if found is None:
        found = {}
        for pod, traffic in dict.fromkeys((pod.ref, traffic) for pod, traffic in _find_calls(mesh)):
            found.setdefault(pod, []).append(traffic)
        mesh.lasting[_calls] = found
    return found


def _find_calls(mesh: Mesh) -> Iterator[tuple[Pod, DirectTraffic]]:
    for service in mesh.services():
        if service.published:
            for pod, port in _endpoints(mesh, service, service.ports):
                yield pod, DirectTraffic(port, Traffic.OUTSIDE_CLIENT, service.ref)
        is_scraped = SCRAPE in service.meta.annotations
        for pod, port in _endpoints(mesh, service, service.ports) if is_scraped else ():
            for scraped in scraped_ports(service.meta.annotations, (port,)):
                yield pod, DirectTraffic(scraped, Traffic.PROMETHEUS_SCRAPE, service.ref)
    for namespace in mesh.namespaces():
        for caller in mesh.in_namespace(namespace).callers:
            for call in caller.calls:
                for pod, port in _called(mesh, call):
                    yield pod, DirectTraffic(port, caller.traffic, caller.ref)


def _called(mesh: Mesh, call: Call) -> Iterator[tuple[Pod, int]]:
    for namespace in call.namespaces or mesh.namespaces():
        facts = mesh.in_namespace(namespace)
        if call.selects_pods:
            for pod in facts.pods.values():
                if _matches(call, pod.meta.labels):
                    yield from ((pod, port) for port in _ports_named(pod, call.target or call.port))
            continue
        services = facts.services.values()
        for service in filter(None, [facts.services.get(call.service)]) if call.service else services:
            if not call.service and not _matches(call, service.meta.labels):
                continue
            ports = [port for port in service.ports if call.port in (None, port.port, port.name)]
            for pod, port in _endpoints(mesh, service, ports):
                for target in _ports_named(pod, call.target) if call.target else (port,):
                    yield pod, target


def _matches(call: Call, labels: Mapping[str, str]) -> bool:
    return all(requirement.matches(labels) for requirement in call.selector)


def _ports_named(pod: Pod, port: int | str | None) -> list[int]:
    """Return the ports of a pod with a number or name, or all."""
    if isinstance(port, int):
        return [port]
    return [each.port for each in pod.ports if port in (None, each.name)]


def _endpoints(mesh: Mesh, service: Service, ports: Iterable[ServicePort]) -> Iterator[tuple[Pod, int]]:
    for port in ports:
        for endpoint in mesh.endpoints(service, port):
            if endpoint.pod:
                yield endpoint.pod, endpoint.port
