"""Resources with a TTL, and the heartbeats that renew them."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.events import Nacked
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, SECRET, VIRTUAL_HOST, Resource, ResourceSet, Snapshot


def one(resource: Resource, *more: Resource) -> Snapshot:
    return Snapshot({resource.type_url: ResourceSet((resource, *more))})


def lived(name: str, version: str, ttl: float | None, *, type_url: str = SECRET) -> Resource:
    return Resource.of(type_url, name, f"{name}={version}".encode(), version=version, ttl=ttl)


def test_r44_heartbeats_renew_a_ttl():
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0), lived("for-ever", "1", None)))
    stream.ask("SDS", "s", "for-ever")
    assert stream.get() == ["SDS for-ever=1 s=1"]
    assert stream.session.deadline() is None  # The client may still reject it.
    stream.ack("SDS")
    assert stream.get() == []
    assert stream.session.deadline() == 5.0
    for now in (5.0, 10.0):
        stream.now = now
        assert stream.get() == ["SDS ~s=1"]
        assert stream.session.deadline() == now + 5.0
        stream.ack("SDS")
    assert len({reply.nonce for reply in stream.replies}) == 3


def test_r44_many_heartbeats_are_split(monkeypatch):
    names = [f"n{number}" for number in range(5)]
    stream = Stream(Variant.DELTA, one(*(lived(name, "1", 10.0) for name in names)))
    stream.ask("SDS", *names)
    stream.settle()
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 250)
    stream.now = 5.0
    assert stream.get() == ["SDS ~n0=1 ~n1=1", "SDS ~n2=1 ~n3=1", "SDS ~n4=1"]
    assert stream.session.deadline() == 10.0


def test_r44_heartbeats_have_the_acked_version():
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    stream.settle()
    stream.now = 4.0
    stream.serve(one(lived("s", "2", 10.0)))
    assert stream.get() == ["SDS s=2"]
    stream.now = 5.0
    assert stream.get() == []  # The client may have either version.
    (nacked,) = stream.nack("SDS")
    assert isinstance(nacked, Nacked)
    assert stream.get() == ["SDS ~s=1"]
    stream.ack("SDS")
    stream.now = 6.0
    stream.serve(one(lived("s", "3", 2.0)))
    assert stream.settle() == ["SDS s=3"]
    assert stream.session.deadline() == 7.0


def test_r44_a_time_to_live_can_be_given_up():
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    stream.settle()
    stream.serve(one(Resource.of(SECRET, "s", b"s=2", version="2")))
    assert stream.settle() == ["SDS s=2"]
    assert stream.session.deadline() is None


@pytest.mark.parametrize("how", ["removed", "unsubscribed"])
def test_r44_removed_resource_has_no_heartbeats(how):
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    if how == "removed":
        stream.settle()
        stream.serve(world())
        assert stream.settle() == ["SDS -s"]
    else:
        stream.get()
        stream.ask("SDS", unsubscribe=("s",))
        stream.ack("SDS")
        stream.get()
    assert stream.session.deadline() is None
    stream.now = 60.0
    assert stream.get() == []


def test_r44_unsubscribed_resource_has_no_heartbeats():
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    stream.settle()
    stream.ask("SDS", unsubscribe=("s",))
    stream.now = 5.0
    assert stream.get() == []


def test_r44_reconnect_gets_a_heartbeat_at_once():
    stream = Stream(
        Variant.DELTA, one(lived("a", "1", 10.0, type_url=CLUSTER), lived("b", "1", None, type_url=CLUSTER))
    )
    stream.now = 3.0
    stream.ask("CDS", initial={"a": "1", "b": "1"})
    assert stream.get() == ["CDS ~a=1"]
    stream.ack("CDS")
    stream.get()
    assert stream.session.deadline() == 8.0


def test_r44_heartbeats_without_answers_are_bounded():
    stream = Stream(Variant.DELTA, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    stream.settle()
    for beat in range(1, 200):
        stream.now = 5.0 * beat
        stream.get()
    assert len(stream.session._watches[SECRET].acks.unanswered) == 64
    assert stream.session.deadline() is None
    stream.ack("SDS", nonce=stream.replies[1].nonce)
    assert stream.get() == ["SDS ~s=1"]


def test_o20_sotw_responses_have_no_ttl():
    stream = Stream(Variant.SOTW, one(lived("s", "1", 10.0)))
    stream.ask("SDS", "s")
    data = stream.session.next(0.0)
    assert data is not None
    assert (
        str(stream._decode(data)) == "SDS s=1"
    )  # It is an Any of the type itself, without a Resource around it.
    stream.ack("SDS")
    assert stream.get() == []
    assert stream.session.deadline() is None


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_time_to_live_is_some_time(ttl):
    with pytest.raises(ValueError, match="ttl="):
        Resource.of(SECRET, "s", b"", ttl=ttl)


def test_version_covers_aliases_and_ttl():
    plain = Resource.of(VIRTUAL_HOST, "v", b"body")
    assert plain.version != Resource.of(VIRTUAL_HOST, "v", b"body", aliases=("a",)).version
    assert plain.version != Resource.of(VIRTUAL_HOST, "v", b"body", ttl=1.0).version
