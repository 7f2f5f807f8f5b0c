"""Predict what happens on every hop (client pod, service port, endpoint) before any request is sent."""

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
    """How a connection is made, or that it fails."""

    MTLS = "mtls"
    PLAINTEXT = "plaintext"
    FAILS = "fails"


class Failure(StrEnum):
    """Why a connection fails."""

    NO_ENDPOINT = "no-endpoint"
    """The service port has no ready endpoint."""
    POD_UNKNOWN = "pod-unknown"
    """The service port has no ready endpoint, and an EndpointSlice names a Pod that is not known with its
    address."""
    PORT_OF_SIDECAR = "port-of-sidecar"
    """The endpoint's port belongs to its sidecar, which serves it to its own pod only."""
    SERVER_REQUIRES_MTLS = "server-requires-mtls"
    """The client sends plaintext to a STRICT server."""
    SERVER_PLAINTEXT = "server-plaintext"
    """The client sends mutual TLS to a server in mode DISABLE."""
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    """The client sends mutual TLS to a pod without a sidecar."""
    IDENTITY_REFUSED = "identity-refused"
    """The DestinationRule's subjectAltNames exclude the endpoint's identity."""
    TLS_NOT_THE_MESHS = "tls-not-the-meshs"
    """The client sends SIMPLE or MUTUAL TLS to a sidecar that accepts only mesh certificates or plaintext
    HTTP."""
    TLS_LEFT_TO_APPLICATION = "tls-left-to-application"
    """The client sends SIMPLE or MUTUAL TLS to an application. Whether the application serves TLS is
    unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happens when a client calls a service port and reaches one of its endpoints."""

    client: Pod
    """Pod that sends."""
    service: Service
    """Service that the client calls."""
    port: ServicePort
    """Port of the Service."""
    endpoint: Endpoint | None
    """Endpoint that is reached; None if the service port has none."""
    result: Result
    """Whether and how the connection is made."""
    reason: Reason | Failure
    """Rule that decided, or why the connection fails."""
    decided_by: tuple[Ref, ...] = ()
    """Objects that decided what the client sends, then those that decided what the server accepts."""


def predict(
    mesh: Mesh,
    clients: Iterable[Pod] | None = None,
    targets: Iterable[tuple[Service, ServicePort]] | None = None,
) -> Iterator[Outcome]:
    """Yield an outcome per client, service port and ready endpoint.

    Args:
        mesh: the facts.
        clients: pods that send; default: all running pods.
        targets: service ports that are called; default: all.
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
    """Return what happens on one hop."""

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
    sent = decide(mesh, client, service, port, endpoint)
    exposed = mesh.exposure(endpoint.pod, endpoint.port) if endpoint.pod else None
    failure = _clash(sent, server, http=bool(exposed and exposed.port.protocol.is_http))
    if failure is None and sent.mode is Send.MTLS and _refuses(mesh, client, service, port, endpoint):
        failure = Failure.IDENTITY_REFUSED
    if failure:
        return outcome_of(Result.FAILS, failure, sent.decided_by, server.decided_by if server else None)
    result = Result.MTLS if sent.mode is Send.MTLS else Result.PLAINTEXT
    return outcome_of(result, sent.reason, sent.decided_by, server.decided_by if server else None)


def _clash(sent: Decision, server: ModeDecision | None, *, http: bool) -> Failure | None:
    """Return why the server does not accept what the client sends; None if it does.

    `http`: the server's port is declared as HTTP, so that its sidecar parses requests.
    """
    match sent.mode, server and server.mode:
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
    """Whether an endpoint's port belongs to its sidecar and is closed to other pods."""
    pod = endpoint.pod
    if pod is None or not pod.has_sidecar:
        return False
    return endpoint.port in mesh.config.closed_ports(pod.interception)


def _refuses(mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint) -> bool:
    tls = explicit_tls(client_rule(mesh, client.namespace, client.meta.labels, service), port.port)
    if (
        endpoint.pod is None
        or tls is None
        or tls.mode is not TlsMode.ISTIO_MUTUAL
        or not tls.subject_alt_names
    ):
        return False
    return endpoint.pod.identity(mesh.config.trust_domain) not in tls.subject_alt_names
