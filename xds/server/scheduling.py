"""Share the event loop's time between streams and between clients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from time import monotonic
from weakref import WeakValueDictionary

TIME_SLICE = 0.01
"""Seconds of work on streams before the event loop runs other tasks."""

CLIENT_SHARE = 0.25
"""Share of the event loop's time that the requests of one client may use in the long run."""

CLIENT_BURST = 1.0
"""Seconds of work that a client may use in a burst. A sidecar that reconnects to a large mesh uses 0.5 s."""

REQUEST_COST = 0.0001
"""Seconds charged for reading a request, because gRPC's share of the work cannot be measured."""

WARNING_COST = 0.02
"""Seconds charged for a NACK or a refused request, because of its log line. It allows 12 per second."""

CALL_COST = 0.01
"""Seconds charged for a call, because of the log lines at its start and end."""

MAX_CONCURRENT_FIRST_REQUESTS = 4
"""Maximum number of first requests that are read at the same time for one caller. Each uses up to 30 MiB."""

_LOW_PRIORITY_INTERVAL = 16
"""While callers with normal priority wait, one of this many turns goes to a caller with low priority."""

_MIN_CLEANUP_SIZE = 1024
"""Number of tracked clients above which idle ones are removed."""


class RequestPacer:
    """Delays the requests of clients that exceed their share of the event loop's time.

    Args:
        share: Share of the event loop's time that one client may use in the long run.
        burst: Seconds of work that it may use in a burst.
    """

    def __init__(self, share: float = CLIENT_SHARE, burst: float = CLIENT_BURST) -> None:
        self._share, self._burst = share, burst
        self._free_at: dict[Hashable, float] = {}
        """For each client, when its charged work is paid off, in seconds of the event loop's clock."""
        self._cleanup_size = _MIN_CLEANUP_SIZE
        self._first_requests: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    def measure(self, client: Hashable, extra: float = 0.0) -> _Measurement:
        """Charge a client for the time of a block, which must not contain `await`.

        This is the time for which the block keeps the event loop busy. The CPU time of the thread would
        exclude other processes, but reading it is a system call, which took a fifth of a push.

        Args:
            client: Client to charge.
            extra: Seconds to charge in addition.
        """
        return _Measurement(self, client, extra)

    def first_requests(self, client: Hashable) -> asyncio.Semaphore:
        """Return the semaphore to hold while a client's first request on a stream is read and parsed."""
        semaphore = self._first_requests.get(client)
        if semaphore is None:
            semaphore = self._first_requests[client] = asyncio.Semaphore(MAX_CONCURRENT_FIRST_REQUESTS)
        return semaphore

    def charge(self, client: Hashable, seconds: float) -> None:
        """Charge a client for seconds of work."""
        now = monotonic()
        self._free_at[client] = max(self._free_at.get(client, now), now) + seconds / self._share
        if len(self._free_at) > self._cleanup_size:
            self._free_at = {client: free_at for client, free_at in self._free_at.items() if free_at > now}
            self._cleanup_size = max(_MIN_CLEANUP_SIZE, 2 * len(self._free_at))

    async def wait(self, client: Hashable) -> None:
        """Wait until the client's next request may be read."""
        if client in self._free_at and (delay := self.delay(client)) > 0:
            await asyncio.sleep(delay)

    def delay(self, client: Hashable) -> float:
        """Return the seconds until the client's next request may be read; 0 or less if it may be read now."""
        free_at = self._free_at.get(client, 0.0)
        return free_at - self._burst / self._share - monotonic()


class _Measurement:
    """Context of `RequestPacer.measure`. A context manager from contextlib takes three times as long."""

    __slots__ = ("_client", "_extra", "_pacer", "_started_at")

    def __init__(self, pacer: RequestPacer, client: Hashable, extra: float) -> None:
        self._pacer, self._client, self._extra = pacer, client, extra
        self._started_at = 0.0

    def __enter__(self) -> None:
        self._started_at = monotonic()

    def __exit__(self, *_: object) -> None:
        self._pacer.charge(self._client, monotonic() - self._started_at + self._extra)


class TurnScheduler:
    """Shares the event loop's time between streams, because a change can make all of them ready at once.

    A caller continues immediately until the current slice is used up. Later callers wait in a queue. Each
    slice releases about as many callers as fitted into the previous slice.

    Requests on open streams, which are mostly ACKs, and reports have low priority. Otherwise, the ACKs of the
    first clients that receive a change would delay the responses to the last ones.
    """

    def __init__(self) -> None:
        self.pacer = RequestPacer()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waiting_low: deque[asyncio.Future[None]] = deque()
        """Callers with low priority."""
        self._turns = 0
        """Number of turns that callers have waited for."""
        self._slice_start: float | None = None
        """Start of the current slice, in seconds of the event loop's clock; None between slices."""
        self._batch_size = 1
        self._released = 0

    async def wait_turn(self, *, low_priority: bool = False) -> None:
        """Wait for the caller's turn. The turn ends when the caller awaits anything.

        Args:
            low_priority: Whether most callers with normal priority come first.
        """
        if self._slice_start is None:
            self._slice_start = monotonic()
            asyncio.get_running_loop().call_soon(self._start_slice)
        elif (
            self._waiting
            or (low_priority and self._waiting_low)
            or monotonic() > self._slice_start + TIME_SLICE
        ):
            turn = asyncio.get_running_loop().create_future()
            (self._waiting_low if low_priority else self._waiting).append(turn)
            await turn

    def _start_slice(self) -> None:
        """Start the next slice, after the event loop has run other tasks."""
        if self._released and self._slice_start is not None:
            elapsed = max(monotonic() - self._slice_start, 1e-6)
            self._batch_size = max(1, min(round(self._released * TIME_SLICE / elapsed), 2 * self._released))
        self._slice_start, self._released = None, 0
        while self._released < self._batch_size and (turn := self._next_turn()):
            if not turn.done():  # The stream may have been cancelled.
                turn.set_result(None)
                self._released += 1
        if self._released:
            self._slice_start = monotonic()
            asyncio.get_running_loop().call_soon(self._start_slice)

    def _next_turn(self) -> asyncio.Future[None] | None:
        """Return the next turn that a caller waits for; None if none waits."""
        if not (self._waiting or self._waiting_low):
            return None
        self._turns += 1
        is_low = self._waiting_low and (not self._waiting or self._turns % _LOW_PRIORITY_INTERVAL == 0)
        return (self._waiting_low if is_low else self._waiting).popleft()
