"""Parse lists of ports, networks and interfaces, and the annotations that contain them.

`xds init` and Istio's traffic annotations have the same format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_interface, ip_network
from typing import TypeVar

from xds.mesh.model.redirection import REDIRECT_ALL, REDIRECT_NONE, Network, Redirection

TRAFFIC_PREFIX = "traffic.sidecar.istio.io/"
"""Prefix of the annotations that exclude traffic of a pod from its sidecar."""

MAX_LIST_LENGTH = 4096
"""Maximum length of a list in characters: over 200 networks, each with its own iptables rule."""

_POD_INTERFACE = "eth0"
"""Name of the interface of a pod's network. Other interfaces belong to additional networks."""

T = TypeVar("T")


def parse_redirection(annotations: Mapping[str, str]) -> Redirection:
    """Return what the annotations of a pod redirect.

    Invalid lists have no effect. Injection rejects pods that have any.
    """
    if not any(name.startswith(TRAFFIC_PREFIX) for name in annotations):
        return REDIRECT_ALL

    def read(name: str, parse: Callable[[str], tuple[T, ...] | None]) -> tuple[T, ...] | None:
        text = annotations.get(TRAFFIC_PREFIX + name, "*")
        try:
            return parse(text) if len(text) <= MAX_LIST_LENGTH else None
        except ValueError:
            return None

    if includes_pod_interface(read("excludeInterfaces", parse_interfaces) or ()):
        return REDIRECT_NONE
    return Redirection(
        inbound_ports=read("includeInboundPorts", parse_ports),
        exclude_inbound_ports=read("excludeInboundPorts", parse_ports) or (),
        networks=read("includeOutboundIPRanges", parse_networks),
        exclude_networks=read("excludeOutboundIPRanges", parse_networks) or (),
        outbound_ports=read("includeOutboundPorts", parse_ports) or (),
        exclude_outbound_ports=read("excludeOutboundPorts", parse_ports) or (),
    )


def parse_ports(text: str) -> tuple[int, ...] | None:
    """Parse Istio's list of ports: `80,8080`; `*` means all (None), empty means none.

    Raises:
        ValueError: the list is invalid.
    """
    if text.strip() == "*":
        return None
    result = []
    for part in _split(text):
        if not part.isdecimal() or not 0 < int(part) < 65536:
            raise ValueError(f"{part!r} is not a port: write comma-separated numbers, such as 80,8080")
        result.append(int(part))
    return tuple(dict.fromkeys(result))


def parse_networks(text: str) -> tuple[Network, ...] | None:
    """Parse Istio's list of networks: `10.0.0.0/8,fd00::/8`; `*` means all (None), empty means none.

    As in iptables and Istio, an address stands for its network: `10.96.0.2/24` is `10.96.0.0/24`.

    Raises:
        ValueError: the list is invalid.
    """
    if text.strip() == "*":
        return None
    result = []
    for part in _split(text):
        try:
            result.append(ip_network(part, strict=False))
        except ValueError as error:
            raise ValueError(f"{error}: write comma-separated networks, such as 10.0.0.0/8") from None
    return tuple(dict.fromkeys(result))


def networks_with_host_bits(text: str) -> tuple[str, ...]:
    """Return the parts of a valid list of networks that have bits outside the network's mask."""
    return tuple(part for part in _split(text) if part != "*" and _has_host_bits(part))


def _has_host_bits(network: str) -> bool:
    interface = ip_interface(network)
    return interface.ip != interface.network.network_address


def parse_interfaces(text: str) -> tuple[str, ...]:
    """Parse a list of network interfaces.

    Raises:
        ValueError: an interface name is invalid.
    """
    names = tuple(dict.fromkeys(_split(text)))
    for name in names:
        if not re.fullmatch(r"[\w.@:+-]{1,15}", name, re.ASCII) or name.startswith("-"):
            raise ValueError(f"{name!r} is not the name of a network interface")
    return names


def includes_pod_interface(names: Iterable[str]) -> bool:
    """Whether interfaces include that of the pod's network. As in iptables, `e+` means each `e...`."""
    return any(
        _POD_INTERFACE.startswith(name[:-1]) if name.endswith("+") else name == _POD_INTERFACE
        for name in names
    )


def _split(text: str) -> Iterator[str]:
    return (stripped for part in text.split(",") if (stripped := part.strip()))
