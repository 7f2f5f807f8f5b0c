"""Describe a pod as a server: its Services, what its ports accept, and the clients that cannot reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Exposure, Mesh
from xds.mesh.model.objects import Pod
from xds.mesh.policy.explain import Side, explain_endpoint, server_side
from xds.mesh.policy.hops import Clients, Grouping, SenderKey, clients_of, sender_key
from xds.mesh.policy.mtls import enforced_mode, ports_with_own_mode
from xds.mesh.policy.reach import Result

OTHER_PORTS = 0
"""Stands for all ports of a pod that are not described individually."""


class RefusedClients(NamedTuple):
    """Clients whose connections to a port fail for the same reason."""

    clients: tuple[Clients, ...]
    """Client pods, in natural order of their namespaces."""
    why: str
    """Why the connections fail, in words."""


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
    """Yield the ports to which Services forward or that policies or annotations name, then all others."""
    exposures = mesh.exposures(pod)
    named: set[int] = set()
    if pod.has_sidecar:
        redirection = pod.redirection
        excluded = {*(redirection.inbound_ports or ()), *redirection.exclude_inbound_ports}
        named = excluded.union(ports_with_own_mode(mesh, pod))
    classes: dict[SenderKey, list[Pod]] = {}
    for client in clients_of(mesh):
        classes.setdefault(sender_key(mesh, client), []).append(client)
    grouping = Grouping(classes)
    for port in (*sorted(named.union(exposure.target for exposure in exposures)), OTHER_PORTS):
        endpoint = Endpoint(address=pod.address, port=port, pod=pod)
        to_port = tuple(exposure for exposure in exposures if exposure.target == port)
        server = enforced_mode(mesh, endpoint)
        refused = tuple(
            RefusedClients(grouping.merge(keys), why)
            for why, keys in sorted(_refused(mesh, endpoint, to_port, classes).items())
        )
        yield PortDescription(port, to_port, server_side(mesh, endpoint, server), refused)


def _refused(
    mesh: Mesh,
    endpoint: Endpoint,
    exposures: tuple[Exposure, ...],
    classes: Mapping[SenderKey, Sequence[Pod]],
) -> dict[str, list[SenderKey]]:
    """Return the classes of clients whose connections to an endpoint fail, by reason."""
    refused: dict[str, dict[SenderKey, None]] = {}
    for key, clients in classes.items():
        for exposure in exposures:
            explanation = explain_endpoint(mesh, clients[0], exposure.service, exposure.port, endpoint)
            if explanation.result is Result.FAILS:
                refused.setdefault(explanation.why, {})[key] = None
    return {why: list(keys) for why, keys in refused.items()}
