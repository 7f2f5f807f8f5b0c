"""Describe a pod as a server: its Services, what its ports accept, and the clients that cannot reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Exposure, Mesh
from xds.mesh.model.objects import Mode, Pod
from xds.mesh.policy.access import permission, port_rules
from xds.mesh.policy.authorization import Access
from xds.mesh.policy.explain import Side, explain_endpoint, server_side
from xds.mesh.policy.hops import Clients, Grouping, SenderKey, clients_of, sender_key
from xds.mesh.policy.mtls import ModeDecision, enforced_mode, ports_with_own_mode
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
        side = server_side(mesh, endpoint, server)
        if port == OTHER_PORTS and (access := _plaintext_access(mesh, pod, server)):
            side = side._replace(summary=f"{side.summary}; {access}")
        yield PortDescription(port, to_port, side, refused)


def _plaintext_access(mesh: Mesh, pod: Pod, server: ModeDecision | None) -> str:
    """Return what AuthorizationPolicies deny on other ports, where clients send plaintext; empty if nothing.

    No Service forwards to these ports, so the sidecars of clients pass the connections through.
    """
    rules = port_rules(mesh, pod, OTHER_PORTS) if server and server.mode is not Mode.STRICT else None
    found = permission(mesh.config, rules, "") if rules else None
    if found is None or found.access is Access.ALLOWED:
        return ""
    if found.access is Access.DENIED:
        return f"plaintext is denied ({', '.join(map(str, found.policies))})"
    return f"plaintext is allowed {', '.join(found.conditions)}"


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
