"""Many proxies in one process, each with its own connection and a minimal HTTP/2 implementation.

    python crowd.py PORT hold COUNT     connect all at once; print a line for each response that all received
    python crowd.py PORT stay COUNT     print a line when all are served, and one when all have ended: the
                                        number of streams that ended because of the shutdown
    python crowd.py PORT churn COUNT    connect COUNT times, a hundred at once, and disconnect in every way

Every second proxy uses the delta variant. The program is independent of this project and reads HTTP/2 frames
only.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import struct
import sys
from itertools import count

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM = _ACK = 1
_END_HEADERS = 4

_SERVICE = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_TYPE = b"type.googleapis.com/envoy.config.cluster.v3.Cluster"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def field(number: int, payload: bytes) -> bytes:
    """Encode a protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def text(value: bytes) -> bytes:
    """Encode an HPACK string of less than 127 bytes, without Huffman coding."""
    return bytes([len(value)]) + value


def message(body: bytes) -> bytes:
    return b"\x00" + struct.pack("!I", len(body)) + body


def opening(number: int) -> bytes:
    """Encode the first request of a proxy: a wildcard subscription to clusters."""
    delta = number % 2
    node, type_url = (1, 2) if delta else (2, 4)
    path = _SERVICE + (b"DeltaAggregatedResources" if delta else b"StreamAggregatedResources")
    request = field(node, field(1, b"proxy-%d" % number)) + field(type_url, _TYPE)
    headers = (
        b"\x83\x86",  # :method POST, :scheme http
        b"\x04" + text(path),
        b"\x01" + text(b"xds"),  # :authority
        b"\x0f\x10" + text(b"application/grpc"),
        b"\x00" + text(b"te") + text(b"trailers"),
    )
    return b"".join(
        (
            _PREFACE,
            frame(_SETTINGS, 0, 0),
            frame(_HEADERS, _END_HEADERS, 1, b"".join(headers)),
            frame(_DATA, 0, 1, message(request)),
        )
    )


class Proxy(asyncio.Protocol):
    """One connection with one stream."""

    def __init__(self, number: int) -> None:
        self._opening = opening(number)
        self._data = bytearray()
        self._body = bytearray()
        self.responses = 0
        self.headers = b""
        """Last headers, with the status of the stream."""
        self.ended = False
        """Whether the server ended the stream or the connection."""
        self.news = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(self._opening)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = True
        self.lost.set()
        self.news.set()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= 9:
            length = int.from_bytes(self._data[:3], "big")
            if len(self._data) < 9 + length:
                return
            kind, flags = self._data[3], self._data[4]
            payload = bytes(self._data[9 : 9 + length])
            del self._data[: 9 + length]
            self._frame(kind, flags, payload)

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            self.transport.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _DATA:
            self._body += payload
            while len(self._body) >= 5 and len(self._body) >= 5 + (
                length := int.from_bytes(self._body[1:5], "big")
            ):
                del self._body[: 5 + length]
                self.responses += 1
                self.news.set()
        elif kind == _HEADERS:
            self.headers = payload
        if kind == _RST_STREAM or (kind in {_DATA, _HEADERS} and flags & _END_STREAM):
            self.ended = True
            self.news.set()

    async def until(self, responses: int) -> bool:
        """Wait for `count` responses. Return False if the stream ended first."""
        while self.responses < responses and not self.ended:
            self.news.clear()
            await self.news.wait()
        return self.responses >= responses

    async def leave(self, how: int) -> None:
        """End the stream in one of five ways."""
        match how % 5:
            case 0:  # cancel the stream, as gRPC clients do
                self.transport.write(frame(_RST_STREAM, 0, 1, struct.pack("!I", 8)))
                self.transport.close()
            case 1:  # just close
                self.transport.close()
            case 2:  # say that there will be no more, and wait until the server agrees
                self.transport.write(frame(_DATA, _END_STREAM, 1))
                await self.until(1 << 30)
                self.transport.close()
            case 4:  # say what is no request, and wait for the server's answer
                self.transport.write(frame(_DATA, 0, 1, message(b"\xff")))
                await self.until(1 << 30)
                self.transport.close()
            case 3:  # a process that is killed with unread data
                self.transport.abort()
        await self.lost.wait()


async def connect(port: int, number: int) -> Proxy:
    loop = asyncio.get_running_loop()
    _, proxy = await loop.create_connection(lambda: Proxy(number), "127.0.0.1", port)
    return proxy


async def hold(port: int, count_: int) -> None:
    proxies = await asyncio.gather(*(connect(port, number) for number in range(count_)))
    for responses in count(1):
        good = await asyncio.gather(*(proxy.until(responses) for proxy in proxies))
        print(sum(good), flush=True)
        if not all(good):
            return


async def stay(port: int, count_: int) -> None:
    proxies = await asyncio.gather(*(connect(port, number) for number in range(count_)))
    print(sum(await asyncio.gather(*(proxy.until(1) for proxy in proxies))), flush=True)
    await asyncio.gather(*(proxy.until(1 << 30) for proxy in proxies))
    # gRPC sends the message as a literal: the dynamic table is empty.
    print(sum(b"the server is shutting down" in proxy.headers for proxy in proxies), flush=True)


async def churn(port: int, count_: int) -> None:
    numbers = iter(range(count_))
    good = 0

    async def work() -> None:
        nonlocal good
        for number in numbers:
            proxy = await connect(port, number)
            served = await proxy.until(1)
            good += served
            await proxy.leave(number)

    await asyncio.gather(*(work() for _ in range(100)))
    print(good, flush=True)


if __name__ == "__main__":
    _, port, what, many = sys.argv
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run({"hold": hold, "stay": stay, "churn": churn}[what](int(port), int(many)))
