"""Many proxies in one process, each with its own connection.

    python -m tests.server.crowd PORT MODE COUNT

MODE is one of
    hold     connect all at once; print a line for each response that all received
    stay     print a line when all are served, and one when all have ended: the number of streams that ended
             because of the shutdown
    churn    connect COUNT times, a hundred at once, and disconnect in every way

Every second proxy uses the delta variant.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import count

from tests.support.http2_frames import DATA, END_STREAM, HEADERS, OPENING, Peer, frame, message

_SERVICE = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_TYPE = b"type.googleapis.com/envoy.config.cluster.v3.Cluster"


def field(number: int, payload: bytes) -> bytes:
    """Encode a protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


class Proxy(Peer):
    """One connection with one stream."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._body = bytearray()
        self.responses = 0
        self.headers = b""
        """Last headers, with the status of the stream."""

    def connection_made(self, transport) -> None:
        """Subscribe to all clusters."""
        super().connection_made(transport)
        delta = self._number % 2
        node, type_url = (1, 2) if delta else (2, 4)
        request = field(node, field(1, b"proxy-%d" % self._number)) + field(type_url, _TYPE)
        self.send(OPENING)
        path = _SERVICE + ("DeltaAggregatedResources" if delta else "StreamAggregatedResources")
        self.stream = self.open(path, message(request))

    def frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        super().frame_received(kind, flags, stream, payload)
        if kind == DATA:
            self._body += payload
            while len(self._body) >= 5 + (length := int.from_bytes(self._body[1:5], "big")) > 5:
                del self._body[: 5 + length]
                self.responses += 1
        elif kind == HEADERS:
            self.headers = payload

    async def until(self, responses: int) -> bool:
        """Wait for `count` responses. Return False if the stream ended first."""
        while self.responses < responses and not self.ended and not self.closed.is_set():
            self.received.clear()
            await self.received.wait()
        return self.responses >= responses

    async def leave(self, how: int) -> None:
        """End the stream in one of five ways."""
        match how % 5:
            case 0:  # cancel the stream, as gRPC clients do
                self.cancel(self.stream)
            case 2:  # say that there will be no more, and wait until the server agrees
                self.send(frame(DATA, END_STREAM, self.stream))
                await self.until(1 << 30)
            case 4:  # say what is no request, and wait for the server's answer
                self.send(frame(DATA, 0, self.stream, message(b"\xff")))
                await self.until(1 << 30)
            case 3:  # a process that is killed with unread data
                self.close()
        self.transport.close()
        await self.closed.wait()


async def connect(port: int, number: int) -> Proxy:
    loop = asyncio.get_running_loop()
    _, proxy = await loop.create_connection(lambda: Proxy(number), "127.0.0.1", port)
    return proxy


def print_headers(proxies: Iterable[Proxy]) -> None:
    """Print the most common last headers, which have the status, and the kinds of received frames."""
    ended = Counter((proxy.headers[-200:], *sorted(proxy.frames)) for proxy in proxies)
    print(*ended.most_common(5), sep="\n", file=sys.stderr)


async def hold(port: int, count_: int) -> None:
    proxies = await asyncio.gather(*(connect(port, number) for number in range(count_)))
    for responses in count(1):
        good = await asyncio.gather(*(proxy.until(responses) for proxy in proxies))
        print(sum(good), flush=True)
        if not all(good):
            print_headers(proxy for proxy in proxies if proxy.responses < responses)
            return


async def stay(port: int, count_: int) -> None:
    proxies = await asyncio.gather(*(connect(port, number) for number in range(count_)))
    print(sum(await asyncio.gather(*(proxy.until(1) for proxy in proxies))), flush=True)
    await asyncio.gather(*(proxy.until(1 << 30) for proxy in proxies))
    # gRPC sends the message as a literal: the dynamic table is empty.
    others = [proxy for proxy in proxies if b"the server is shutting down" not in proxy.headers]
    print(count_ - len(others), flush=True)
    print_headers(others)


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
