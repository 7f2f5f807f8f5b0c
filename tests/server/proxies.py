"""A minimal `Proxies`, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import grpc.aio

from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import Refused, StreamInfo, Subscriber
from xds.snapshot import CLUSTER, Snapshot
from xds.testing import Request
from xds.testing.messages import request_class, response_class
from xds.testing.streams import method_of

REQUEST, DELTA_REQUEST = map(request_class, (Variant.SOTW, Variant.DELTA))
RESPONSE, DELTA_RESPONSE = map(response_class, (Variant.SOTW, Variant.DELTA))


class OneForAll:
    """A `Proxies` that serves the same snapshot to all clients."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot = snapshot
        self.refusal: Refused | None = None
        self.subscribers: list[Subscriber] = []
        self.streams: list[StreamInfo] = []
        self.events: asyncio.Queue[Acked | Nacked] = asyncio.Queue()
        self.left: asyncio.Queue[Subscriber] = asyncio.Queue()

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        if self.refusal:
            raise self.refusal
        subscriber = Subscriber(node, stream)
        if self.snapshot:
            subscriber.publish(self.snapshot)
        self.subscribers.append(subscriber)
        self.streams.append(stream)
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        self.subscribers.remove(subscriber)
        self.left.put_nowait(subscriber)

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        assert subscriber in self.subscribers
        if not isinstance(event, Subscribed):
            self.events.put_nowait(event)

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for subscriber in self.subscribers:
            subscriber.publish(snapshot)


class Client:
    """A client with one stream."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        variant: Variant = Variant.SOTW,
        method: str = "",
        node: str = "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local",
        cluster: str = "",
    ) -> None:
        self.call = channel.stream_stream(method or method_of(variant))()
        self._variant = variant
        self._node: dict[str, str] | None = {"id": node, "cluster": cluster}
        self._writes = asyncio.Lock()
        """gRPC allows one write at a time."""

    async def ask(self, type_url: str = "", *names: str, nonce: str = "", error: str = "") -> None:
        request = Request(type_url=type_url, names=names, nonce=nonce, error=error or None)
        node, self._node = self._node, None
        async with self._writes:
            await self.call.write(request.encode(self._variant, node))

    async def get(self):
        data = await self.call.read()
        assert data is not grpc.aio.EOF, await self.call.code()
        return response_class(self._variant).FromString(data)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Read to the end of the stream, and return its status."""
        with suppress(grpc.aio.AioRpcError):
            while await self.call.read() is not grpc.aio.EOF:
                pass
        return await self.call.code(), await self.call.details()


async def served(channel: grpc.aio.Channel, variant: Variant = Variant.SOTW) -> Client:
    """Open a stream that gets its clusters before a short time limit ends it, which may take a few."""
    while True:
        client = Client(channel, variant)
        with suppress(AssertionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await client.ask(CLUSTER)
            await client.get()
            return client
