"""Addresses for pods on loopback: every 127.x.y.z is there without set-up, so each pod can have its own."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Self

from tests.support.places import HERE

_CLAIM = 15999


class Loopback:
    """A block 127.x.y.0/24 that no other test run on this machine uses at the same time."""

    def __init__(self) -> None:
        for _ in range(100):
            self._block = f"127.{random.randrange(64, 250)}.{random.randrange(1, 250)}"
            try:
                self._claim = HERE.listener(f"{self._block}.254", _CLAIM)
            except OSError:
                continue
            break
        else:
            raise RuntimeError("no block of loopback addresses is free")
        self._next = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.close()

    def address(self) -> str:
        """Return an address that nothing else has."""
        return f"{self._block}.{next(self._next)}"


def _ports() -> Iterator[int]:
    """Yield the ports of this pytest worker, below those that the kernel gives to connections."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = list(range(20_000 + worker, max(ephemeral, 30_000), workers))
    random.Random(os.getpid()).shuffle(ports)  # other runs on this machine use the same range
    return itertools.cycle(ports)


_PORTS = _ports()


@cache
def _claims() -> int:
    """Open a file of which each byte stands for a port: who locks it has the port until its process ends."""
    file = Path(tempfile.gettempdir(), f"xds-test-ports-{os.getuid()}")
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a free port that was not returned before, here or in another run, and is no source port."""
    claims = _claims()
    while True:
        port = next(_PORTS)
        with closing(socket.socket()) as trial, suppress(OSError):
            # Between its choice and its use, and while a server restarts, a port is not bound.
            fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            trial.bind((address, port))
            return port
