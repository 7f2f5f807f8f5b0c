"""The network of a cluster with nodes: namespaces of its control plane and of each node, on a bridge."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack
from typing import Self

from tests.support.places import Namespace

PODS = ipaddress.ip_network("10.244.0.0/16")
GATEWAY = "10.99.0.1"
"""Address of the control plane and of the cluster's DNS."""

_NODES = ipaddress.ip_network("10.99.0.0/24")
_BRIDGE = "nodes"


class Network:
    """A network of nodes: the control plane's namespace, with a bridge to a namespace for each node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup as stack:
            self.place = self._namespace(f"{self.name}-plane")
            for arguments in (
                ("link", "add", _BRIDGE, "type", "bridge"),
                ("address", "add", f"{GATEWAY}/{_NODES.prefixlen}", "dev", _BRIDGE),
                ("link", "set", _BRIDGE, "up"),
            ):
                self.place.run("ip", *arguments)
            self.place.sysctl("net.ipv4.ip_forward", "1")
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def attached(self, number: int) -> tuple[Namespace, str, str]:
        """Make the namespace of a node; return it with the node's address and its network of pods."""
        made = self._namespace(f"{self.name}-node{number}")
        address, pods = str(_NODES[10 + number]), str(list(PODS.subnets(new_prefix=24))[number])
        link = f"node{number}"
        self.place.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", made.name)
        self.place.run("ip", "link", "set", link, "master", _BRIDGE, "up")
        made.run("ip", "address", "add", f"{address}/{_NODES.prefixlen}", "dev", "eth0")
        made.run("ip", "link", "set", "eth0", "up")
        made.run("ip", "route", "add", "default", "via", GATEWAY)
        made.sysctl("net.ipv4.ip_forward", "1")
        self.place.run("ip", "route", "add", pods, "via", address)
        return made, address, pods

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self._cleanup.callback(made.close)
        return made
