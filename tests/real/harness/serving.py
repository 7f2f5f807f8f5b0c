"""The library's server with one world for everybody, and what is known of who takes it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.real.harness.world import HOST, World
from xds.protocol.events import Acked, Event, Nacked, Response, Subscribed
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import Stream as ServerStream
from xds.server import StreamInfo, Subscriber, XdsServer
from xds.snapshot import CLUSTER, LISTENER, Resource, Snapshot


@dataclass(slots=True)
class Stream:
    """What one stream has said so far."""

    subscriber: Subscriber
    answers: list[Acked | Nacked] = field(default_factory=list)
    taken: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """By type: name and version of what was acknowledged."""
    responses: Counter[str] = field(default_factory=Counter)
    """By type: how many were sent."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """By type: the nonce of the last response, until it is answered."""
    asked: Counter[str] = field(default_factory=Counter)
    """By type: how many requests changed the subscription."""

    def sent(self, response: Response) -> None:
        self.responses[response.type_url] += 1
        self.unanswered[response.type_url] = response.nonce

    def observe(self, event: Subscribed | Acked | Nacked) -> None:
        if isinstance(event, Subscribed):
            self.asked[event.type_url] += 1
            return
        self.answers.append(event)
        if self.unanswered.get(event.type_url) == event.nonce:
            del self.unanswered[event.type_url]
        taken = self.taken[event.type_url]
        if isinstance(event, Acked):
            if self.subscriber.stream.variant is Variant.SOTW and event.type_url in (CLUSTER, LISTENER):
                taken.clear()
            for name in event.removed:
                taken.pop(name, None)
        spoiled = () if isinstance(event, Acked) else event.culprits or event.resources
        taken.update({each.name: each.version for each in event.resources if each not in spoiled})

    @property
    def rejections(self) -> list[Nacked]:
        return [answer for answer in self.answers if isinstance(answer, Nacked)]

    def lacks(self, snapshot: Snapshot) -> list[str]:
        """Say what the proxy has not acknowledged: what it was sent last, and what it needs of a snapshot."""
        return [f"an answer for {type_url}" for type_url in self.unanswered] + [
            f"{resource.type_url.rpartition('.')[2]} {resource.name}"
            for resource in _used(snapshot)
            if self.taken[resource.type_url].get(resource.name) != resource.version
        ]


class OneWorld:
    """Gives every stream the same world. A `Proxies` and an `Observer` for the server."""

    def __init__(self, world: World) -> None:
        self.snapshot = world.snapshot()
        self.streams: list[Stream] = []
        """All that there ever were."""
        self.open: dict[Subscriber, Stream] = {}
        self._news = asyncio.Event()

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        subscriber = Subscriber(node, stream)
        subscriber.publish(self.snapshot)
        self.open[subscriber] = Stream(subscriber)
        self.streams.append(self.open[subscriber])
        self._news.set()
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        del self.open[subscriber]
        self._news.set()

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        self.open[subscriber].observe(event)
        self._news.set()

    def publish(self, world: World) -> None:
        self.snapshot = world.snapshot()
        for subscriber in self.open:
            subscriber.publish(self.snapshot)

    def opened(self, stream: ServerStream) -> None:
        """A stream was let in."""

    def sent(self, stream: ServerStream, size: int) -> None:
        if response := stream.session.sent:
            self.open[stream.subscriber].sent(response)

    def received(self, stream: ServerStream, event: Event) -> None:
        """A request meant this."""

    def closed(self, stream: ServerStream) -> None:
        """A stream has ended."""

    async def until(self, check: Any, timeout: float = 10) -> Any:
        """Ask again whenever a proxy has said something, until the answer is true; return that."""
        async with asyncio.timeout(timeout):
            while not (found := check()):
                self._news.clear()
                await self._news.wait()
            return found

    async def settled(self, timeout: float = 10) -> None:
        """Wait until every open stream, and at least one, has acknowledged all that it needs of the latest world."""

        def has_it() -> bool:
            return bool(self.open) and not any(stream.lacks(self.snapshot) for stream in self.open.values())

        try:
            await self.until(has_it, timeout)
        except TimeoutError:
            lacking = [stream.lacks(self.snapshot) for stream in self.open.values()]
            rejected = [each.message for stream in self.open.values() for each in stream.rejections]
            raise AssertionError(f"not acknowledged within {timeout} s: {lacking}; {rejected=}") from None


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[tuple[OneWorld, int]]:
    """Serve a world in this process, at the port that comes with it."""
    proxies = OneWorld(world)
    server = XdsServer(proxies, f"{HOST}:0", observer=proxies)
    await server.start()
    try:
        yield proxies, server.port
    finally:
        await server.stop()


def bootstrap(node: str, variant: Variant, admin: int, *servers: int) -> dict[str, Any]:
    """Return the bootstrap of an Envoy that asks the servers at these ports of the loopback address."""
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "node": {"id": node, "cluster": "tests"},
        "admin": {"address": _address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if variant is Variant.DELTA else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": "xds",
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}
                            },
                        }
                    }
                ],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in servers]}
                        ],
                    },
                    "typed_extension_protocol_options": {
                        http: {
                            "@type": f"type.googleapis.com/{http}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                }
            ]
        },
    }


def _used(snapshot: Snapshot) -> list[Resource]:
    """List the clusters and listeners, and what those make a proxy ask for."""
    used = [*snapshot.of(CLUSTER).values(), *snapshot.of(LISTENER).values()]
    refs = dict.fromkeys(ref for resource in used for ref in resource.refs)
    found = [snapshot.of(type_url).get(name) for type_url, name in refs]
    return used + [resource for resource in found if resource]


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}
