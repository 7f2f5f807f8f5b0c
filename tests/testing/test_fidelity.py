"""The client and the real Envoy send the same requests to the same server, in the same order.

Requests for secrets are compared among themselves: Envoy does not order them with requests of other types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.loopback import free_port
from tests.support.waiting import eventually
from tests.support.world import Cluster, Listener, World
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.snapshot import CLUSTER
from xds.store import NackError
from xds.testing import Conversation, EnvoyClient, RecordingServer, Request, Response, Variant

pytestmark = pytest.mark.envoy


def sent(conversation: Conversation) -> list[str]:
    """Return the requests, without the messages of NACKs, and those for secrets last."""
    lines = (line for line in conversation if line.startswith(">"))
    requests = [line.partition("NACK")[0] + "NACK" if "NACK" in line else line for line in lines]
    return sorted(requests, key=lambda request: request.startswith("> SDS"))


def unanswered(conversation: Conversation) -> set[str]:
    """Return the types whose last response has no answer yet."""
    waiting: dict[str, str] = {}
    for message in conversation.messages:
        if isinstance(message, Response):
            waiting[message.type_url] = message.nonce
        elif isinstance(message, Request) and waiting.get(message.type_url) == message.nonce:
            del waiting[message.type_url]
    return {*waiting}


class Pair:
    """The client, the real Envoy, and their server."""

    def __init__(self, server: RecordingServer, client: EnvoyClient) -> None:
        self.server, self.client = server, client

    @property
    def conversations(self) -> list[Conversation]:
        return [self.server.conversations.get(node, Conversation()) for node in ("model", "real")]

    async def serve(self, world: World, *, rejects: bool = False) -> None:
        """Serve a world, and compare what the two have sent since they started."""
        self.server.store.replace(world.resources())
        await self.compare(rejects=rejects)

    async def compare(self, *, rejects: bool = False) -> None:
        try:
            async with asyncio.timeout(60):
                await self.server.store.applied(at_least=2)
        except NackError:
            assert rejects
        else:
            assert not rejects
        conversations = self.conversations

        def are_equal() -> bool:
            assert not any(map(unanswered, conversations))
            model, real = map(sent, conversations)
            assert model == real, "\n--\n".join(map(str, conversations))
            return True

        await eventually(are_equal)


def changed(world: World, **clusters: Cluster | None) -> World:
    """Return a world with other clusters, or without those that are None."""
    merged = {**world.clusters, **clusters}
    return replace(world, clusters={name: cluster for name, cluster in merged.items() if cluster})


@pytest.fixture(scope="module")
def roots() -> str:
    return Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC)).root_pem.decode()


@pytest.fixture
def world(roots) -> World:
    clusters = {"a": Cluster((1000,)), "b": Cluster((1001,), secured=True)}
    return World(clusters, {"l": Listener(free_port(), "r")}, {"r": {"/x": "a"}}, roots=roots)


@pytest.fixture
async def pair(xds_server, envoy_client, real_envoy, variant, world) -> Pair:
    xds_server.store.replace(world.resources())
    client = await envoy_client(node="model", variant=variant)
    await real_envoy("real", variant=variant, may_reject=True)
    pair = Pair(xds_server, client)
    await pair.compare()
    return pair


async def test_changes(pair, world):
    """Clusters, assignments, secrets, routes and listeners are added, changed and removed."""
    for changed_world in steps(world):
        await pair.serve(changed_world)


def steps(world: World) -> Iterator[World]:
    yield (world := changed(world, c=Cluster((1003,)), d=Cluster((1007,))))
    yield (world := changed(world, c=Cluster((1003, 1004))))
    yield (world := changed(world, e=Cluster((1000,), secured=True)))
    yield (world := changed(world, c=Cluster((1003,), setting=1), d=Cluster((1008,), setting=1)))
    yield (world := world.routing("r", x="c"))
    yield (world := changed(world, a=None, f=Cluster((1009,))))
    listeners = {"l": replace(world.listeners["l"], setting=1), "m": Listener(free_port(), "s")}
    yield (world := replace(world, listeners=listeners).routing("s", y="c"))
    yield changed(world, g=Cluster((1010,), static=True))


async def test_rejected_cluster(pair, world):
    """Alone, so that the client accepts the others, among which is a new one."""
    pair.client.reject(CLUSTER, "bad")
    await pair.serve(changed(world, bad=Cluster((1005,), fault="unfit"), good=Cluster((1006,))), rejects=True)
    await pair.serve(world)
    pair.client.accept(CLUSTER, "bad")
    await pair.serve(changed(world, bad=Cluster((1005,))))


async def test_rejected_response(pair, world):
    """With a cluster that violates a constraint, so that the client accepts none."""
    pair.client.reject(CLUSTER, "bad", whole=True)
    await pair.serve(
        changed(world, bad=Cluster((1005,), fault="invalid"), good=Cluster((1006,))), rejects=True
    )
    await pair.serve(world)


async def test_reconnect(pair, world, xds_store):
    """After a restart of the server with other resources."""
    await pair.serve(changed(world, c=Cluster((1003,))))
    port, old = pair.server.port, pair.server.conversations
    await pair.server.stop()
    xds_store.replace(changed(world, c=Cluster((1004,)), d=Cluster((1005,))).resources())
    async with RecordingServer(xds_store, f"127.0.0.1:{port}") as server:
        await pair.client.reconnect()
        again = Pair(server, pair.client)
        await again.compare()
        await again.serve(changed(world, d=None))
    assert {*old} == {*server.conversations} == {"model", "real"}


@pytest.mark.parametrize("variant", [Variant.SOTW], ids=["sotw"])
async def test_reconnect_with_warming_cluster(pair, world, roots, xds_store):
    """The client requests no clusters until they are warm, or until Envoy's timeout of 15 s.

    Only in the SotW variant can a server leave open whether a secret exists.
    """
    world = replace(changed(world, b=None), roots="")
    await pair.serve(world)
    # Envoy deletes a cluster later. Until then, its secret is in use, and Envoy does not request it again.
    await eventually(lambda: all("> SDS" in each for each in pair.conversations))
    warming = changed(world, c=Cluster((1003,), secured=True))
    xds_store.replace(warming.resources())
    await eventually(lambda: all([*each].count("> SDS ROOTCA") == 2 for each in pair.conversations))
    port = pair.server.port
    await pair.server.stop()
    async with RecordingServer(xds_store, f"127.0.0.1:{port}") as server:
        await pair.client.reconnect()
        again = Pair(server, pair.client)
        await eventually(lambda: all("> LDS" in each for each in again.conversations))
        assert [each for each in sent(again.conversations[0]) if "CDS" in each] == []
        await again.serve(replace(warming, roots=roots))


async def test_first_clusters_are_none(xds_server, envoy_client, real_envoy, variant, world):
    """Listeners are requested when there are no clusters to wait for."""
    xds_server.store.replace([])
    client = await envoy_client(node="model", variant=variant)
    await real_envoy("real", variant=variant)
    pair = Pair(xds_server, client)
    await pair.compare()
    await pair.serve(world)
