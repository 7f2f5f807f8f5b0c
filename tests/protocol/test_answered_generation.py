"""The answered generation of a session, and the initial versions that a new server learns."""

from __future__ import annotations

from dataclasses import replace

from tests.protocol.stream import TYPES, Stream, subscribed, synced, world
from xds.protocol.session import Session, Variant
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceSet, Snapshot, tag_of


def generation(number: int, *unserved: str, **types: str) -> Snapshot:
    return replace(world(*unserved, **types), generation=number)


def test_generation_is_answered_once_all_responses_are(variant):
    stream = Stream(variant, generation(1, EDS="a=1 b=1"))
    assert stream.session.has_answered(ENDPOINT)  # It requests none.
    stream.ask("EDS", "a", "b")
    assert stream.session.answered_generation(ENDPOINT) == -1
    stream.get()
    assert stream.session.answered_generation(ENDPOINT) == -1
    assert not stream.session.has_answered(ENDPOINT)
    stream.ack("EDS")
    assert stream.session.has_answered(ENDPOINT)
    assert (stream.session.answered_generation(ENDPOINT), stream.session.generation) == (1, 1)
    stream.serve(generation(2, EDS="a=2 b=1"))
    assert stream.session.answered_generation(ENDPOINT) == 1
    stream.get()
    stream.serve(generation(3, EDS="a=3 b=1"))
    stream.ack("EDS")
    assert stream.session.answered_generation(ENDPOINT) == 2
    stream.settle()
    assert stream.session.answered_generation(ENDPOINT) == 3


def test_unchanged_generation_is_answered_at_once(variant):
    stream = synced(variant, generation(1, EDS="a=1 b=1"), EDS="a")
    stream.serve(generation(2, EDS="a=1 b=2"))
    assert stream.session.answered_generation(ENDPOINT) == 2


def test_nack_counts_as_an_answer(variant):
    stream = subscribed(variant, generation(1, EDS="a=1"), EDS="a")
    stream.nack("EDS", "no such thing")
    assert stream.session.answered_generation(ENDPOINT) == 1
    assert {name: each.message for name, each in stream.session.rejected(ENDPOINT).items()} == {
        "a": "no such thing"
    }
    assert not stream.session.has_acked(ENDPOINT, ["a"])


def test_answers_out_of_order_count_once_all_are_there():
    stream = subscribed(Variant.DELTA, generation(1, EDS="a=1"), EDS="a")
    stream.serve(generation(2, EDS="a=2"))
    stream.get()
    first, second = (reply.nonce for reply in stream.replies)
    stream.ack("EDS", nonce=second)
    assert stream.session.answered_generation(ENDPOINT) == -1
    stream.ack("EDS", nonce=first)
    assert stream.session.answered_generation(ENDPOINT) == 2


def test_unsubscribed_type_is_unused_unless_referred_to(variant):
    session = Session(variant)
    assert (session.generation, session.answered_generation(ENDPOINT), session.tagged(LISTENER)) == (
        -1,
        -1,
        [],
    )
    stream = Stream(variant, generation(4, CDS="a=1"))
    assert stream.session.answered_generation(ENDPOINT) == 4
    stream.ask("CDS")
    stream.settle()
    assert stream.session.answered_generation(ENDPOINT) == -1
    stream.ask("EDS", "a")
    stream.settle()
    assert stream.session.answered_generation(ENDPOINT) == 4


def test_has_acked_includes_references(variant):
    stream = Stream(variant, generation(1, LDS="l=1>r", RDS="r=1"))
    assert not stream.session.has_acked(LISTENER, ["l"])
    assert not stream.session.is_subscribed(LISTENER)
    stream.ask("LDS")
    assert stream.session.is_subscribed(LISTENER)
    stream.settle()
    assert not stream.session.has_acked(LISTENER, ["l"])
    stream.ask("RDS", "r")
    stream.get()
    assert not stream.session.has_acked(LISTENER, ["l"])
    stream.ack("RDS")
    assert stream.session.has_acked(LISTENER, ["l"])
    assert stream.session.has_acked(ROUTE, ["r"])
    stream.serve(generation(2, LDS="l=2>r", RDS="r=1"))
    assert not stream.session.has_acked(LISTENER, ["l"])
    assert not stream.session.has_acked(LISTENER, ["none"])


def test_initial_versions_are_reported():
    delta = Stream(Variant.DELTA, generation(1, LDS="l=1"))
    delta.ask("LDS", initial={"l": "0.8080S", "m": "1"})
    assert sorted(delta.session.initial_versions(LISTENER)) == ["0.8080S", "1"]
    sotw = Stream(Variant.SOTW, generation(1, LDS="l=1"))
    sotw.ask("LDS", version="abc.8080S")
    assert sotw.session.initial_versions(LISTENER) == ("abc.8080S",)
    assert sotw.session.initial_versions(CLUSTER) == ()


def test_tags_are_in_the_versions_of_resources_and_of_sets():
    tagged = [Resource.of(LISTENER, name, b"x", tag=tag) for name, tag in (("b", "2S"), ("a", "1P"))]
    plain = Resource.of(LISTENER, "c", b"x")
    assert [tag_of(each.version) for each in (*tagged, plain)] == ["2S", "1P", ""]
    base = ResourceSet([*tagged, plain])
    assert (tag_of(base.version), base.tagged) == ("1P2S", ["a", "b"])
    layered = ResourceSet([Resource.of(LISTENER, "a", b"y")], base=base)
    assert (tag_of(layered.version), layered.tagged) == ("2S", ["b"])
    stream = Stream(Variant.SOTW)
    stream.serve(Snapshot({LISTENER: base, SECRET: ResourceSet()}))
    assert stream.session.tagged(LISTENER) == ["a", "b"]
    assert set(TYPES.values()) > {LISTENER, SECRET}
