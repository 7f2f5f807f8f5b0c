"""Long computations of which only one runs at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class OneAtATime:
    """Run computations that take seconds of a thread's time, one after the other."""

    def __init__(self) -> None:
        self._running = asyncio.Lock()

    async def run(self, compute: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a computation, once the ones before it have ended.

        A call that is cancelled ends at once, but its computation does not: a thread cannot be cancelled.
        """
        return await asyncio.shield(asyncio.ensure_future(self._run(compute)))

    async def _run(self, compute: Callable[[], Awaitable[T]]) -> T:
        async with self._running:
            return await compute()
