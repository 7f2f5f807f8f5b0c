"""Checkpoints, rollback and rollouts of a store. test_envoy_rollout.py has the real Envoy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.library.clients import cluster, connected, content, serving
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.resources import CLUSTER, Resource
from xds.server import StreamInfo
from xds.store import Acked, NackError, RolledBack, RolledBackError, Store
from xds.store.clients import Client
from xds.store.rollouts import RolloutWaiter
from xds.store.scopes import ALL_NODES, ScopeView

STREAM = StreamInfo(peer="test", variant=Variant.DELTA, type_url="")

SCOPES = st.sampled_from([{}, {"group": "g"}, {"node": "n"}, {"node": "m"}])
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["set", "remove", "replace"]),
        SCOPES,
        st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), min_size=1),
    ),
    max_size=6,
)


def apply(store: Store, calls) -> None:
    for method, scope, contents in calls:
        resources = [cluster(name, one) for name, one in contents.items()]
        if method == "replace":
            store.replace(resources, **scope)
        else:
            getattr(store, method)(*resources, **scope)


def everything(store: Store) -> list[dict[str, str]]:
    return [content(store, node, group) for node in ("n", "m", "x") for group in ("", "g")]


@settings(deadline=None)
@given(CALLS, CALLS)
def test_rollback_restores_each_scope(first, second):
    store = Store()
    apply(store, first)
    before, checkpoint = everything(store), store.checkpoint()
    apply(store, second)
    after = everything(store)
    undone = store.checkpoint()
    store.rollback(checkpoint)
    assert everything(store) == before
    store.rollback(undone)
    assert everything(store) == after


def test_rollback_shares_the_resources():
    store = Store()
    a = cluster("a", "1")
    store.set(a, *(cluster(f"c{n}") for n in range(100)))
    checkpoint, version = store.checkpoint(), store.view("n").of(CLUSTER).version
    store.set(cluster("a", "2"))
    store.rollback(checkpoint)
    assert store.view("n").of(CLUSTER)["a"] is a
    assert store.view("n").of(CLUSTER).version == version


async def test_a_client_gets_only_what_was_rolled_back():
    store = Store()
    store.set(cluster("a", "1"), cluster("b"))
    checkpoint = store.checkpoint()
    async with serving(store) as server, connected(server, "n") as client:
        store.set(cluster("a", "2"))
        await store.applied()
        store.rollback(checkpoint)
        await store.applied()
        assert client.contents("a") == ["1", "2", "1"]
        assert client.contents("b") == [""]


async def test_last_good_is_what_the_client_acked_entirely():
    store = Store()
    store.set(cluster("a", "1"))
    assert store.last_good("n") is None
    async with serving(store) as server, connected(server, "n", rejects="bad"):
        await store.applied()
        good = store.view("n")
        assert store.last_good("n") is good
        store.set(cluster("a", "bad"))
        with pytest.raises(NackError):
            await store.applied()
        assert store.last_good("n") is good
        store.set(cluster("a", "2"))
        await store.applied()
        assert store.last_good("n") is store.view("n")
        store.set(cluster("a", "3"), node="someone-else")  # It does not concern the client.
        assert store.last_good("n") is store.view("n")


# --- rollouts ---


async def test_canaries_get_a_change_before_all_others():
    store = Store()
    store.set(cluster("a", "1"))
    async with (
        serving(store) as server,
        connected(server, "c1", group="canary") as canary,
        connected(server, "n1") as other,
    ):
        await store.applied(at_least=2)
        events = store.events()
        async with store.roll_out(canary="canary") as change:
            change.set(cluster("a", "2"))
            assert content(store, "c1", "canary") == {"a": "1"}
        assert (canary.contents("a"), other.contents("a")) == (["1", "2"], ["1", "2"])
        assert content(store) == content(store, "c1", "canary") == {"a": "2"}
        events.close()
        acked = [client.node.id async for client, event in events if isinstance(event, Acked)]
        assert acked == ["c1", "n1"]


async def test_a_rejection_by_a_canary_reaches_nobody_else():
    store = Store()
    store.set(cluster("a", "1"))
    async with (
        serving(store) as server,
        connected(server, "c1", group="canary", rejects="bad") as canary,
        connected(server, "c2", group="canary") as second,
        connected(server, "n1") as other,
    ):
        events = store.events()
        with pytest.raises(
            RolledBackError, match="1 of 2 clients of group canary failed: c1 rejected"
        ) as raised:
            async with store.roll_out(canary="canary") as change:
                change.set(cluster("a", "bad"), cluster("new"))
        assert (raised.value.group, raised.value.total) == ("canary", 2)
        assert [error.names for error in raised.value.rejections] == [("a",)]
        await store.applied()
        assert canary.contents("a")[:3] == ["1", "bad", "1"]
        assert second.contents("a")[-1] == "1"
        assert (other.contents("a"), other.contents("new")) == (["1"], [])
        assert content(store) == content(store, "c1", "canary") == {"a": "1"}
        events.close()
        failed = [(client.node.id, event) async for client, event in events if isinstance(event, RolledBack)]
        assert [name for name, _ in failed] == ["c1"]


@pytest.mark.parametrize(("share", "succeeds"), [(0.25, True), (0.2, False)])
async def test_a_share_of_the_clients_may_reject(share, succeeds):
    store = Store()
    store.set(cluster("a", "1"))
    async with (
        serving(store) as server,
        connected(server, "n1", rejects="2"),
        connected(server, "n2"),
        connected(server, "n3"),
        connected(server, "n4"),
    ):
        with nullcontext() if succeeds else pytest.raises(RolledBackError, match="1 of 4 clients failed"):
            async with store.roll_out(max_rejected=share) as change:
                change.set(cluster("a", "2"))
        assert content(store) == {"a": "2" if succeeds else "1"}


async def test_earlier_rejections_do_not_count():
    store = Store()
    store.set(cluster("a", "1"))
    async with serving(store) as server, connected(server, "n", rejects="bad") as client:
        store.set(cluster("a", "bad"))
        with pytest.raises(NackError):
            await store.applied()
        async with store.roll_out() as change:
            change.set(cluster("b", "1"))
        assert client.contents("b")[-1] == "1"


async def test_a_canary_that_crashes_fails():
    store = Store()
    store.set(cluster("a", "1"))

    async def crash(server, ready: asyncio.Event) -> None:
        async with connected(server, "c1", group="canary") as canary:
            canary.hold(CLUSTER)
            ready.set()
            await canary.wait_for(lambda: canary.held(CLUSTER))

    async with serving(store) as server, connected(server, "n1") as other:
        ready = asyncio.Event()
        crashing = asyncio.create_task(crash(server, ready))
        await ready.wait()
        with pytest.raises(
            RolledBackError, match="1 of 1 clients of group canary failed: no ACK of c1"
        ) as raised:
            async with store.roll_out(canary="canary", timeout=3) as change:
                change.set(cluster("a", "2"))
        await crashing
        assert raised.value.lagging == ("c1",)
        assert other.contents("a") == ["1"]


async def test_without_a_canary_nothing_is_rolled_out():
    store = Store()
    store.set(cluster("a", "1"))
    async with serving(store) as server, connected(server, "n1", group="edge") as other:
        await store.applied()
        groups = r"\(connected groups: edge\)"
        problem = f"^no client of group canary is connected, but 1 must be {groups}$"
        with pytest.raises(RolledBackError, match=problem):
            async with store.roll_out(canary="canary", timeout=0.1) as change:
                change.set(cluster("a", "2"))
        with pytest.raises(RolledBackError, match=r"^0 of 1 clients of group edge failed: 1 more must be"):
            async with store.roll_out(canary="edge", at_least=2, timeout=0.1) as change:
                change.set(cluster("a", "1"))  # The client has it already, and needs no time for it.
        assert other.contents("a") == ["1"]


async def test_other_changes_go_on_and_stay_after_a_rollback():
    store = Store()
    store.set(cluster("a", "1"))
    async with serving(store) as server, connected(server, "n1") as other:
        rolling = asyncio.create_task(rolled(store, cluster("a", "2"), timeout=1))
        async with asyncio.timeout(30):
            while content(store, "c1", "canary") != {"a": "2"}:
                await asyncio.sleep(0)
        store.set(cluster("b"))
        assert content(store, "c1", "canary") == {"a": "2", "b": ""}
        await store.applied()
        assert other.names == ["a", "b"]
        with pytest.raises(RolledBackError):
            await rolling
        assert content(store, "c1", "canary") == {"a": "1", "b": ""}


async def rolled(store: Store, *resources: Resource, timeout: float) -> None:
    async with store.roll_out(canary="canary", timeout=timeout) as change:
        change.set(*resources)


async def test_a_cancelled_rollout_is_rolled_back():
    store = Store()
    store.set(cluster("a", "1"))
    task = asyncio.create_task(rolled(store, cluster("a", "2"), timeout=60))
    async with asyncio.timeout(30):
        while content(store, "c1", "canary") != {"a": "2"}:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert content(store, "c1", "canary") == {"a": "1"}


async def test_an_invalid_change_is_not_rolled_out():
    store = Store()
    store.set(cluster("a", "1"))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with store.roll_out() as change:
            change.set(cluster("a", "2"))
            1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="max_rejected=2"):
        async with store.roll_out(max_rejected=2):
            pass
    assert content(store) == {"a": "1"}


async def reached(store: Store, *, timeout: float = 30, **expected: str) -> None:
    """Wait until a canary is served these clusters."""
    async with asyncio.timeout(timeout):
        while content(store, "c1", "canary") != expected:
            await asyncio.sleep(0)


async def test_the_first_change_is_rolled_out():
    store = Store()
    async with serving(store) as server, AsyncExitStack() as stack:
        connecting = asyncio.create_task(stack.enter_async_context(connected(server, "n")))
        async with asyncio.timeout(30):
            while not store.clients:
                await asyncio.sleep(0.01)
        async with store.roll_out(timeout=60) as change:
            change.set(cluster("a", "1"))
        assert (await connecting).contents("a") == ["1"]


async def test_clients_keep_a_first_change_that_is_rolled_back():
    """An empty snapshot would make them delete what they have from before a restart."""
    store = Store()
    canary = store.connect(Node(id="c1", cluster="canary"), STREAM)
    other = store.connect(Node(id="n1"), STREAM)
    with pytest.raises(RolledBackError, match="no ACK of c1"):
        await rolled(store, cluster("a", "1"), timeout=0.05)
    assert {*canary.snapshot.of(CLUSTER)} == {"a"}
    assert other.snapshot is None
    assert store.connect(Node(id="c2", cluster="canary"), STREAM).snapshot is None
    store.set(cluster("b"))
    assert {*canary.snapshot.of(CLUSTER)} == {*other.snapshot.of(CLUSTER)} == {"b"}


def test_a_node_is_disconnected_when_its_last_stream_ends():
    old, new = (Client(Node(id="n"), STREAM, ScopeView(ALL_NODES), "") for _ in range(2))
    waiter = RolloutWaiter([old], 0, 0, {})
    waiter.add(new)
    waiter.discard(old)
    assert not waiter._disconnected
    waiter.discard(new)
    assert waiter._disconnected == {"n"}


async def test_earlier_rejections_do_not_count_after_a_reconnect():
    store = Store()
    store.set(cluster("a", "1"))
    async with serving(store) as server:
        async with connected(server, "n", rejects="bad"):
            store.set(cluster("a", "bad"))
            with pytest.raises(NackError):
                await store.applied()
            rolling = asyncio.create_task(rolled(store, cluster("b", "1"), timeout=60))
            await reached(store, a="bad", b="1")
        async with connected(server, "n", rejects="bad") as again, connected(server, "c1", group="canary"):
            await rolling
            assert again.contents("b")[-1] == "1"
            # Another resource and a newer version that it rejects count, and are named alone.
            with pytest.raises(RolledBackError, match="n rejected Cluster b: ") as raised:
                await rolled(store, cluster("b", "also bad"), timeout=60)
            assert [each.names for each in raised.value.rejections] == [("b",)]
            with pytest.raises(RolledBackError, match="n rejected Cluster a"):
                await rolled(store, cluster("a", "also bad"), timeout=60)


async def test_version_of_a_running_rollout_cannot_get_another_content():
    def version(content: str, name: str) -> Resource:
        return replace(cluster("a", content), version=name)

    store = Store()
    store.set(version("1", "v1"))
    rolling = asyncio.create_task(rolled(store, version("2", "v2"), timeout=60))
    await reached(store, a="2")
    with pytest.raises(ValueError, match="Cluster a: version 'v2' already has another content"):
        store.set(version("3", "v2"))  # The canaries have another content of this version.
    assert content(store) == {"a": "1"}
    assert content(store, "c1", "canary") == {"a": "2"}
    rolling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rolling
