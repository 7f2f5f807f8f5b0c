"""Requests at a steady rate while something changes, and a record of each."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: close", re.IGNORECASE)
LONG = 2.0
"""Seconds after which an idle connection is not used again: the server may be about to close it."""
_LOST = (OSError, asyncio.IncompleteReadError)


class Target(NamedTuple):
    """What is asked for."""

    port: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request and what became of it. Times are `time.monotonic()`."""

    target: Target
    since: float
    """When the connection was made or its previous request began: what it talks to is from then."""
    began: float
    ended: float
    code: int
    """0: there was no answer."""
    text: str
    kept: bool
    """Whether the connection had carried a request before."""

    @property
    def app(self) -> int:
        """Which application answered; 0: none."""
        return int(self.text) if self.code == 200 else 0


@dataclass(slots=True, kw_only=True)
class Traffic:
    """Asks all targets in turn inside an `async with` block, half of it over kept connections.

    It stops by itself at either bound.
    """

    targets: Sequence[Target]
    workers: int = 6
    pause: float = 0.02
    seconds: float = 600
    at_most: int = 400_000
    sent: list[Sent] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _ends: float = 0

    async def __aenter__(self) -> Self:
        self._ends = time.monotonic() + self.seconds
        self._tasks = [asyncio.create_task(self._ask_on(worker)) for worker in range(self.workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End after the requests that are under way."""
        self._ends = 0
        await asyncio.gather(*self._tasks)

    async def more(self, count: int, timeout: float = 60) -> None:
        """Wait for that many requests that begin from now on."""
        now, start = time.monotonic(), len(self.sent)
        async with asyncio.timeout(timeout):
            while sum(sent.began >= now for sent in itertools.islice(self.sent, start, None)) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def _ask_on(self, worker: int) -> None:
        keeps = bool(worker % 2)
        connections: dict[int, Connection] = {}
        turns = itertools.islice(itertools.cycle(self.targets), worker, None)
        while time.monotonic() < self._ends and len(self.sent) < self.at_most:
            port, path = next(turns)
            connection = connections.pop(port, None)
            if connection and (connection.ended or connection.idle > LONG):
                connection.close()
                connection = None
            connection = connection or Connection(port)
            self.sent.append(await connection.ask(path))
            if keeps and connection.open:
                connections[port] = connection
            else:
                connection.close()
            self._arrived.set()
            await asyncio.sleep(self.pause)
        for connection in connections.values():
            connection.close()


class Connection:
    """A connection that carries one request after the other, as long as it is `open`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._began = time.monotonic()
        self.open = True

    @property
    def ended(self) -> bool:
        """Whether the server has closed the idle connection, as Envoy does at the end of a drain."""
        return self._streams is not None and self._streams[0].at_eof()

    @property
    def idle(self) -> float:
        """Seconds since the last request began."""
        return time.monotonic() - self._began

    async def ask(self, path: str) -> Sent:
        kept, since, self._began = bool(self._streams), self._began, time.monotonic()
        try:
            async with asyncio.timeout(20):
                code, text = await self._exchange(path)
        except (*_LOST, TimeoutError) as error:
            self.open = False
            code, text = 0, f"{type(error).__name__}: {error}"
        return Sent(
            target=Target(self._port, path),
            since=since,
            began=self._began,
            ended=time.monotonic(),
            code=code,
            text=text,
            kept=kept,
        )

    async def _exchange(self, path: str) -> tuple[int, str]:
        if not self._streams:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nhost: all\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        self.open = not _CLOSE.search(head)
        return int(head.split(b" ", 2)[1]), body.decode()

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
