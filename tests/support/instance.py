"""Control-plane instances as processes that can be killed: the library's server with one world.

The program reads worlds from standard input, a line of JSON each, and reports events on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import structlog

from tests.support.loopback import free_port
from tests.support.serving import OneWorld
from tests.support.world import World
from xds.protocol.events import Acked, Event, Nacked, Subscribed
from xds.server import Stream as ServerStream
from xds.server import XdsServer

_ROOT = Path(__file__).parents[2]
_PROGRAM = f"""
from xds.cli import startup
startup.start()
from {__spec__.name} import main
startup.finish()
main()
"""
"""It starts as `xds` does, in half the time: its messages have no validators."""


class Instance:
    """A server process in an `async with` block. It keeps its port when it is killed and restarted."""

    def __init__(self, name: str, world: World, directory: Path, port: int = 0) -> None:
        self.name = name
        self.world = world
        # One of the kernel's choice could be a connection's while the instance is away.
        self.port = port or free_port()
        self.events: list[dict[str, Any]] = []
        """What the process that runs now has said."""
        self._log = directory / f"{name}.log"
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start it with the world that it should have now."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _PROGRAM,
                str(self.port),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=_ROOT,
            )
        self.events = []
        self._listener = asyncio.create_task(self._listen())
        await self.publish(self.world)
        self.port = (await self.event("serving"))["port"]

    async def kill(self) -> None:
        """Kill it, without a word to anybody."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._listener

    async def died(self) -> None:
        """Wait until it has killed itself."""
        await self._process.wait()
        await self._listener

    async def publish(self, world: World, *, dies_before: str = "") -> None:
        """Replace its world. With `dies_before`, it kills itself just before it sends this type."""
        self.world = world
        assert self._process.stdin
        self._process.stdin.write(json.dumps([dies_before, world.to_json()]).encode() + b"\n")
        await self._process.stdin.drain()

    async def event(self, what: str, *, times: int = 1, timeout: float = 60, **fields: Any) -> dict[str, Any]:
        """Wait until the process has said something for the first time, or so many times, and return it."""
        wanted = {"what": what, **fields}
        try:
            async with asyncio.timeout(timeout):
                while (
                    len(found := [event for event in self.events if wanted.items() <= event.items()]) < times
                ):
                    self._news.clear()
                    await self._news.wait()
                return found[times - 1]
        except TimeoutError:
            log = self._log.read_text(errors="replace")
            raise AssertionError(
                f"{self.name} not within {timeout} s: {wanted}\n{self.events}\n{log}"
            ) from None

    @property
    def sent(self) -> Counter[str]:
        """By type, in its short form: how many resources were sent, or named as removed."""
        counts: Counter[str] = Counter()
        for event in self.events:
            if event["what"] == "sent":
                counts[event["type"]] += len(event["names"]) + len(event["removed"])
        return +counts

    async def _listen(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            self.events.append(json.loads(line))
            self._news.set()


class _Telling(OneWorld):
    """Says what happens."""

    dies_before = ""

    def opened(self, stream: ServerStream) -> None:
        super().opened(stream)
        _tell("connected", node=stream.node.id)

    def sent(self, stream: ServerStream, size: int) -> None:
        super().sent(stream, size)
        if response := stream.session.sent:
            if _short(response.type_url) == self.dies_before:
                os.kill(os.getpid(), signal.SIGKILL)
            _tell(
                "sent",
                type=_short(response.type_url),
                names=[resource.name for resource in response.resources],
                removed=response.removed,
            )

    def received(self, stream: ServerStream, event: Event) -> None:
        super().received(stream, event)
        match event:
            case Subscribed():
                _tell("subscribed", type=_short(event.type_url))
            case Acked():
                _tell("acked", type=_short(event.type_url), names=event.names, removed=event.removed)
            case Nacked():
                _tell("nacked", type=_short(event.type_url), names=event.names, message=event.message)


async def _serve(port: int) -> None:
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _, world = json.loads(await reader.readline())
    proxies = _Telling(World.from_json(world))
    serving = XdsServer(proxies.store, f"127.0.0.1:{port}", observer=proxies)
    await serving.start()
    _tell("serving", port=serving.port)
    while line := await reader.readline():
        proxies.dies_before, world = json.loads(line)
        proxies.publish(World.from_json(world))
    await serving.stop()


def _tell(what: str, **fields: Any) -> None:
    os.write(1, json.dumps({"what": what, **fields}).encode() + b"\n")


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]


def main() -> None:
    """Run the program."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_serve(int(sys.argv[1])))
