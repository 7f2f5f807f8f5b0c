"""What the nodes did, for programs that follow it."""

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
"""Names in the subscriptions that wait to be taken: each event has all names of its client, up to 100,000 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """A stream has ended."""

    node: Node


Event: TypeAlias = Connected | Disconnected | Subscribed | Acked | Nacked


class Events:
    """What happens from now on, one pair after the other: the stream (with its `node`), and what it did.

    Who does not keep up costs no more than `limit` pairs and a million names in them: the oldest are dropped, and counted in `missed`. Nobody waits.
    It goes on until `close`, or until nobody has it any more.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: there must be room for at least one event")
        self.missed = 0
        """How many were dropped."""
        self._limit = limit
        self._queue: deque[tuple[Subscriber, Event]] = deque()
        self._names = 0
        """How many names the events have."""
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, subscriber: Subscriber, event: Event) -> None:
        """Add what happened."""
        self._queue.append((subscriber, event))
        self._names += _names(event)
        while len(self._queue) > self._limit or (self._names > MAX_NAMES and len(self._queue) > 1):
            if not self.missed:
                log.warning("events are dropped: they are not taken as fast as they come", limit=self._limit)
            self.missed += 1
            self._take()
        self._wake.set()

    def close(self) -> None:
        """Let whoever iterates come to the end of it: after what is still there, there is nothing more."""
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
        return self._take()

    def _take(self) -> tuple[Subscriber, Event]:
        subscriber, event = self._queue.popleft()
        self._names -= _names(event)
        return subscriber, event


def _names(event: Event) -> int:
    return len(event.names) if isinstance(event, Subscribed) else 0
