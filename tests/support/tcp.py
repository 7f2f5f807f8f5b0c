"""TCP by lines: conversations, applications that echo (and may greet first), and a relay between places."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from tests.support.places import HERE, Place

BROKEN = (ConnectionError, asyncio.IncompleteReadError)


class Conversation:
    """An established connection on which both sides speak in lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._reader, self._writer, self._timeout = reader, writer, timeout

    @classmethod
    async def over(cls, connected: socket.socket, timeout: float) -> Self:
        reader, writer = await asyncio.open_connection(sock=connected)
        return cls(reader, writer, timeout)

    async def say(self, line: str) -> None:
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()

    async def hear(self) -> str:
        """Return the next line; raise ConnectionError if the other side is gone."""
        async with asyncio.timeout(self._timeout):
            line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError(f"closed after {line!r}")
        return line.decode().rstrip("\r\n")

    async def ask(self, line: str) -> str:
        await self.say(line)
        return await self.hear()

    async def closed(self) -> bool:
        """Wait until the other side has closed, whatever it says until then."""
        with suppress(ConnectionError):
            async with asyncio.timeout(self._timeout):
                while await self._reader.read(65536):
                    pass
        return True

    async def connect_through(self, authority: str) -> None:
        """Open a tunnel through the HTTP proxy at the other end. A refusal raises ConnectionError."""
        await self.say(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r")
        status = await self.hear()
        length = 0
        while header := await self.hear():
            name, _, value = header.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        if " 200" not in status:
            body = (await self._reader.readexactly(length)).decode()
            await self.close()
            raise ConnectionRefusedError(f"{status}: {body}")

    async def close(self) -> None:
        self._writer.close()
        with suppress(*BROKEN):
            await self._writer.wait_closed()


class TcpServer:
    """Serves connections inside an `async with` block, and cuts those that are left at its end."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.port: int = listener.getsockname()[1]
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, sock=self.listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        raise NotImplementedError

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        try:
            with suppress(*BROKEN, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            self._serving.discard(task)
            writer.close()


class LineApp(TcpServer):
    """Answers every line with `POD: LINE`; with `greets`, it speaks first: `220 POD`."""

    def __init__(
        self, name: str, port: int, *, place: Place = HERE, address: str = "0.0.0.0", greets: bool = False
    ) -> None:
        super().__init__(place.listener(address, port))
        self._name = name
        self._greets = greets

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._greets:
            writer.write(f"220 {self._name}\n".encode())
        while line := await reader.readline():
            writer.write(f"{self._name}: ".encode() + line)
            await writer.drain()


class Relay(TcpServer):
    """Hands every connection on to where `connect` leads, bytes as they are."""

    def __init__(self, listener: socket.socket, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        super().__init__(listener)
        self._connect = connect

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await pumped(reader, writer, await self._connect())


class RelayThread:
    """Runs a relay in a thread of its own: the caller may block its event loop."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(),), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        async with self._relay:
            await self._ended.wait()


class SlowRelay(Relay):
    """A relay that keeps what comes back for a while, as a long way would."""

    def __init__(
        self, listener: socket.socket, connect: Callable[[], Awaitable[socket.socket]], seconds: float
    ) -> None:
        super().__init__(listener, connect)
        self._seconds = seconds

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(sock=await self._connect())
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take() -> None:
            while some := await onward_reader.read(65536):
                under_way.put_nowait((loop.time() + self._seconds, some))
            under_way.put_nowait((0.0, b""))

        async def deliver() -> None:
            while True:
                at, some = await under_way.get()
                if not some:
                    writer.close()
                    return
                await asyncio.sleep(at - loop.time())
                writer.write(some)

        try:
            await asyncio.gather(_pump(reader, onward_writer), take(), deliver())
        finally:
            onward_writer.close()


async def pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, onward: socket.socket) -> None:
    """Hand on what comes, both ways, until both sides have said all."""
    onward_reader, onward_writer = await asyncio.open_connection(sock=onward)
    try:
        await asyncio.gather(_pump(reader, onward_writer), _pump(onward_reader, writer))
    finally:
        onward_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Whoever has gone already cannot be told of an end either: OSError, "not connected".
    with suppress(OSError, *BROKEN):
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
        writer.write_eof()
