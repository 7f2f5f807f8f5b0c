"""A minimal `Proxies`, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import grpc.aio

from xds.codec import message_class
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import ADS, Refused, StreamInfo, Subscriber
from xds.snapshot import Snapshot

_DISCOVERY = "envoy.service.discovery.v3"
REQUEST = message_class(f"{_DISCOVERY}.DiscoveryRequest")
RESPONSE = message_class(f"{_DISCOVERY}.DiscoveryResponse")
DELTA_REQUEST = message_class(f"{_DISCOVERY}.DeltaDiscoveryRequest")
DELTA_RESPONSE = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse")


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
        name = "StreamAggregatedResources" if variant is Variant.SOTW else "DeltaAggregatedResources"
        self.call = channel.stream_stream(method or f"/{ADS}/{name}")()
        self._variant = variant
        self._node, self._cluster = node, cluster
        self._writes = asyncio.Lock()
        """gRPC allows one write at a time."""

    async def ask(self, type_url: str = "", *names: str, nonce: str = "", error: str = "") -> None:
        request = (REQUEST if self._variant is Variant.SOTW else DELTA_REQUEST)(
            type_url=type_url, response_nonce=nonce
        )
        if self._node:
            request.node.id, self._node = self._node, ""
            request.node.cluster = self._cluster
        if error:
            request.error_detail.message = error
        if self._variant is Variant.SOTW:
            request.resource_names.extend(names)
        else:
            request.resource_names_subscribe.extend(names)
        async with self._writes:
            await self.call.write(request.SerializeToString())

    async def get(self):
        data = await self.call.read()
        assert data is not grpc.aio.EOF, await self.call.code()
        return (RESPONSE if self._variant is Variant.SOTW else DELTA_RESPONSE).FromString(data)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Read to the end of the stream, and return its status."""
        with suppress(grpc.aio.AioRpcError):
            while await self.call.read() is not grpc.aio.EOF:
                pass
        return await self.call.code(), await self.call.details()
