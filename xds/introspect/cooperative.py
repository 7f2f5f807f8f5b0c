"""Building large answers in parts, between which the event loop runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from xds.checkpoint import Checkpoint
from xds.protocol.status import ResourceStatus, TypeStatus

BATCH_SIZE: Final = 200
"""Number of resources to process between two checkpoints."""


async def batches(kind: TypeStatus, checkpoint: Checkpoint) -> AsyncIterator[tuple[ResourceStatus, ...]]:
    """Yield the status of a type's resources in batches. Each batch is current when it is yielded.

    Args:
        kind: Status of the type.
        checkpoint: Yields to the event loop.
    """
    names = kind.watch.known_names()
    for start in range(0, len(names), BATCH_SIZE):
        await checkpoint()
        yield tuple(kind.resource_statuses(names[start : start + BATCH_SIZE]))
