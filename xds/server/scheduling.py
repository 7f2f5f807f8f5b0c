"""Whose turn it is when many streams have something to do at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

TIME_SLICE = 0.01
"""Seconds of work on streams after which the event loop gets its turn."""

CLIENT_SHARE = 0.25
"""Fraction of the event loop's time that the requests of one client may take in the long run."""

CLIENT_BURST = 1.0
"""Seconds of work that a client may have done before that counts: a sidecar that reconnects to a large mesh takes 0.5 s."""

REQUEST_COST = 0.0001
"""Seconds that reading one request takes in gRPC, which cannot be measured here."""

WARNING_COST = 0.02
"""Seconds of work that a NACK or a refused request counts as, for its line in the log: a client gets 12 of them a second."""

CALL_COST = 0.01
"""Seconds of work that a call counts as, for the lines that the log has of its beginning and end."""

MAX_CONCURRENT_FIRST_REQUESTS = 4
"""Streams and fetches of one caller whose first request is read at the same time: each takes up to 30 MiB meanwhile."""

_MIN_CLEANUP_SIZE = 1024
"""Clients that are remembered before those that have made up for their work are looked for and forgotten."""


class RequestPacer:
    """Makes clients wait that take more than their share of the event loop's time: those that flood it with requests."""

    def __init__(self) -> None:
        self._free_at: dict[Hashable, float] = {}
        """By client, when it will have made up for all the work that was done for it."""
        self._cleanup_size = _MIN_CLEANUP_SIZE
        self._first_requests: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    @contextmanager
    def measure(self, client: Hashable, extra: float = 0.0) -> Iterator[None]:
        """Charge a client for the CPU time that a block takes, which has no `await` in it, and for some seconds `extra`."""
        began = time.thread_time()  # What other processes take is not the client's fault.
        try:
            yield
        finally:
            self.charge(client, time.thread_time() - began + extra)

    def first_requests(self, client: Hashable) -> asyncio.Semaphore:
        """Return what to hold while a client's first request on a stream is read and parsed."""
        semaphore = self._first_requests.get(client)
        if semaphore is None:
            semaphore = self._first_requests[client] = asyncio.Semaphore(MAX_CONCURRENT_FIRST_REQUESTS)
        return semaphore

    def charge(self, client: Hashable, seconds: float) -> None:
        """Count some seconds of work for a client."""
        now = asyncio.get_running_loop().time()
        self._free_at[client] = max(self._free_at.get(client, now), now) + seconds / CLIENT_SHARE
        if len(self._free_at) > self._cleanup_size:
            self._free_at = {client: at for client, at in self._free_at.items() if at > now}
            self._cleanup_size = max(_MIN_CLEANUP_SIZE, 2 * len(self._free_at))

    async def wait(self, client: Hashable) -> None:
        """Return when the client may have another request read."""
        loop = asyncio.get_running_loop()
        delay = self._free_at.get(client, 0.0) - CLIENT_BURST / CLIENT_SHARE - loop.time()
        if delay > 0:
            await asyncio.sleep(delay)


class TurnScheduler:
    """Divides the event loop's time between streams: a change of everything makes all of them ready at once.

    Whoever asks within a slice may go on. The others wait in line, and as many of them are let go on at once as fitted
    into a slice the last time.
    """

    def __init__(self) -> None:
        self.pacer = RequestPacer()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slice_start: float | None = None
        """When the slice began; None between two."""
        self._batch_size = 1
        self._released = 0

    async def wait_turn(self) -> None:
        """Return when it is the caller's turn to work, which must be without `await` until it asks again."""
        loop = asyncio.get_running_loop()
        if self._slice_start is None:
            self._slice_start = loop.time()
            loop.call_soon(self._start_slice)
        elif self._waiting or loop.time() > self._slice_start + TIME_SLICE:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _start_slice(self) -> None:
        """Begin the next slice, now that the event loop has had its turn."""
        loop = asyncio.get_running_loop()
        if self._released and self._slice_start is not None:
            elapsed = max(loop.time() - self._slice_start, 1e-6)
            self._batch_size = max(1, min(round(self._released * TIME_SLICE / elapsed), 2 * self._released))
        self._slice_start, self._released = None, 0
        while self._waiting and self._released < self._batch_size:
            turn = self._waiting.popleft()
            if not turn.done():  # Its stream may have been cancelled.
                turn.set_result(None)
                self._released += 1
        if self._released:
            self._slice_start = loop.time()
            loop.call_soon(self._start_slice)
