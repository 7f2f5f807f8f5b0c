"""A machine that pods run on: a network namespace that routes between theirs.

It is isolated from the machine that it really runs on. Leaving the `with` block removes all of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.places import Namespace

GATEWAY = "169.254.1.1"
"""The node's address, as every pod sees it."""

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
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.values():
            pod.close()
        self._cleanup.close()

    def add(self, address: str = "") -> tuple[Namespace, str]:
        """Make a place for a pod. Without an address, it gets one that no other had before."""
        number = next(self._numbers)
        address = address or f"10.77.{number >> 8}.{number & 255}"
        link = f"pod{number}"
        with ExitStack() as made:
            place = self._namespace(f"p{number}", made)
            self.place.run(
                "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", place.name
            )
            made.callback(self.place.run, "ip", "link", "delete", link)
            self.place.run(
                "ip", "-batch", "-",
                stdin=f"link set {link} up\naddr add {GATEWAY}/32 dev {link}\n"
                f"route add {address}/32 dev {link}\n",
            )  # fmt: skip
            place.run(
                "ip", "-batch", "-",
                stdin=f"addr add {address}/32 dev eth0\nlink set eth0 up\n"
                f"route add {GATEWAY}/32 dev eth0 src {address}\nroute add default via {GATEWAY} src "
                f"{address}\n",
            )  # fmt: skip
            self._pods[place.name] = made.pop_all()
        return place, address

    def remove(self, place: Namespace) -> None:
        """Take a pod's place away when what runs in it has ended."""
        self._pods.pop(place.name).close()

    def _namespace(self, suffix: str, cleanup: ExitStack) -> Namespace:
        name = f"{self.run_id}-{suffix}"
        cleanup.enter_context(_etc(name))
        namespace = Namespace(name)
        cleanup.callback(namespace.close)
        return namespace


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
