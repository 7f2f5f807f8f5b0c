"""What streams share: the differences of roots, and the versions that clients were sent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.stream import Stream, synced, world
from xds.protocol import limits, shared, subscription
from xds.protocol.responses import encode_delta_response
from xds.protocol.session import Variant
from xds.protocol.shared import SentVersions, shared_change
from xds.snapshot import CLUSTER, EMPTY, ENDPOINT, SECRET, Resource, ResourceSet, Snapshot

NAMES = "abcde"
VERSIONS = "123"
STEPS = ("set", "remove", "start", "resume", "compact", "move", "share", "catch up", "spread")
ROOTS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERSIONS)).map(
    lambda versions: ResourceSet(
        Resource.of(CLUSTER, name, version.encode(), version=version) for name, version in versions.items()
    )
)


def versions_of(resources: ResourceSet) -> dict[str, str]:
    return {name: resource.version for name, resource in resources.items()}


@settings(deadline=None)
@given(st.data())
def test_sent_versions_are_those_of_a_dict(data):
    sent, expected, root = SentVersions(), {}, EMPTY
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(
            st.sampled_from(
                ["set", "remove", "start", "resume", "compact", "move", "share", "catch up", "spread"]
            )
        ):
            case "set":
                name, version = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(VERSIONS))
                sent[name] = expected[name] = version
            case "remove" if expected:
                name = data.draw(st.sampled_from(sorted(expected)))
                del sent[name], expected[name]
            case "start":
                sent, expected, root = SentVersions(), {}, data.draw(ROOTS)
                change = shared_change(CLUSTER, EMPTY, root)
                sent.start(change)
            case "resume":
                sent, expected, root = SentVersions(), {}, data.draw(ROOTS)
                if sent.resume(root, versions_of(root) | {"other": "1"}):
                    expected = versions_of(root)
                assert not SentVersions().resume(
                    ResourceSet([*root.values(), _resource(CLUSTER, "f", "1")]), expected
                )
            case "compact":
                root = data.draw(ROOTS)
                sent = SentVersions()
                expected = versions_of(root)
                sent.update(expected)
                sent.compact(root)
                assert sent.has_root == bool(root)
            case "move" if sent.has_root:
                sent.spread()
                new = data.draw(ROOTS)
                sent.move(new, {*root, *new})
                root = new
            case "share" if sent.has_root:
                sent.spread()
                new = data.draw(ROOTS)
                change = shared_change(CLUSTER, root, new)
                if sent.conflicts_with(change):
                    sent.move(new, {*root, *new})
                else:
                    sent.move(new, change.removed, change)
                root = new
            case "catch up" if sent.behind:
                expected |= {
                    name: version
                    for name, version in versions_of(root).items()
                    if name in change.before and name not in sent.own_names()
                }
                sent.catch_up()
            case "spread":
                sent.spread()
        assert dict(sent) == expected
        assert len(sent) == len(expected)
        assert all((name in sent) == (name in expected) for name in NAMES)
        assert [sent.get(name, "-") for name in NAMES] == [expected.get(name, "-") for name in NAMES]


def test_version_that_is_not_there_cannot_be_removed():
    with pytest.raises(KeyError):
        del SentVersions()["a"]


def many(version: str, *own: str) -> Snapshot:
    """Return 100 clusters and assignments that all clients share, and the client's own."""
    types = {}
    for type_url in (CLUSTER, ENDPOINT):
        key = (type_url, version)
        if key not in roots:
            roots[key] = ResourceSet(_resource(type_url, f"n{number}", version) for number in range(100))
        layer = [_resource(type_url, name, "1") for name in own]
        types[type_url] = ResourceSet(layer, base=roots[key])
    return Snapshot(types)


roots: dict[tuple[str, str], ResourceSet] = {}


def _resource(type_url: str, name: str, version: str) -> Resource:
    refs = ((ENDPOINT, name),) if type_url == CLUSTER else ()
    return Resource.of(type_url, name, f"{name}={version}".encode(), version=version, refs=refs)


def test_flip_of_many_streams_is_encoded_once(monkeypatch):
    encoded = []
    monkeypatch.setattr(shared, "join", lambda resources: encoded.append(len(resources)) or join(resources))
    streams = [Stream(Variant.DELTA, many("1", f"own-{number}")) for number in range(20)]
    for number, stream in enumerate(streams):
        stream.ask("CDS")
        stream.settle()
        stream.ask("EDS", f"own-{number}", *(f"n{each}" for each in range(100)))
        stream.settle()
    assert encoded == [100, 100]
    for number, stream in enumerate(streams):
        stream.serve(many("2", f"own-{number}"))
    for stream in streams:
        stream.settle()
        assert stream.session.synced
        assert not any(watch.states.due for watch in stream.session._watches.values())
    assert encoded == [100] * 4


join = shared.join


def test_synced_stream_stores_only_what_it_has_on_its_own():
    stream = Stream(Variant.DELTA, many("1", "own"))
    stream.ask("CDS")
    stream.settle()
    sent = stream.session._watches[CLUSTER].sent
    assert len(sent) == 101
    assert sent.own_names() == ["own"]


@pytest.mark.parametrize("old", ["1", "2"])
def test_reconnected_client_gets_only_its_own_resource(old):
    served = many("1", "own")
    initial = {name: each.version for name, each in served.of(CLUSTER).items()} | {"own": old, "gone": "1"}
    stream = Stream(Variant.DELTA, served)
    stream.ask("CDS", initial=initial)
    watch = stream.session._watches[CLUSTER]
    assert watch.states.due.keys() == {"own", "gone"}
    assert stream.settle() == ["CDS own=1"] * (old == "2")
    assert watch.sent.own_names() == ["gone", "own"]
    assert len(watch.sent) == 102


def test_client_that_reconnects_to_changed_resources_refers_to_the_root_after_the_next_change():
    served = many("1")
    stream = Stream(Variant.DELTA, served)
    initial = {name: each.version for name, each in served.of(CLUSTER).items()} | {"n0": "old"}
    stream.ask("CDS", initial=initial)
    assert stream.settle() == ["CDS n0=1"]
    stream.serve(many("2"))
    stream.settle()
    assert stream.session._watches[CLUSTER].sent.own_names() == []


def test_client_of_a_part_has_only_that_part():
    stream = synced(Variant.DELTA, world(EDS="a=1 b=1 c=1"), EDS="a x")
    stream.settle(EDS="a=1 b=1 c=1 x=1")
    assert dict(stream.session._watches[ENDPOINT].sent) == {"a": "1", "x": "1"}


def test_change_that_becomes_too_large_is_sent_in_parts(monkeypatch):
    stream = Stream(Variant.DELTA, many("1"))
    stream.ask("CDS")
    stream.settle()
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 5000)
    stream.serve(many("2"))
    assert len(stream.get()) > 1
    assert not stream.session._watches[CLUSTER].pending


def test_name_that_is_removed_before_it_was_sent_is_answered():
    stream = Stream(Variant.DELTA, world(EDS="a=1 b=1"))
    stream.ask("EDS", "a", "b")
    assert stream.push(EDS="b=2") == ["EDS b=2 -a"]


def test_assignments_of_changed_clusters_are_sent_although_they_revert():
    stream = synced(Variant.DELTA, world(CDS="a=1 b=1", EDS="a=1 b=1"), CDS="")
    stream.ask("EDS", "a", "b")
    stream.settle()
    stream.serve(world(CDS="a=2 b=2", EDS="a=2 b=2"))
    assert str(stream._decode(stream.session.next(0.0))) == "CDS a=2 b=2"
    stream.ask("EDS")  # Has no effect.
    assert stream.push(CDS="a=2 b=2", EDS="a=1 b=1") == ["EDS a=1 b=1"]


def test_rejection_of_an_earlier_response_does_not_outlive_a_shared_change():
    stream = synced(Variant.DELTA, world(CDS="a=1 b=1"), CDS="")
    stream.push(CDS="a=1 b=2")
    stream.push(CDS="a=1 b=3")
    stream.serve(world(CDS="a=1 b=2"))
    stream.nack("CDS", nonce="2")
    stream.ack("CDS", nonce="3")
    assert stream.settle() == ["CDS b=2"]
    assert stream.session.synced


def test_client_of_names_that_adds_the_wildcard_gets_the_rest():
    stream = synced(Variant.DELTA, world(CDS="a=1 b=1 c=1"), CDS="a")
    stream.serve(world(CDS="a=1 b=1 c=1 d=1"))
    stream.ask("CDS", "*")
    assert stream.settle() == ["CDS b=1 c=1 d=1"]


def test_secrets_are_not_shared():
    stream = synced(Variant.DELTA, world(SDS="a=1"), SDS="a")
    for number in range(20):
        stream.serve(world(SDS=f"a={number}"))
        watch = stream.session._watches[SECRET]
        assert (watch.sent.behind, watch.sent.has_root) == (None, False)
        assert stream.settle() == [f"SDS a={number}"] or number == 1


def test_first_snapshot_after_the_subscription_is_shared(monkeypatch):
    encoded = []
    monkeypatch.setattr(shared, "join", lambda resources: encoded.append(len(resources)) or join(resources))
    streams = [Stream(Variant.DELTA) for _ in range(3)]
    for stream in streams:
        stream.ask("CDS")
    served = ResourceSet([_resource(CLUSTER, f"s{number}", "1") for number in range(10)])
    for number, stream in enumerate(streams):
        own = ResourceSet([_resource(CLUSTER, f"own-{number}", "1")], base=served)
        stream.serve(Snapshot({CLUSTER: own}))
        stream.settle()
        assert stream.session._watches[CLUSTER].sent.own_names() == [f"own-{number}"]
    assert encoded == [10]


def test_client_of_a_part_that_subscribed_early_stores_only_that_part():
    stream = Stream(Variant.DELTA)
    stream.ask("EDS", "a")
    stream.settle(EDS="a=1 b=1 c=1")
    assert stream.session._watches[ENDPOINT].sent.own_names() == ["a"]


def test_streams_with_the_same_history_are_sent_the_same_object():
    first, second = (world(CDS=f"a={version} b={version}") for version in (1, 2))
    streams = [Stream(Variant.DELTA, first) for _ in range(3)]
    for stream in streams:
        stream.ask("CDS")
    sent = [stream.session.next(0.0) for stream in streams]
    assert sent[0] is sent[1] is sent[2]
    for stream in streams:
        stream.ask("CDS", nonce="1")
    streams[2].ask("CDS", "c", nonce="1")
    streams[2].get()
    for stream in streams:
        stream.serve(second)
    sent = [stream.session.next(0.0) for stream in streams]
    assert sent[0] is sent[1]
    assert sent[0] != sent[2], "its nonce differs"
    change = shared_change(CLUSTER, first.of(CLUSTER), second.of(CLUSTER))
    for number in range(10):
        change.response(version="2", nonce=f"{number}", others=b"", identifier="")
    assert len(change._responses) == shared._MAX_RESPONSES


class CountedLookups(dict):
    """Counts the names that are looked up one by one."""

    count = 0

    def __contains__(self, name: object) -> bool:
        self.count += 1
        return super().__contains__(name)


def test_names_of_equal_requests_are_processed_once(monkeypatch):
    names = [f"{number:0100}" for number in range(100)]
    versions = " ".join(f"{name}=1" for name in names)
    served = world(CDS=versions, EDS=versions)
    change = shared_change(ENDPOINT, EMPTY, served.of(ENDPOINT))
    change.before = lookups = CountedLookups(change.before)
    measured = []

    def size_of(strings):
        measured.extend([len(strings)] if strings else [])
        return limits.size_of(strings)

    monkeypatch.setattr(subscription, "size_of", size_of)
    for is_first in (True, False, False):
        stream = Stream(Variant.DELTA, served)
        stream.ask("CDS")
        stream.get()
        stream.ack("CDS")
        stream.ask("EDS", *names)
        stream.get()
        watch = stream.session._watch(ENDPOINT)
        assert watch.subscription.size == 100 * 100
        (unanswered,) = watch.acks.unanswered.values()
        assert unanswered.shared.added is change.names, "not a copy"
        assert not unanswered.new
        stream.ack("EDS")
        assert stream.session.synced
        # The clusters' assignments, and the names of the request.
        assert (lookups.count, measured) == ((200, [100]) if is_first else (0, []))
        lookups.count = 0
        measured.clear()


def test_lists_of_names_that_are_kept_are_small():
    change = shared_change(CLUSTER, EMPTY, world(CDS="a=1 b=1").of(CLUSTER))
    assert change.contains_all(("a", "a", "b"))
    assert not change.contains_all(("a", "c"))
    assert not change._contained
    for _ in range(10):
        assert change.contains_all(["a", "b"])
    assert len(change._contained) == 4


def test_initial_change_of_one_resource_is_kept_for_later_clients(monkeypatch):
    encoded = []

    def encode(**arguments):
        encoded.append(arguments["type_url"])
        return encode_delta_response(**arguments)

    monkeypatch.setattr(shared, "encode_delta_response", encode)
    namespaces = [world(RDS=f"80=namespace-{number}") for number in range(10)]
    for served in 3 * namespaces:
        stream = Stream(Variant.DELTA, served)
        stream.ask("RDS", "80")
        assert len(stream.settle()) == 1
    assert len(encoded) == len(namespaces)


def test_session_is_idle_once_everything_is_sent():
    stream = Stream(Variant.DELTA, world(CDS="a=1"))
    stream.ask("CDS")
    assert not stream.session.is_idle
    stream.get()
    assert stream.session.is_idle, "nothing depends on the ACK"
    stream.ack("CDS")
    assert stream.session.is_idle


def test_clients_of_the_same_names_share_the_set():
    names = [f"{number}" for number in range(500)]
    snapshot = world(EDS=" ".join(f"{name}=1" for name in names))
    streams = [Stream(Variant.DELTA, snapshot if served else None) for served in (True, True, False, False)]
    for stream in streams:
        stream.ask("EDS", *names)
        stream.serve(snapshot)
        stream.settle()
    (shared,) = {id(stream.session._watch(ENDPOINT).subscription.names) for stream in streams}
    subscribed = streams[0].session._watch(ENDPOINT).subscription.names
    assert id(subscribed) == shared
    assert all(snapshot.of(ENDPOINT)[name].name is name for name in subscribed)
    streams[0].ask("EDS", unsubscribe=("0",))
    assert streams[1].session._watch(ENDPOINT).subscription.covers("0")


@settings(deadline=None)
@given(
    reported=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERSIONS)),
    root=ROOTS,
    layer=ROOTS,
    changed=ROOTS,
    named=st.booleans(),
)
def test_order_of_a_reconnect_and_the_first_snapshot_does_not_matter(reported, root, layer, changed, named):
    kind = ENDPOINT if named else CLUSTER

    def made(resources: ResourceSet) -> list[Resource]:
        return [
            Resource.of(kind, name, f"{name}={version}".encode(), version=version)
            for name, version in versions_of(resources).items()
        ]

    def snapshot(base: ResourceSet) -> Snapshot:
        return Snapshot({kind: ResourceSet(made(layer), base=ResourceSet(made(base)))})

    streams = [Stream(Variant.DELTA), Stream(Variant.DELTA)]
    results = []
    for stream, serves_first in zip(streams, (True, False), strict=True):
        if serves_first:
            stream.serve(snapshot(root))
        short = "EDS" if named else "CDS"
        stream.ask(short, *(NAMES if named else ()), initial=reported)
        if not serves_first:
            stream.serve(snapshot(root))
        sent = stream.settle()
        stream.now += 100_000
        sent += stream.settle()
        stream.serve(snapshot(changed))
        sent += stream.settle()
        stream.now += 100_000
        sent += stream.settle()
        watch = stream.session._watch(kind)
        results.append((sorted(sent), dict(watch.sent), watch.lingering, watch.pending))
    assert results[0] == results[1]


def test_reconnect_before_the_first_snapshot_visits_no_unchanged_resource():
    versions = {f"{number}": "1" for number in range(100)}
    stream = Stream(Variant.DELTA)
    stream.ask("CDS", initial=versions)
    stream.serve(world(CDS=" ".join(f"{name}=1" for name in versions)))
    watch = stream.session._watch(CLUSTER)
    assert (watch.states.due, watch.lingering, watch.sent.has_root) == ({}, {}, True)
    assert stream.settle() == []
