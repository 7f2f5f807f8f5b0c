"""Checkpoints, rollback and canaries of a store. test_envoy_rollout.py has the real Envoy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.library.clients import cluster, connected, content, roll_out, serving
from xds.resources import CLUSTER
from xds.store import Acked, NackError, Store

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


# --- canaries ---


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
        await roll_out(store, cluster("a", "2"))
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
        with pytest.raises(NackError, match="c1 rejected Cluster a"):
            await roll_out(store, cluster("a", "bad"), cluster("new"))
        await store.applied()
        assert canary.contents("a")[:3] == ["1", "bad", "1"]
        assert second.contents("a")[-1] == "1"
        assert (other.contents("a"), other.contents("new")) == (["1"], [])
        assert content(store) == content(store, "c1", "canary") == {"a": "1"}
