"""Resources that a client rejects individually are not sent again, and its previous versions stay."""

from __future__ import annotations

import time

import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest

from tests.protocol.stream import Stream, subscribed, synced, world
from xds.protocol.events import Nacked, Response, nacked
from xds.protocol.nacks import culprits
from xds.protocol.session import Variant
from xds.protocol.status import State
from xds.protocol.wire import ErrorDetail
from xds.snapshot import CLUSTER, Resource

KNOWN = bytes(DiscoveryRequest(version_info="known", node=Node(id="n"), type_url=CLUSTER))
MANY = tuple(
    Resource.of(CLUSTER, f"outbound|8080||service-{number}.ns.svc.cluster.local", b"")
    for number in range(5000)
)
ENVOY = "Error adding/updating {}(s) {}"


@pytest.fixture(params=["CDS", "LDS"])
def short(request) -> str:
    return request.param


def reject(stream: Stream, short: str, *names: str, separator: str = ", ") -> Nacked:
    what = {"CDS": "cluster", "LDS": "listener"}[short]
    (nacked,) = stream.nack(short, ENVOY.format(what, separator.join(f"{name}: is bad" for name in names)))
    assert isinstance(nacked, Nacked)
    return nacked


def connect(variant: Variant, short: str, text: str) -> Stream:
    stream = Stream(variant, world(**{short: text}))
    stream.ask(short)
    stream.settle()
    return stream


def states(stream: Stream) -> dict[str, State]:
    (status,) = stream.session.status()
    return {each.name: each.state for each in status.resources}


# --- what a message says ---


@pytest.mark.parametrize(
    ("message", "culprits"),
    [
        ("Error adding/updating cluster(s) b: no", "b"),
        ("Error adding/updating cluster(s) b: no, reason: no", "b reason"),
        ("Error adding/updating listener(s) reason: no\na.b: no\n", "reason a.b"),
        ("Error adding/updating cluster(s) b: the reason is a.b", "b"),
        ("Error adding/updating cluster(s) c: no", ""),
        ("Proto constraint validation failed (reason: value must be set): name: b", ""),
        ("b: no", ""),
        ("duplicate cluster b found", ""),
        ("Error adding/updating cluster(s) b: no...(truncated)", ""),
        ("Error adding/updating cluster(s) b: no" + "!" * 70_000, ""),
        ("xDS response validation errors: [resource index 0: b: INVALID_ARGUMENT: no]", "b"),
        ("xDS response validation errors: [resource index 1: no; resource index 2: a.b: no]", "reason a.b"),
        ("xDS response validation errors: [resource index 7: no]", ""),
    ],
)
def test_culprits_are_parsed_from_the_nack_message(message, culprits):
    stream = subscribed(Variant.SOTW, world(CDS="b=1 reason=1 a.b=1"), CDS="")
    (nacked,) = stream.nack("CDS", message)
    assert [each.name for each in nacked.culprits] == culprits.split()
    if culprits:
        assert nacked.suspects == nacked.culprits


# --- state of the world ---


def test_r12_rejected_new_resource_is_omitted(short):
    stream = Stream(Variant.SOTW, world(**{short: "good=1 bad=1"}))
    stream.ask(short)
    stream.get()
    reject(stream, short, "bad")
    assert stream.get() == []
    assert states(stream) == {"good": State.SYNCED, "bad": State.ERROR}
    assert stream.settle(**{short: "good=1 bad=1 new=1"}) == [f"{short} good=1 new=1"]
    assert stream.replies[-1].version != world(**{short: "good=1 bad=1 new=1"})
    assert states(stream) == {"good": State.SYNCED, "bad": State.ERROR, "new": State.SYNCED}
    assert stream.settle(**{short: "good=1 bad=2 new=1"}) == [f"{short} bad=2 good=1 new=1"]
    assert states(stream) == {"good": State.SYNCED, "bad": State.SYNCED, "new": State.SYNCED}


def test_r12_previous_version_replaces_a_rejected_one(short):
    stream = connect(Variant.SOTW, short, "a=1 b=1")
    stream.push(**{short: "a=2 b=2"})
    reject(stream, short, "a")
    assert stream.settle(**{short: "a=2 b=3"}) == [f"{short} a=1 b=3"]
    assert stream.settle(**{short: "a=2 b=4"}) == [f"{short} a=1 b=4"]
    (status,) = stream.session.status()
    a, b = status.resources
    assert (a.state, a.version, a.resource and a.resource.version) == (State.ERROR, "1", "2")
    assert a.error is not None
    assert a.error.version == "2"
    assert b.state is State.SYNCED
    assert stream.settle(**{short: "a=3 b=4"}) == [f"{short} a=3 b=4"]
    assert set(states(stream).values()) == {State.SYNCED}


def test_r12_lingering_version_replaces_a_rejected_one():
    stream = Stream(Variant.SOTW, world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    for short, names in (("CDS", ()), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.settle()
    assert stream.push(CDS="a=1", LDS="l=1>r", RDS="r=2") == ["RDS r=2"]
    assert stream.push(CDS="a=1 b=2", LDS="l=1>r", RDS="r=2") == ["CDS a=1 b=2"]
    reject(stream, "CDS", "b")
    assert stream.push(CDS="a=2 b=2", LDS="l=1>r", RDS="r=2") == ["CDS a=2 b=1"]


def test_r12_last_acked_version_replaces_a_rejected_one():
    stream = connect(Variant.SOTW, "CDS", "a=1")
    stream.push(CDS="a=2")
    stream.serve(world(CDS="a=3"))
    stream.ack("CDS")
    stream.get()
    reject(stream, "CDS", "a")
    assert stream.settle(CDS="a=3 b=1") == ["CDS a=2 b=1"]


def test_r12_rejected_version_never_replaces_another():
    stream = connect(Variant.SOTW, "CDS", "a=1")
    for version in (2, 3):
        stream.serve(world(CDS=f"a={version}"))
        stream.get()
        reject(stream, "CDS", "a")
    assert stream.settle(CDS="a=3 b=1") == ["CDS a=1 b=1"]


def test_r12_version_accepted_in_a_nack_is_a_previous_version():
    stream = connect(Variant.SOTW, "CDS", "a=1 b=1")
    stream.push(CDS="a=2 b=2")
    reject(stream, "CDS", "b")
    stream.push(CDS="a=3 b=2")
    reject(stream, "CDS", "a")
    assert stream.settle(CDS="a=3 b=2 c=1") == ["CDS a=2 b=1 c=1"]


def test_r12_newer_version_in_flight_is_not_held():
    stream = connect(Variant.SOTW, "CDS", "a=1")
    stream.push(CDS="a=2")
    stream.push(CDS="a=3")
    stream.nack("CDS", "Error adding/updating cluster(s) a: no", nonce=stream.replies[-2].nonce)
    stream.ack("CDS")
    assert stream.settle(CDS="a=3 b=1") == ["CDS a=3 b=1"]


def test_r12_reverted_change_is_not_sent_again():
    stream = connect(Variant.SOTW, "CDS", "a=1")
    stream.push(CDS="a=2")
    reject(stream, "CDS", "a")
    stream.serve(world(CDS="a=3"))
    assert stream.push(CDS="a=2") == []
    assert states(stream) == {"a": State.ERROR}


def test_r12_resource_of_an_earlier_stream_is_never_omitted():
    stream = Stream(Variant.SOTW, world(CDS="a=2 b=1"))
    stream.session.receive(KNOWN, 0.0)
    stream.names["CDS"], stream._node = (), ""
    stream.get()
    reject(stream, "CDS", "a")
    # Omitting it would delete a version that the server does not know.
    assert stream.push(CDS="a=2 b=2") == ["CDS a=2 b=2"]
    reject(stream, "CDS", "a")
    stream.settle(CDS="a=3 b=2")
    stream.push(CDS="a=4 b=2 c=1")
    reject(stream, "CDS", "a", "c")
    assert stream.settle(CDS="a=4 b=3 c=1") == ["CDS a=3 b=3"]


def test_r12_omitted_and_replaced_resources_are_not_fresh():
    stream = synced(Variant.SOTW, world(CDS="a=1 b=1", EDS="a=1 b=1"), CDS="", EDS="a b")
    assert stream.push(CDS="a=2 b=1", EDS="a=1 b=1") == ["CDS a=2 b=1", "EDS a=1"]
    stream.ack("EDS")
    reject(stream, "CDS", "a")
    assert stream.settle(CDS="a=2 b=2", EDS="a=1 b=1") == ["CDS a=1 b=2", "EDS b=1"]
    sent = [each.removed for each in stream.replies]
    assert sent == [()] * len(sent)


def test_r12_rejected_resource_lingers_in_its_previous_version():
    stream = Stream(Variant.SOTW, world(CDS="a=1 b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=a"))
    for short, names in (("CDS", ()), ("EDS", ("a", "b")), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.settle()
    stream.push(CDS="a=2 b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=a")
    stream.ack("EDS")
    reject(stream, "CDS", "a")
    assert stream.settle(CDS="b=2", EDS="b=1", LDS="l=1>r", RDS="r=b") == [
        "CDS a=1 b=2",
        "EDS b=1",
        "RDS r=b",
        "CDS b=2",
    ]


def test_r41_clusters_stay_for_the_previous_listener():
    stream = synced(Variant.SOTW, world(CDS="a=1", EDS="a=1", LDS="l=1 m=1"), CDS="", EDS="a", LDS="")
    stream.push(CDS="b=1", EDS="b=1", LDS="l=2 m=1")
    stream.ack("CDS")
    stream.get()
    reject(stream, "LDS", "l")
    assert stream.settle(CDS="b=1", EDS="b=1", LDS="l=2 m=2") == ["LDS l=1 m=2"]
    stream.now = 1e6
    assert stream.get() == []
    assert stream.settle(CDS="b=1", EDS="b=1", LDS="l=3 m=2") == ["LDS l=3 m=2", "CDS b=1"]


@pytest.mark.parametrize("between", [True, False])
def test_r12_return_to_the_acked_version_clears_the_rejection(between):
    stream = connect(Variant.SOTW, "CDS", "a=1 b=1")
    stream.push(CDS="a=2 b=1")
    reject(stream, "CDS", "a")
    if between:
        stream.serve(world(CDS="a=2 b=2"))
        stream.settle()
        assert stream.session.status()[0].last_error
    stream.settle(CDS="a=1 b=2")
    assert stream.last["CDS"].resources == {"a": "1", "b": "2"}
    assert states(stream) == {"a": State.SYNCED, "b": State.SYNCED}
    assert stream.session.status()[0].last_error is None
    assert stream.session.synced
    assert stream.push(CDS="a=2 b=2") == ["CDS a=2 b=2"]  # It has changed since.


def test_r12_resource_that_is_acked_later_is_not_held():
    stream = Stream(Variant.SOTW, world(CDS="a=2 b=1"))
    stream.session.receive(KNOWN, 0.0)
    stream.names["CDS"], stream._node = (), ""
    stream.get()
    reject(stream, "CDS", "a")
    assert stream.settle(CDS="a=2 b=2") == ["CDS a=2 b=2"]
    assert states(stream) == {"a": State.SYNCED, "b": State.SYNCED}
    assert stream.session.synced


def test_r12_nack_of_all_keeps_individual_rejections():
    stream = connect(Variant.SOTW, "CDS", "a=1 b=1")
    stream.push(CDS="a=2 b=1")
    reject(stream, "CDS", "a")
    assert stream.push(CDS="a=2 b=2") == ["CDS a=1 b=2"]
    stream.nack("CDS", "something is wrong")
    assert stream.settle(CDS="a=2 b=3") == ["CDS a=1 b=3"]


def test_r12_rejected_resource_is_sent_after_resubscription():
    stream = synced(Variant.SOTW, world(LDS="a=1 b=1"), LDS="a b")
    stream.push(LDS="a=2 b=2")
    reject(stream, "LDS", "a")
    stream.ask("LDS", "b", nonce=stream.last["LDS"].nonce)
    assert stream.session.synced
    stream.ask("LDS", "a", "b", nonce=stream.last["LDS"].nonce)
    assert stream.get() == ["LDS a=2 b=2"]


def test_r12_unsubscribed_version_replaces_no_rejected_one():
    """The client may have deleted it."""
    stream = synced(Variant.SOTW, world(LDS="a=1 b=1"), LDS="a b")
    stream.ask("LDS", "b", nonce=stream.last["LDS"].nonce)
    stream.serve(world(LDS="a=2 b=1"))
    stream.ask("LDS", "a", "b", nonce=stream.last["LDS"].nonce)
    assert stream.get() == ["LDS a=2 b=1"]
    reject(stream, "LDS", "a")
    assert stream.settle(LDS="a=2 b=2") == ["LDS b=2"]


# --- delta ---


def test_r12_individual_rejection_holds_only_that_resource(short):
    stream = Stream(Variant.DELTA, world(**{short: "good=1 bad=1 worse=1"}))
    stream.ask(short)
    stream.get()
    nacked = reject(stream, short, "bad", "worse", separator="\n")
    assert nacked.sources == ("Object ns/bad", "Object ns/worse")
    assert states(stream) == {"good": State.SYNCED, "bad": State.ERROR, "worse": State.ERROR}
    assert stream.settle(**{short: "good=1 bad=2 worse=1"}) == [f"{short} bad=2"]
    assert stream.settle(**{short: "good=2 bad=2 worse=1"}) == [f"{short} good=2"]
    assert states(stream) == {"good": State.SYNCED, "bad": State.SYNCED, "worse": State.ERROR}


@pytest.mark.parametrize(
    "text",
    [
        ", ",
        "outb",
        ": , ",
        ", : : : : : : : : : : : : : : : : : : : : ",
        ", outbound|8080||service",
        "outbound|8080||service-77.ns.svc.cluster.loca",
        "0 1 2 3 4 5 6 7 8 9 outbound 8080 service ns svc cluster local ",
    ],
)
def test_parsing_a_rejection_takes_linear_time(text):
    """A quadratic search took up to a second for a message of 64 KiB."""
    response = Response(
        type_url=CLUSTER, nonce="1", version="1", resources=MANY, fresh=MANY, sent_at=0.0, removed=()
    )

    def parse(length: int) -> float:
        message = ENVOY.format("cluster", text * (length // len(text)))
        began = time.process_time()
        event = nacked(response, ErrorDetail(code=13, message=message), 0.0)
        assert event.culprits == ()
        assert event.suspects == MANY
        return time.process_time() - began

    short, long = (min(parse(length) for _ in range(3)) for length in (7_500, 60_000))
    assert long < 32 * short + 0.01, "eight times the length takes 64 times as long if it is quadratic"


@pytest.mark.parametrize("separator", [", ", "\n"])
def test_names_with_colons_and_commas_are_found(separator):
    odd = [Resource.of(CLUSTER, name, b"") for name in ("a", "a: b", "a, b", "b", "c: d: e", "x")]
    names = ["a: b", "c: d: e", "b"]
    message = ENVOY.format("cluster", separator.join(f"{name}: why" for name in names))
    found = {resource.name for resource in culprits(message, odd)}
    assert found == {"a", *names}


def test_name_inside_a_word_does_not_hide_the_name():
    response = Response(
        type_url=CLUSTER,
        nonce="1",
        version="1",
        resources=(Resource.of(CLUSTER, "a", b""), Resource.of(CLUSTER, "b", b"")),
        sent_at=0.0,
    )
    event = nacked(response, ErrorDetail(code=13, message="bad: ab ba a."), 0.0)
    assert event.names == ("a", "b")
    assert [each.name for each in event.suspects] == ["a"]
