"""gRPC's own C client subscribes to listeners and clusters by name, and its calls follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import ClusterLbPolicy

from tests.peers.meshless import SERVICE, cluster, endpoints, listener, routes, world
from tests.peers.programs import DEADLINE, Caller, backend, end, kill, start
from tests.support.loopback import free_port
from xds.server import XdsServer
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE
from xds.store import Acked, Nacked, NackError, Store


@pytest.fixture
async def backends() -> AsyncIterator[dict[str, int]]:
    """Two of them, by name."""
    servers = {name: await backend(name) for name in ("one", "two")}
    yield {name: port for name, (_, port) in servers.items()}
    for server, _ in servers.values():
        await server.stop(None)


@pytest.fixture
def store(backends) -> Store:
    store = Store()
    store.set(*world("a", backends["one"]))
    return store


@pytest.fixture
async def server(store) -> AsyncIterator[XdsServer]:
    server = XdsServer(store, "127.0.0.1:0", grace=0.2)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["sync", "aio"])
async def caller(request, server) -> AsyncIterator[Caller]:
    caller = await Caller.start(request.param, server.port)
    yield caller
    await end(caller.process)


async def test_call_succeeds(store, caller):
    assert await caller.answer() == "one"
    await asyncio.wait_for(store.applied(), DEADLINE)


async def test_calls_follow_endpoints(store, caller, backends):
    assert await caller.answer() == "one"
    store.set(endpoints("a", [backends["two"]]))
    await caller.moves("one", "two")


async def test_calls_are_balanced_over_endpoints(store, caller, backends):
    assert await caller.answer() == "one"
    store.set(endpoints("a", backends.values()))
    async with asyncio.timeout(DEADLINE):
        while await caller.answer() == "one":
            pass
    assert {await caller.answer() for _ in range(10)} == {"one", "two"}


async def test_changed_route_loses_no_call(store, caller, backends):
    assert await caller.answer() == "one"
    await asyncio.wait_for(store.applied(), DEADLINE)
    here, there = ("a", "one"), ("b", "two")
    for _ in range(2):
        events = store.events()
        with store.change() as change:
            change.set(cluster(there[0]), endpoints(there[0], [backends[there[1]]]), routes(there[0]))
            change.remove(cluster(here[0]), endpoints(here[0], []))
        await caller.moves(here[1], there[1])
        await asyncio.wait_for(store.applied(), DEADLINE)
        events.close()
        taken = [event async for _, event in events if isinstance(event, Acked)]
        moved = next(number for number, event in enumerate(taken) if event.type_url == ROUTE)
        assert all(here[0] in event.names for event in taken[:moved] if event.type_url == CLUSTER)
        here, there = there, here


async def test_calls_fail_while_there_is_no_listener(store, caller):
    assert await caller.answer() == "one"
    store.remove(LISTENER, SERVICE)
    await caller.fails(after="one")
    store.set(listener())
    await caller.heals("one")


async def test_call_waits_for_a_new_listener(store, caller):
    store.remove(LISTENER, SERVICE)
    events = store.events()
    call = asyncio.create_task(caller.call())
    async with asyncio.timeout(DEADLINE):
        acked = await anext(event async for _, event in events if isinstance(event, Acked))
    assert acked.names == ()
    store.set(listener())
    assert await call == {"answer": {"name": "one"}}


async def test_rejected_resource_is_logged_once_and_the_old_one_stays(store, caller, backends):
    assert await caller.answer() == "one"
    await asyncio.wait_for(store.applied(), DEADLINE)
    events = store.events()
    store.set(cluster("a", policy=ClusterLbPolicy.MAGLEV))
    with pytest.raises(NackError, match="LB policy is not supported"):
        await asyncio.wait_for(store.applied(), DEADLINE)
    assert {await caller.answer() for _ in range(10)} == {"one"}
    store.set(cluster("a"), endpoints("a", [backends["two"]]))
    await asyncio.wait_for(store.applied(), DEADLINE)
    await caller.moves("one", "two")
    events.close()
    answers = [event async for _, event in events if isinstance(event, Acked | Nacked)]
    rejected, mended = (answer for answer in answers if answer.type_url == CLUSTER)
    assert isinstance(rejected, Nacked)
    assert isinstance(mended, Acked)
    assert "LB policy is not supported" in rejected.message
    assert [resource.name for resource in rejected.suspects] == ["a"]


async def test_assignments_above_four_mebibytes_are_split(store, caller, backends):
    names = [f"c{number}" for number in range(60)]
    store.set(routes(*names), *map(cluster, names), *(endpoints(name, [backends["one"]]) for name in names))
    assert await caller.answer() == "one"
    await asyncio.wait_for(store.applied(), DEADLINE)
    events = store.events()
    store.set(*(endpoints(name, [backends["two"]], remark="x" * 100_000) for name in names))
    await asyncio.wait_for(store.applied(), DEADLINE)
    async with asyncio.timeout(DEADLINE):
        while {await caller.answer() for _ in names} != {"two"}:
            pass
    events.close()
    taken = [event async for _, event in events if isinstance(event, Acked) and event.type_url == ENDPOINT]
    sizes = [sum(len(resource.body) for resource in event.resources) for event in taken]
    assert sum(sizes) > 6_000_000
    assert max(sizes) < 4 << 20
    assert {name for event in taken for name in event.names} == {f"{name}-endpoints" for name in names}


async def test_calls_survive_a_control_plane_crash(backends):
    async with AsyncExitStack() as stack:
        port = free_port()  # The kernel gives it to no connection while nothing listens.
        first = await start("control_plane.py", port, "a", backends["one"])
        stack.push_async_callback(kill, first)
        assert first.stdout
        assert await first.stdout.readline() == b"ready\n"
        caller = await Caller.start("aio", port)
        stack.push_async_callback(end, caller.process)
        assert await caller.answer() == "one"
        await kill(first)
        assert {await caller.answer() for _ in range(10)} == {"one"}
        store = Store()
        store.set(*world("b", backends["two"]))
        second = XdsServer(store, f"127.0.0.1:{port}", grace=0.2)
        await second.start()
        stack.push_async_callback(second.stop)
        await caller.moves("one", "two")
