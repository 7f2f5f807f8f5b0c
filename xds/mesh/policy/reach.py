"""Predict the result of a connection from a client pod to an endpoint of a service port.

`xds.mesh.policy.hops` groups the results of a whole mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Interception, Meta, Mode, Pod, Ref, Service, ServicePort
from xds.mesh.model.redirection import Redirection
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.access import PortRules, permission, port_rules
from xds.mesh.policy.authorization import Access, Request
from xds.mesh.policy.destination import ClientRule, client_rule
from xds.mesh.policy.listeners import http_ports, is_used, servers_of
from xds.mesh.policy.mtls import (
    Decision,
    ModeDecision,
    Reason,
    Send,
    decide,
    decide_for_mode,
    decide_if_hidden,
    endpoint_mode,
    enforced_mode,
    explicit_tls,
    is_excluded,
)
from xds.mesh.policy.ownership import Contest, contest_of
from xds.mesh.policy.visibility import allows_any_outbound, sidecar_of


class Result(StrEnum):
    """Result of a connection: mutual TLS, plaintext or failure."""

    MTLS = "mtls"
    PLAINTEXT = "plaintext"
    FAILS = "fails"


RANKS = {Result.FAILS: 0, Result.PLAINTEXT: 1, Result.MTLS: 2}
"""Order of results in reports, worst first."""


class Failure(StrEnum):
    """Why a connection fails."""

    NO_ENDPOINT = "no-endpoint"
    """The service port has no ready endpoint."""
    POD_UNKNOWN = "pod-unknown"
    """The service port has no ready endpoint, and an EndpointSlice names an unknown Pod."""
    SERVICE_DELETED = "service-deleted"
    """A change deletes the Service or its port. Only `xds.mesh.policy.prediction` returns this reason."""
    PORT_OF_SIDECAR = "port-of-sidecar"
    """The endpoint's port belongs to its sidecar, and only its own pod can connect to it."""
    SERVER_REQUIRES_MTLS = "server-requires-mtls"
    """The client sends plaintext to a server in mode STRICT."""
    SERVER_PLAINTEXT = "server-plaintext"
    """The client sends mutual TLS to a server in mode DISABLE."""
    OUTBOUND_EXCLUDED = "outbound-excluded"
    """Annotations exclude the connection from the client's sidecar, and the server is in mode STRICT."""
    PASSTHROUGH = "passthrough"
    """The client's sidecar passes the connection through in plaintext, and the server is in mode STRICT."""
    OUTBOUND_BLOCKED = "outbound-blocked"
    """The Service does not own the address, and the client's sidecar closes such connections."""
    NOT_EXPORTED = "not-exported"
    """The client does not see the service, and its sidecar closes connections to unknown addresses."""
    NOT_EXPORTED_PLAINTEXT = "not-exported-plaintext"
    """The client does not see the service, so its sidecar passes the connection through in plaintext, and the
    server is in mode STRICT."""
    INBOUND_EXCLUDED = "inbound-excluded"
    """The client sends mutual TLS to a port that annotations exclude from the server's sidecar."""
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    """The client sends mutual TLS to a pod without a sidecar."""
    IDENTITY_REFUSED = "identity-refused"
    """The DestinationRule's subjectAltNames do not contain the endpoint's identity."""
    ACCESS_DENIED = "access-denied"
    """An AuthorizationPolicy denies all connections of the client to the port."""
    TLS_NOT_THE_MESHS = "tls-not-the-meshs"
    """The client sends SIMPLE or MUTUAL TLS to a sidecar, which expects mesh mTLS or plaintext HTTP."""
    TLS_LEFT_TO_APPLICATION = "tls-left-to-application"
    """The client sends SIMPLE or MUTUAL TLS to an application, which may not support TLS."""


def refusal_by(decided_by: Ref) -> Failure:
    """Return why a sidecar refuses plaintext, from the object that decides it."""
    denies = decided_by.kind == "AuthorizationPolicy"
    return Failure.ACCESS_DENIED if denies else Failure.SERVER_REQUIRES_MTLS


class Answer(NamedTuple):
    """Result of a connection, and why."""

    result: Result
    """Result of the connection."""
    reason: Reason | Failure
    """Rule that decided, or why the connection fails."""
    decided_by: tuple[Ref, ...] = ()
    """Object that decided what the client sends, then the object that decided what the server accepts.

    If an endpoint's Pod is unknown: the EndpointSlices that list it, and the Pods that they name. If access
    is denied: the AuthorizationPolicies that deny it.
    """
    conditions: tuple[str, ...] = ()
    """Conditions of AuthorizationPolicies, in words, if they allow only some requests."""
    basis: int = 0
    """Hash of the rules with these conditions."""


def rank(answer: Answer) -> tuple[object, ...]:
    """Return a key to sort answers by, worst first: those that are allowed without a condition come last."""
    return RANKS[answer.result], not answer.conditions, answer.conditions, answer.basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Predicted result when a client calls a service port and its load balancer picks an endpoint."""

    client: Pod
    """Pod of the client."""
    service: Service
    """Service that the client calls."""
    port: ServicePort
    """Port of the Service."""
    endpoint: Endpoint | None
    """Endpoint that the load balancer picks; None if the service port has no ready endpoint."""
    result: Result
    """Result of the connection."""
    reason: Reason | Failure
    """Rule that decided, or why the connection fails."""
    decided_by: tuple[Ref, ...] = ()
    """Objects that decided, as in `Answer`."""
    conditions: tuple[str, ...] = ()
    """Conditions of AuthorizationPolicies, as in `Answer`."""


def outcome(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint | None
) -> Outcome:
    """Return the outcome for one client and endpoint."""
    server = server_of(mesh, service, port, endpoint, [client.redirection]) if endpoint else None
    answer = answer_for(mesh, sender_of(mesh, client, service), service, port, server)
    return Outcome(
        client=client,
        service=service,
        port=port,
        endpoint=endpoint,
        result=answer.result,
        reason=answer.reason,
        decided_by=answer.decided_by,
        conditions=answer.conditions,
    )


OUTSIDE = Pod(meta=Meta(ref=Ref("Pod", "", "outside")))
"""Stands for clients outside the mesh, which have no sidecar."""


class Sender(NamedTuple):
    """The properties of a client that its results for a service depend on."""

    pod: Pod
    """Pod of the client."""
    rule: ClientRule | None
    """DestinationRule of the client for the service."""
    request: Request | None = None
    """What is known of the request that it sends; None for any request or connection."""


class Server(NamedTuple):
    """The properties of an endpoint that results depend on."""

    closed: bool
    """Whether the port belongs to the sidecar (`is_closed`)."""
    mode: ModeDecision | None
    """Mode that clients assume; None if no sidecar is in front of the server."""
    enforced: ModeDecision | None
    """Mode that a sidecar enforces; None if none intercepts the port."""
    http: bool
    """Whether the server's port is declared as HTTP. Its sidecar then parses requests."""
    identity: str
    """SPIFFE ID of the pod; empty for an address outside the mesh."""
    rules: PortRules | None
    """AuthorizationPolicies' rules of the port; None if there are none."""
    excluded_by: frozenset[Redirection]
    """Redirections of clients whose connections to the endpoint bypass their sidecars."""
    contest: Contest | None
    """Where connections go if another Service may own an address; None if the called Service owns it."""


class Sent(NamedTuple):
    """What a client sends, and where."""

    decision: Decision
    """What the client sends."""
    endpoint: Endpoint
    """Endpoint that the decision is for."""
    server: Endpoint
    """Server that the connection reaches. It differs from the endpoint if that has a clusterIP."""


class Connection(NamedTuple):
    """A connection of a client to an endpoint of a service port."""

    service: Service
    """Service whose settings the client's sidecar uses: the Service that the client calls, unless another
    Service owns the address."""
    port: ServicePort
    """Port of that Service."""
    sent: Sent | None
    """What the client sends; None if it cannot connect."""
    answer: Answer
    """Result of the connection."""


def sender_of(mesh: Mesh, client: Pod, service: Service) -> Sender:
    """Return what the results of a client depend on."""
    rule = None
    if client.has_sidecar:
        rule = client_rule(mesh, client.namespace, client.meta.labels, service)
    return Sender(client, rule)


def server_of(
    mesh: Mesh,
    service: Service,
    port: ServicePort,
    endpoint: Endpoint,
    redirections: Iterable[Redirection],
) -> Server:
    """Return what the results of an endpoint of a service port depend on.

    Args:
        mesh: the facts.
        service: Service that clients call.
        port: port of the Service.
        endpoint: endpoint that a load balancer picks.
        redirections: the different redirections of the clients.
    """
    server = _server(mesh, endpoint)
    excluded_by = frozenset(item for item in redirections if is_excluded(item, service, port, endpoint))
    contest = contest_of(mesh, service, port, endpoint, _server)
    return server._replace(excluded_by=excluded_by, contest=contest) if excluded_by or contest else server


def _server(mesh: Mesh, endpoint: Endpoint) -> Server:
    pod = endpoint.pod
    exposure = mesh.exposure(pod, endpoint.port) if pod else None
    enforced = enforced_mode(mesh, endpoint)
    return Server(
        closed=is_closed(mesh, endpoint),
        mode=endpoint_mode(mesh, endpoint),
        enforced=enforced,
        http=bool(exposure and exposure.port.protocol.is_http),
        identity=pod.identity(mesh.config.trust_domain) if pod else "",
        rules=port_rules(mesh, pod, endpoint.port) if pod and enforced else None,
        excluded_by=frozenset(),
        contest=None,
    )


def answer_for(
    mesh: Mesh, sender: Sender, service: Service, port: ServicePort, server: Server | None
) -> Answer:
    """Return the answer for one client and one endpoint; `server` is None without a ready endpoint."""
    if server is None:
        unknown = mesh.unknown_endpoints(service, port)
        refs = (ref for listed in unknown for ref in (listed.source, listed.entry.pod))
        failure = Failure.POD_UNKNOWN if unknown else Failure.NO_ENDPOINT
        return Answer(Result.FAILS, failure, _unique(refs))
    if server.contest:
        return _contested(mesh, sender, service, port, server, server.contest).answer
    decision = _bypass(mesh, sender, service, server)
    if decision and decision.reason is Reason.NOT_EXPORTED:
        number = port.target if service.headless else port.port
        is_refused = not port.protocol.is_http and number in http_ports(mesh, sender.pod)
        if is_refused or not _passes_through(mesh, sender.pod):
            return _closed(mesh, sender.pod, decision)
    decision = decision or decide_for_mode(mesh, sender.rule, port, server.mode)
    return _judge(mesh, sender, decision, sender.rule, port, server)


def connection(  # noqa: PLR0917
    mesh: Mesh,
    client: Pod,
    service: Service,
    port: ServicePort,
    endpoint: Endpoint,
    request: Request | None = None,
) -> Connection:
    """Return how a client that calls a service port reaches an endpoint.

    If the endpoint's address leads to several servers, return the connection with the worst result.

    Args:
        mesh: the facts.
        client: the client.
        service: Service that it calls.
        port: port of the Service.
        endpoint: endpoint that its load balancer picks.
        request: what is known of the request that it sends. Default: any request or connection.
    """
    sender = sender_of(mesh, client, service)._replace(request=request)
    server = server_of(mesh, service, port, endpoint, [client.redirection])
    if server.contest:
        return _contested(mesh, sender, service, port, server, server.contest)
    answer = answer_for(mesh, sender, service, port, server)
    if answer.reason is Failure.NOT_EXPORTED:
        return Connection(service, port, None, answer)
    decision = decide(mesh, client, service, port, endpoint)
    return Connection(service, port, Sent(decision, endpoint, endpoint), answer)


def answer_to_plaintext(mesh: Mesh, endpoint: Endpoint, request: Request | None = None) -> Answer:
    """Return the answer of an endpoint to plaintext that no sidecar of a client sends.

    Args:
        mesh: the facts.
        endpoint: the endpoint, which need not belong to a Service.
        request: what is known of the request. Default: any request or connection.
    """
    decision = Decision(Send.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR)
    port = ServicePort(port=endpoint.port, target=endpoint.port)
    return _judge(mesh, Sender(OUTSIDE, None, request), decision, None, port, _server(mesh, endpoint))


def _passes_through(mesh: Mesh, client: Pod) -> bool:
    """Whether the sidecar of a client passes connections to unknown addresses through."""
    is_intercepted = client.interception is Interception.REDIRECT
    return is_intercepted and allows_any_outbound(mesh, client.namespace, client.meta.labels)


def _closed(mesh: Mesh, client: Pod, hidden: Decision | None) -> Answer:
    """Return the answer if a client's sidecar closes a connection. `hidden` is set if a service is hidden."""
    sidecar = sidecar_of(mesh, client.namespace, client.meta.labels)
    blocks = sidecar.ref if sidecar and sidecar.allow_any_outbound is False else None
    if hidden is None:
        return Answer(Result.FAILS, Failure.OUTBOUND_BLOCKED, _unique((blocks,)))
    return Answer(Result.FAILS, Failure.NOT_EXPORTED, _unique((hidden.decided_by, blocks)))


def _bypass(mesh: Mesh, sender: Sender, service: Service, server: Server) -> Decision | None:
    """Return the decision for a connection that uses no settings of the service; None if it uses them."""
    if not sender.pod.has_sidecar:
        return Decision(Send.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR)
    if sender.pod.redirection in server.excluded_by:
        return Decision(Send.PLAINTEXT, Reason.OUTBOUND_EXCLUDED)
    return decide_if_hidden(mesh, sender.pod, service)


def _contested(  # noqa: PLR0917
    mesh: Mesh, sender: Sender, service: Service, port: ServicePort, server: Server, contest: Contest
) -> Connection:
    """Return the connection with the worst result to an endpoint whose address is contested."""
    rule, servers, decision = sender.rule, contest.dialled, _bypass(mesh, sender, service, server)
    absent, picked = Answer(Result.FAILS, Failure.NO_ENDPOINT), None
    hidden = decision if decision and decision.reason is Reason.NOT_EXPORTED else None
    if decision is hidden:
        is_intercepted = sender.pod.interception is Interception.REDIRECT
        listeners = contest.listeners if is_intercepted else (None,)
        used = [
            found for found in listeners if (is_used(mesh, sender.pod, found) if found else hidden is None)
        ]
        if not used and not _passes_through(mesh, sender.pod):
            return Connection(service, port, None, _closed(mesh, sender.pod, hidden))
        if not used:
            decision = hidden or Decision(Send.PLAINTEXT, Reason.PASSTHROUGH)
        elif (listener := used[0]) is None:
            servers, picked = contest.listed, contest.endpoint
            decision = decide_for_mode(mesh, rule, port, server.mode)
        else:
            service, port, servers = listener.service, listener.port, servers_of(mesh, listener)
            decision = None
            rule = client_rule(mesh, sender.pod.namespace, sender.pod.meta.labels, service)
            absent = answer_for(mesh, sender, service, port, None)
    connections = []
    for found in servers:
        reached = _server(mesh, found)
        sent = Sent(decision or decide_for_mode(mesh, rule, port, reached.mode), picked or found, found)
        connections.append(
            Connection(service, port, sent, _judge(mesh, sender, sent.decision, rule, port, reached))
        )
    if not connections:
        return Connection(service, port, None, absent)
    return min(connections, key=lambda found: rank(found.answer))


def _judge(  # noqa: PLR0917
    mesh: Mesh,
    sender: Sender,
    decision: Decision,
    rule: ClientRule | None,
    port: ServicePort,
    server: Server,
) -> Answer:
    """Return the answer of a server to what a client sends, whose DestinationRule is `rule`."""
    if server.closed:
        return Answer(Result.FAILS, Failure.PORT_OF_SIDECAR)
    # Servers outside the mesh are expected to support the TLS that a DestinationRule configures for them.
    is_foreign_tls = decision.send is Send.TLS and port.external and not server.enforced
    mismatch = None if is_foreign_tls else _mismatch(decision, server)
    if mismatch is None and decision.send is Send.MTLS and _rejects_identity(rule, port, server):
        mismatch = Failure.IDENTITY_REFUSED
    decided_by = _unique((decision.decided_by, server.enforced.decided_by if server.enforced else None))
    if mismatch:
        return Answer(Result.FAILS, mismatch, decided_by)
    result = Result.MTLS if decision.send is Send.MTLS else Result.PLAINTEXT
    if server.rules is None:
        return Answer(result, decision.reason, decided_by)
    identity = sender.pod.identity(mesh.config.trust_domain) if result is Result.MTLS else ""
    found = permission(mesh.config, server.rules, identity, sender.request)
    if found.access is Access.DENIED:
        return Answer(Result.FAILS, Failure.ACCESS_DENIED, found.policies)
    return Answer(result, decision.reason, decided_by, found.conditions, found.basis)


def _unique(refs: Iterable[Ref | None]) -> tuple[Ref, ...]:
    return tuple(dict.fromkeys(ref for ref in refs if ref))


def _mismatch(decision: Decision, server: Server) -> Failure | None:
    """Return why the server does not accept what the client sends, or None if the server accepts it."""
    match decision.send, server.enforced and server.enforced.mode:
        case Send.MTLS, None if server.mode:
            return Failure.INBOUND_EXCLUDED
        case Send.MTLS, None:
            return Failure.ENDPOINT_WITHOUT_SIDECAR
        case Send.MTLS, Mode.DISABLE:
            return Failure.SERVER_PLAINTEXT
        case Send.PLAINTEXT, Mode.STRICT if decision.reason is Reason.OUTBOUND_EXCLUDED:
            return Failure.OUTBOUND_EXCLUDED
        case Send.PLAINTEXT, Mode.STRICT if decision.reason is Reason.PASSTHROUGH:
            return Failure.PASSTHROUGH
        case Send.PLAINTEXT, Mode.STRICT if decision.reason is Reason.NOT_EXPORTED:
            return Failure.NOT_EXPORTED_PLAINTEXT
        case Send.PLAINTEXT, Mode.STRICT:
            return Failure.SERVER_REQUIRES_MTLS
        case Send.TLS, (Mode.DISABLE | Mode.PERMISSIVE) if not server.http:
            return Failure.TLS_LEFT_TO_APPLICATION
        case Send.TLS, None:
            return Failure.TLS_LEFT_TO_APPLICATION
        case Send.TLS, _:
            return Failure.TLS_NOT_THE_MESHS
    return None


def is_closed(mesh: Mesh, endpoint: Endpoint) -> bool:
    """Whether an endpoint's port belongs to its sidecar, which closes it to other pods."""
    pod = endpoint.pod
    if pod is None or not pod.has_sidecar:
        return False
    return endpoint.port in mesh.config.closed_ports(pod.interception)


def _rejects_identity(rule: ClientRule | None, port: ServicePort, server: Server) -> bool:
    tls = explicit_tls(rule, port.port)
    if tls is None or tls.mode is not TlsMode.ISTIO_MUTUAL or not tls.subject_alt_names:
        return False
    return server.identity not in tls.subject_alt_names
