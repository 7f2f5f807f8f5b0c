"""Short words for the codes that the API reports."""

from __future__ import annotations

from xds.mesh.model.objects import OutsideTraffic, Ref
from xds.mesh.policy.mtls import Reason
from xds.mesh.policy.reach import Failure

_REASONS = {
    Failure.NO_ENDPOINT: "no ready endpoint",
    Failure.POD_UNKNOWN: "no ready endpoint, unknown pod",
    Failure.SERVICE_DELETED: "service deleted",
    Failure.PORT_OF_SIDECAR: "port of the sidecar itself",
    Failure.SERVER_REQUIRES_MTLS: "server requires mutual TLS",
    Failure.SERVER_PLAINTEXT: "server accepts plaintext only",
    Failure.OUTBOUND_EXCLUDED: "client's annotations bypass its sidecar",
    Failure.PASSTHROUGH: "service does not own the address",
    Failure.OUTBOUND_BLOCKED: "service does not own the address",
    Failure.INBOUND_EXCLUDED: "server's annotations bypass its sidecar",
    Failure.ENDPOINT_WITHOUT_SIDECAR: "server has no sidecar",
    Failure.IDENTITY_REFUSED: "client rejects the server's identity",
    Failure.ACCESS_DENIED: "AuthorizationPolicy",
    Failure.TLS_NOT_THE_MESHS: "client sends TLS of its own",
    Failure.TLS_LEFT_TO_APPLICATION: "client sends TLS of its own",
    Reason.CLIENT_WITHOUT_SIDECAR: "client has no sidecar",
    Reason.DESTINATION_RULE: "a DestinationRule decides",
    Reason.EXTERNAL: "server is outside the mesh",
    Failure.NOT_EXPORTED_PLAINTEXT: "client does not see the service",
    Reason.NOT_EXPORTED: "client does not see the service",
    Reason.AUTO_MTLS_OFF: "auto mTLS is off",
    Reason.AUTO_MTLS: "auto mTLS",
}
"""Codes that are reasons and failures have one text."""

_TRAFFIC = {
    OutsideTraffic.KUBELET_PROBE: "the kubelet's probes",
    OutsideTraffic.API_SERVER: "the API server",
    OutsideTraffic.OUTSIDE_CLIENT: "clients outside the cluster",
    OutsideTraffic.PROMETHEUS_SCRAPE: "Prometheus",
    OutsideTraffic.PROMETHEUS_TLS: "Prometheus, if its CA is not the mesh's",
    OutsideTraffic.GATEWAY: "gateways that have no sidecar, if any",
    OutsideTraffic.EXTERNAL_NAME: "clients of the external name, if any",
    OutsideTraffic.METRICS_PORT: "scrapes of a metrics port, if any",
    OutsideTraffic.POD_ADDRESS: "peers that use pod addresses, if any",
}


def reason_words(reason: str) -> str:
    """Return the reason for the result of a connection in a few words."""
    return _WORDS[reason]


_WORDS = {str(reason): words for reason, words in _REASONS.items()}


def traffic_words(traffic: OutsideTraffic, source: Ref | None) -> str:
    """Return the clients outside the mesh, and the object that proves them."""
    return f"{_TRAFFIC[traffic]} ({source})" if source else _TRAFFIC[traffic]
