"""How long answers keep the event loop from its other work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from xds.protocol.status import ResourceStatus, TypeStatus

TIME_SLICE: Final = 0.003
"""Seconds of work after which the event loop gets its turn. What is done between two looks at the clock comes on top."""

BATCH_SIZE: Final = 200
"""Resources that are looked at between two looks at the clock."""


class Checkpoint:
    """Gives the event loop its turn if it is time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn = self._loop.time()

    async def __call__(self) -> None:
        """Go on at once, or after the others."""
        if self._loop.time() >= self._turn + TIME_SLICE:
            await asyncio.sleep(0)
            self._turn = self._loop.time()


async def batches(kind: TypeStatus, checkpoint: Checkpoint) -> AsyncIterator[tuple[ResourceStatus, ...]]:
    """Go through the resources of a type, each portion as it is when its turn comes."""
    names = kind.watch.known_names()
    for start in range(0, len(names), BATCH_SIZE):
        await checkpoint()
        yield tuple(kind.resource_statuses(names[start : start + BATCH_SIZE]))
