"""Share limited capacity fairly between clients that have not proved who they are: by address, in turn."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import thread_time
from typing import TypeVar

T = TypeVar("T")


class FairSemaphore:
    """A semaphore that serves waiting clients in turn, so that a client with many requests does not delay the others."""

    def __init__(self, slots: int, per_client: int) -> None:
        """Create the slots.

        Args:
            slots: number of holders at the same time.
            per_client: number of these that one client may have.
        """
        self._free = slots
        self._per_client = per_client
        self._held = Counter[str]()
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Hold a slot; wait for the client's turn if there is none."""
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        self._assign()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
                self._held[client] -= 1
                self._held += Counter()  # Forget clients that hold nothing.
                self._assign()

    def _assign(self) -> None:
        for client in list(self._queues):
            if not self._free:
                return
            if self._held[client] >= self._per_client:
                continue
            turns = self._queues.pop(client)
            while turns:
                turn = turns.popleft()
                if not turn.done():  # The client may have given up.
                    turn.set_result(None)
                    self._free -= 1
                    self._held[client] += 1
                    break
            if turns:
                self._queues[client] = turns  # To the end of the queue.


class CpuShare:
    """CPU time that one client may use: a burst, and then a share of one core."""

    BURST = 1.0
    """CPU seconds that a client may use at once: the admission of 500 pods, each on a TLS connection of its own."""
    SHARE = 0.1
    """Share of one core that a client may use continuously: 50 such admissions a second."""

    def __init__(self) -> None:
        self._used = 0.0
        self._updated = 0.0

    def charge(self, seconds: float, now: float) -> None:
        """Count CPU time as used; `now` is the event loop's clock, in seconds."""
        self._used = max(0.0, self._used - self.SHARE * (now - self._updated)) + seconds
        self._updated = now

    def wait(self, now: float) -> float:
        """Return the seconds until the client may use CPU time again; 0 means now."""
        return max(0.0, (self._used - self.BURST) / self.SHARE - (now - self._updated))

    def has_recovered(self, now: float) -> bool:
        """Whether nothing is counted any longer."""
        return self._used <= self.SHARE * (now - self._updated)


class FairExecutor:
    """Runs functions in a thread, one at a time and one client after the other."""

    def __init__(self) -> None:
        self._slots = FairSemaphore(1, 1)

    async def run(self, client: str, share: CpuShare, function: Callable[[], T]) -> T:
        """Return what the function returns, or raise what it raises, and charge the client's share for its CPU time."""
        async with self._slots.slot(client):
            work = asyncio.ensure_future(asyncio.to_thread(_call_timed, function))
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                await asyncio.wait([work])  # A thread cannot be cancelled: it keeps its slot.
                raise
            finally:
                if work.done():
                    share.charge(work.result()[1], asyncio.get_running_loop().time())
        result = work.result()[0]
        if isinstance(result, Exception):
            raise result
        return result


def _call_timed(function: Callable[[], T]) -> tuple[T | Exception, float]:
    """Call a function; return its result or exception, and the CPU seconds that it took."""
    began = thread_time()
    try:
        result: T | Exception = function()
    except Exception as error:  # noqa: BLE001 - the caller raises it
        result = error
    return result, thread_time() - began
