"""Advice for connections that fail or use plaintext."""

from __future__ import annotations

from xds.mesh.model.objects import PROBE_PORT, OutsideTraffic, Pod
from xds.mesh.policy.direct import Refusal
from xds.mesh.policy.hop_text import format_clients
from xds.mesh.policy.mtls import Reason
from xds.mesh.policy.prediction import HopChange
from xds.mesh.policy.reach import Answer, Failure, Result

_INCLUDE = "change the traffic annotations of {clients}"
_OWNER = "let {clients} call a Service that owns the address"
_EXPORT = "let {clients} see the service (exportTo, mesh settings or egress of a Sidecar)"
_HOST_NETWORK = "take {clients} off the host network and add a sidecar"
_REFUSED = {
    OutsideTraffic.KUBELET_PROBE: "inject the sidecar with rewritten probes",
    OutsideTraffic.PROMETHEUS_SCRAPE: "let injection merge the metrics",
    OutsideTraffic.PROMETHEUS_TLS: "check that the certificate of Prometheus is one of the mesh",
    OutsideTraffic.OUTSIDE_CLIENT: "publish a gateway with a sidecar instead",
    OutsideTraffic.GATEWAY: "add a sidecar to the gateway",
    OutsideTraffic.EXTERNAL_NAME: "let clients call the Service itself instead of the ExternalName Service",
    OutsideTraffic.POD_ADDRESS: "add the port to a headless Service, so that peers use mutual TLS",
}
_FAILS = {
    Failure.NO_ENDPOINT: "check the Service's selector and targetPort, and whether its pods are ready",
    Failure.POD_UNKNOWN: "check whether {server} exists and has the address that its EndpointSlice lists",
    Failure.SERVICE_DELETED: "keep the Service and its port while clients call it",
    Failure.PORT_OF_SIDECAR: "use a targetPort that does not belong to the sidecar",
    Failure.SERVER_PLAINTEXT: "remove tls from {client}, or set PERMISSIVE in {server}",
    Failure.OUTBOUND_EXCLUDED: f"{_INCLUDE}, or use PERMISSIVE in {{server}}",
    Failure.PASSTHROUGH: f"{_OWNER}, or use PERMISSIVE in {{server}}",
    Failure.OUTBOUND_BLOCKED: _OWNER,
    Failure.NOT_EXPORTED: _EXPORT,
    Failure.NOT_EXPORTED_PLAINTEXT: f"{_EXPORT}, or use PERMISSIVE in {{server}}",
    Failure.INBOUND_EXCLUDED: (
        "set DISABLE for the port in a DestinationRule, or change the traffic annotations of the endpoints"
    ),
    Failure.ENDPOINT_WITHOUT_SIDECAR: "add a sidecar to the endpoints, or remove tls from {client}",
    Failure.IDENTITY_REFUSED: "add the identities of the endpoints to subjectAltNames in {client}",
    Failure.ACCESS_DENIED: "allow {clients} in {server}",
    Failure.TLS_NOT_THE_MESHS: "set ISTIO_MUTUAL in {client}, or remove its tls",
    Failure.TLS_LEFT_TO_APPLICATION: "check that the application supports TLS, or remove tls from {client}",
}
_PLAINTEXT = {
    Reason.CLIENT_WITHOUT_SIDECAR: "add a sidecar to {clients}",
    Reason.OUTBOUND_EXCLUDED: _INCLUDE,
    Reason.PASSTHROUGH: _OWNER,
    Reason.DESTINATION_RULE: "remove tls from {client}",
    Reason.AUTO_MTLS_OFF: "enable auto mTLS, or set ISTIO_MUTUAL in a DestinationRule",
    Reason.ENDPOINT_WITHOUT_SIDECAR: "add a sidecar to the endpoints",
    Reason.EXTERNAL: "set tls in a DestinationRule, or MESH_INTERNAL if the servers belong to the mesh",
    Reason.NOT_EXPORTED: _EXPORT,
    Reason.SERVER_PLAINTEXT: "set PERMISSIVE or STRICT in {server}",
}


def remedy(answer: Answer, clients: str, client: Pod) -> str:
    """Return what makes connections use mutual TLS, or at least work; empty if they use mutual TLS.

    Args:
        answer: the result of the connections.
        clients: the clients, as text.
        client: one of the clients.
    """
    if answer.result is Result.MTLS:
        return ""
    refs = {"client": answer.decided_by[0], "server": answer.decided_by[-1]} if answer.decided_by else {}
    if answer.reason is Failure.SERVER_REQUIRES_MTLS:
        return _when_required(answer, client).format(clients=clients, **refs)
    if answer.reason is Failure.ACCESS_DENIED and not client.has_sidecar:
        return f"{_FAILS[answer.reason]}, or add a sidecar to them if it names identities".format(
            clients=clients, **refs
        )
    if answer.reason is Reason.CLIENT_WITHOUT_SIDECAR and client.host_network:
        return f"{_HOST_NETWORK.format(clients=clients)}, or accept plaintext"
    text = _PLAINTEXT[answer.reason] if isinstance(answer.reason, Reason) else _FAILS[answer.reason]
    return text.format(clients=clients, **refs)


def _when_required(answer: Answer, client: Pod) -> str:
    if client.host_network:
        return f"{_HOST_NETWORK}, or use PERMISSIVE in {{server}}"
    if not client.has_sidecar:
        return "add a sidecar to {clients}, or use PERMISSIVE in {server} until then"
    if len(answer.decided_by) > 1:
        return "remove tls from {client}, or use PERMISSIVE in {server}"
    return "enable auto mTLS, or use PERMISSIVE in {server}"


def change_remedy(change: HopChange) -> str:
    """Return the remedy for connections that break, may break or lose mutual TLS; empty for others."""
    if not change.effect.worsens:
        return ""
    client = next(change.clients[0].pods)
    if change.after.conditions:
        return f"allow the other requests of {format_clients(change.clients)}, if there are any"
    return remedy(change.after, format_clients(change.clients), client)


def refusal_remedy(refusal: Refusal) -> str:
    """Return how to let direct traffic pass."""
    port, policy = refusal.port, refusal.decided_by
    if refusal.failure is Failure.ACCESS_DENIED:
        return f"allow requests without an identity to port {port} in {policy}"
    exempt = (
        f"exempt port {port} (PeerAuthentication with a selector, mtls STRICT and portLevelMtls {port} "
        f"PERMISSIVE), or use PERMISSIVE in {policy}"
    )
    if refusal.traffic is OutsideTraffic.PROMETHEUS_SCRAPE and refusal.source:
        annotated = "annotate the pods for Prometheus, so that injection merges the metrics"
        if refusal.source.kind == "Service":
            return f"{annotated}, and remove the annotations of {refusal.source}, or {exempt}"
        return f"{annotated}, and let {refusal.source} scrape port {PROBE_PORT}, or {exempt}"
    first = _REFUSED.get(refusal.traffic)
    return f"{first}, or {exempt}" if first else exempt
