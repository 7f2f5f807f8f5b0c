"""Yielding to the event loop during long work."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

TIME_SLICE: Final = 0.003
"""Seconds of work before the next checkpoint yields to the event loop."""


class Checkpoint:
    """Yields to the event loop when the time slice is used up."""

    __slots__ = ("_slice_end",)

    def __init__(self) -> None:
        self.start_slice()

    def start_slice(self) -> None:
        """Start a slice, because the event loop has just run."""
        self._slice_end = monotonic() + TIME_SLICE

    async def __call__(self) -> bool:
        """Yield to the event loop if the time slice is used up. Return whether it was."""
        if monotonic() < self._slice_end:
            return False
        await asyncio.sleep(0)
        self.start_slice()
        return True
