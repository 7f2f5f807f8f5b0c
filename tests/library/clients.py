"""Clients of a store over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from xds.resources import CLUSTER, Resource, resource
from xds.server import XdsServer
from xds.store import NackError, Store
from xds.testing import EnvoyClient, Response


def cluster(name: str, content: str = "", *, source: str = "") -> Resource:
    return resource(Cluster(name=name, alt_stat_name=content), sources=[source] if source else [])


def content(store: Store, node: str = "n", group: str = "") -> dict[str, str]:
    found = store.view(node, group).of(CLUSTER)
    return {name: Cluster.parse(one.body).alt_stat_name for name, one in found.items()}


class ClustersClient(EnvoyClient):
    """A client that records the clusters that it receives."""

    @property
    def received(self) -> list[tuple[str, str]]:
        """Name and content of each cluster in each response, in order."""
        return [
            (each.name, Cluster.parse(each.body).alt_stat_name)
            for message in self.conversation.messages
            if isinstance(message, Response)
            for each in message.resources
        ]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.received]

    def contents(self, name: str) -> list[str]:
        """Return what was received under a name, in order."""
        return [content for other, content in self.received if other == name]


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[XdsServer]:
    async with XdsServer(store, "127.0.0.1:0", grace=0.1) as server:
        yield server


@asynccontextmanager
async def connected(
    server: XdsServer, node: str, *, group: str = "", rejects: str = ""
) -> AsyncIterator[ClustersClient]:
    """Connect a client, which gets the clusters that exist. It rejects contents with a word."""
    client = ClustersClient(f"127.0.0.1:{server.port}", node=node, cluster=group, timeout=30.0)
    if rejects:
        client.reject(CLUSTER, message="no", when=lambda cluster: rejects in cluster.alt_stat_name)
    async with client:
        await client.wait_for(lambda: any(request.nonce for request in client.conversation.requests))
        yield client


async def roll_out(store: Store, *resources: Resource) -> None:
    """The recipe of docs/reference/library.md."""
    checkpoint = store.checkpoint()
    try:
        store.set(*resources, group="canary")
        await store.applied(group="canary", at_least=1)
        with store.change() as change:
            change.set(*resources)
            change.remove(*resources, group="canary")
        await store.applied()
    except NackError:
        store.rollback(checkpoint)
        raise
