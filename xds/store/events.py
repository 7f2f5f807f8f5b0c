"""Events of a store's clients, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self, TypeAlias

import structlog

from xds.protocol.events import Acked, Connected, Nacked, Subscribed
from xds.protocol.wire import Node
from xds.server import Subscriber

log = structlog.get_logger(__name__)

MAX_NAMES = 1_000_000
"""Maximum number of names in queued `Subscribed` events. One event has up to 100,000 names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """A client's stream has ended."""

    node: Node
    """Node of the client."""


Event: TypeAlias = Connected | Disconnected | Subscribed | Acked | Nacked


class Events:
    """Asynchronous iterator over the events of a store's clients, as pairs of a stream and an event.

    A slow reader does not slow down the clients. At most `limit` events, with a million names in total, are
    queued. If there are more, the oldest events are dropped and counted in `missed`. Iteration ends after
    `close`.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: the limit must be at least 1")
        self.missed = 0
        """Number of events that were dropped because the reader was too slow."""
        self._limit = limit
        self._queue: deque[tuple[Subscriber, Event]] = deque()
        self._names = 0
        """Number of names in the queued events."""
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, subscriber: Subscriber, event: Event) -> None:
        """Queue an event, and drop the oldest ones if the queue is full."""
        self._queue.append((subscriber, event))
        self._names += _names(event)
        while len(self._queue) > self._limit or (self._names > MAX_NAMES and len(self._queue) > 1):
            if not self.missed:
                log.warning("events dropped, reader is too slow", limit=self._limit)
            self.missed += 1
            self._pop()
        self._wake.set()

    def close(self) -> None:
        """End the iteration once the queued events have been read."""
        self._closed = True
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Subscriber, Event]:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._pop()

    def _pop(self) -> tuple[Subscriber, Event]:
        subscriber, event = self._queue.popleft()
        self._names -= _names(event)
        return subscriber, event


def _names(event: Event) -> int:
    return len(event.names) if isinstance(event, Subscribed) else 0
