"""A validator by words, and clients of a store over sockets, which answer each response at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import grpc.aio
from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from tests.server.proxies import Client
from xds.protocol.session import Variant
from xds.resources import CLUSTER, Resource, resource
from xds.server import XdsServer
from xds.store import Store


def cluster(name: str, content: str = "", *, source: str = "") -> Resource:
    return resource(Cluster(name=name, alt_stat_name=content), sources=[source] if source else [])


class Words:
    """Refuses clusters whose content contains `bad`."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def validate(self, resources: Sequence[Resource]) -> Mapping[Resource, str]:
        self.calls.append([one.name for one in resources])
        await self.open.wait()
        if self.error:
            raise self.error
        return {one: "it is bad" for one in resources if b"bad" in one.body}


def content(store: Store, node: str = "n", group: str = "") -> dict[str, str]:
    found = store.view(node, group).of(CLUSTER)
    return {name: Cluster.parse(one.body).alt_stat_name for name, one in found.items()}


class Answering:
    """A client that subscribes to all clusters, and rejects those whose content contains a word."""

    def __init__(self, stream: Client, rejects: str) -> None:
        self.received: list[tuple[str, str]] = []
        """Name and content of each cluster that was received, in order."""
        self.answered = asyncio.Event()
        """Set after the first response."""
        self.crash_at = ""
        """Word at which the client ends its stream instead of answering."""
        self.crashed = asyncio.Event()
        self._stream, self._rejects = stream, rejects

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.received]

    def contents(self, name: str) -> list[str]:
        """Return what was received under a name, in order."""
        return [content for other, content in self.received if other == name]

    async def run(self) -> None:
        await self._stream.ask(CLUSTER)
        while True:
            response = await self._stream.get()
            clusters = [Cluster.parse(one.resource.value) for one in response.resources]
            found = [(one.name, one.alt_stat_name) for one in clusters]
            self.received += found
            if self.crash_at and any(self.crash_at in content for _, content in found):
                self.crashed.set()
                return
            bad = [name for name, content in found if self._rejects and self._rejects in content]
            error = f"Error adding/updating cluster(s) {bad[0]}: no" if bad else ""
            await self._stream.ask(CLUSTER, nonce=response.nonce, error=error)
            self.answered.set()


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[XdsServer]:
    async with XdsServer(store, "127.0.0.1:0", grace=0.1) as server:
        yield server


@asynccontextmanager
async def connected(
    server: XdsServer, node: str, *, group: str = "", rejects: str = ""
) -> AsyncIterator[Answering]:
    """A client that is connected in the block and has the clusters that exist."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Answering(Client(channel, Variant.DELTA, node=node, cluster=group), rejects)
        task = asyncio.create_task(client.run())
        try:
            await client.answered.wait()
            yield client
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
