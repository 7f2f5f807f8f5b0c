"""A store behind real sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.library.clients import cluster
from tests.library.messages import api_listener, assignment, eds_cluster, routes
from tests.server.proxies import Client
from tests.support.waiting import eventually
from xds.codec import encode_counts
from xds.protocol import wire
from xds.protocol.session import Session, Variant
from xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from xds.server import ADS, DiscoveryService, Refused, StreamInfo
from xds.store import Acked, Connected, Disconnected, Events, Nacked, NackError, Store, Subscribed
from xds.testing import EnvoyClient, RecordingServer, Request, Response

REJECTED = "Error adding/updating cluster(s)"


@pytest.fixture
def store() -> Store:
    return Store(group=lambda node: node.id.partition(".")[0])


@pytest.fixture
def xds_store(store) -> Store:
    return store


class Node(EnvoyClient):
    """A client that answers a response with clusters when the test says so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, timeout=30.0, **options)
        self.hold(CLUSTER)

    async def take(self, type_url: str = CLUSTER, *, error: str = "") -> set[str]:
        """ACK or NACK a response, and return its names."""
        response = await self.answer(type_url, error)
        return {each.name for each in response.resources}


@pytest.fixture
async def connect(xds_server, variant) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Connect a client to the server."""
    async with AsyncExitStack() as nodes:

        async def connect(name: str = "edge.1") -> Node:
            node = Node(xds_server.address, node=name, variant=variant)
            return await nodes.enter_async_context(node)

        yield connect


async def test_changes_reach_the_nodes_of_their_scope(store, connect):
    store.set(cluster("a"))
    edge, other = await connect(), await connect("other.1")
    for node in (edge, other):
        assert await node.take() == {"a"}
    store.set(cluster("b"), cluster("a", "elsewhere"), group="edge")
    assert await edge.take() == {"a", "b"}
    assert edge.clusters["a"] != other.clusters["a"]
    store.set(cluster("c"), node="other.1")
    await other.take()
    assert {*other.clusters} == {"a", "c"}
    store.replace([], group="edge")
    while edge.clusters != {"a": other.clusters["a"]}:
        await edge.take()


async def test_all_of_one_call_is_in_one_response(store, connect):
    store.replace([])
    node = await connect()
    assert await node.take() == set()
    store.set(*(cluster(f"c{n}") for n in range(50)))
    assert len(await node.take()) == 50
    for n in range(50):
        store.set(cluster(f"c{n}", "changed"))
    assert len(await node.take()) == 50


async def test_references_determine_the_sending_order(store, xds_server):
    """Delta Envoy waits for the assignment of a changed cluster, and does not subscribe again."""
    store.set(eds_cluster("c"), assignment("c"))
    async with Node(xds_server.address, variant=Variant.DELTA) as node:
        node.hold(ENDPOINT)
        await node.take()
        await node.take(ENDPOINT)
        node.conversation.clear()
        store.set(eds_cluster("c", certificate="x"))
        assert await node.take() == {"c"}
        assert await node.take(ENDPOINT) == {"c"}
        expected = ["< CDS c", "< EDS c"]
        assert [line for line in node.conversation if line in expected] == expected


async def test_resources_are_encoded_once_for_all_clients(store, connect):
    store.set(cluster("c"), api_listener("l", "r"))
    before = encode_counts.total()
    nodes = [await connect(f"{n}.x") for n in range(30)]
    for node in nodes:
        await node.take()
    changed = cluster("c", "changed")
    store.set(changed)
    for node in nodes:
        await node.take()
        assert node.resources[CLUSTER]["c"].body == changed.body
    assert encode_counts.total() == before + 1


# --- events ---


async def test_events_have_the_node(store, connect, variant):
    events = store.events()
    store.set(cluster("c"))
    node = await connect()
    await node.take()
    store.set(cluster("c", "bad"))
    await node.take(error="bad")
    received = []
    async for client, event in events:
        assert client.node.id == "edge.1"
        assert client.stream.variant is variant
        received.append(event)
        if isinstance(event, Nacked):
            await node.disconnect()
        if isinstance(event, Disconnected):
            events.close()
    connected, subscribed, *others, nacked, disconnected = received
    (acked,) = (event for event in others if event.type_url == CLUSTER)
    assert isinstance(connected, Connected)
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.type_url, subscribed.wildcard) == (CLUSTER, True)
    assert isinstance(acked, Acked)
    assert (acked.type_url, acked.names) == (CLUSTER, ("c",))
    assert (nacked.message, nacked.names) == (f"{REJECTED} c: bad", ("c",))
    assert disconnected.node.id == "edge.1"
    assert store.clients == set()


async def test_slow_reader_misses_the_oldest_events(store, connect):
    slow, fast = store.events(limit=2), store.events()
    for n in range(3):
        await connect(f"n{n}.x")
        while not isinstance((await anext(fast))[1], Subscribed):
            pass
    assert slow.missed == 4
    assert [(client.node.id, type(event)) for client, event in [await anext(slow), await anext(slow)]] == [
        ("n2.x", Connected),
        ("n2.x", Subscribed),
    ]
    assert fast.missed == 0


def test_queued_events_have_a_limited_number_of_names(monkeypatch):
    monkeypatch.setattr("xds.store.events.MAX_NAMES", 10)
    events, subscriber = Events(limit=100), object()
    for number in range(20):
        names = frozenset(f"{number}-{each}" for each in range(4))
        events.put(subscriber, Subscribed(type_url=ROUTE, names=names, wildcard=False))
    assert events.missed == 18
    large = Subscribed(type_url=ROUTE, names=frozenset(map(str, range(11))), wildcard=False)
    events.put(subscriber, large)
    assert events.missed == 20
    assert [event for _, event in events._queue] == [large]


async def test_dropped_iterator_costs_nothing(store):
    events = store.events()
    assert len(store._event_streams) == 1
    del events
    assert len(store._event_streams) == 0


# --- applied ---


async def is_waiting(task: asyncio.Task[None]) -> bool:
    """Whether a task still waits after several checks."""
    return not (await asyncio.wait([task], timeout=0.1))[0]


async def test_change_is_applied_when_all_clients_have_acked(store, connect):
    store.set(cluster("c"), routes("r"))
    nodes = [await connect(name) for name in ("edge.1", "edge.2", "other.1")]
    for node in nodes:
        await node.take()
    await store.applied()
    store.set(routes("r", "changed"))
    await store.applied()
    store.set(cluster("c", "changed"), group="edge")
    await store.applied(group="other")
    done, one = asyncio.create_task(store.applied()), asyncio.create_task(store.applied(node="edge.1"))
    await nodes[0].take()
    await one
    assert await is_waiting(done)
    await nodes[1].take()
    await done


async def test_reverted_change_is_applied(store, connect):
    store.set(cluster("c"))
    node = await connect()
    await node.take()
    store.set(cluster("c", "changed"))
    store.set(cluster("c"))
    await store.applied()


async def test_applied_waits_for_clients_that_connect(store, connect):
    store.set(cluster("c"))
    assert await store.applied() == ()
    done = asyncio.create_task(store.applied(group="edge", at_least=2))
    nodes = [await connect(name) for name in ("edge.1", "other.1")]
    for node in nodes:
        await node.take()
    assert await is_waiting(done)
    await nodes[0].disconnect()
    # The server learns of that later. Until then, the client counts.
    await eventually(lambda: all(client.node.id != "edge.1" for client in store.clients))
    for name in ("edge.2", "edge.3"):
        assert await is_waiting(done)
        node = await connect(name)
        await node.take()
    assert [client.node.id for client in await done] == ["edge.2", "edge.3"]


async def test_applied_waits_for_references(store, xds_server, variant):
    """A client that has ACKed all that it requested is about to request what its listener refers to."""
    store.set(api_listener("l", "r"), routes("r"))
    async with grpc.aio.insecure_channel(xds_server.address) as channel:
        client = Client(channel, variant)
        await client.ask(LISTENER)
        await client.ask(LISTENER, nonce=(await client.get()).nonce)
        done = asyncio.create_task(store.applied(at_least=1))
        assert await is_waiting(done)
        await client.ask(ROUTE, "r")
        names = ("r",) if variant is Variant.SOTW else ()
        await client.ask(ROUTE, *names, nonce=(await client.get()).nonce)
        assert len(await done) == 1


async def test_applied_raises_nack_error_until_fixed(store, connect):
    store.set(cluster("c"))
    node, good = await connect(), await connect("good.1")
    for one in (node, good):
        await one.take()
    store.set(cluster("c", "bad", source="mine.py:3"))
    done = asyncio.create_task(store.applied())
    await good.take()
    await node.take(error="bad")
    with pytest.raises(NackError, match=re.escape(f"edge.1 rejected Cluster c: {REJECTED} c: bad")) as raised:
        await done
    error = raised.value
    assert (error.node.id, error.type_url, error.names) == ("edge.1", CLUSTER, ("c",))
    assert error.message == f"{REJECTED} c: bad"
    assert error.sources == ("mine.py:3",)
    await store.applied(node="good.1")
    store.set(cluster("c", "better"))
    done = asyncio.create_task(store.applied(node="edge.1"))
    assert await is_waiting(done)
    await node.take()
    await done


async def test_rejections_with_different_messages_are_all_shown(store, connect):
    store.set(cluster("a"))
    node = await connect()
    await node.take()
    for number in range(5):
        node.reject(CLUSTER, f"bad{number}", f"problem {number}")
        store.set(replace(cluster(f"bad{number}"), sources=(f"{number}.py",)))
        await node.take()
        with pytest.raises(NackError) as raised:
            await store.applied()
    error = raised.value
    assert error.names == tuple(f"bad{number}" for number in range(5))
    assert error.sources == tuple(f"{number}.py" for number in range(5))
    assert [line.rpartition(": ")[2] for line in error.message.splitlines()] == [
        f"problem {number}" for number in range(5)
    ]
    assert str(error).endswith("; and 2 more")
    assert "Cluster bad1: Error adding/updating cluster(s) bad1: problem 1; Cluster bad2: " in str(error)


async def test_long_nack_is_shortened(store, connect):
    store.set(*(cluster(f"c{number:02}") for number in range(12)))
    node = await connect()
    await node.take(error="bad: " + "words " * 500)
    with pytest.raises(NackError) as raised:
        await store.applied()
    assert len(raised.value.names) == 12
    assert len(raised.value.message) > 3000
    assert len(str(raised.value)) < 400
    assert f" and 2 more: {REJECTED} c00: bad: words" in str(raised.value)


async def test_applied_does_not_wait_for_disconnected_clients(store, connect):
    store.set(cluster("c"))
    node = await connect()
    await node.take()
    store.set(cluster("c", "changed"))
    done = asyncio.create_task(store.applied())
    assert await is_waiting(done)
    await node.disconnect()
    await done
    assert not store._waiters


async def test_unprocessed_snapshot_is_not_applied(store):
    """The stream still writes to a client that does not read."""
    store.set(cluster("c"))
    client = store.connect(wire.Node(id="n"), StreamInfo(peer="", variant=Variant.DELTA, type_url=""))
    variant = Variant.DELTA
    session = client.session = Session(variant)

    def turn(request: Request | None = None, node: Mapping[str, str] | None = None) -> bytes:
        client.changed.clear()
        session.serve(client.snapshot)
        for event in session.receive(request.encode(variant, node), 0) if request else ():
            if not isinstance(event, Connected):
                store.observe(client, event)
        return session.next(0)

    def ack(data: bytes) -> Request:
        return Request(type_url=CLUSTER, nonce=Response.decode(data, variant).nonce)

    turn(ack(turn(Request(type_url=CLUSTER), {"id": "n"})))
    await store.applied()
    store.set(cluster("c", "changed"))
    done = asyncio.create_task(store.applied())
    assert await is_waiting(done)
    turn(ack(turn()))
    await done


async def test_applied_returns_if_there_are_no_resources(store, connect):
    events = store.events()
    node = await connect()
    while not isinstance((await anext(events))[1], Subscribed):
        pass
    with pytest.raises(RuntimeError, match=r"before the first change: call set\(\.\.\.\) or replace\(\[\]\)"):
        await store.applied()
    await node.release(CLUSTER)
    store.replace([])
    await store.applied()


async def test_applied_does_not_wait_for_unserved_types(store, connect):
    store.set(cluster("c"))
    events = store.events()
    node = await connect()
    await node.demand("type.googleapis.com/my.Own", "x")
    await node.take()
    while not isinstance((await anext(events))[1], Acked):
        pass
    await store.applied()


# --- embedding ---


async def test_services_can_join_an_existing_server(store, variant):
    store.set(cluster("c"))
    server = grpc.aio.server()
    service = DiscoveryService(store)
    server.add_generic_rpc_handlers(service.handlers())
    mine = health.aio.HealthServicer()
    await mine.set("mine", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(mine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        Node(channel, variant=variant) as node,
    ):
        assert await node.take() == {"c"}
        await store.applied()  # gRPC's client reports INTERNAL if a call ends during the write of an ACK.
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="mine")
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert len(service.streams) == 1
        await service.drain(grace=30)
        await node.wait_for(lambda: node.status)
        assert node.status[0] == grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_a_program_can_refuse_a_node():
    class GuardedServer(Store):
        def connect(self, node, stream):
            if node.id != "friend":
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{node.id} is nobody's friend")
            return super().connect(node, stream)

    store = GuardedServer()
    store.set(cluster("c"))
    async with RecordingServer(store) as server, Node(server.address, node="stranger") as stranger:
        await stranger.wait_for(lambda: stranger.status)
        assert stranger.status == (grpc.StatusCode.PERMISSION_DENIED, "stranger is nobody's friend")
        async with Node(server.address, node="friend") as friend:
            assert await friend.take() == {"c"}


async def test_fetch_is_reported_as_a_short_stream(store, xds_server):
    store.set(eds_cluster("c"))
    events = store.events()
    async with grpc.aio.insecure_channel(xds_server.address) as channel:
        fetch = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
        assert b"service_name" not in await fetch(b"\x12\x04\x0a\x02me")
    kinds = [type((await anext(events))[1]) for _ in range(3)]
    assert kinds == [Connected, Subscribed, Disconnected]
    await store.applied()


def test_ads_is_among_the_services(store):
    assert ADS in [handler.service_name() for handler in DiscoveryService(store).handlers()]
