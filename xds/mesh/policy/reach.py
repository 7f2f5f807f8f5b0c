"""Predict the result of a connection from a client pod to each endpoint of a service port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Mode, Pod, Ref, Service, ServicePort
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import Decision, ModeDecision, Reason, Send, decide, endpoint_mode, explicit_tls


class Result(StrEnum):
    """Result of a connection: mutual TLS, plaintext or failure."""

    MTLS = "mtls"
    PLAINTEXT = "plaintext"
    FAILS = "fails"


class Failure(StrEnum):
    """Why a connection fails."""

    NO_ENDPOINT = "no-endpoint"
    """The service port has no ready endpoint."""
    POD_UNKNOWN = "pod-unknown"
    """The service port has no ready endpoint, and an EndpointSlice names an unknown Pod."""
    PORT_OF_SIDECAR = "port-of-sidecar"
    """The endpoint's port belongs to its sidecar, and only its own pod can connect to it."""
    SERVER_REQUIRES_MTLS = "server-requires-mtls"
    """The client sends plaintext to a server in mode STRICT."""
    SERVER_PLAINTEXT = "server-plaintext"
    """The client sends mutual TLS to a server in mode DISABLE."""
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    """The client sends mutual TLS to a pod without a sidecar."""
    IDENTITY_REFUSED = "identity-refused"
    """The DestinationRule's subjectAltNames do not contain the endpoint's identity."""
    TLS_NOT_THE_MESHS = "tls-not-the-meshs"
    """The client sends SIMPLE or MUTUAL TLS to a sidecar, which expects mesh mTLS or plaintext HTTP."""
    TLS_LEFT_TO_APPLICATION = "tls-left-to-application"
    """The client sends SIMPLE or MUTUAL TLS to an application, which may not support TLS."""


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
    """Object that decided what the client sends, then the object that decided what the server accepts.

    If an endpoint's Pod is unknown: the EndpointSlices that list it, and the Pods that they name.
    """


def predict(
    mesh: Mesh,
    clients: Iterable[Pod] | None = None,
    targets: Iterable[tuple[Service, ServicePort]] | None = None,
) -> Iterator[Outcome]:
    """Yield one outcome for each client, service port and ready endpoint.

    A service port without a ready endpoint has one outcome for each client.

    Args:
        mesh: the facts.
        clients: client pods; default: all pods that have not ended.
        targets: service ports that the clients call; default: all.
    """
    called = tuple(targets or ((service, port) for service in mesh.services() for port in service.ports))
    for client in clients if clients is not None else (pod for pod in mesh.pods() if not pod.ended):
        for service, port in called:
            ready = [endpoint for endpoint in mesh.endpoints(service, port) if endpoint.ready]
            for endpoint in ready or (None,):
                yield outcome(mesh, client, service, port, endpoint)


def outcome(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint | None
) -> Outcome:
    """Return the outcome for one client and endpoint."""

    def outcome_of(result: Result, reason: Reason | Failure, *objects: Ref | None) -> Outcome:
        refs = tuple(dict.fromkeys(ref for ref in objects if ref))
        return Outcome(
            client=client,
            service=service,
            port=port,
            endpoint=endpoint,
            result=result,
            reason=reason,
            decided_by=refs,
        )

    if endpoint is None:
        withheld = mesh.withheld(service, port)
        refs = [ref for listed in withheld for ref in (listed.source, listed.entry.pod)]
        return outcome_of(Result.FAILS, Failure.POD_UNKNOWN if withheld else Failure.NO_ENDPOINT, *refs)
    if is_closed(mesh, endpoint):
        return outcome_of(Result.FAILS, Failure.PORT_OF_SIDECAR)
    server = endpoint_mode(mesh, endpoint)
    decision = decide(mesh, client, service, port, endpoint)
    exposure = mesh.exposure(endpoint.pod, endpoint.port) if endpoint.pod else None
    failure = _mismatch(decision, server, http=bool(exposure and exposure.port.protocol.is_http))
    if (
        failure is None
        and decision.send is Send.MTLS
        and _rejects_identity(mesh, client, service, port, endpoint)
    ):
        failure = Failure.IDENTITY_REFUSED
    if failure:
        return outcome_of(Result.FAILS, failure, decision.decided_by, server.decided_by if server else None)
    result = Result.MTLS if decision.send is Send.MTLS else Result.PLAINTEXT
    return outcome_of(result, decision.reason, decision.decided_by, server.decided_by if server else None)


def _mismatch(decision: Decision, server: ModeDecision | None, *, http: bool) -> Failure | None:
    """Return why the server does not accept what the client sends, or None if the server accepts it.

    Args:
        decision: what the client sends.
        server: mode of the server; None if no sidecar is in front of it.
        http: whether the server's port is declared as HTTP. Its sidecar then parses requests.
    """
    match decision.send, server and server.mode:
        case Send.MTLS, None:
            return Failure.ENDPOINT_WITHOUT_SIDECAR
        case Send.MTLS, Mode.DISABLE:
            return Failure.SERVER_PLAINTEXT
        case Send.PLAINTEXT, Mode.STRICT:
            return Failure.SERVER_REQUIRES_MTLS
        case Send.TLS, (Mode.DISABLE | Mode.PERMISSIVE) if not http:
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


def _rejects_identity(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint
) -> bool:
    tls = explicit_tls(client_rule(mesh, client.namespace, client.meta.labels, service), port.port)
    if (
        endpoint.pod is None
        or tls is None
        or tls.mode is not TlsMode.ISTIO_MUTUAL
        or not tls.subject_alt_names
    ):
        return False
    return endpoint.pod.identity(mesh.config.trust_domain) not in tls.subject_alt_names
