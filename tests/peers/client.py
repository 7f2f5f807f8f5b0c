"""A strict client of the discovery services that shares no code with them.

It knows the target's world, and asserts of each response that the nonce is fresh, that equal versions mean
equal worlds, and that every resource is current. It ACKs every response.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc
import grpc.aio

from tests.peers.adapter import TYPES, Adapter, read
from tests.peers.xdsprotos import Codec
from xds.protocol.events import Acked
from xds.snapshot import CLUSTER, LISTENER

DEADLINE = 30
NODE = "test-id"

_DISCOVERY = "envoy.service.discovery.v3"
_SERVICES = {
    "": (f"{_DISCOVERY}.AggregatedDiscoveryService", "AggregatedResources"),
    "CDS": ("envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters"),
    "EDS": ("envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints"),
    "LDS": ("envoy.service.listener.v3.ListenerDiscoveryService", "Listeners"),
    "RDS": ("envoy.service.route.v3.RouteDiscoveryService", "Routes"),
}
_SENTINEL = "sentinel-"
_FULL = (CLUSTER, LISTENER)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A form of the protocol."""

    incremental: bool
    aggregated: bool

    def __str__(self) -> str:
        return ("delta" if self.incremental else "sotw") + ("-ads" if self.aggregated else "")


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response, decoded."""

    type: str
    nonce: str
    version: str
    """Of the type as a whole."""
    resources: dict[str, str]
    """Name and the scenario's version."""
    versions: dict[str, str]
    """Name and version of each resource, if the variant has such."""
    removed: frozenset[str]

    @property
    def said(self) -> tuple[str, dict[str, str], frozenset[str]]:
        """The type, the resources and what is gone."""
        return self.type, self.resources, self.removed


class Client:
    """One stream, opened with the first subscription."""

    def __init__(self, channel: grpc.aio.Channel, variant: Variant, codec: Codec, adapter: Adapter) -> None:
        self.adapter = adapter
        self._channel = channel
        self._variant = variant
        self._codec = codec
        self._call: Any = None
        self._names: dict[str, list[str]] = {}
        self._last: dict[str, Response] = {}
        """By type, in the state-of-the-world variant: what the next request is based on."""
        self._nonces: set[str] = set()
        self._contents: dict[tuple[str, ...], Any] = {}
        self._sentinels = count(1)
        self.requests = 0
        self.responses = 0

    async def subscribe(self, service: str, *names: str) -> None:
        """Ask for these too (delta), or for these and no others; return when the server knows."""
        if self._variant.incremental:
            self._names.setdefault(service, []).extend(names)
            await self._ask(service, resource_names_subscribe=names)
        else:
            self._names[service] = list(names)
            await self._ask(service, resource_names=names)
        await self._subscribed(service)

    async def unsubscribe(self, service: str, name: str) -> None:
        """Take a name back, which is for delta only; return when the server knows."""
        self._names[service].remove(name)
        await self._ask(service, resource_names_unsubscribe=[name])
        await self._subscribed(service)

    async def receive(self) -> Response:
        """Take the next response and acknowledge it; return when the server knows."""
        async with asyncio.timeout(DEADLINE):
            data = await self._call.read()
            assert data is not grpc.aio.EOF, await self._call.code()
            self.responses += 1
            response = self._decode(data)
            self._check(response)
            await self._acknowledge(response)
            answer = await self.adapter.answers.get()
        assert isinstance(answer, Acked)
        assert answer.nonce == response.nonce
        assert self.adapter.answers.empty()
        return response

    async def gets(self, service: str, *removed: str, **resources: str) -> Response:
        """Take the next response, which must carry exactly this: `A="1"`."""
        response = await self.receive()
        assert response.said == (service, resources, frozenset(removed))
        return response

    async def gets_nothing(self, service: str) -> None:
        """Make sure that nothing was sent since the last response: the next response answers this request.

        A pending response would come first: the server knew of all earlier changes when this request was
        sent, and has one writer.
        """
        sentinel = f"{_SENTINEL}{next(self._sentinels)}"
        if self._variant.incremental:
            await self.subscribe(service, sentinel)
            response = await self.receive()
            assert (response.type, response.removed) == (service, {sentinel})
            assert response.resources == {}
            return
        names = self._names[service]
        self.adapter.add(NODE, TYPES[service], sentinel, "1")
        if names:
            await self.subscribe(service, *names, sentinel)
        response = await self.receive()
        assert response.type == service
        world = self.adapter.world(NODE, TYPES[service])
        everything = {
            name: version for name, version in world.items() if not names or name in (*names, sentinel)
        }
        assert response.resources == (everything if TYPES[service] in _FULL else {sentinel: "1"})

    async def finish(self) -> None:
        """End the stream. The server must not have answered the last acknowledgement, of whatever type."""
        for service in tuple(self._names):
            await self.gets_nothing(service)
        await self._call.done_writing()
        async with asyncio.timeout(DEADLINE):
            assert await self._call.read() is grpc.aio.EOF
            assert await self._call.code() is grpc.StatusCode.OK
        assert self.requests > self.responses
        assert [node.id for node in self.adapter.nodes] == [NODE]

    async def _ask(self, service: str, **fields: Any) -> None:
        request: dict[str, Any] = {"type_url": TYPES[service], **fields}
        if not self._call:
            prefix = "Delta" if self._variant.incremental else "Stream"
            path, name = _SERVICES["" if self._variant.aggregated else service]
            self._call = self._channel.stream_stream(f"/{path}/{prefix}{name}")()
            request["node"] = {"id": NODE}
        last = self._last.get(service)
        if last:
            request |= {"response_nonce": last.nonce, "version_info": last.version}
        kind = "DeltaDiscoveryRequest" if self._variant.incremental else "DiscoveryRequest"
        await self._call.write(self._codec.encode(f"{_DISCOVERY}.{kind}", request))
        self.requests += 1

    async def _subscribed(self, service: str) -> None:
        async with asyncio.timeout(DEADLINE):
            subscribed = await self.adapter.subscriptions.get()
        assert (subscribed.type_url, subscribed.names) == (TYPES[service], set(self._names[service]))

    async def _acknowledge(self, response: Response) -> None:
        if self._variant.incremental:
            await self._ask(response.type, response_nonce=response.nonce)
        else:
            self._last[response.type] = response
            await self._ask(response.type, resource_names=self._names[response.type])

    def _decode(self, data: bytes) -> Response:
        shorts = {url: short for short, url in TYPES.items()}
        kind = "DeltaDiscoveryResponse" if self._variant.incremental else "DiscoveryResponse"
        message = self._codec.decode(f"{_DISCOVERY}.{kind}", data)
        items = message.get("resources", [])
        found = [read(item["resource"] if self._variant.incremental else item) for item in items]
        assert {type_url for type_url, _, _ in found} <= {message["type_url"]}
        names = [name for _, name, _ in found]
        assert len(names) == len(set(names))
        if self._variant.incremental:
            assert names == [item["name"] for item in items]
        return Response(
            type=shorts[message["type_url"]],
            nonce=message["nonce"],
            version=message["system_version_info" if self._variant.incremental else "version_info"],
            resources={name: version for _, name, version in found},
            versions={item["name"]: item["version"] for item in items} if self._variant.incremental else {},
            removed=frozenset(message.get("removed_resources", ())),
        )

    def _check(self, response: Response) -> None:
        """Hold a response against the world as it is."""
        assert response.nonce not in self._nonces
        self._nonces.add(response.nonce)
        world = self.adapter.world(NODE, TYPES[response.type])
        assert response.resources.items() <= world.items()
        assert not response.removed & world.keys()
        self._match((response.type,), response.version, frozenset(world.items()))
        for name, version in response.versions.items():
            self._match((response.type, name), version, response.resources[name])

    def _match(self, key: tuple[str, ...], version: str, content: Any) -> None:
        """A version and a content belong to each other, for ever."""
        assert version
        assert self._contents.setdefault((*key, "version", version), content) == content
        assert self._contents.setdefault((*key, "content", content), version) == version
