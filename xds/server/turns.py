"""Whose turn it is when many streams have something to do at the same time."""

from __future__ import annotations

import asyncio
from collections import deque

SLICE = 0.01
"""Seconds of work on streams after which the event loop gets its turn."""


class Turns:
    """Divides the event loop's time between streams: a change of everything makes all of them ready at once.

    Whoever asks within a slice may go on. The others wait in line, and as many of them are let go on at once as fitted
    into a slice the last time.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._began: float | None = None
        """When the slice began; None between two."""
        self._at_once = 1
        self._let_go = 0

    async def take(self) -> None:
        """Return when it is the caller's turn to work, which must be without `await` until it asks again."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
            loop.call_soon(self._end)
        elif self._waiting or loop.time() > self._began + SLICE:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _end(self) -> None:
        """Begin the next slice, now that the event loop has had its turn."""
        loop = asyncio.get_running_loop()
        if self._let_go and self._began is not None:
            spent = max(loop.time() - self._began, 1e-6)
            self._at_once = max(1, min(round(self._let_go * SLICE / spent), 2 * self._let_go))
        self._began, self._let_go = None, 0
        while self._waiting and self._let_go < self._at_once:
            turn = self._waiting.popleft()
            if not turn.done():  # Its stream may have been cancelled.
                turn.set_result(None)
                self._let_go += 1
        if self._let_go:
            self._began = loop.time()
            loop.call_soon(self._end)
