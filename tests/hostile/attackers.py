"""Raw HTTP connections from a chosen loopback address: what attackers send, and what honest clients get meanwhile."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from xds.fair import CpuShare

HONEST = "127.0.0.1"


class Connection:
    """One TCP or TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body of the answer. ConnectionError: there is none."""
        self.writer.write(request)
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("closed without an answer") from error
        return int(lines[0].split()[1]), body

    async def closed(self) -> None:
        """Return when the server has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass

    async def close(self) -> None:
        """Close it."""
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(
    address: tuple[str, int], source: str, tls: ssl.SSLContext | None = None, name: str | None = None
) -> AsyncIterator[Connection]:
    """Connect from an address of this machine, and close the connection at the end of the block."""
    connection = await connect(address, source, tls, name)
    try:
        yield connection
    finally:
        await connection.close()


async def connect(
    address: tuple[str, int],
    source: str,
    tls: ssl.SSLContext | None = None,
    name: str | None = None,
) -> Connection:
    """Connect from an address of this machine."""
    reader, writer = await asyncio.open_connection(
        *address, ssl=tls, server_hostname=name, local_addr=(source, 0)
    )
    return Connection(reader, writer)


@asynccontextmanager
async def many(
    address: tuple[str, int], sources: Iterable[str], each: int
) -> AsyncIterator[list[Connection]]:
    """Hold `each` TCP connections from every source address; those that the server refuses count too."""
    found = await asyncio.gather(
        *(connect(address, source) for source in sources for _ in range(each)), return_exceptions=True
    )
    held = [one for one in found if isinstance(one, Connection)]
    try:
        yield held
    finally:
        await asyncio.gather(*(one.close() for one in held))


def get(path: str) -> bytes:
    """Return a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """Return a POST request with a body of JSON; a header's `_` is written as `-`."""
    fields = {"Host": "localhost", "Content_Type": "application/json"} | headers
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    head = f"POST {path} HTTP/1.1\r\n{''.join(lines)}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def review(pod: Any) -> bytes:
    """Return the AdmissionReview of a pod that is created in namespace shop."""
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "shop",
        "operation": "CREATE",
        "object": pod,
    }
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request},
        separators=(",", ":"),
    ).encode()


class Flood:
    """Ten clients that ask again and again until the server refuses one, or for a few seconds on a machine that is too busy."""

    def __init__(self, seconds: float = 8.0) -> None:
        self.answers = Counter[int]()
        """Answers by status; 0: the connection was refused."""
        self.seconds = 0.0
        self._limit = seconds

    async def run(self, ask: Callable[[], Awaitable[int]]) -> None:
        """Attack; `ask` returns a status. OSError: the connection was refused."""
        began = time.monotonic()
        await asyncio.gather(*(self._attack(ask, began + self._limit) for _ in range(10)))
        self.seconds = time.monotonic() - began

    async def _attack(self, ask: Callable[[], Awaitable[int]], until: float) -> None:
        while not self.was_limited and time.monotonic() < until:
            try:
                self.answers[await ask()] += 1
            except OSError:
                self.answers[0] += 1

    @property
    def was_limited(self) -> bool:
        """Whether the server refused a request or connection."""
        return bool(self.answers[0] or self.answers[429])

    @property
    def allowed(self) -> float:
        """CPU seconds that the server may have used by now, with a margin for its honest clients."""
        return CpuShare.BURST + CpuShare.SHARE * self.seconds + 1.0
