"""The decision: what a server's listener accepts, and what a client therefore sends to each endpoint.

`decide` is the one function that knows. The translator, `reach`, and whoever explains or plans ask it; nobody repeats its rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import (
    AuthenticationPolicy,
    Mode,
    PeerAuthentication,
    Pod,
    Ref,
    Service,
    ServicePort,
)
from xds.mesh.model.traffic import ClientTls, TlsMode
from xds.mesh.policy.destination import ClientRule, client_rule


class InForce(NamedTuple):
    """What a pod's listener accepts on a port, and why."""

    mode: Mode
    because: Ref
    """The object that decided; where none says a mode (PERMISSIVE, then), the nearest that could have."""
    overruled: tuple[Ref, ...] = ()
    """Objects that speak about this port too and lost, nearest first."""


def in_force(mesh: Mesh, pod: Pod, port: int) -> InForce:
    """Return the mode in force for a port of a pod.

    A PeerAuthentication that applies to the pod, at any level, wins over alpha policies, which speak about services: for them the
    port belongs to the oldest Service that leads to it, as in the pod's listener.
    """
    alpha = _alpha(mesh, pod, port)
    beta = _peer_authentication(mesh, pod, port)
    if beta is None:
        return alpha
    return InForce(beta.mode, beta.because, (*beta.overruled, alpha.because, *alpha.overruled))


def at_endpoint(mesh: Mesh, endpoint: Endpoint) -> InForce | None:
    """Return the mode in force at an endpoint; None: no sidecar is in front of it."""
    pod = endpoint.pod
    if pod is None or not pod.has_sidecar:
        return None
    if endpoint.port in mesh.config.beside_sidecar(pod.interception):
        return None
    return in_force(mesh, pod, endpoint.port)


def _levels(mesh: Mesh, pod: Pod) -> tuple[list[PeerAuthentication], ...]:
    """The PeerAuthentications that apply to a pod: its own, its namespace's, the mesh's; oldest first."""
    root = mesh.in_namespace(mesh.config.root_namespace).peer_authentications
    # In the root namespace a selector makes a PeerAuthentication apply to nothing, its own namespace included.
    mesh_wide = [pa for pa in root if not pa.selector]
    if pod.namespace == mesh.config.root_namespace:
        return [], [], mesh_wide
    own = mesh.in_namespace(pod.namespace).peer_authentications
    workload = [
        pa for pa in own if pa.scope_unknown or (pa.selector and covers(pa.selector, pod.meta.labels))
    ]
    return workload, [pa for pa in own if not pa.selector and not pa.scope_unknown], mesh_wide


def ports_with_own_mode(mesh: Mesh, pod: Pod) -> tuple[int, ...]:
    """Return the ports for which the pod's PeerAuthentication has an entry, sorted."""
    workload, _, _ = _levels(mesh, pod)
    return tuple(sorted(workload[0].ports)) if workload else ()


def _peer_authentication(mesh: Mesh, pod: Pod, port: int) -> InForce | None:
    """Restate Istio's composition: mesh, then namespace, then workload, then port; the oldest of a level decides for it."""
    levels = [level for level in _levels(mesh, pod) if level]
    if not levels:
        return None
    oldest = [level[0] for level in levels]
    younger = [pa.ref for level in levels for pa in level[1:]]
    modes = [((pa.ports.get(port) if pa.selector else None) or pa.mode, pa.ref) for pa in oldest]
    # Those that leave the mode to others come after the one that says it.
    spoken = [
        *((mode, ref) for mode, ref in modes if mode),
        *((None, ref) for mode, ref in modes if not mode),
    ]
    (mode, because), *rest = spoken
    return InForce(mode or Mode.PERMISSIVE, because, (*(ref for _, ref in rest), *younger))


def _alpha(mesh: Mesh, pod: Pod, port: int) -> InForce:
    modes: dict[Ref, Mode] = {}
    for policy in _alpha_policies(mesh, pod, port):
        modes.setdefault(policy.ref, policy.mode)
    first, *rest = modes
    return InForce(modes[first], first, tuple(rest))


def _alpha_policies(mesh: Mesh, pod: Pod, port: int) -> Iterator[AuthenticationPolicy]:
    """Yield, as Istio 1.5 ranks them: policies for the service's port, for the service, the namespace's, the mesh's."""
    exposed = mesh.exposure(pod, port)
    facts = mesh.in_namespace(exposed.service.namespace if exposed else pod.namespace)
    policies = facts.policies
    # The port may belong to a Service that could not be read.
    yield from (
        replace(policy, mode=Mode.STRICT)
        for policy in policies
        if any(target.service in facts.unknown_services for target in policy.targets)
    )
    names: tuple[object, ...] = ()
    hosts: tuple[str, ...] = ()
    if exposed:
        names = (exposed.port.port, exposed.port.name or None)
        hosts = (exposed.service.name, exposed.service.host)
    targeted = [(policy, [t for t in policy.targets if t.service in hosts]) for policy in policies]
    yield from (
        policy
        for policy, targets in targeted
        if policy.scope_unknown or any(name in names for target in targets for name in target.ports)
    )
    yield from (policy for policy, targets in targeted if any(not target.ports for target in targets))
    # A MeshPolicy there always is: installing creates it.
    # A port of no Service, too, is under the namespace's and the mesh's policy: no port of a locked mesh stays open unnoticed.
    yield from (policy for policy in policies if not policy.targets and not policy.scope_unknown)
    yield from mesh.in_namespace("").policies


def accepted(mesh: Mesh, pod: Pod, port: int) -> InForce:
    """Return what a pod's listener is served now: the mode in force, unless a rollout is on its way there."""
    wanted = in_force(mesh, pod, port)
    now = mesh.served.modes.get((pod.ref, port))
    return wanted if now is None else wanted._replace(mode=now)


class Send(StrEnum):
    """What a client puts on the wire to an endpoint."""

    MTLS = "mtls"
    """The mesh's mutual TLS."""
    PLAINTEXT = "plaintext"
    TLS = "tls"
    """TLS of the DestinationRule's own (SIMPLE, MUTUAL), which the mesh's servers do not take."""


class Reason(StrEnum):
    """Why a client sends what it sends."""

    CLIENT_WITHOUT_SIDECAR = "client-without-sidecar"
    DESTINATION_RULE = "destination-rule"
    AUTO_MTLS_OFF = "auto-mtls-off"
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    SERVER_PLAINTEXT = "server-plaintext"
    AUTO_MTLS = "auto-mtls"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a client sends to one endpoint, and why."""

    mode: Send
    reason: Reason
    because: Ref | None = None
    """The object that decided; None where no object did (no sidecar, auto mTLS switched off, the default mode)."""
    overruled: tuple[Ref, ...] = ()
    """Objects that speak about this hop too and lost, nearest first."""


_BY_ENDPOINT = (Reason.AUTO_MTLS, Reason.SERVER_PLAINTEXT)
"""Where the server's mode decides."""

_SENDS = {
    TlsMode.DISABLE: Send.PLAINTEXT,
    TlsMode.SIMPLE: Send.TLS,
    TlsMode.MUTUAL: Send.TLS,
    TlsMode.ISTIO_MUTUAL: Send.MTLS,
}


def explicit_tls(rule: ClientRule | None, port: int, subset: str = "") -> ClientTls | None:
    """Return the TLS settings that a rule spells out for a port and subset; None leaves it to auto mTLS."""
    return rule.for_port(port, subset).tls if rule else None


def decide(  # noqa: PLR0917
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> Decision:
    """Decide what a client sends to an endpoint of a service port (asked for by way of a subset, if any)."""
    if not client.has_sidecar:
        return Decision(Send.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR)
    return decide_for(
        mesh, client_rule(mesh, client.namespace, client.meta.labels, service), port, endpoint, subset
    )


def decide_for(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> Decision:
    """Decide as `decide` does, for all clients that have a sidecar and get the same rule for the service."""
    server = at_endpoint(mesh, endpoint)
    speaking = (server.because, *server.overruled) if server else ()
    tls = explicit_tls(rule, port.port, subset)
    if rule and tls:
        owner = rule.tls_owner(port.port, subset)
        return Decision(_SENDS[tls.mode], Reason.DESTINATION_RULE, owner, speaking)
    if not mesh.config.enable_auto_mtls:
        return Decision(Send.PLAINTEXT, Reason.AUTO_MTLS_OFF, None, speaking)
    if server is None:
        return Decision(Send.PLAINTEXT, Reason.ENDPOINT_WITHOUT_SIDECAR)
    if server.mode is Mode.DISABLE:
        return Decision(Send.PLAINTEXT, Reason.SERVER_PLAINTEXT, server.because, server.overruled)
    return Decision(Send.MTLS, Reason.AUTO_MTLS, server.because, server.overruled)


def sends_mtls(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> bool:
    """Whether these clients send mutual TLS now: as `decide_for` has it, unless a rollout is on its way there."""
    decision = decide_for(mesh, rule, port, endpoint, subset)
    if mesh.served.mtls and endpoint.pod and decision.reason in _BY_ENDPOINT:
        now = mesh.served.mtls.get((endpoint.pod.ref, endpoint.port))
        if now is not None:
            return now
    return decision.mode is Send.MTLS
