"""Explain connections in words: what the client sends, what the server accepts, and which objects decided."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    DestinationRule,
    Mode,
    ModePolicy,
    Namespace,
    Pod,
    Ref,
    Service,
    ServiceEntry,
    ServicePort,
    Sidecar,
    TrafficFact,
)
from xds.mesh.model.traffic import ClientTls
from xds.mesh.policy.access_explanation import AccessExplanation, explain_access
from xds.mesh.policy.authorization import Request, policies_of
from xds.mesh.policy.destination import ClientRule, client_rule, rules_with_tls, served_client_rule
from xds.mesh.policy.mtls import (
    Decision,
    ModeDecision,
    Reason,
    Send,
    decide_for,
    endpoint_mode,
    enforced_mode,
    explicit_tls,
    sends_mtls,
    served_mode,
)
from xds.mesh.policy.reach import Answer, Connection, Failure, Result, Sent, connection, outcome, server_of

_OTHER_TLS = "TLS from a DestinationRule (SIMPLE or MUTUAL)"

SENDS = {Send.MTLS: "mutual TLS", Send.PLAINTEXT: "plaintext", Send.TLS: _OTHER_TLS}
"""What a client sends, in words."""

ACCEPTS = {
    Mode.DISABLE: "plaintext only (DISABLE)",
    Mode.PERMISSIVE: "mutual TLS and plaintext (PERMISSIVE)",
    Mode.STRICT: "mutual TLS only (STRICT)",
}
"""What a server accepts, in words."""

_RESULTS = {Result.MTLS: "mutual TLS", Result.PLAINTEXT: "plaintext", Result.FAILS: "fails"}

_EXCLUDED = "annotations of the client's pod exclude the connection from its sidecar"
_NOT_OWNED = "the Service does not own the address"
_PASSES = f"{_NOT_OWNED}, so the client's sidecar passes the connection through"
_NOT_VISIBLE = "the client does not see the service (exportTo, mesh settings or a Sidecar)"
_HIDDEN = f"{_NOT_VISIBLE}, so the client's sidecar passes the connection through"

_FAILURES = {
    Failure.NO_ENDPOINT: "the service port has no ready endpoint",
    Failure.POD_UNKNOWN: "no endpoint is ready, and an EndpointSlice names an unknown Pod",
    Failure.SERVICE_DELETED: "the change deletes the Service or its port",
    Failure.PORT_OF_SIDECAR: "the port belongs to the server's sidecar",
    Failure.SERVER_REQUIRES_MTLS: "the client sends plaintext, but the server accepts mutual TLS only",
    Failure.SERVER_PLAINTEXT: "the client sends mutual TLS, but the server accepts plaintext only",
    Failure.OUTBOUND_EXCLUDED: f"{_EXCLUDED}, but the server accepts mutual TLS only",
    Failure.PASSTHROUGH: f"{_PASSES}, but the server accepts mutual TLS only",
    Failure.OUTBOUND_BLOCKED: f"{_NOT_OWNED}, so the client's sidecar closes the connection",
    Failure.NOT_EXPORTED: f"{_NOT_VISIBLE}, so the client's sidecar closes the connection",
    Failure.NOT_EXPORTED_PLAINTEXT: f"{_HIDDEN}, but the server accepts mutual TLS only",
    Failure.INBOUND_EXCLUDED: "the client sends mutual TLS, but {absence}",
    Failure.ENDPOINT_WITHOUT_SIDECAR: "the client sends mutual TLS, but {absence}",
    Failure.IDENTITY_REFUSED: "the DestinationRule's subjectAltNames do not contain the server's identity",
    Failure.ACCESS_DENIED: "{policies} it",
    Failure.TLS_NOT_THE_MESHS: f"the client sends {_OTHER_TLS}, which the server's sidecar does not accept",
    Failure.TLS_LEFT_TO_APPLICATION: f"the client sends {_OTHER_TLS}, which the application may not support",
}
_REASONS = {
    Reason.CLIENT_WITHOUT_SIDECAR: "the client has no sidecar",
    Reason.OUTBOUND_EXCLUDED: _EXCLUDED,
    Reason.PASSTHROUGH: _PASSES,
    Reason.DESTINATION_RULE: "a DestinationRule sets {tls}",
    Reason.AUTO_MTLS_OFF: "auto mTLS is disabled, and no DestinationRule sets TLS",
    Reason.ENDPOINT_WITHOUT_SIDECAR: "{absence}",
    Reason.SERVER_PLAINTEXT: "the server's mode is DISABLE",
    Reason.EXTERNAL: "the ServiceEntry is MESH_EXTERNAL, and no DestinationRule sets TLS",
    Reason.NOT_EXPORTED: _HIDDEN,
    Reason.AUTO_MTLS: "auto mTLS is enabled, and the server's mode is {mode}",
}


class Decider(NamedTuple):
    """An object that decides one side of a connection, or that is overridden."""

    ref: Ref
    """The object."""
    scope: str
    """What the object applies to, in words, such as `port 8080` or `the namespace`; empty if not known."""

    def __str__(self) -> str:
        return f"{self.ref} for {self.scope}" if self.scope else str(self.ref)


class Side(NamedTuple):
    """What the client or the server of a connection does, and the objects that decided."""

    summary: str
    """What it sends or accepts, and why, in words."""
    decided_by: Decider | None = None
    """Object that decided; None if no object did, for example because there is no sidecar."""
    overridden: tuple[Decider, ...] = ()
    """Objects that the deciding object overrides, in order of precedence."""


class Configured(NamedTuple):
    """What the control plane currently serves. During a rollout, it can differ from the policies."""

    send: Send
    """What the client is configured to send."""
    mode: Mode | None
    """What the server's listener accepts; None if no sidecar intercepts the port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What happens when a client calls an endpoint of a service port, and why."""

    port: ServicePort
    """Port of the Service."""
    result: Result
    """Result that policies lead to."""
    reason: Reason | Failure
    """Rule that decided, or why the connection fails."""
    why: str
    """Why the connection has this result, in words."""
    client: Side | None = None
    """What the client sends; None if the port has no ready endpoint.

    `overridden` contains the DestinationRules that set TLS, but do not decide.
    """
    server: Side | None = None
    """What the server accepts.

    Without a ready endpoint, `decided_by` is the EndpointSlice that names an unknown Pod, if any.
    """
    desired: Configured | None = None
    """What policies require; None if the port has no ready endpoint."""
    served: Configured | None = None
    """What the control plane currently serves; None if the port has no ready endpoint."""
    identities: tuple[str, ...] = ()
    """SPIFFE IDs that the client accepts from the server; empty if it does not send mutual TLS."""
    access: AccessExplanation | None = None
    """How AuthorizationPolicies decide; None if none applies. Only `explanations` sets it."""

    @property
    def summary(self) -> str:
        """The result and its reason, in words: `plaintext: the server has no sidecar`."""
        is_foreign_tls = self.result is Result.PLAINTEXT and self.desired and self.desired.send is Send.TLS
        result = "TLS, but not the mesh's" if is_foreign_tls else _RESULTS[self.result]
        return f"{result}: {self.why}"


class Explained(NamedTuple):
    """Endpoints of a service port with the same explanation."""

    explanation: Explanation
    """The explanation."""
    endpoints: tuple[Endpoint, ...]
    """The endpoints; empty if the port has no ready endpoint."""


def explanations(
    mesh: Mesh,
    client: Pod,
    service: Service,
    ports: Iterable[ServicePort],
    request: Request | None = None,
) -> Iterator[tuple[Explanation, Endpoint | None]]:
    """Yield each ready endpoint of service ports with its explanation; None for a port without any.

    Endpoints that cannot differ share one explanation.

    Args:
        mesh: the facts.
        client: client of the connections.
        service: Service that it calls.
        ports: ports of the Service.
        request: the HTTP request, as for `connection`.
    """
    for port in ports:
        by_class: dict[Hashable, Explanation] = {}
        ready = [endpoint for endpoint in mesh.endpoints(service, port) if endpoint.ready]
        for endpoint in ready:
            key = _class_of(mesh, client, service, port, endpoint)
            if key not in by_class:
                found = connection(mesh, client, service, port, endpoint, request)
                by_class[key] = replace(
                    _explanation(mesh, client, service, port, found),
                    access=_access(mesh, client, found, request),
                )
            yield by_class[key], endpoint
        if not ready:
            yield _without_endpoint(mesh, client, service, port), None


def _class_of(mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint) -> Hashable:
    """Return a key for an endpoint of a service port: endpoints with equal keys have equal explanations."""
    server = server_of(mesh, service, port, endpoint, [client.redirection])
    if server.contest:
        return endpoint.address, endpoint.port
    absence = _why_not_intercepted(endpoint) if server.enforced is None else ""
    policies = tuple(policy.ref for policy in policies_of(mesh, endpoint.pod)) if endpoint.pod else ()
    served = None
    if _is_rolling_out(mesh):
        found = connection(mesh, client, service, port, endpoint)
        served = found.sent and _served(mesh, client, found, found.sent)
    return server, endpoint.port, absence, policies, served


def grouped(found: Iterable[tuple[Explanation, Endpoint | None]]) -> tuple[Explained, ...]:
    """Return the endpoints that `explanations` yields, grouped by their explanation."""
    groups: dict[Explanation, list[Endpoint]] = {}
    for explanation, endpoint in found:
        groups.setdefault(explanation, []).extend([endpoint] if endpoint else [])
    return tuple(Explained(explanation, tuple(endpoints)) for explanation, endpoints in groups.items())


def explain(
    mesh: Mesh,
    client: Pod,
    service: Service,
    ports: Iterable[ServicePort],
    request: Request | None = None,
) -> tuple[Explained, ...]:
    """Return the explanations for a client and service ports, grouped."""
    return grouped(explanations(mesh, client, service, ports, request))


def _without_endpoint(mesh: Mesh, client: Pod, service: Service, port: ServicePort) -> Explanation:
    predicted = outcome(mesh, client, service, port, None)
    answer = Answer(predicted.result, predicted.reason, predicted.decided_by)
    return _unreachable(port, answer, "nothing: no endpoint is ready")


def _unreachable(port: ServicePort, answer: Answer, server: str, owner: str = "") -> Explanation:
    """Explain why a client cannot connect. `server` describes the server's side."""
    listed_by = Decider(answer.decided_by[0], "") if answer.decided_by else None
    return Explanation(
        port=port,
        result=answer.result,
        reason=answer.reason,
        why=owner + _FAILURES[Failure(answer.reason)],
        server=Side(server, listed_by),
    )


def explain_endpoint(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint
) -> Explanation:
    """Explain what happens when a client calls an endpoint of a service port."""
    return _explanation(mesh, client, service, port, connection(mesh, client, service, port, endpoint))


def _explanation(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, found: Connection
) -> Explanation:
    owner = f"the address belongs to {found.service.ref}: " if found.service.ref != service.ref else ""
    if found.sent is None:
        return _unreachable(port, found.answer, "nothing: the connection reaches no server", owner)
    decision, decided_for, reached = found.sent
    server = endpoint_mode(mesh, decided_for)
    enforced = enforced_mode(mesh, reached)
    has_sidecar = _uses_cluster(decision)
    rule = client_rule(mesh, client.namespace, client.meta.labels, found.service) if has_sidecar else None
    tls = explicit_tls(rule, found.port.port)
    words = {"mode": server.mode if server else "", "tls": tls.mode if tls else ""}
    why = owner + _REASONS[decision.reason].format(absence=_why_not_intercepted(decided_for), **words)
    if rule and not tls:
        why += f" ({rule.refs[0]} applies, but sets no TLS for port {found.port.port})"
    rules: tuple[Ref, ...] = ()
    if has_sidecar:
        rules = rules_with_tls(mesh, client.namespace, client.meta.labels, found.service, found.port.port)
    overridden = (decider(mesh, ref, decided_for.port) for ref in rules if ref != decision.decided_by)
    decided_by = decider(mesh, decision.decided_by, decided_for.port) if decision.decided_by else None
    desired = Configured(decision.send, enforced.mode if enforced else None)
    result, reason, policies, conditions, _ = found.answer
    failure = _FAILURES[reason] if isinstance(reason, Failure) else ""
    deciders = (decider(mesh, ref, reached.port) for ref in policies)
    denied_by = f"{' and '.join(map(str, deciders))} {'denies' if len(policies) == 1 else 'deny'}"
    words |= {"absence": _why_not_intercepted(reached), "policies": denied_by}
    suffix = f"; allowed {', '.join(conditions)}" if conditions else ""
    return Explanation(
        port=port,
        result=result,
        reason=reason,
        why=owner + failure.format(**words) if failure else why + suffix,
        client=Side(f"{SENDS[decision.send]}: {why}", decided_by, tuple(overridden)),
        server=server_side(mesh, reached, enforced),
        desired=desired,
        served=_served(mesh, client, found, found.sent) if _is_rolling_out(mesh) else desired,
        identities=_identities(mesh, found.service, tls) if decision.send is Send.MTLS else (),
    )


def _access(mesh: Mesh, client: Pod, found: Connection, request: Request | None) -> AccessExplanation | None:
    if found.sent is None or found.sent.server.pod is None or not enforced_mode(mesh, found.sent.server):
        return None
    identity = client.identity(mesh.config.trust_domain) if found.sent.decision.send is Send.MTLS else ""
    return explain_access(mesh, found.sent.server.pod, found.sent.server.port, identity, request)


def _identities(mesh: Mesh, service: Service, tls: ClientTls | None) -> tuple[str, ...]:
    """Return the SPIFFE IDs that a client accepts; `*` stands for any path in a trust domain."""
    names = (tls.subject_alt_names if tls else ()) or mesh.identities(service)
    return names or tuple(f"spiffe://{domain}/*" for domain in mesh.config.trust_domains)


def server_side(mesh: Mesh, endpoint: Endpoint, server: ModeDecision | None) -> Side:
    """Return what the server at an endpoint accepts; `server` is its `enforced_mode`."""
    if server is None:
        return Side(f"whatever the application accepts: {_why_not_intercepted(endpoint)}")
    overridden = tuple(decider(mesh, ref, endpoint.port) for ref in server.overridden)
    return Side(ACCEPTS[server.mode], decider(mesh, server.decided_by, endpoint.port), overridden)


def decider(mesh: Mesh, ref: Ref, port: int) -> Decider:
    """Return an object that applies to a connection, with its scope. `port` is the port of the server."""
    fact, root = mesh.get(ref), mesh.config.root_namespace
    if isinstance(fact, Service | ServiceEntry | Namespace):
        return Decider(ref, "")
    return Decider(ref, _scope(fact, port, root) if isinstance(fact, TrafficFact) else "the mesh")


def _scope(fact: TrafficFact, port: int, root_namespace: str) -> str:
    match fact:
        case DestinationRule():
            return f"host {fact.host}"
        case ModePolicy() if fact.targets:
            return "the service"
        case ModePolicy() if fact.selector or (fact.scope_unknown and fact.is_peer_authentication):
            return f"port {port}" if fact.ports.get(port) else "the workload"
        case ModePolicy():
            return "the mesh" if fact.is_mesh_wide(root_namespace) else "the namespace"
        case AuthorizationPolicy() | Sidecar() if fact.selector:
            return "the workload"
        case AuthorizationPolicy() | Sidecar():
            return "the mesh" if fact.is_mesh_wide(root_namespace) else "the namespace"
        case _:
            assert_never(fact)


def _why_not_intercepted(endpoint: Endpoint) -> str:
    """Return why no sidecar intercepts the traffic of an endpoint, in words. Assumes that none does."""
    if endpoint.pod is None:
        return "the server's address belongs to no known pod"
    if not endpoint.pod.has_sidecar:
        return "the server has no sidecar"
    if not endpoint.pod.redirection.redirects_inbound(endpoint.port):
        return "annotations exclude the port from the server's sidecar"
    return f"the server's sidecar does not intercept port {endpoint.port}"


def _uses_cluster(decision: Decision) -> bool:
    """Whether the client's sidecar sends the connection to the cluster of a Service."""
    return decision.reason not in {
        Reason.CLIENT_WITHOUT_SIDECAR,
        Reason.OUTBOUND_EXCLUDED,
        Reason.NOT_EXPORTED,
        Reason.PASSTHROUGH,
    }


def _is_rolling_out(mesh: Mesh) -> bool:
    """Whether the served state differs from the desired state anywhere."""
    return bool(mesh.served.modes or mesh.served.mtls or mesh.served.rules)


def _served(mesh: Mesh, client: Pod, found: Connection, sent: Sent) -> Configured:
    decision, endpoint, server = sent
    is_intercepted = enforced_mode(mesh, server) is not None
    mode = served_mode(mesh, server.pod, server.port).mode if server.pod and is_intercepted else None
    if not _uses_cluster(decision):
        return Configured(Send.PLAINTEXT, mode)
    rule = served_client_rule(mesh, client.namespace, client.meta.labels, found.service)
    return Configured(_served_send(mesh, rule, found.port, endpoint), mode)


def _served_send(mesh: Mesh, rule: ClientRule | None, port: ServicePort, endpoint: Endpoint) -> Send:
    if sends_mtls(mesh, rule, port, endpoint):
        return Send.MTLS
    send = decide_for(mesh, rule, port, endpoint).send
    return Send.TLS if send is Send.TLS else Send.PLAINTEXT
