"""A store with a validator: what it refuses is held back. test_envoy_validator.py has the real Envoy."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress

import pytest

from tests.library.clients import Words, cluster, connected, content, serving
from tests.library.messages import routes
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.resources import CLUSTER
from xds.server import StreamInfo, XdsServer
from xds.store import ResourcesHeldBack, Store, ValidationError

STREAM = StreamInfo(peer="test", variant=Variant.DELTA, type_url="")


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def store(words) -> Store:
    return Store(validator=words)


async def settled(store: Store) -> None:
    with suppress(ValidationError):
        await store.applied()


async def test_a_refused_resource_is_held_back_alone(store):
    store.set(cluster("a", "1"), cluster("b", "1"))
    await settled(store)
    store.set(cluster("a", "bad", source="mesh.yaml:7"), cluster("b", "2"), cluster("new", "bad"))
    with pytest.raises(ValidationError, match=r"Cluster a \(from mesh.yaml:7\): it is bad") as raised:
        await store.applied()
    assert content(store) == {"a": "1", "b": "2"}
    assert [item.resource.name for item in raised.value.held_back] == ["a", "new"]
    assert store.held_back == raised.value.held_back
    store.set(cluster("a", "3"))
    store.remove(CLUSTER, "new")
    await store.applied()
    assert content(store) == {"a": "3", "b": "2"}
    assert not store.held_back


async def test_replace_keeps_the_last_good_version(store):
    store.set(cluster("a", "1"), cluster("gone"))
    await settled(store)
    store.replace([cluster("a", "bad")])
    await settled(store)
    assert content(store) == {"a": "1"}
    store.replace([cluster("b")])
    await store.applied()
    assert content(store) == {"b": ""}
    assert not store.held_back


async def test_the_last_good_version_is_of_the_same_scope(store):
    store.set(cluster("a", "all"))
    store.set(cluster("a", "group"), group="g")
    await settled(store)
    store.set(cluster("a", "bad"), group="g")
    store.set(cluster("a", "bad"), node="n")
    await settled(store)
    assert content(store, group="g") == {"a": "group"}
    assert content(store) == {"a": "all"}


async def test_changes_are_served_in_order_after_validation(store, words):
    store.set(cluster("a", "1"))
    await settled(store)
    words.open.clear()
    store.set(cluster("a", "2"))
    async with asyncio.timeout(30):
        while len(words.calls) < 2:
            await asyncio.sleep(0)
    store.set(cluster("a", "3"), cluster("b"))
    store.set(cluster("a", "bad"))
    assert content(store) == {"a": "1"}
    words.open.set()
    await settled(store)
    assert content(store) == {"a": "3", "b": ""}
    assert words.calls[2:] == [["a", "b", "a"]]


async def test_nothing_is_served_before_validation(store, words):
    words.open.clear()
    store.set(cluster("a"))
    client = store.connect(Node(id="n"), STREAM)
    assert client.snapshot is None
    words.open.set()
    await served(store)
    assert client.snapshot
    assert "a" in client.snapshot.of(CLUSTER)
    assert "a" in store.connect(Node(id="m"), STREAM).snapshot.of(CLUSTER)


async def served(store: Store) -> None:
    """Wait for the validation, although the clients of these tests answer nothing."""
    async with asyncio.timeout(30):
        while not store.view("n").types:
            await asyncio.sleep(0)


def test_changes_before_the_loop_runs_are_validated_later(words):
    store = Store(validator=words)
    store.set(cluster("a"), cluster("b", "bad"))
    assert content(store) == {}

    async def main() -> None:
        store.connect(Node(id="n"), STREAM)
        await served(store)

    asyncio.run(main())
    assert content(store) == {"a": ""}


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ({}, ["a", "b"]),
        ({"node": "n"}, ["a", "b"]),
        ({"node": "m"}, []),
        ({"group": "g"}, ["a", "b"]),
        ({"group": "h"}, []),
    ],
)
async def test_applied_reports_what_concerns_its_nodes(store, scope, names):
    store.replace([])
    store.set(cluster("a", "bad"), group="g")
    store.set(cluster("b", "bad"), node="n")
    async with serving(store) as server, connected(server, "n", group="g"), connected(server, "m", group="h"):
        with pytest.raises(ValidationError) if names else nullcontext() as raised:
            await store.applied(**scope)
        assert [item.resource.name for item in raised.value.held_back] == names if names else True


async def test_a_validator_that_fails_lets_nothing_pass(store, words):
    store.set(cluster("a", "1"))
    await settled(store)
    words.error = RuntimeError("no")
    store.set(cluster("a", "2"))
    with pytest.raises(ValidationError, match="the validator failed: RuntimeError: no"):
        await store.applied()
    assert content(store) == {"a": "1"}
    words.error = None
    store.set(cluster("a", "2"))  # The same again is another try.
    await store.applied()
    assert content(store) == {"a": "2"}


async def test_clients_keep_what_they_have(store):
    store.set(cluster("a", "1"))
    async with serving(store) as server, connected(server, "n") as client:
        await store.applied(at_least=1)
        store.set(cluster("a", "bad"), cluster("b"))
        with pytest.raises(ValidationError):
            await store.applied()
        assert {*client.names} == {"a", "b"}
        assert client.contents("a") == ["1"]


async def test_a_validated_change_keeps_its_label(store):
    with store.change(label="commit") as change:
        change.set(cluster("a"))
    await settled(store)
    assert store.view("n").of(CLUSTER).label == "commit"


async def test_clients_that_miss_a_resource_have_an_event(store):
    store.set(cluster("a", "1"))
    async with serving(store) as server, connected(server, "n", group="g"), connected(server, "m"):
        await store.applied(at_least=2)
        events = store.events()
        store.set(cluster("a", "bad", source="mesh.yaml:7"), cluster("b"))
        store.set(cluster("c", "bad"), group="g")
        await settled(store)
        events.close()
        found = [
            (client.node.id, [str(each) for each in event.held_back])
            async for client, event in events
            if isinstance(event, ResourcesHeldBack)
        ]
    assert found == [
        ("n", ["Cluster a (from mesh.yaml:7): it is bad"]),
        ("m", ["Cluster a (from mesh.yaml:7): it is bad"]),
        ("n", ["Cluster c: it is bad"]),
    ]


# --- XdsServer(validate=...) ---


async def test_a_server_validates_what_was_set_before(words):
    store = Store()
    store.set(cluster("a"), cluster("b", "bad"))
    store.set(cluster("c", "bad"), group="g")
    server = XdsServer(store, "127.0.0.1:0", grace=0.1, validate=words)
    async with server, connected(server, "n", group="g") as client:
        with pytest.raises(ValidationError) as raised:
            await store.applied()
        assert client.names == ["a"]
        assert [item.resource.name for item in raised.value.held_back] == ["b", "c"]
        store.set(cluster("b", "1"), cluster("d", "bad"))
        await settled(store)
        assert client.names == ["a", "b"]
    assert content(store) == {"a": "", "b": "1"}


async def test_what_was_set_before_keeps_its_labels(words):
    store = Store()
    for label, resource, group in (
        ("rel1", cluster("a"), ""),
        ("rel2", cluster("b"), "g"),
        ("rel3", cluster("c", "bad"), "h"),
    ):
        with store.change(label=label) as change:
            change.set(resource, group=group)
    store.set(routes("r"))
    expected = store.view("n", "g")
    XdsServer(store, "127.0.0.1:0", validate=words)
    await settled(store)
    assert store.view("n", "g").of(CLUSTER).label == "rel1+rel2"
    assert store.view("n", "h").of(CLUSTER).label == "rel1"
    assert store.view("n", "g") == expected


async def test_a_server_may_name_the_store_s_own_validator(store, words):
    store.set(cluster("a", "1"))
    await settled(store)
    XdsServer(store, "127.0.0.1:0", validate=words)
    XdsServer(store, "127.0.0.1:0", validate=words)
    assert content(store) == {"a": "1"}
    with pytest.raises(RuntimeError, match="the store has another validator"):
        XdsServer(store, "127.0.0.1:0", validate=Words())


async def test_a_validator_cannot_be_added_while_clients_are_connected(words):
    store = Store()
    store.replace([])
    store.connect(Node(id="n"), STREAM)
    with pytest.raises(RuntimeError, match="clients are connected"):
        XdsServer(store, "127.0.0.1:0", validate=words)


def test_only_a_store_can_be_validated(words):
    with pytest.raises(TypeError, match="validate= needs a Store, not object"):
        XdsServer(object(), "127.0.0.1:0", validate=words)


# --- after a restart of the program ---


async def test_clients_keep_what_has_no_good_version_in_its_scope(store):
    store.set(cluster("a", "bad"), cluster("b", "1"))
    store.set(cluster("c", "bad"), group="g")
    store.set(cluster("d", "bad"), node="n")
    await settled(store)
    assert kept(store) == {"a"}
    assert kept(store, "n", "g") == {"a", "c", "d"}
    assert kept(store, "m", "g") == {"a", "c"}
    client = store.connect(Node(id="n", cluster="g"), STREAM)
    store.remove(CLUSTER, "a")
    store.set(cluster("b", "bad"))
    store.set(cluster("c", "1"), group="g")
    await validated(store)
    assert kept(store, "n", "g") == {"d"}
    assert client.snapshot.kept == {(CLUSTER, "d")}
    assert content(store, "n", "g") == {"b": "1", "c": "1"}
    store.forget("n")
    await validated(store)
    assert client.snapshot.kept == frozenset()
    assert not store.held_back[0].node


async def test_a_refused_override_is_not_replaced_by_a_wider_scope(store):
    """After a restart, nodes may have an earlier version of the override, such as one with mutual TLS."""
    store.set(cluster("a", "plaintext"), cluster("b"))
    store.set(cluster("a", "bad"), node="n")
    store.set(cluster("a", "bad"), group="g")
    store.set(cluster("a", "special"), node="s")
    await settled(store)
    for node, group in (("n", "h"), ("x", "g")):
        assert content(store, node, group) == {"b": ""}
        assert kept(store, node, group) == {"a"}
    assert content(store, "s", "g") == {"a": "special", "b": ""}
    assert content(store, "x", "h") == {"a": "plaintext", "b": ""}
    store.set(cluster("a", "still bad"), node="n")
    store.set(cluster("b", "2"))
    await settled(store)
    assert content(store, "n", "h") == {"b": "2"}
    store.set(cluster("a", "good"), node="n")
    store.forget("s")
    store.replace([], group="g")
    await settled(store)
    assert content(store, "n", "g") == {"a": "good", "b": "2"}
    assert content(store, "s", "g") == {"a": "plaintext", "b": "2"}


async def test_a_node_keeps_the_wider_scope_when_its_first_override_is_refused(store):
    store.set(cluster("a", "all"))
    await settled(store)
    store.set(cluster("a", "bad"), node="n")
    await settled(store)
    assert content(store, "n") == {"a": "all"}


async def test_what_a_rollout_has_served_stays_when_an_override_is_refused(store):
    async with store.roll_out() as change:
        change.set(cluster("a", "all"))
    store.set(cluster("a", "bad"), node="n")
    await settled(store)
    assert content(store, "n") == {"a": "all"}


async def test_a_rollout_of_a_good_version_ends_the_keeping(store):
    store.set(cluster("a", "bad"))
    await validated(store)
    assert kept(store) == {"a"}
    async with store.roll_out() as change:
        change.remove(CLUSTER, "a")
    assert kept(store) == set()


async def validated(store: Store) -> None:
    async with asyncio.timeout(30):
        await store._queue.wait()


def kept(store: Store, node: str = "x", group: str = "") -> set[str]:
    return {name for type_url, name in store.view(node, group).kept if type_url == CLUSTER}
