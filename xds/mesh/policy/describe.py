"""Describe a pod as a server: its Services, what its ports accept, and the clients that cannot reach it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Exposure, Mesh
from xds.mesh.model.objects import Pod
from xds.mesh.policy.explain import Side, explain_endpoint, server_side
from xds.mesh.policy.mtls import endpoint_mode, ports_with_own_mode
from xds.mesh.policy.reach import Result

OTHER_PORTS = 0
"""Stands for all ports of a pod that are not described individually."""

_WORKLOAD_LABELS = ("app.kubernetes.io/name", "app")
"""Labels that name the workload of a pod. The first one that a pod has applies."""


class RefusedClients(NamedTuple):
    """Clients of one workload whose connections to a port fail for the same reason."""

    workload: str
    """NAME.NAMESPACE. NAME is the label `app.kubernetes.io/name` or `app`, or else the pod's name."""
    why: str
    """Why the connections fail, in words."""
    pods: int
    """Number of client pods."""


class PortDescription(NamedTuple):
    """A port of a pod."""

    port: int
    """Port of the pod, or OTHER_PORTS."""
    exposures: tuple[Exposure, ...]
    """Service ports that forward to it, oldest Service first."""
    server: Side
    """What it accepts."""
    refused: tuple[RefusedClients, ...]
    """Clients that cannot reach it through these Services."""


def describe(mesh: Mesh, pod: Pod) -> Iterator[PortDescription]:
    """Yield the ports of a pod to which Services forward or which policies name, then all other ports."""
    exposures = mesh.exposures(pod)
    own_modes = ports_with_own_mode(mesh, pod) if pod.has_sidecar else ()
    for port in (*sorted({*own_modes, *(exposure.target for exposure in exposures)}), OTHER_PORTS):
        endpoint = Endpoint(address=pod.address, port=port, pod=pod)
        to_port = tuple(exposure for exposure in exposures if exposure.target == port)
        server = endpoint_mode(mesh, endpoint)
        refused = tuple(_refused(mesh, endpoint, to_port))
        yield PortDescription(port, to_port, server_side(mesh, endpoint, server), refused)


def _refused(mesh: Mesh, endpoint: Endpoint, exposures: tuple[Exposure, ...]) -> Iterator[RefusedClients]:
    """Yield the clients whose connections to an endpoint fail, by workload and reason."""
    pods: dict[tuple[str, str], set[str]] = {}
    for client in mesh.pods():
        for exposure in () if client.ended else exposures:
            explanation = explain_endpoint(mesh, client, exposure.service, exposure.port, endpoint)
            if explanation.result is Result.FAILS:
                key = (_workload(client), explanation.why)
                pods.setdefault(key, set()).add(client.name)
    for (workload, why), names in sorted(pods.items()):
        yield RefusedClients(workload, why, len(names))


def _workload(pod: Pod) -> str:
    labels = pod.meta.labels
    name = next((labels[key] for key in _WORKLOAD_LABELS if labels.get(key)), pod.name)
    return f"{name}.{pod.namespace}"
