"""Messages that several resources contain."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

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
    if not isinstance(text, str):
        raise TypeError(f"not an address: {text!r}; write a str HOST:PORT, such as '10.0.0.1:80'")
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_number = port.isascii() and port.isdecimal()
    if not colon or not host or not is_number or (":" in host and not text.startswith("[")):
        raise ValueError(f"not an address: {text!r}; write HOST:PORT, such as 10.0.0.1:80 or [::1]:80")
    if int(port) > MAX_PORT:
        raise ValueError(f"not an address: {text!r}: the port is above {MAX_PORT}")
    return host, int(port)


def strings(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    """Return an argument as a tuple. Raise TypeError for one str, whose characters would be the items."""
    if isinstance(value, str):
        raise TypeError(f"{argument}={value!r} is one str: pass a list, {argument}=[{value!r}]")
    return tuple(value)


def is_ip(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def tls_socket(
    context: betterproto2.Message, expected: type[betterproto2.Message], maker: str
) -> TransportSocket:
    """Return the transport socket of a TLS context.

    Raises:
        TypeError: It is not of the expected class, which the function `maker` makes.
    """
    if not isinstance(context, expected):
        # The value itself may be a secret.
        raise TypeError(f"tls= takes {maker}(...), a {expected.__name__}, not {type(context).__name__}")
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))
