"""Continuous load over kept connections, to verify that no request is lost during a change."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import aiohttp

from tests.support.answers import Answer
from tests.support.clients import Client, ask


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what became of it. Times are `time.monotonic()`."""

    began: float
    ended: float
    answer: Answer


@dataclass(slots=True, kw_only=True)
class Load:
    """Requests `url` over kept connections in an `async with` block; stops by itself at either limit."""

    client: Client
    url: str
    connections: int = 8
    keep_alive: bool = True
    pause: float = 0.05
    at_most: int = 200_000
    seconds: float = 600
    sent: list[Sent] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _ends: float = 0

    async def __aenter__(self) -> Self:
        self._ends = time.monotonic() + self.seconds
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(self.connections)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End after the requests that are under way."""
        self._ends = 0
        await asyncio.gather(*self._tasks)

    async def more(self, count: int, timeout: float = 60) -> list[Sent]:
        """Wait for that many requests that begin from now on, and return them."""
        now, start = time.monotonic(), len(self.sent)
        async with asyncio.timeout(timeout):
            while len(since := [sent for sent in self.sent[start:] if sent.began >= now]) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return since

    def since(self, moment: float) -> list[Sent]:
        """Return the requests that began after a moment of `time.monotonic()` and have ended."""
        return [sent for sent in self.sent if sent.began >= moment]

    @property
    def failures(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.answer.ok]

    def check(self) -> None:
        """Fail if any request failed."""
        reasons = Counter(
            f"{sent.answer.code} {sent.answer.error or sent.answer.text or sent.answer.headers}"
            for sent in self.failures
        )
        assert not reasons, f"{len(self.failures)} of {len(self.sent)} requests failed: {dict(reasons)}"

    async def _ask_on(self) -> None:
        timeout = aiohttp.ClientTimeout(30)
        async with self.client.session(keep_alive=self.keep_alive) as session:
            while time.monotonic() < self._ends and len(self.sent) < self.at_most:
                began = time.monotonic()
                answer = await ask(session, self.url, proxy=self.client.proxy, timeout=timeout)
                self.sent.append(Sent(began, time.monotonic(), answer))
                self._arrived.set()
                await asyncio.sleep(self.pause)
