"""Invalid calls of a store raise, and change nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import LbEndpoint

from tests.library.messages import routes
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.resources import CLUSTER, Resource, resource
from xds.server import StreamInfo, XdsServer
from xds.store import Store

STREAM = StreamInfo(peer="test", variant=Variant.DELTA, type_url="")


def connect(store: Store, node: str):
    return store.connect(Node(id=node), STREAM)


def cluster(name: str, content: str = "") -> Resource:
    return resource(Cluster(name=name, alt_stat_name=content))


BAD = {
    "two of a name": (
        lambda s: s.set(cluster("a"), cluster("a", "x")),
        ValueError,
        "Cluster a twice in one call",
    ),
    "one twice": (lambda s: s.replace([cluster("a")] * 2), ValueError, "Cluster a twice in one call"),
    "node and group": (
        lambda s: s.set(node="n", group="g"),
        ValueError,
        "pass node='n' or group='g', not both",
    ),
    "a node by what is not its name": (
        lambda s: s.set(node=Node(id="n")),
        TypeError,
        "must be str, not Node",
    ),
    "a list": (lambda s: s.set([cluster("a")]), TypeError, "list is not a protobuf message"),
    "no name": (
        lambda s: s.set(LbEndpoint()),
        ValueError,
        "LbEndpoint does not contain its name: pass name=",
    ),
    "a short type": (lambda s: s.remove("Cluster", "a"), ValueError, "not a type URL: 'Cluster'"),
    "not a name": (
        lambda s: s.remove(CLUSTER, cluster("a")),
        TypeError,
        "a type URL must be followed by names, not Resource",
    ),
    "not of the type": (
        lambda s: s.replace([routes("r")], type_url=CLUSTER),
        ValueError,
        "RouteConfiguration r is not of the replaced type, .*Cluster",
    ),
    "bytes": (lambda s: s.set(b""), ValueError, r"call resource\(data, type_url=\.\.\.\)"),
    "an empty name": (lambda s: s.set(Resource.of(CLUSTER, "", b"")), ValueError, "Cluster without a name"),
    "all": (lambda s: s.set(Cluster(name="*")), ValueError, r"Cluster \*: .* all resources of a type"),
    "a type without its prefix": (
        lambda s: s.set(Resource.of("my.Type", "x", b"")),
        ValueError,
        "not a type URL: 'my.Type'; type URLs begin with type.googleapis.com/",
    ),
    "no name to remove": (lambda s: s.remove(CLUSTER, ""), ValueError, "Cluster without a name"),
    "all to remove": (
        lambda s: s.remove(CLUSTER, "*"),
        ValueError,
        r"Cluster \*: .* all resources of a type",
    ),
    "no names to remove": (
        lambda s: s.remove(CLUSTER),
        ValueError,
        r"no names to remove after .*Cluster; .* replace\(\[\], type_url=",
    ),
    "nothing to remove": (lambda s: s.remove(), ValueError, r"nothing to remove: .* replace\(\[\]\)"),
    "one for many": (
        lambda s: s.replace(Cluster(name="x")),
        TypeError,
        "replace takes a list of resources, not one Cluster",
    ),
    "one resource for many": (lambda s: s.replace(cluster("x")), TypeError, "not one Resource"),
    "bytes for many": (lambda s: s.replace(b"x"), TypeError, "not one bytes"),
    "nothing for many": (lambda s: s.replace(None), TypeError, "not one NoneType"),
    "a negative number": (
        lambda s: asyncio.run(s.applied(at_least=-1)),
        ValueError,
        "at_least=-1 is negative",
    ),
    "no number": (
        lambda s: asyncio.run(s.applied(at_least=True)),
        TypeError,
        "at_least=True is not a number of clients",
    ),
    "no checkpoint": (lambda s: s.rollback("x"), TypeError, "'x' is not a checkpoint: pass the result"),
    "another checkpoint": (
        lambda s: s.rollback(Store().checkpoint()),
        ValueError,
        "the checkpoint is of another store",
    ),
    "no events": (lambda s: s.events(limit=0), ValueError, "limit=0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_and_changes_nothing(case):
    act, kind, message = BAD[case]
    store = Store()
    with pytest.raises(kind, match=message):
        act(store)
    assert connect(store, "n").snapshot is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"grace": -1}, ValueError, "grace=-1 is negative"),
        ({"max_connection_age": -1}, ValueError, "max_connection_age=-1 is not positive; None is no limit"),
        ({"max_connection_age": 0}, ValueError, "max_connection_age=0 is not positive"),
        (
            {"interceptors": [print]},
            TypeError,
            "interceptors contains <built-in function print>, which is not",
        ),
    ],
)
def test_bad_options_of_a_server_are_explained(options, kind, message):
    with pytest.raises(kind, match=message):
        XdsServer(Store(), "127.0.0.1:0", **options)


@pytest.mark.parametrize("group", [7, None])
def test_group_of_the_wrong_type_raises(group):
    store = Store(group=lambda node: group)
    with pytest.raises(TypeError, match=rf"Store\(group=\.\.\.\) returned {group} for n: it must return"):
        connect(store, "n")
    assert not store.clients


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_change_raises_after_its_block_has_ended(error):
    store = Store()
    with suppress(ZeroDivisionError), store.change() as change:
        change.set(cluster("a"))
        if error:
            raise error
    for act in (
        lambda: change.set(cluster("b")),
        lambda: change.remove(CLUSTER, "a"),
        lambda: change.replace([]),
    ):
        with pytest.raises(RuntimeError, match=r"block of this change has ended.*store\.change\(\)"):
            act()
    assert {*store.view("n").of(CLUSTER)} == (set() if error else {"a"})


# --- threads ---

CALLS = {
    "set": lambda s: s.set(cluster("b")),
    "remove": lambda s: s.remove(CLUSTER, "a"),
    "replace": lambda s: s.replace([]),
    "view": lambda s: s.view("n"),
    "events": lambda s: s.events(),
    "connect": lambda s: connect(s, "m"),
    "applied, on a loop of its own": lambda s: asyncio.run(s.applied()),
}


@pytest.mark.parametrize("call", CALLS)
async def test_call_from_another_thread_raises(call):
    store = Store()
    client = connect(store, "n")
    store.set(cluster("a"))
    with pytest.raises(RuntimeError, match=r"event loop's thread.* loop\.call_soon_threadsafe\(store\.set, "):
        await asyncio.to_thread(CALLS[call], store)
    assert {*client.snapshot.of(CLUSTER)} == {"a"}
    assert [*store.clients] == [client]
    await asyncio.to_thread(asyncio.get_running_loop().call_soon_threadsafe, store.set, cluster("b"))
    while "b" not in client.snapshot.of(CLUSTER):
        await asyncio.sleep(0)


async def test_any_thread_may_fill_a_store_before_a_loop_runs():
    store = Store()
    await asyncio.to_thread(store.set, cluster("a"))
    store.set(routes("r"))
    assert "a" in connect(store, "n").snapshot.of(CLUSTER)


def test_a_store_outlives_its_loop():
    store = Store()

    async def use(name: str) -> None:
        store.set(cluster(name))

    asyncio.run(use("a"))
    store.set(cluster("b"))
    asyncio.run(use("c"))
    assert {*store.view("n").of(CLUSTER)} == {"a", "b", "c"}
