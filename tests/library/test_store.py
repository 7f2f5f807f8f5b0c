"""Scopes, changes and sharing of a store. test_serving.py has the tests with streams."""

from __future__ import annotations

from contextlib import suppress

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from hypothesis import given
from hypothesis import strategies as st

from tests.library.messages import assignment, eds_cluster, listener, routes
from xds.codec import encode_counts
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, resource
from xds.server import StreamInfo
from xds.snapshot import TYPE_PREFIX, _digest
from xds.store import Store

STREAM = StreamInfo(peer="test", variant=Variant.DELTA, type_url="")


def connect(store: Store, node: str, cluster: str = ""):
    return store.connect(Node(id=node, cluster=cluster), STREAM)


def cluster(name: str, content: str = "") -> Resource:
    return resource(Cluster(name=name, alt_stat_name=content))


def seen(snapshot) -> dict[tuple[str, str], Resource]:
    return {(type_url, name): one for type_url, of in snapshot.types.items() for name, one in of.items()}


# --- scopes ---


def test_the_narrowest_scope_wins():
    store = Store()
    everybodys, groups, nodes = (cluster("c", where) for where in ("all", "group", "node"))
    store.set(everybodys)
    store.set(groups, group="edge")
    store.set(nodes, node="n1")
    assert store.view("n1", "edge").of(CLUSTER)["c"] == nodes
    assert store.view("n1", "else").of(CLUSTER)["c"] == nodes
    assert store.view("n2", "edge").of(CLUSTER)["c"] == groups
    assert store.view("n2").of(CLUSTER)["c"] == everybodys
    store.remove(CLUSTER, "c", node="n1")
    assert store.view("n1", "edge").of(CLUSTER)["c"] == groups
    store.remove(groups, group="edge")
    assert store.view("n1", "edge").of(CLUSTER)["c"] == everybodys
    store.remove(Cluster(name="c"))
    assert not store.view("n1", "edge").of(CLUSTER)


def test_group_is_the_cluster_by_default():
    store = Store()
    store.set(cluster("c"), group="edge")
    assert "c" in connect(store, "n1", "edge").snapshot.of(CLUSTER)
    assert "c" not in connect(store, "n1", "else").snapshot.of(CLUSTER)
    store = Store(group=lambda node: node.id.partition(".")[0])
    store.set(cluster("c"), group="edge")
    assert "c" in connect(store, "edge.n1").snapshot.of(CLUSTER)


def test_view_of_a_connected_node_is_of_its_group():
    store = Store()
    store.set(cluster("c"), group="edge")
    assert not store.view("n1").of(CLUSTER)
    client = connect(store, "n1", "edge")
    assert store.view("n1") is client.snapshot
    assert not store.view("n1", "").of(CLUSTER)
    assert "c" in store.view("n2", "edge").of(CLUSTER)


NAMES = st.sampled_from("ab")
SCOPES = st.sampled_from([{}, {"group": "g"}, {"node": "n"}, {"group": "h"}, {"node": "m"}])
SOME = st.dictionaries(
    st.tuples(st.sampled_from([CLUSTER, ROUTE]), NAMES), st.sampled_from(["1", "2"]), max_size=3
)
STEPS = st.one_of(
    st.tuples(st.just("set"), SCOPES, SOME),
    st.tuples(st.just("remove"), SCOPES, SOME),
    st.tuples(st.just("replace"), SCOPES, SOME),
    st.tuples(st.just("replace clusters"), SCOPES, SOME),
)


def made(some) -> list[Resource]:
    return [Resource.of(type_url, name, body.encode()) for (type_url, name), body in some.items()]


@given(st.lists(st.lists(STEPS, max_size=4), max_size=6))
def test_views_equal_those_of_a_model(changes):
    store, model = Store(), {}
    clients = [connect(store, node, group) for node in "nx" for group in ("g", "h", "")]
    for steps in changes:
        with store.change() as change:
            for kind, scope, some in steps:
                there = model.setdefault((*scope.items(),), {})
                if kind == "set":
                    change.set(*made(some), **scope)
                    there |= some
                elif kind == "remove":
                    for type_url, name in some:
                        change.remove(type_url, name, **scope)
                        there.pop((type_url, name), None)
                elif kind == "replace":
                    change.replace(made(some), **scope)
                    there.clear()
                    there |= some
                else:
                    only = {key: body for key, body in some.items() if key[0] == CLUSTER}
                    change.replace(made(only), type_url=CLUSTER, **scope)
                    for key in [key for key in there if key[0] == CLUSTER]:
                        del there[key]
                    there |= only
        for client in clients:
            group, node = client.node.cluster, client.node.id
            expected = (
                model.get((), {}) | model.get((("group", group),), {}) | model.get((("node", node),), {})
            )
            found = {key: one.body.decode() for key, one in seen(client.snapshot).items()}
            assert found == expected
    other = Store()
    for scope, some in reversed(model.items()):
        other.set(*made(some), **dict(scope))
    for client in clients if changes else ():
        same = other.view(client.node.id, client.node.cluster)
        for type_url, of in client.snapshot.types.items():
            assert of.version == same.of(type_url).version


# --- changes ---


def test_changes_in_one_block_are_published_once():
    store = Store()
    client = connect(store, "n")
    published = []
    client.publish = lambda snapshot, changed_at: published.append(snapshot)
    store.set(cluster("a"), cluster("b"))
    assert len(published) == 1
    with store.change() as change:
        change.set(cluster("c"))
        change.remove(CLUSTER, "a", "b")
        change.set(cluster("c", "newer"), listener("l"))
        assert len(published) == 1
    assert len(published) == 2
    assert {*seen(published[1])} == {(CLUSTER, "c"), (LISTENER, "l")}
    assert published[1].of(CLUSTER)["c"] == cluster("c", "newer")


def test_a_change_that_fails_changes_nothing():
    store = Store()
    store.set(cluster("a"))
    before = store.view("n")
    with suppress(ZeroDivisionError), store.change() as change:
        change.set(cluster("b"))
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="Cluster without a name"):
        store.set(cluster("b"), Cluster())
    assert store.view("n") is before


def test_concurrent_changes_do_not_mix():
    store = Store()
    with store.change() as one:
        one.set(cluster("a"))
        with suppress(ZeroDivisionError), store.change() as other:
            other.set(cluster("b"))
            raise ZeroDivisionError
        store.set(cluster("c"))
        assert {*store.view("n").of(CLUSTER)} == {"c"}
    assert {*store.view("n").of(CLUSTER)} == {"a", "c"}


def test_replace_removes_all_other_resources_of_the_scope():
    store = Store()
    store.set(cluster("a"), cluster("b"), routes("r"))
    store.set(cluster("d"), node="n")
    store.replace([cluster("b"), cluster("c")], type_url=CLUSTER)
    assert {*seen(store.view("n"))} == {(CLUSTER, "b"), (CLUSTER, "c"), (ROUTE, "r"), (CLUSTER, "d")}
    store.replace([cluster("x")])
    assert {*seen(store.view("n"))} == {(CLUSTER, "x"), (CLUSTER, "d")}
    store.replace([], node="n")
    assert {*seen(store.view("n"))} == {(CLUSTER, "x")}


def test_no_response_before_the_first_change():
    store = Store()
    client = connect(store, "n")
    assert client.snapshot is None
    store.replace([])
    assert client.snapshot is not None


def chosen(body: bytes, version: str = "1") -> Resource:
    return Resource.of(CLUSTER, "c", body, version=version)


@pytest.mark.parametrize(
    "change",
    {
        "of the replaced resource": lambda s: s.set(chosen(b"two"), cluster("third")),
        "of a removed resource": lambda s: (s.remove(CLUSTER, "c"), s.set(chosen(b"two"))),
        "of an older one": lambda s: (s.set(chosen(b"other", "2")), s.set(chosen(b"two"))),
        "of a wider scope": lambda s: s.set(chosen(b"two"), node="n"),
        "of a narrower scope": lambda s: (s.set(chosen(b"x", "2"), group="g"), s.set(chosen(b"two", "2"))),
        "with another TTL": lambda s: s.set(Resource.of(CLUSTER, "c", b"one", version="1", ttl=60)),
    }.values(),
)
def test_version_cannot_get_another_content(change):
    """A client that has the version, or had it a moment ago, would not be sent the other content."""
    store = Store()
    store.set(chosen(b"one"), cluster("other"))
    with pytest.raises(ValueError, match=r"Cluster c: version '\d' already has another content: pass a new"):
        change(store)
    assert b"two" not in {each.body for each in seen(store.view("n", "g")).values()}
    assert "third" not in store.view("n").of(CLUSTER)


def test_versions_of_one_block_are_compared():
    store = Store()

    def set_both() -> None:
        with store.change() as change:
            change.set(chosen(b"one"))
            change.set(chosen(b"two"), node="n")

    with pytest.raises(ValueError, match="already has another content"):
        set_both()
    store.set(chosen(b"two"))  # Nothing of the block was applied.
    assert store.view("n").of(CLUSTER)["c"].body == b"two"


def test_version_may_have_another_content_for_another_node_or_group():
    store = Store()
    store.set(chosen(b"one"), node="a")
    store.set(chosen(b"two"), node="b")
    store.set(chosen(b"three", "3"), group="g")
    store.set(chosen(b"four", "3"), group="h")
    assert [store.view(node).of(CLUSTER)["c"].body for node in "ab"] == [b"one", b"two"]


def test_chosen_versions_can_come_back():
    store = Store()
    store.set(chosen(b"one"))
    before = store.checkpoint()
    store.set(chosen(b"two", "2"))
    store.rollback(before)
    store.remove(CLUSTER, "c")
    store.set(chosen(b"one"), chosen_other := Resource.of(CLUSTER, "d", b"two", version="1"))
    assert [*seen(store.view("n")).values()] == [chosen(b"one"), chosen_other]


def test_oldest_chosen_versions_are_forgotten(monkeypatch):
    monkeypatch.setattr("xds.store.versions.MAX_VERSIONS", 2)
    store = Store()
    for number in range(3):
        store.set(chosen(b"one", str(number)))
    store.set(chosen(b"two", "0"))
    with pytest.raises(ValueError, match="version '2' already has another content"):
        store.set(chosen(b"two", "2"))


def test_forgotten_node_gets_what_all_nodes_get():
    store = Store()
    store.set(cluster("c"))
    store.set(cluster("c", "special"), cluster("d"), node="n")
    store.forget("n")
    assert store.view("n") == store.view("other")
    store.forget("n")
    with pytest.raises(ValueError, match="forget takes the ID of a node"):
        store.forget("")


def test_removing_an_absent_resource_is_ignored():
    store = Store()
    store.remove(CLUSTER, "a")
    store.remove(cluster("a"), node="n")
    store.set(cluster("b"))
    store.remove(CLUSTER, "a", "b")
    assert not store.view("n").of(CLUSTER)


def test_removed_type_is_empty_and_not_unknown():
    """Otherwise a client that has some of it would not delete it."""
    store = Store()
    own = TYPE_PREFIX + "my.Own"
    client = connect(store, "n")
    store.set(Resource.of(own, "a", b""), node="n")
    other = connect(store, "other")
    assert own in other.snapshot.types
    store.replace([], node="n")
    assert not client.snapshot.types[own]


def test_equal_resource_changes_nothing():
    store = Store()
    store.set(eds_cluster("c"), assignment("c"))
    client = connect(store, "n")
    client.changed.clear()
    store.set(eds_cluster("c"), assignment("c"))
    store.replace([assignment("c"), eds_cluster("c")])
    assert not client.changed.is_set()
    store.set(resource(eds_cluster("c"), sources=["said.yaml"]))
    assert client.snapshot.of(CLUSTER)["c"].sources == ("said.yaml",)


# --- sharing ---


def test_nodes_with_the_same_view_share_it():
    store = Store()
    store.set(cluster("c"), routes("r"))
    store.set(cluster("d"), group="edge")
    store.set(cluster("e"), node="own")
    plain, edge, own = (
        [connect(store, f"{name}{n}", group).snapshot for n in range(3)]
        for name, group in (("plain", ""), ("edge", "edge"), ("own", "edge"))
    )
    assert len({*map(id, plain)}) == len({*map(id, edge)}) == 1
    alone = connect(store, "own", "edge").snapshot
    assert alone.of(ROUTE) is edge[0].of(ROUTE) is plain[0].of(ROUTE)
    assert {*alone.of(CLUSTER)} == {"c", "d", "e"}
    assert own[0] is edge[0]


def test_equal_resources_share_one_object():
    store = Store()
    for node in "abc":
        store.set(eds_cluster("c"), node=node)
    bodies = [store.view(node).of(CLUSTER)["c"].body for node in "abc"]
    assert len({*map(id, bodies)}) == 1


def test_cost_of_a_change_is_independent_of_the_store():
    store = Store()
    store.set(*(eds_cluster(f"c{n}") for n in range(2000)), *(assignment(f"c{n}") for n in range(2000)))
    for n in range(100):
        store.set(listener("own", certificate=str(n)), node=f"n{n}")
    clients = [connect(store, f"n{n}", "edge") for n in range(1000)]
    clusters = {id(client.snapshot.of(CLUSTER)) for client in clients}
    listeners = [client.snapshot.of(LISTENER) for client in clients]
    changed = resource(assignment("c7"), ttl=1)
    hashed, made = sum(_digest.cache_info()[:2]), encode_counts.total()
    store.set(changed)
    # The old and the new resource. The other 2,000 resources and the 1,000 nodes cost nothing.
    assert sum(_digest.cache_info()[:2]) - hashed == 2
    assert encode_counts.total() == made
    assert len({id(client.snapshot.of(ENDPOINT)) for client in clients}) == 1
    assert {id(client.snapshot.of(CLUSTER)) for client in clients} == clusters
    assert all(
        before is client.snapshot.of(LISTENER) for before, client in zip(listeners, clients, strict=True)
    )
    assert clients[-1].snapshot.of(ENDPOINT)["c7"] is changed


def test_scoped_change_does_not_affect_other_nodes():
    store = Store()
    store.set(cluster("c"))
    one, other, edge = connect(store, "one"), connect(store, "other"), connect(store, "another", "edge")
    for client in (one, other, edge):
        client.changed.clear()
    store.set(cluster("d"), node="one")
    store.set(cluster("d"), group="edge")
    assert one.changed.is_set()
    assert edge.changed.is_set()
    assert not other.changed.is_set()


def test_unused_views_are_freed():
    store = Store()
    store.set(cluster("c"))
    for _ in range(3):
        for n in range(10):
            store.disconnect(connect(store, f"n{n}", f"g{n}"))
    contents = store._contents
    assert (len(contents._nodes), len(contents._groups), len(store.clients)) == (0, 0, 0)
    store.set(cluster("d"), node="n")
    store.replace([], node="n")
    assert len(contents._sets) == 1
    store.remove(CLUSTER, "c")
    assert len(contents._shared) == 0
