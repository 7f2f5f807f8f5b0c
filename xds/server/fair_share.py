"""Share capacity fairly between unauthenticated HTTP clients, by address."""

from __future__ import annotations

import asyncio
import types
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from functools import partial
from time import thread_time
from typing import Any, TypeVar

T = TypeVar("T")


class FairSemaphore:
    """A semaphore that serves clients in turn, so that many requests of one client do not delay others."""

    def __init__(self, slots: int, per_client: int) -> None:
        """Create the semaphore.

        Args:
            slots: Total number of slots.
            per_client: Maximum number of slots that one client may hold.
        """
        self._free = slots
        self._per_client = per_client
        self._in_use = Counter[str]()
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Hold a slot. If none is free, wait for the client's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        self._assign()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
                self._in_use[client] -= 1
                self._in_use += Counter()  # Remove clients without slots.
                self._assign()

    def _assign(self) -> None:
        for client in list(self._queues):
            if not self._free:
                return
            if self._in_use[client] >= self._per_client:
                continue
            turns = self._queues.pop(client)
            while turns:
                turn = turns.popleft()
                if not turn.done():  # The request may have been cancelled.
                    turn.set_result(None)
                    self._free -= 1
                    self._in_use[client] += 1
                    break
            if turns:
                self._queues[client] = turns  # Move the client to the end of the queue.


class CpuShare:
    """CPU time of one client, limited to a burst and then to a share of one core."""

    BURST = 1.0
    """Burst in CPU seconds: the admission of 500 pods, each on a TLS connection of its own."""
    SHARE = 0.1
    """Sustained share of one core: 50 such admissions per second."""

    def __init__(self) -> None:
        self._used = 0.0
        self._updated = 0.0

    def charge(self, seconds: float, now: float) -> None:
        """Count used CPU time. `now` is the time of the event loop's clock, in seconds."""
        self._used = max(0.0, self._used - self.SHARE * (now - self._updated)) + seconds
        self._updated = now

    async def charged(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and charge the CPU time that its steps use on the event loop.

        Other tasks that run while it waits, and threads that it starts, are not charged.
        """
        loop = asyncio.get_running_loop()
        return await timed_steps(coroutine, lambda seconds: self.charge(seconds, loop.time()))

    def wait(self, now: float) -> float:
        """Return the number of seconds until the client may use CPU time again; 0 if it may now."""
        return max(0.0, (self._used - self.BURST) / self.SHARE - (now - self._updated))

    def has_recovered(self, now: float) -> bool:
        """Whether the whole burst is available again."""
        return self._used <= self.SHARE * (now - self._updated)


@types.coroutine
def timed_steps(
    coroutine: Coroutine[Any, Any, T], charge: Callable[[float], None]
) -> Generator[Any, None, T]:
    """Run a coroutine. Call `charge` with the CPU seconds of each step, up to the next suspension.

    `await` it. Other tasks that run while the coroutine waits are not counted.
    """
    step = partial(coroutine.send, None)
    while True:
        started_at = thread_time()
        try:
            awaited = step()
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            charge(thread_time() - started_at)
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001 - the coroutine handles it, such as a cancellation
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, None)


class FairExecutor:
    """Runs functions in a thread, one at a time, for clients in turn."""

    def __init__(self) -> None:
        self._slots = FairSemaphore(1, 1)

    async def run(self, client: str, share: CpuShare, function: Callable[[], T]) -> T:
        """Run a function, and charge its CPU time to the client.

        Args:
            client: Address of the client.
            share: CPU share of the client.
            function: Function to run. It must not use the event loop.

        Returns:
            The result of the function. An exception that it raises is raised here.
        """
        async with self._slots.slot(client):
            work = asyncio.ensure_future(asyncio.to_thread(_call_timed, function))
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                await asyncio.wait([work])  # A thread cannot be cancelled: hold the slot until it ends.
                raise
            finally:
                if work.done():
                    share.charge(work.result()[1], asyncio.get_running_loop().time())
        result = work.result()[0]
        if isinstance(result, Exception):
            raise result
        return result


def _call_timed(function: Callable[[], T]) -> tuple[T | Exception, float]:
    """Call a function. Return its result or exception, and the CPU seconds it used."""
    started_at = thread_time()
    try:
        result: T | Exception = function()
    except Exception as error:  # noqa: BLE001 - the caller raises it
        result = error
    return result, thread_time() - started_at
