"""Which of a pod's TCP connections iptables redirects to its sidecar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirection:
    """Connections to redirect to the sidecar; the others bypass it. The defaults redirect all connections."""

    inbound_ports: tuple[int, ...] | None = None
    """Inbound ports to redirect; None for all."""
    exclude_inbound_ports: tuple[int, ...] = ()
    """Inbound ports that are not redirected."""
    networks: tuple[Network, ...] | None = None
    """Destination networks to redirect; None for all."""
    exclude_networks: tuple[Network, ...] = ()
    """Destination networks that are not redirected."""
    outbound_ports: tuple[int, ...] = ()
    """Ports to redirect even outside `networks`; exclusions take precedence."""
    exclude_outbound_ports: tuple[int, ...] = ()
    """Destination ports that are not redirected."""

    def redirects_inbound(self, port: int) -> bool:
        """Whether connections from other pods to a port of the pod are redirected."""
        is_included = self.inbound_ports is None or port in self.inbound_ports
        return is_included and port not in self.exclude_inbound_ports

    def redirects_outbound(self, address: str, port: int) -> bool:
        """Whether connections of the application are redirected.

        Args:
            address: IP address that the application connects to. Any other text stands for an unknown
                address, which counts as part of `networks`, but not of `exclude_networks`.
            port: port that the application connects to.
        """
        if port in self.exclude_outbound_ports or _contains(self.exclude_networks, address, unknown=False):
            return False
        if self.networks is None or port in self.outbound_ports:
            return True
        return _contains(self.networks, address, unknown=True)


REDIRECT_ALL = Redirection()
"""Redirection of all connections."""
REDIRECT_NONE = Redirection(inbound_ports=(), networks=())
"""Redirection of no connection, so that all bypass the sidecar."""


def _contains(networks: Iterable[Network], address: str, *, unknown: bool) -> bool:
    if not networks:
        return False
    ip = _parse(address)
    return unknown if ip is None else any(ip in network for network in networks)


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address)
    except ValueError:
        return None
