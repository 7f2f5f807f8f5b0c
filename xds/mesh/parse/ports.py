"""Transport protocol of a port, and Istio's rules for its application protocol."""

from __future__ import annotations

from xds.mesh.model.objects import Protocol
from xds.mesh.parse.reading import Field

_SERVER_FIRST = frozenset({25, 53, 3306, 27017})
"""Ports of server-first protocols, which cannot be detected. As in Istio, their default protocol is TCP."""

_APP_PROTOCOLS = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.TCP,
}
_PROTOCOLS = {
    "http": Protocol.HTTP,
    "http_proxy": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.HTTP2,
    "tcp": Protocol.TCP,
    "tls": Protocol.TCP,
    "https": Protocol.TCP,
    "mongo": Protocol.TCP,
    "mysql": Protocol.TCP,
    "redis": Protocol.TCP,
}


def transport_protocol(field: Field) -> str:
    """Parse the transport protocol of a port: TCP, UDP or SCTP. Only TCP ports become facts."""
    return field.one_of("TCP", "UDP", "SCTP") or "TCP"


def protocol(number: int, name: str, app_protocol: str = "") -> Protocol:
    """Return the protocol of a port, from appProtocol or else from the prefix of the port's name."""
    declared = (app_protocol or name).lower()
    if app_protocol and declared in _APP_PROTOCOLS:
        return _APP_PROTOCOLS[declared]
    if declared.startswith("grpc-web"):
        return Protocol.HTTP
    undeclared = Protocol.TCP if number in _SERVER_FIRST else Protocol.AUTO
    return _PROTOCOLS.get(declared.partition("-")[0], undeclared)
