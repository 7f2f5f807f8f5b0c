"""What will happen on every hop: each client workload, service port and endpoint, before any request is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Mode, Pod, Ref, Service, ServicePort
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import Decision, InForce, Reason, Send, at_endpoint, decide, explicit_tls


class Result(StrEnum):
    """What becomes of a connection."""

    MTLS = "mtls"
    PLAINTEXT = "plaintext"
    FAILS = "fails"


class Failure(StrEnum):
    """Why a connection fails."""

    NO_ENDPOINT = "no-endpoint"
    """None is ready, or there is none at all."""
    POD_UNKNOWN = "pod-unknown"
    """None is ready, and an EndpointSlice names a Pod that is not known with that address, so nothing is sent there."""
    PORT_OF_SIDECAR = "port-of-sidecar"
    """The endpoint's port is one of its sidecar's own, and is closed to others."""
    SERVER_REQUIRES_MTLS = "server-requires-mtls"
    """Plaintext meets STRICT."""
    SERVER_PLAINTEXT = "server-plaintext"
    """Mutual TLS meets a server that was told to speak plaintext."""
    ENDPOINT_WITHOUT_SIDECAR = "endpoint-without-sidecar"
    """Mutual TLS meets an application."""
    IDENTITY_REFUSED = "identity-refused"
    """The DestinationRule's subjectAltNames exclude the endpoint's identity."""
    TLS_NOT_THE_MESHS = "tls-not-the-meshs"
    """A DestinationRule's SIMPLE or MUTUAL meets a sidecar that takes the mesh's certificates, or HTTP in clear, only."""
    TLS_LEFT_TO_APPLICATION = "tls-left-to-application"
    """A DestinationRule's SIMPLE or MUTUAL meets an application: only it could answer, and nothing here says that it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happens when a client asks for a service port and is sent to one of its endpoints."""

    client: Pod
    service: Service
    port: ServicePort
    endpoint: Endpoint | None
    """None: there is none."""
    result: Result
    reason: Reason | Failure
    because: tuple[Ref, ...] = ()
    """The objects that decided: what the client sends, then what the server accepts."""


def predict(
    mesh: Mesh,
    clients: Iterable[Pod] | None = None,
    targets: Iterable[tuple[Service, ServicePort]] | None = None,
) -> Iterator[Outcome]:
    """Yield an outcome per client, service port and ready endpoint; of all clients and service ports unless some are given."""
    where = tuple(targets or ((service, port) for service in mesh.services() for port in service.ports))
    for client in clients if clients is not None else (pod for pod in mesh.pods() if not pod.ended):
        for service, port in where:
            ready = [endpoint for endpoint in mesh.endpoints(service, port) if endpoint.ready]
            for endpoint in ready or (None,):
                yield outcome(mesh, client, service, port, endpoint)


def outcome(
    mesh: Mesh, client: Pod, service: Service, port: ServicePort, endpoint: Endpoint | None
) -> Outcome:
    """Tell what happens on one hop."""

    def told(result: Result, reason: Reason | Failure, *because: Ref | None) -> Outcome:
        refs = tuple(dict.fromkeys(ref for ref in because if ref))
        return Outcome(
            client=client,
            service=service,
            port=port,
            endpoint=endpoint,
            result=result,
            reason=reason,
            because=refs,
        )

    if endpoint is None:
        withheld = mesh.withheld(service, port)
        refs = [ref for listed in withheld for ref in (listed.source, listed.entry.pod)]
        return told(Result.FAILS, Failure.POD_UNKNOWN if withheld else Failure.NO_ENDPOINT, *refs)
    if is_closed(mesh, endpoint):
        return told(Result.FAILS, Failure.PORT_OF_SIDECAR)
    server = at_endpoint(mesh, endpoint)
    sent = decide(mesh, client, service, port, endpoint)
    exposed = mesh.exposure(endpoint.pod, endpoint.port) if endpoint.pod else None
    failure = _clash(sent, server, http=bool(exposed and exposed.port.protocol.is_http))
    if failure is None and sent.mode is Send.MTLS and _refuses(mesh, client, service, port, endpoint):
        failure = Failure.IDENTITY_REFUSED
    if failure:
        return told(Result.FAILS, failure, sent.because, server.because if server else None)
    result = Result.MTLS if sent.mode is Send.MTLS else Result.PLAINTEXT
    return told(result, sent.reason, sent.because, server.because if server else None)


def _clash(sent: Decision, server: InForce | None, *, http: bool) -> Failure | None:
    """Tell why what is sent is not taken; `http`: the server's port is declared as HTTP, and it looks inside."""
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
    """Whether an endpoint's port is for its sidecar alone, so that nobody is served there."""
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
