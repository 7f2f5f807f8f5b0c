"""Raw HTTP connections from a chosen loopback address, for attackers and honest clients."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

HONEST = "127.0.0.1"


class Connection:
    """One TCP or TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request. Return status and body. Raise ConnectionError if the connection ends."""
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
        """Wait until the server closes the connection."""
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
    """Hold `each` TCP connections from every source address, including connections that the server closes."""
    results = await asyncio.gather(
        *(connect(address, source) for source in sources for _ in range(each)), return_exceptions=True
    )
    held = [one for one in results if isinstance(one, Connection)]
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


async def until_limited(ask: Callable[[], Awaitable[int]]) -> Counter[int]:
    """Send requests from ten clients until one is refused. Return the number of responses by status.

    Args:
        ask: returns the status of the answer. OSError: the connection was refused, which counts as status 0.
    """
    answers = Counter[int]()

    async def attack() -> None:
        while not (answers[0] or answers[429]) and answers[200] < 3000:
            try:
                answers[await ask()] += 1
            except OSError:
                answers[0] += 1

    await asyncio.gather(*(attack() for _ in range(10)))
    return answers
