"""mTLS decisions: the mode that a server's listener accepts, and what a client sends to each endpoint.

No other module implements these rules. `xds explain` calls `decide`; the translator calls `served_mode` and
`sends_mtls_each`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Exposure, Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import (
    Mode,
    ModePolicy,
    Pod,
    Ref,
    Service,
    ServicePort,
)
from xds.mesh.model.redirection import Redirection
from xds.mesh.model.traffic import ClientTls, TlsMode
from xds.mesh.policy.destination import ClientRule, client_rule
from xds.mesh.policy.visibility import hidden


class ModeDecision(NamedTuple):
    """The mTLS mode of a pod's port, and the object that decided it."""

    mode: Mode
    """Mode required by policies (`effective_mode`) or currently configured (`served_mode`)."""
    decided_by: Ref
    """Object that set the mode.

    If every applicable PeerAuthentication leaves the mode UNSET, the mode is PERMISSIVE (v1alpha1 policies
    are not consulted), and `decided_by` is the most specific of these objects.
    """
    overridden: tuple[Ref, ...] = ()
    """Other objects that apply to the port, in order of precedence."""


def effective_mode(mesh: Mesh, pod: Pod, port: int) -> ModeDecision:
    """Return the mTLS mode that policies require on a pod's port, and the object that decided it.

    A PeerAuthentication overrides all v1alpha1 policies, even more specific ones. v1alpha1 policies target
    Services: if several Services forward to the port, the policies for the oldest Service apply. The pod's
    listener takes the protocol of the port from that Service too.
    """
    decisions: dict[object, ModeDecision] = mesh.scratch.setdefault("modes", {})
    key: object = pod.namespace
    decision = decisions.get(key)
    if decision is not None:
        return decision
    facts = mesh.in_namespace(pod.namespace)
    exposure: Exposure | None = None
    # Pods and ports with the same key cannot have different decisions. The key of all in a namespace is its
    # name, unless policies distinguish them.
    if facts.workload_authentications or facts.has_targets:
        exposure = mesh.exposure(pod, port) if facts.has_targets else None
        workload = tuple(
            item.ref
            for item in facts.workload_authentications
            if item.selector and covers(item.selector, pod.meta.labels)
        )
        key = (key, workload, port if workload else 0, exposure and (exposure.service.name, exposure.port))
    decision = decisions.get(key)
    if decision is None:
        decision = decisions[key] = _effective_mode(mesh, pod, port, exposure)
    return decision


def _effective_mode(mesh: Mesh, pod: Pod, port: int, exposure: Exposure | None) -> ModeDecision:
    """Decide the mode of a port. `exposure` is the port's Service, if a policy targets any Service."""
    modes: dict[Ref, Mode | None] = {}
    for ref, mode in (*_peer_authentications(mesh, pod, port), *_v1alpha1(mesh, pod, exposure)):
        modes.setdefault(ref, mode)
    decided_by, *overridden = modes
    return ModeDecision(modes[decided_by] or Mode.PERMISSIVE, decided_by, tuple(overridden))


def endpoint_mode(mesh: Mesh, endpoint: Endpoint) -> ModeDecision | None:
    """Return the mode that clients assume at an endpoint; None if it has no sidecar that accepts mutual TLS.

    As in Istio, annotations of the endpoint's pod make no difference to clients (`enforced_mode`).
    """
    pod = endpoint.pod
    if pod is None or not pod.has_sidecar:
        return None
    if endpoint.port in mesh.config.beside_sidecar(pod.interception):
        return None
    return effective_mode(mesh, pod, endpoint.port)


def enforced_mode(mesh: Mesh, endpoint: Endpoint) -> ModeDecision | None:
    """Return the mode that a sidecar enforces at an endpoint; None if none intercepts its traffic."""
    excluded = endpoint.pod and not endpoint.pod.redirection.redirects_inbound(endpoint.port)
    return None if excluded else endpoint_mode(mesh, endpoint)


def _levels(mesh: Mesh, pod: Pod) -> tuple[list[ModePolicy], ...]:
    """Return the PeerAuthentications for a pod's workload, its namespace and the mesh, each oldest first."""
    root = mesh.in_namespace(mesh.config.root_namespace).peer_authentications
    # In the root namespace, a PeerAuthentication with a selector applies to no pod.
    mesh_wide = [pa for pa in root if not pa.selector]
    if pod.namespace == mesh.config.root_namespace:
        return [], [], mesh_wide
    local = mesh.in_namespace(pod.namespace).peer_authentications
    workload = [
        pa for pa in local if pa.scope_unknown or (pa.selector and covers(pa.selector, pod.meta.labels))
    ]
    namespace_wide = [pa for pa in local if not pa.selector and not pa.scope_unknown]
    return workload, namespace_wide, mesh_wide


def ports_with_own_mode(mesh: Mesh, pod: Pod) -> tuple[int, ...]:
    """Return the ports in `portLevelMtls` of the pod's workload PeerAuthentication, sorted."""
    workload, _, _ = _levels(mesh, pod)
    return tuple(sorted(workload[0].ports)) if workload else ()


def _peer_authentications(mesh: Mesh, pod: Pod, port: int) -> list[tuple[Ref, Mode | None]]:
    """Return the PeerAuthentications for a port in order of precedence, each with its mode (None for UNSET).

    As in Istio, the port's mode takes precedence over the workload's, which takes precedence over the
    namespace's, and so on. At each level, only the oldest object applies.
    """
    levels = [level for level in _levels(mesh, pod) if level]
    modes = [(pa.ref, (pa.ports.get(port) if pa.selector else None) or pa.mode) for pa, *_ in levels]
    newer = [(pa.ref, pa.mode) for level in levels for pa in level[1:]]
    # Objects that inherit their mode (UNSET) come after those that set one.
    return [*sorted(modes, key=lambda item: item[1] is None), *newer]


def _v1alpha1(mesh: Mesh, pod: Pod, exposure: Exposure | None) -> Iterator[tuple[Ref, Mode | None]]:
    """Yield v1alpha1 policies in Istio 1.5's order of precedence: service port, service, namespace, mesh."""
    facts = mesh.in_namespace(pod.namespace)  # A Service exposes pods of its own namespace only.
    policies = facts.policies
    # Fail closed: the port may belong to a rejected Service that one of these policies targets.
    yield from (
        (policy.ref, Mode.STRICT)
        for policy in policies
        if any(target.service in facts.unknown_services for target in policy.targets)
    )
    port_names: tuple[object, ...] = ()
    service_names: tuple[str, ...] = ()
    if exposure and not exposure.service.entry_host:
        port_names = (exposure.port.port, exposure.port.name or None)
        service_names = (exposure.service.name, exposure.service.host)
    targeted = [(policy, [t for t in policy.targets if t.service in service_names]) for policy in policies]
    levels = (
        *(
            policy
            for policy, targets in targeted
            if policy.scope_unknown or any(name in port_names for target in targets for name in target.ports)
        ),
        *(policy for policy, targets in targeted if any(not target.ports for target in targets)),
        # Policies for the namespace and the mesh also apply to ports that belong to no Service. Otherwise,
        # these ports would accept plaintext in a STRICT mesh.
        *(policy for policy in policies if not policy.targets and not policy.scope_unknown),
        # At least one policy for the mesh exists: `default_objects` creates it.
        *mesh.in_namespace("").policies,
    )
    yield from ((policy.ref, policy.mode) for policy in levels)


def served_mode(mesh: Mesh, pod: Pod, port: int) -> ModeDecision:
    """Return the mode that the control plane currently serves for a pod's port.

    During a rollout, it can differ from the mode that `effective_mode` returns.
    """
    desired = effective_mode(mesh, pod, port)
    served = mesh.served.modes.get((pod.ref, port))
    return desired if served is None else desired._replace(mode=served)


class Send(StrEnum):
    """What a client sends to an endpoint."""

    MTLS = "mtls"
    """Mutual TLS with the mesh's certificates."""
    PLAINTEXT = "plaintext"
    """No TLS."""
    TLS = "tls"
    """TLS that a DestinationRule configures (SIMPLE or MUTUAL).

    Sidecars forward it to the application. Under STRICT, they refuse it."""


class Reason(StrEnum):
    """Rule that decides what a client sends."""

    CLIENT_WITHOUT_SIDECAR = "client-without-sidecar"
    """The client has no sidecar, so it sends plaintext."""
    OUTBOUND_EXCLUDED = "outbound-excluded"
    """Annotations of the client's pod exclude the connection from its sidecar, so it sends plaintext."""
    PASSTHROUGH = "passthrough"
    """The Service does not own the address, so the client's sidecar passes the connection through."""
    DESTINATION_RULE = "destination-rule"
    """A DestinationRule has TLS settings for the service port."""
    AUTO_MTLS_OFF = "auto-mtls-off"
    """Auto mTLS is disabled and no DestinationRule has TLS settings, so the client sends plaintext."""
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    """Auto mTLS: no sidecar is in front of the endpoint, so the client sends plaintext."""
    SERVER_PLAINTEXT = "server-plaintext"
    """Auto mTLS: the server's mode is DISABLE, so the client sends plaintext."""
    EXTERNAL = "external"
    """No DestinationRule has TLS settings for a MESH_EXTERNAL ServiceEntry, so the client sends plaintext."""
    NOT_EXPORTED = "not-exported"
    """The client does not see the service, so the connection passes through."""
    AUTO_MTLS = "auto-mtls"
    """Auto mTLS: the server's mode is PERMISSIVE or STRICT, so the client sends mutual TLS."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a client sends to one endpoint, and why."""

    send: Send
    """What the client sends."""
    reason: Reason
    """Rule that decided."""
    decided_by: Ref | None = None
    """Object that decided.

    None if the connection bypasses the client's sidecar, the client has none, or the mesh's default hides the
    service. Without a deciding DestinationRule, also None if the endpoint has no sidecar or auto mTLS is
    disabled.
    """
    overridden: tuple[Ref, ...] = ()
    """Other objects for this client and endpoint, in order of precedence."""


_BY_SERVER_MODE = (Reason.AUTO_MTLS, Reason.SERVER_PLAINTEXT)
"""Reasons of decisions that depend on the server's mode."""

_SENDS = {
    TlsMode.DISABLE: Send.PLAINTEXT,
    TlsMode.SIMPLE: Send.TLS,
    TlsMode.MUTUAL: Send.TLS,
    TlsMode.ISTIO_MUTUAL: Send.MTLS,
}


def explicit_tls(rule: ClientRule | None, port: int, subset: str = "") -> ClientTls | None:
    """Return the TLS settings of a rule for a service port and subset; None if there are none."""
    return rule.for_port(port, subset).tls if rule else None


def decide(mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint) -> Decision:
    """Decide what a client should send to an endpoint of a service port that owns the address.

    Args:
        mesh: the facts.
        client: pod of the client.
        service: Service that the client calls.
        port: port of the Service.
        endpoint: endpoint that the client's load balancer picked.
    """
    if not client.has_sidecar:
        return Decision(Send.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR)
    if is_excluded(client.redirection, service, port, endpoint):
        return Decision(Send.PLAINTEXT, Reason.OUTBOUND_EXCLUDED)
    if found := decide_if_hidden(mesh, client, service):
        return found
    return decide_for(mesh, client_rule(mesh, client.namespace, client.meta.labels, service), port, endpoint)


def decide_if_hidden(mesh: Mesh, client: Pod, service: Service) -> Decision | None:
    """Decide what a client sends if it does not see a service; None if it sees it."""
    why = hidden(mesh, service, client.namespace, client.meta.labels)
    return Decision(Send.PLAINTEXT, Reason.NOT_EXPORTED, why.by) if why else None


def is_excluded(redirection: Redirection, service: Service, port: ServicePort, endpoint: Endpoint) -> bool:
    """Whether connections of clients with this redirection bypass their sidecars.

    Args:
        redirection: connections that pass through the clients' sidecars.
        service: Service that the clients call.
        port: port of the Service.
        endpoint: endpoint that a load balancer picks.
    """
    return not redirection.redirects_outbound(*dialled_by_clients(service, port, endpoint))


def dialled_by_clients(service: Service, port: ServicePort, endpoint: Endpoint) -> tuple[str, int]:
    """Return the address and port that applications connect to when they call a service port.

    The address is the first one of the service, or the endpoint's if the service is headless. It is empty if
    it is not known.
    """
    if service.headless:
        return endpoint.address, endpoint.port
    return "".join(service.addresses[:1]), port.port


def decide_for(mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint) -> Decision:
    """Like `decide`, for clients with a sidecar, whose DestinationRule for the service is `rule`."""
    return decide_for_mode(mesh, rule, port, endpoint_mode(mesh, endpoint))


def decide_for_mode(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, server: ModeDecision | None, subset: str = ""
) -> Decision:
    """Like `decide_for`, for endpoints whose mode is `server` (`endpoint_mode`).

    `subset` is the DestinationRule subset that the client calls; empty for the Service as a whole.
    """
    server_objects = (server.decided_by, *server.overridden) if server else ()
    tls = explicit_tls(rule, port.port, subset)
    if rule and tls:
        owner = rule.tls_owner(port.port, subset)
        return Decision(_SENDS[tls.mode], Reason.DESTINATION_RULE, owner, server_objects)
    if not mesh.config.enable_auto_mtls:
        return Decision(Send.PLAINTEXT, Reason.AUTO_MTLS_OFF, None, server_objects)
    if port.external:
        return Decision(Send.PLAINTEXT, Reason.EXTERNAL, None, server_objects)
    if server is None:
        return Decision(Send.PLAINTEXT, Reason.ENDPOINT_WITHOUT_SIDECAR)
    if server.mode is Mode.DISABLE:
        return Decision(Send.PLAINTEXT, Reason.SERVER_PLAINTEXT, server.decided_by, server.overridden)
    return Decision(Send.MTLS, Reason.AUTO_MTLS, server.decided_by, server.overridden)


def sends_mtls(mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint) -> bool:
    """Whether clients with this DestinationRule are currently configured to send mutual TLS to an endpoint.

    During a rollout, the answer can differ from the decision of `decide_for`.
    """
    return sends_mtls_each(mesh, rule, port, (endpoint,)) == (True,)


def sends_mtls_each(
    mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoints: Iterable[Endpoint], subset: str = ""
) -> tuple[bool, ...]:
    """Like `sends_mtls`, for several endpoints. Decide once for those with the same mode."""
    decided: dict[Mode | None, Decision] = {}
    served, sends = mesh.served.mtls, []
    for endpoint in endpoints:
        server = endpoint_mode(mesh, endpoint)
        mode = server.mode if server else None
        decision = decided.get(mode)
        if decision is None:
            decision = decided[mode] = decide_for_mode(mesh, rule, port, server, subset)
        send = decision.send is Send.MTLS
        if served and endpoint.pod and decision.reason in _BY_SERVER_MODE:
            send = served.get((endpoint.pod.ref, endpoint.port), send)
        sends.append(send)
    return tuple(sends)
