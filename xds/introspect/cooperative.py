"""Yielding to the event loop while a large answer is built."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from xds.protocol.status import ResourceStatus, TypeStatus

TIME_SLICE: Final = 0.003
"""Seconds of work before the next checkpoint yields to the event loop."""

BATCH_SIZE: Final = 200
"""Number of resources to process between two checkpoints."""


class Checkpoint:
    """Yields to the event loop when the time slice is used up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._slice_start = self._loop.time()

    async def __call__(self) -> None:
        """Yield to the event loop if the time slice is used up; otherwise return at once."""
        if self._loop.time() >= self._slice_start + TIME_SLICE:
            await asyncio.sleep(0)
            self._slice_start = self._loop.time()


async def batches(
    kind: TypeStatus, checkpoint: Checkpoint, names: Sequence[str] | None = None
) -> AsyncIterator[tuple[ResourceStatus, ...]]:
    """Yield the status of a type's resources in batches. Each batch is current when it is yielded.

    Args:
        kind: Status of the type.
        checkpoint: Yields to the event loop.
        names: Names of the resources; None for all known ones.
    """
    names = kind.watch.known_names() if names is None else names
    for start in range(0, len(names), BATCH_SIZE):
        await checkpoint()
        yield tuple(kind.resource_statuses(names[start : start + BATCH_SIZE]))
