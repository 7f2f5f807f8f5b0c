"""The network of a cluster with nodes: namespaces of its control plane and of each node, on a bridge."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple, Self

from tests.support.places import Namespace

GATEWAY = "10.99.0.1"
"""Address of the control plane and of the cluster's DNS."""

_BRIDGE = "nodes"


class Version(NamedTuple):
    """The networks of an IP version."""

    option: str
    """The option of `ip` that selects it."""
    nodes: IPv4Network | IPv6Network
    pods: IPv4Network | IPv6Network
    pods_of_a_node: int
    """Length of the prefix of a node's part of `pods`."""
    services: str
    """Network of clusterIPs, which nothing on this machine routes."""
    forwarding: str
    """The kernel parameter that turns on forwarding."""


IPV4 = Version(
    "-4", IPv4Network("10.99.0.0/24"), IPv4Network("10.244.0.0/16"), 24, "10.96.0.0/16", "net.ipv4.ip_forward"
)
IPV6 = Version(
    *("-6", IPv6Network("fd00:99::/64"), IPv6Network("fd00:244::/48"), 64, "fd00:96::/112"),
    "net.ipv6.conf.all.forwarding",
)


class Network:
    """A network of nodes: the control plane's namespace, with a bridge to a namespace for each node."""

    def __init__(self, name: str, versions: tuple[Version, ...] = (IPV4,)) -> None:
        self.name, self.versions = name, versions
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup as stack:
            self.place = self._namespace(f"{self.name}-plane")
            self.place.run("ip", "link", "add", _BRIDGE, "type", "bridge")
            self._address(self.place, _BRIDGE, 1)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def attached(self, number: int) -> tuple[Namespace, list[str], list[str]]:
        """Make the namespace of a node; return it with the node's addresses and its networks of pods."""
        made = self._namespace(f"{self.name}-node{number}")
        link = f"node{number}"
        self.place.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", made.name)
        self.place.run("ip", "link", "set", link, "master", _BRIDGE, "up")
        addresses, networks = self._address(made, "eth0", 10 + number), []
        for version, address in zip(self.versions, addresses, strict=True):
            made.run("ip", version.option, "route", "add", "default", "via", str(version.nodes[1]))
            subnets = version.pods.subnets(new_prefix=version.pods_of_a_node)
            pods = str(next(itertools.islice(subnets, number, None)))
            self.place.run("ip", version.option, "route", "add", pods, "via", address)
            networks.append(pods)
        return made, addresses, networks

    def _address(self, place: Namespace, link: str, number: int) -> list[str]:
        """Set up a link with an address of each IP version, and forward packets; return the addresses."""
        place.run("ip", "link", "set", link, "up")
        addresses = []
        for version in self.versions:
            address = str(version.nodes[number])
            options = ("nodad",) if version is IPV6 else ()
            place.run("ip", "address", "add", f"{address}/{version.nodes.prefixlen}", "dev", link, *options)
            place.sysctl(version.forwarding, "1")
            addresses.append(address)
        return addresses

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self._cleanup.callback(made.close)
        return made
