"""A store behind real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.library.messages import api_listener, assignment, eds_cluster, routes
from tests.server.proxies import DELTA_REQUEST, DELTA_RESPONSE, Client
from xds.codec import encode_counts
from xds.protocol import wire
from xds.protocol.session import Session, Variant
from xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, resource
from xds.server import ADS, DiscoveryService, Refused, StreamInfo, XdsServer
from xds.store import Acked, Connected, Disconnected, Events, Nacked, NackError, Store, Subscribed


@pytest.fixture
def store() -> Store:
    return Store(group=lambda node: node.id.partition(".")[0])


@pytest.fixture
async def channel(store) -> AsyncIterator[grpc.aio.Channel]:
    server = XdsServer(store, "127.0.0.1:0", grace=0.2)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop()


class Node:
    """A client that tracks its resources."""

    def __init__(self, channel: grpc.aio.Channel, variant: Variant, name: str = "edge.1") -> None:
        self.stream = Client(channel, variant, node=name)
        self.has: dict[str, dict[str, bytes]] = {}
        self.last = None

    async def take(self, *, error: str = "") -> set[str]:
        """ACK or NACK the next response, and return its names."""
        self.last = await self.stream.get()
        there = self.has.setdefault(self.last.type_url, {})
        wrapped = hasattr(self.last, "removed_resources")
        found = {}
        for one in self.last.resources:
            packed = one.resource if wrapped else one
            message = resource(packed.value, type_url=packed.type_url)
            found[message.name] = packed.value
        if wrapped:
            for name in self.last.removed_resources:
                there.pop(name, None)
        elif self.last.type_url in (CLUSTER, LISTENER) and not error:
            there.clear()
        if not error:
            there |= found
        names = [] if wrapped or self.last.type_url in (CLUSTER, LISTENER) else [*there]
        await self.stream.ask(self.last.type_url, *names, nonce=self.last.nonce, error=error)
        return {*found}


async def test_changes_reach_the_nodes_of_their_scope(store, channel, variant):
    store.set(eds_cluster("a"))
    edge, other = Node(channel, variant), Node(channel, variant, "other.1")
    for node in (edge, other):
        await node.stream.ask(CLUSTER)
        assert await node.take() == {"a"}
    store.set(eds_cluster("b"), eds_cluster("a", "elsewhere"), group="edge")
    assert await edge.take() == {"a", "b"}
    assert edge.has[CLUSTER]["a"] != other.has[CLUSTER]["a"]
    store.set(eds_cluster("c"), node="other.1")
    await other.take()
    assert {*other.has[CLUSTER]} == {"a", "c"}
    store.replace([], group="edge")
    while edge.has != {CLUSTER: {"a": other.has[CLUSTER]["a"]}}:
        await edge.take()


async def test_all_of_one_call_is_in_one_response(store, channel, variant):
    store.replace([])
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    assert await node.take() == set()
    store.set(*(eds_cluster(f"c{n}") for n in range(50)))
    assert len(await node.take()) == 50
    for n in range(50):
        store.set(eds_cluster(f"c{n}", "changed"))
    assert len(await node.take()) == 50


async def test_references_determine_the_sending_order(store, channel):
    """Delta Envoy waits for the assignment of a changed cluster, and does not subscribe again."""
    store.set(eds_cluster("c"), assignment("c"))
    node = Node(channel, Variant.DELTA)
    await node.stream.ask(CLUSTER)
    await node.take()
    await node.stream.ask(ENDPOINT, "c")
    await node.take()
    store.set(eds_cluster("c", certificate="x"))
    assert await node.take() == {"c"}
    assert node.last.type_url == CLUSTER
    assert await node.take() == {"c"}
    assert node.last.type_url == ENDPOINT


async def test_resources_are_encoded_once_for_all_clients(store, channel, variant):
    store.set(eds_cluster("c"), api_listener("l", "r"))
    before = encode_counts.total()
    nodes = [Node(channel, variant, f"{n}.x") for n in range(30)]
    for node in nodes:
        await node.stream.ask(CLUSTER)
        await node.take()
    changed = resource(eds_cluster("c", "changed"))
    store.set(changed)
    for node in nodes:
        await node.take()
        assert node.has[CLUSTER]["c"] == changed.body
    assert encode_counts.total() == before + 1


# --- events ---


async def test_events_have_the_node(store, channel, variant):
    events = store.events()
    store.set(eds_cluster("c"))
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    await node.take()
    store.set(eds_cluster("c", "bad"))
    await node.take(error="cluster c: bad")
    received = []
    async for client, event in events:
        assert client.node.id == "edge.1"
        assert client.stream.variant is variant
        received.append(event)
        if isinstance(event, Nacked):
            node.stream.call.cancel()
        if isinstance(event, Disconnected):
            events.close()
    connected, subscribed, acked, nacked, disconnected = received
    assert isinstance(connected, Connected)
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.type_url, subscribed.wildcard) == (CLUSTER, True)
    assert isinstance(acked, Acked)
    assert (acked.type_url, acked.names) == (CLUSTER, ("c",))
    assert (nacked.message, nacked.names) == ("cluster c: bad", ("c",))
    assert disconnected.node.id == "edge.1"
    assert store.clients == set()


async def test_slow_reader_misses_the_oldest_events(store, channel):
    slow, fast = store.events(limit=2), store.events()
    for n in range(3):
        node = Node(channel, Variant.SOTW, f"n{n}.x")
        await node.stream.ask(ROUTE, "r")
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


async def test_change_is_applied_when_all_clients_have_acked(store, channel, variant):
    store.set(eds_cluster("c"), routes("r"))
    nodes = [Node(channel, variant, name) for name in ("edge.1", "edge.2", "other.1")]
    for node in nodes:
        await node.stream.ask(CLUSTER)
        await node.take()
    await store.applied()
    store.set(routes("r", "changed"))
    await store.applied()
    store.set(eds_cluster("c", "changed"), group="edge")
    await store.applied(group="other")
    done, one = asyncio.create_task(store.applied()), asyncio.create_task(store.applied(node="edge.1"))
    await nodes[0].take()
    await one
    assert await is_waiting(done)
    await nodes[1].take()
    await done


async def test_reverted_change_is_applied(store, channel, variant):
    store.set(eds_cluster("c"))
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    await node.take()
    store.set(eds_cluster("c", "changed"))
    store.set(eds_cluster("c"))
    await store.applied()


async def test_applied_waits_for_clients_that_connect(store, channel, variant):
    store.set(eds_cluster("c"))
    assert await store.applied() == ()
    done = asyncio.create_task(store.applied(group="edge", at_least=2))
    nodes = [Node(channel, variant, name) for name in ("edge.1", "other.1", "edge.2", "edge.3")]
    for node in nodes[:2]:
        await node.stream.ask(CLUSTER)
        await node.take()
    assert await is_waiting(done)
    nodes[0].stream.call.cancel()
    for node in nodes[2:]:
        assert await is_waiting(done)
        await node.stream.ask(CLUSTER)
        await node.take()
    assert [client.node.id for client in await done] == ["edge.2", "edge.3"]


async def test_applied_waits_for_references(store, channel, variant):
    store.replace([])
    node = Node(channel, variant)
    await node.stream.ask(LISTENER)
    await node.take()
    store.set(api_listener("l", "r"), routes("r"))
    done = asyncio.create_task(store.applied())
    await node.take()
    assert await is_waiting(done)
    await node.stream.ask(ROUTE, "r")
    await node.take()
    await done


async def test_applied_raises_nack_error_until_fixed(store, channel, variant):
    store.set(eds_cluster("c"))
    node, good = Node(channel, variant), Node(channel, variant, "good.1")
    for one in (node, good):
        await one.stream.ask(CLUSTER)
        await one.take()
    store.set(resource(eds_cluster("c", "bad"), sources=["mine.py:3"]))
    done = asyncio.create_task(store.applied())
    await good.take()
    await node.take(error="cluster c: bad")
    with pytest.raises(NackError, match=r"edge.1 rejected Cluster c: cluster c: bad") as raised:
        await done
    error = raised.value
    assert (error.node.id, error.type_url, error.names) == ("edge.1", CLUSTER, ("c",))
    assert error.message == "cluster c: bad"
    assert error.sources == ("mine.py:3",)
    await store.applied(node="good.1")
    store.set(eds_cluster("c", "better"))
    done = asyncio.create_task(store.applied(node="edge.1"))
    assert await is_waiting(done)
    await node.take()
    await done


async def test_rejections_with_different_messages_are_all_shown(store, channel, variant):
    store.set(eds_cluster("a"))
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    await node.take()
    for number in range(5):
        store.set(resource(eds_cluster(f"bad{number}"), sources=[f"{number}.py"]))
        await node.take(error=f"Error adding/updating cluster(s) bad{number}: problem {number}")
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


async def test_long_nack_is_shortened(store, channel, variant):
    store.set(*(eds_cluster(f"c{number:02}") for number in range(12)))
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    await node.take(error="bad: " + "words " * 500)
    with pytest.raises(NackError) as raised:
        await store.applied()
    assert len(raised.value.names) == 12
    assert len(raised.value.message) > 3000
    assert len(str(raised.value)) < 400
    assert " and 2 more: bad: words" in str(raised.value)


async def test_applied_does_not_wait_for_disconnected_clients(store, channel, variant):
    store.set(eds_cluster("c"))
    node = Node(channel, variant)
    await node.stream.ask(CLUSTER)
    await node.take()
    store.set(eds_cluster("c", "changed"))
    done = asyncio.create_task(store.applied())
    assert await is_waiting(done)
    node.stream.call.cancel()
    await done
    assert not store._waiters


async def test_unprocessed_snapshot_is_not_applied(store):
    """The stream still writes to a client that does not read."""
    store.set(eds_cluster("c"))
    client = store.connect(wire.Node(id="n"), StreamInfo(peer="", variant=Variant.DELTA, type_url=""))
    session = client.session = Session(Variant.DELTA)

    def turn(*requests):
        client.changed.clear()
        session.serve(client.snapshot)
        for request in requests:
            for event in session.receive(request.SerializeToString(), 0):
                if not isinstance(event, Connected):
                    store.observe(client, event)
        return session.next(0)

    response = DELTA_RESPONSE.FromString(turn(DELTA_REQUEST(node={"id": "n"}, type_url=CLUSTER)))
    ack = DELTA_REQUEST(type_url=CLUSTER, response_nonce=response.nonce)
    turn(ack)
    await store.applied()
    store.set(eds_cluster("c", "changed"))
    done = asyncio.create_task(store.applied())
    assert await is_waiting(done)
    ack.response_nonce = DELTA_RESPONSE.FromString(turn()).nonce
    turn(ack)
    await done


async def test_applied_returns_if_there_are_no_resources(store, channel):
    events = store.events()
    node = Node(channel, Variant.SOTW)
    await node.stream.ask(ROUTE, "r")
    while not isinstance((await anext(events))[1], Subscribed):
        pass
    with pytest.raises(RuntimeError, match=r"before the first change: call set\(\.\.\.\) or replace\(\[\]\)"):
        await store.applied()
    store.replace([])
    await store.applied()


async def test_applied_does_not_wait_for_unserved_types(store, channel, variant):
    store.set(eds_cluster("c"))
    events = store.events()
    node = Node(channel, variant)
    await node.stream.ask("type.googleapis.com/my.Own", "x")
    await node.stream.ask(CLUSTER)
    await node.take()
    while not isinstance((await anext(events))[1], Acked):
        pass
    await store.applied()


# --- embedding ---


async def test_services_can_join_an_existing_server(store, variant):
    store.set(eds_cluster("c"))
    server = grpc.aio.server()
    service = DiscoveryService(store)
    server.add_generic_rpc_handlers(service.handlers())
    mine = health.aio.HealthServicer()
    await mine.set("mine", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(mine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        node = Node(channel, variant)
        await node.stream.ask(CLUSTER)
        assert await node.take() == {"c"}
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="mine")
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert len(service.streams) == 1
        await service.drain(grace=5)
        assert (await node.stream.end())[0] == grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_a_program_can_refuse_a_node():
    class GuardedServer(Store):
        def connect(self, node, stream):
            if node.id != "friend":
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{node.id} is nobody's friend")
            return super().connect(node, stream)

    store = GuardedServer()
    store.set(eds_cluster("c"))
    async with (
        XdsServer(store, "127.0.0.1:0") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stranger, friend = Node(channel, Variant.SOTW, "stranger"), Node(channel, Variant.SOTW, "friend")
        await stranger.stream.ask(CLUSTER)
        assert await stranger.stream.end() == (
            grpc.StatusCode.PERMISSION_DENIED,
            "stranger is nobody's friend",
        )
        await friend.stream.ask(CLUSTER)
        assert await friend.take() == {"c"}


async def test_fetch_is_reported_as_a_short_stream(store, channel):
    store.set(eds_cluster("c"))
    events = store.events()
    fetch = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
    assert b"service_name" not in await fetch(b"\x12\x04\x0a\x02me")
    kinds = [type((await anext(events))[1]) for _ in range(3)]
    assert kinds == [Connected, Subscribed, Disconnected]
    await store.applied()


def test_ads_is_among_the_services(store):
    assert ADS in [handler.service_name() for handler in DiscoveryService(store).handlers()]
