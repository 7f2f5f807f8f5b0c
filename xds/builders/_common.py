"""Messages that several resources contain."""

from __future__ import annotations

import ipaddress

import betterproto2
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    SocketAddress,
    TransportSocket,
)

from xds.codec import pack

MAX_PORT = 65_535


def ads() -> ConfigSource:
    """Return the config source for resources of the same stream (ADS)."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def address(text: str) -> Address:
    """Return a TCP address from `HOST:PORT`, such as `10.0.0.1:80` or `[::1]:80`.

    Raises:
        ValueError: The text has no port, or the port is not a number up to 65535.
    """
    host, port = host_and_port(text)
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def host_and_port(text: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`. An IPv6 address is in brackets, which are removed."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_port = port.isascii() and port.isdecimal() and int(port) <= MAX_PORT
    if not colon or not host or not is_port or (":" in host and not text.startswith("[")):
        raise ValueError(f"not an address: {text!r}; write HOST:PORT, such as 10.0.0.1:80 or [::1]:80")
    return host, int(port)


def is_ip(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def tls_socket(context: betterproto2.Message) -> TransportSocket:
    """Return the transport socket of a TLS context."""
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))
