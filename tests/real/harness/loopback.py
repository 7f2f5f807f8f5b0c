"""Addresses for pods on loopback: every 127.x.y.z is there without set-up, so each pod can have its own."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import closing
from typing import Self

from tests.real.harness.places import HERE

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


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    with closing(socket.socket()) as trial:
        trial.bind((address, 0))
        return int(trial.getsockname()[1])
