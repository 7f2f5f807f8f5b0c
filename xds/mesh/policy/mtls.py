"""The mTLS decision: what a server's listener accepts, and what a client therefore sends to each endpoint.

These rules exist only here. `xds reach` calls `decide`; the translator calls `served_mode` and `sends_mtls`.
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


class ModeDecision(NamedTuple):
    """The mTLS mode of a pod's port, and the object that decided it."""

    mode: Mode
    """What the pod's listener accepts on the port."""
    decided_by: Ref
    """Object that set the mode. If no object sets one (PERMISSIVE applies), the most specific object for the
    port."""
    overridden: tuple[Ref, ...] = ()
    """Other objects that apply to the port, most specific first."""


def effective_mode(mesh: Mesh, pod: Pod, port: int) -> ModeDecision:
    """Return the mTLS mode that policies require on a pod's port, and the object that decided it.

    PeerAuthentication overrides v1alpha1 policies at every level. v1alpha1 policies target Services: if
    several Services lead to the port, those of the oldest Service apply. The pod's listener uses the same
    rule.
    """
    alpha = _alpha(mesh, pod, port)
    beta = _peer_authentication(mesh, pod, port)
    if beta is None:
        return alpha
    return ModeDecision(beta.mode, beta.decided_by, (*beta.overridden, alpha.decided_by, *alpha.overridden))


def endpoint_mode(mesh: Mesh, endpoint: Endpoint) -> ModeDecision | None:
    """Return the mode that policies require at an endpoint, or None if no sidecar is in front of it."""
    pod = endpoint.pod
    if pod is None or not pod.has_sidecar:
        return None
    if endpoint.port in mesh.config.beside_sidecar(pod.interception):
        return None
    return effective_mode(mesh, pod, endpoint.port)


def _levels(mesh: Mesh, pod: Pod) -> tuple[list[PeerAuthentication], ...]:
    """Return the PeerAuthentications for a pod by level (workload, namespace, mesh), each oldest first."""
    root = mesh.in_namespace(mesh.config.root_namespace).peer_authentications
    # A PeerAuthentication with a selector in the root namespace applies to no pod, not even there.
    mesh_wide = [pa for pa in root if not pa.selector]
    if pod.namespace == mesh.config.root_namespace:
        return [], [], mesh_wide
    own = mesh.in_namespace(pod.namespace).peer_authentications
    workload = [
        pa for pa in own if pa.scope_unknown or (pa.selector and covers(pa.selector, pod.meta.labels))
    ]
    return workload, [pa for pa in own if not pa.selector and not pa.scope_unknown], mesh_wide


def ports_with_own_mode(mesh: Mesh, pod: Pod) -> tuple[int, ...]:
    """Return the ports that the pod's workload PeerAuthentication lists in portLevelMtls, sorted."""
    workload, _, _ = _levels(mesh, pod)
    return tuple(sorted(workload[0].ports)) if workload else ()


def _peer_authentication(mesh: Mesh, pod: Pod, port: int) -> ModeDecision | None:
    """Compose modes as Istio does: port over workload over namespace over mesh.

    The oldest object of each level applies.
    """
    levels = [level for level in _levels(mesh, pod) if level]
    if not levels:
        return None
    oldest = [level[0] for level in levels]
    younger = [pa.ref for level in levels for pa in level[1:]]
    modes = [((pa.ports.get(port) if pa.selector else None) or pa.mode, pa.ref) for pa in oldest]
    # Objects that inherit their mode (UNSET) come after the object that sets it.
    ranked = [
        *((mode, ref) for mode, ref in modes if mode),
        *((None, ref) for mode, ref in modes if not mode),
    ]
    (mode, decided_by), *rest = ranked
    return ModeDecision(mode or Mode.PERMISSIVE, decided_by, (*(ref for _, ref in rest), *younger))


def _alpha(mesh: Mesh, pod: Pod, port: int) -> ModeDecision:
    modes: dict[Ref, Mode] = {}
    for policy in _alpha_policies(mesh, pod, port):
        modes.setdefault(policy.ref, policy.mode)
    first, *rest = modes
    return ModeDecision(modes[first], first, tuple(rest))


def _alpha_policies(mesh: Mesh, pod: Pod, port: int) -> Iterator[AuthenticationPolicy]:
    """Yield v1alpha1 policies in Istio 1.5's order: service port, service, namespace, mesh."""
    exposed = mesh.exposure(pod, port)
    facts = mesh.in_namespace(exposed.service.namespace if exposed else pod.namespace)
    policies = facts.policies
    # The port may belong to a Service that was refused.
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
    # Namespace and mesh policies also apply to ports of no Service: otherwise, these would accept plaintext
    # in a STRICT mesh. A MeshPolicy always exists: `default_objects` creates it.
    yield from (policy for policy in policies if not policy.targets and not policy.scope_unknown)
    yield from mesh.in_namespace("").policies


def served_mode(mesh: Mesh, pod: Pod, port: int) -> ModeDecision:
    """Return the mode that the listener of a pod's port is currently served with.

    During a rollout, this can differ from the mode that `effective_mode` returns.
    """
    desired = effective_mode(mesh, pod, port)
    served = mesh.served.modes.get((pod.ref, port))
    return desired if served is None else desired._replace(mode=served)


class Send(StrEnum):
    """What a client sends to an endpoint."""

    MTLS = "mtls"
    """Mutual TLS with certificates of the mesh."""
    PLAINTEXT = "plaintext"
    """No TLS."""
    TLS = "tls"
    """TLS as a DestinationRule configures it (SIMPLE, MUTUAL). Sidecars of the mesh do not accept it."""


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
    """What the client sends."""
    reason: Reason
    """Rule that decided."""
    decided_by: Ref | None = None
    """Object that decided; None if no object did (no sidecar, auto mTLS disabled, the default mode)."""
    overridden: tuple[Ref, ...] = ()
    """Other objects that apply to this hop, most specific first."""


_BY_ENDPOINT = (Reason.AUTO_MTLS, Reason.SERVER_PLAINTEXT)
"""Reasons of decisions that depend on the server's mode."""

_SENDS = {
    TlsMode.DISABLE: Send.PLAINTEXT,
    TlsMode.SIMPLE: Send.TLS,
    TlsMode.MUTUAL: Send.TLS,
    TlsMode.ISTIO_MUTUAL: Send.MTLS,
}


def explicit_tls(rule: ClientRule | None, port: int, subset: str = "") -> ClientTls | None:
    """Return a rule's TLS settings for a port and subset, or None if auto mTLS decides."""
    return rule.for_port(port, subset).tls if rule else None


def decide(  # noqa: PLR0917
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> Decision:
    """Decide what a client sends to an endpoint of a service port.

    Args:
        mesh: the facts.
        client: pod that sends.
        service: Service that the client calls.
        port: port of the Service.
        endpoint: endpoint that the client's load balancer picked.
        subset: DestinationRule subset that the client calls; empty for the Service as a whole.
    """
    if not client.has_sidecar:
        return Decision(Send.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR)
    return decide_for(
        mesh, client_rule(mesh, client.namespace, client.meta.labels, service), port, endpoint, subset
    )


def decide_for(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> Decision:
    """Like `decide`, for all clients with a sidecar that share `rule` for the service."""
    server = endpoint_mode(mesh, endpoint)
    server_objects = (server.decided_by, *server.overridden) if server else ()
    tls = explicit_tls(rule, port.port, subset)
    if rule and tls:
        owner = rule.tls_owner(port.port, subset)
        return Decision(_SENDS[tls.mode], Reason.DESTINATION_RULE, owner, server_objects)
    if not mesh.config.enable_auto_mtls:
        return Decision(Send.PLAINTEXT, Reason.AUTO_MTLS_OFF, None, server_objects)
    if server is None:
        return Decision(Send.PLAINTEXT, Reason.ENDPOINT_WITHOUT_SIDECAR)
    if server.mode is Mode.DISABLE:
        return Decision(Send.PLAINTEXT, Reason.SERVER_PLAINTEXT, server.decided_by, server.overridden)
    return Decision(Send.MTLS, Reason.AUTO_MTLS, server.decided_by, server.overridden)


def sends_mtls(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint, subset: str = ""
) -> bool:
    """Whether clients with this rule send mutual TLS now.

    During a rollout, this can differ from the decision of `decide_for`.
    """
    decision = decide_for(mesh, rule, port, endpoint, subset)
    if mesh.served.mtls and endpoint.pod and decision.reason in _BY_ENDPOINT:
        served = mesh.served.mtls.get((endpoint.pod.ref, endpoint.port))
        if served is not None:
            return served
    return decision.mode is Send.MTLS
