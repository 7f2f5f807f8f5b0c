"""A machine that pods run on: a network namespace that routes between theirs.

It is isolated from the machine that it really runs on. Leaving the `with` block removes all of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.places import Namespace

GATEWAY, GATEWAY6 = "169.254.1.1", "fd77:1::1"
"""The node's addresses, as every pod sees them."""

_ETC = Path("/etc/netns")
_runs = itertools.count(1)


class Node:
    """The node's own namespace, and the links to its pods, which have an address each."""

    def __init__(self) -> None:
        self.run_id = f"xds-{os.getpid():x}-{next(_runs)}"
        self._numbers = itertools.count(1)
        self._cleanup = ExitStack()
        self._pods: dict[str, ExitStack] = {}

    def __enter__(self) -> Self:
        self.place = self._namespace("node", self._cleanup)
        self.place.sysctl("net.ipv4.ip_forward", "1")
        self.place.sysctl("net.ipv6.conf.all.forwarding", "1")
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.values():
            pod.close()
        self._cleanup.close()

    def add(self, address: str = "", families: Sequence[int] = (4,)) -> tuple[Namespace, tuple[str, ...]]:
        """Make a place for a pod. Without an address, it gets some that no other had before."""
        number = next(self._numbers)
        own = {4: f"10.77.{number >> 8}.{number & 255}", 6: f"fd77::{number:x}"}
        addresses = (address,) if address else tuple(own[family] for family in families)
        link = f"pod{number}"
        with ExitStack() as made:
            place = self._namespace(f"p{number}", made)
            self.place.run(
                "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", place.name
            )
            made.callback(self.place.run, "ip", "link", "delete", link)
            ends = [f"link set {link} up\n"], ["link set eth0 up\n"]
            for at in addresses:
                for end, lines in zip(ends, (_link6 if ":" in at else _link)(at, link), strict=True):
                    end.append(lines)
            for end, where in zip(ends, (self.place, place), strict=True):
                where.run("ip", "-batch", "-", stdin="".join(end))
            self._pods[place.name] = made.pop_all()
        return place, addresses

    def remove(self, place: Namespace) -> None:
        """Take a pod's place away when what runs in it has ended."""
        self._pods.pop(place.name).close()

    def _namespace(self, suffix: str, cleanup: ExitStack) -> Namespace:
        name = f"{self.run_id}-{suffix}"
        cleanup.enter_context(_etc(name))
        namespace = Namespace(name)
        cleanup.callback(namespace.close)
        return namespace


def _link(address: str, link: str) -> tuple[str, str]:
    """Return the commands that give a link an IPv4 address: on the node, and in the pod."""
    node = f"addr add {GATEWAY}/32 dev {link}\nroute add {address}/32 dev {link}\n"
    pod = (
        f"addr add {address}/32 dev eth0\nroute add {GATEWAY}/32 dev eth0 src {address}\n"
        f"route add default via {GATEWAY} src {address}\n"
    )
    return node, pod


def _link6(address: str, link: str) -> tuple[str, str]:
    """Do the same for IPv6. Without `nodad`, an address could be used only after a second."""
    node = f"addr add {GATEWAY6}/128 dev {link} nodad\nroute add {address}/128 dev {link}\n"
    pod = (
        f"addr add {address}/128 dev eth0 nodad\nroute add {GATEWAY6}/128 dev eth0 src {address}\n"
        f"route add ::/0 via {GATEWAY6} src {address}\n"
    )
    return node, pod


def etc(place: Namespace, name: str) -> Path:
    """Return the file that commands in a place see as /etc/NAME."""
    return _ETC / place.name / name


@contextmanager
def _etc(name: str) -> Iterator[None]:
    """Give commands that run in the namespace (`ip netns exec`) a hosts file and a resolver of their own."""
    directory = _ETC / name
    directory.mkdir(parents=True)
    (directory / "hosts").write_text("127.0.0.1\tlocalhost\n")
    (directory / "resolv.conf").write_text("")
    try:
        yield
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()  # but not its parent, which parallel tests share
