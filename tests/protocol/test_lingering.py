"""Resources that linger for a client that rejected a change, and for how long."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, connect, synced, world
from xds.protocol.session import Variant
from xds.protocol.watch import Watch
from xds.snapshot import CLUSTER

BEFORE = world(CDS="old=1", EDS="old=1", LDS="l=1>r", RDS="r=old")
GRACE, DAY = 60.0, 86400.0


def world_with(clusters: str, *, listeners: str = "l=1>r", route: str = "1", secrets: str = ""):
    assignments = " ".join(f"{word.partition('=')[0]}=1" for word in clusters.split())
    return world(CDS=clusters, EDS=assignments, SDS=secrets, LDS=listeners, RDS=f"r={route}")


def names(stream: Stream, short: str = "CDS") -> set[str]:
    """Return the resources of a type that the client has."""
    had: set[str] = set()
    for reply in stream.replies:
        if reply.type == short:
            had = {*reply.resources} if stream.variant is Variant.SOTW else had | reply.resources.keys()
            had -= {*reply.removed}
    return had


def with_rejected_routes(variant: Variant) -> Stream:
    """A client that uses routes to a removed cluster."""
    stream = connect(variant, BEFORE)
    stream.push(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new")
    stream.ack("CDS")
    stream.ack("EDS")
    assert stream.get() == ["RDS r=new"]
    stream.nack("RDS")
    assert stream.get() == []
    return stream


def with_rejected_listener(variant: Variant, error: str = "no") -> Stream:
    """A client that rejected a listener that it never had."""
    stream = Stream(variant, world_with("a=1 b=1", secrets="s=1"))
    for short, asked in (("CDS", ()), ("EDS", ("a", "b")), ("SDS", ("s",)), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *asked)
    stream.settle()
    stream.serve(world_with("a=1 b=1", listeners="l=1>r m=1", secrets="s=1"))
    assert stream.get() == ["LDS m=1" if variant is Variant.DELTA else "LDS l=1 m=1"]
    stream.nack("LDS", error)
    assert stream.get() == []
    return stream


def test_r41_cluster_stays_while_previous_routes_use_it(variant):
    stream = with_rejected_routes(variant)
    stream.now = DAY - 1
    assert stream.get() == []
    assert stream.session.deadline() == DAY
    assert stream.push(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=mended") == ["RDS r=mended"]
    stream.ack("RDS")
    assert stream.get() == ["CDS -old" if variant is Variant.DELTA else "CDS new=1"]


def with_named_clusters(variant: Variant) -> Stream:
    """A client that subscribes to clusters by name, and has ACKed a route to another cluster."""
    stream = synced(variant, world_with("old=1", route="old"), CDS="old", EDS="old", LDS="l", RDS="r")
    stream.ask("CDS", "old", "new")
    stream.ask("EDS", "old", "new")
    stream.settle()
    stream.settle(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new")
    return stream


def test_r41_named_cluster_stays_until_the_client_unsubscribes(variant):
    stream = with_named_clusters(variant)
    assert names(stream) == {"old", "new"}
    assert stream.session.synced
    if variant is Variant.DELTA:
        stream.ask("CDS", unsubscribe=("old",))
    else:
        stream.ask("CDS", "new", nonce=stream.last["CDS"].nonce)
    assert not any("CDS" in reply for reply in stream.settle())
    assert stream.session.deadline() is None


def test_r41_named_cluster_is_removed_after_the_grace_period(variant):
    stream = with_named_clusters(variant)
    assert stream.session.deadline() == GRACE
    stream.now = GRACE
    removals = ["CDS -old", "EDS -old"] if variant is Variant.DELTA else ["CDS new=1"]
    assert stream.settle() == removals


def test_r41_named_cluster_without_users_is_removed_at_once(variant):
    stream = synced(variant, world_with("old=1 new=1"), CDS="old new")
    assert stream.push(CDS="new=1") == ["CDS -old" if variant is Variant.DELTA else "CDS new=1"]


def test_r41_lingering_resources_expire(variant):
    stream = with_rejected_routes(variant)
    stream.now = DAY
    assert stream.get() == []
    assert stream.session.deadline() == DAY + GRACE
    stream.now = DAY + GRACE
    assert stream.get() == ["CDS -old" if variant is Variant.DELTA else "CDS new=1"]


def test_r41_resources_that_expire_are_released_together(variant, monkeypatch):
    """Each release goes through all records, so that thousands of calls would take seconds."""
    clusters = " ".join(f"old{number}=1" for number in range(100))
    stream = synced(variant, world(CDS=f"{clusters} new=1", LDS="l=1"), CDS="", LDS="")
    assert stream.push(CDS="new=1", LDS="l=2") == ["LDS l=2"]
    released, release = [], Watch.release

    def record(watch: Watch, names: list[str]) -> None:
        released.append(len(names))
        release(watch, names)

    monkeypatch.setattr(Watch, "release", record)
    stream.now = GRACE + 1
    stream.get()
    assert [count for count in released if count] == [100]


def test_r41_repeated_rejections_do_not_extend_the_limit(variant):
    stream = with_rejected_routes(variant)
    for hour in range(1, 24):
        stream.now = hour * 3600.0
        stream.serve(world(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS=f"r=bad{hour}"))
        assert stream.get() == [f"RDS r=bad{hour}"]
        assert stream.session.deadline() == DAY
        stream.nack("RDS")
        assert stream.get() == []
    assert stream.session.deadline() == DAY


@pytest.mark.parametrize("error", ["no", "Error adding/updating listener(s) m: no"])
def test_r41_rejected_new_listener_keeps_no_cluster(variant, error):
    stream = with_rejected_listener(variant, error)
    stream.serve(world_with("a=1", listeners="l=1>r m=1"))
    assert stream.get() == []
    assert stream.session.deadline() == GRACE
    stream.now = GRACE
    assert stream.get()[0] == ("CDS -b" if variant is Variant.DELTA else "CDS a=1")


def test_r27_removals_are_sent_after_a_rejected_listener():
    stream = with_rejected_listener(Variant.DELTA)
    stream.serve(world_with("a=1", listeners="l=1>r m=1"))
    stream.get()
    stream.now = GRACE
    assert stream.settle() == ["CDS -b", "EDS -b", "SDS -s"]


@pytest.mark.parametrize("bad", ["c", "a"])
def test_r27_removals_are_sent_despite_rejected_clusters(bad):
    stream = connect(Variant.DELTA, world_with("a=1 b=1", secrets="default=1"), names=("a", "b"))
    stream.serve(world_with(f"a=1 b=1 {bad}=bad" if bad == "c" else "a=bad b=1", secrets="default=1"))
    stream.get()
    stream.nack("CDS", f"Error adding/updating cluster(s) {bad}: no")
    stream.get()
    stream.serve(world_with("a=1 c=bad" if bad == "c" else "a=bad"))
    assert stream.get() == ["CDS -b"]
    stream.ack("CDS")
    assert stream.get() == []
    # A rejected new cluster uses nothing. The previous version of a rejected update may use both resources.
    for deadline in (GRACE,) if bad == "c" else (DAY, DAY + GRACE):
        assert stream.session.deadline() == deadline
        stream.now = deadline
        sent = stream.settle()
    assert sent == ["EDS -b", "SDS -default"]


def test_r41_resources_added_after_a_rejection_do_not_linger(variant):
    stream = connect(variant, BEFORE)
    stream.replies.append(stream.last["CDS"])
    stream.serve(world_with("old=1", route="bad"))
    assert stream.get() == ["RDS r=bad"]
    stream.nack("RDS")
    for turn in range(200):
        stream.now += 10.0
        stream.serve(world_with(f"c{turn}=1", route=f"bad{turn}"))
        while texts := stream.get():
            for text in texts:
                (stream.nack if text.startswith("RDS") else stream.ack)(text[:3])
        assert stream.last["RDS"].resources == {"r": f"bad{turn}"}
        assert len(names(stream)) < 2 + (GRACE + 10) / 10
    stream.serve(world_with("", route="bad199"))
    stream.now += GRACE
    while stream.session.deadline() is not None and stream.session.deadline() < DAY:
        stream.now = stream.session.deadline()
        stream.settle()
    assert names(stream) == {"old"}


def test_r41_a_cluster_that_came_before_the_rejection_is_kept(variant):
    stream = connect(variant, BEFORE)
    stream.now = 10.0
    stream.serve(world_with("old=1 new=1", route="good"))
    stream.settle()
    stream.now = 20.0
    stream.serve(world_with("old=1", route="bad"))
    stream.get()
    stream.nack("RDS")
    assert stream.get() == []
    assert stream.session.deadline() == 20.0 + DAY


def test_r41_unsubscribed_assignments_do_not_linger(variant):
    stream = connect(variant, world_with("a=1 b=1"), names=("a", "b"))
    stream.serve(world_with("a=bad b=1"))
    stream.get()
    stream.nack("CDS", "Error adding/updating cluster(s) a: no")
    stream.get()
    stream.serve(world_with("a=bad"))
    assert stream.get() == ["CDS -b" if variant is Variant.DELTA else "CDS a=1"]
    stream.ack("CDS")
    nonce = stream.last["EDS"].nonce
    stream.ask(
        "EDS",
        *(("a",) if variant is Variant.SOTW else ()),
        nonce=nonce,
        unsubscribe=("b",) if variant is Variant.DELTA else (),
    )
    assert stream.get() == []
    stream.ask("EDS", *(("a", "b") if variant is Variant.SOTW else ("b",)), nonce=nonce)
    assert stream.get() == (["EDS -b"] if variant is Variant.DELTA else [])


def test_r41_unanswered_version_may_be_in_use():
    stream = connect(Variant.SOTW, BEFORE)
    for version in (1, 2):
        stream.serve(world_with("old=1", listeners=f"l=1>r m={version}", route="old"))
        assert stream.get() == [f"LDS l=1 m={version}"]
    stream.nack("LDS", "Error adding/updating listener(s) m: no")
    stream.serve(world_with("", listeners="l=1>r m=2", route="old"))
    stream.settle()
    assert stream.session.deadline() == DAY


def test_r41_unanswered_version_after_a_nack_may_be_in_use():
    error = "Error adding/updating listener(s) m: no"
    stream = with_rejected_listener(Variant.SOTW, error)
    for version in (2, 3):
        stream.serve(world_with("a=1 b=1", listeners=f"l={version}>r m={version}", secrets="s=1"))
        assert stream.get() == [f"LDS l={version} m={version}"]
    stream.nack("LDS", error)
    stream.serve(world_with("a=1", listeners="l=3>r m=3", secrets="s=1"))
    stream.settle()
    assert stream.session.deadline() == DAY


def test_r41_version_of_an_earlier_stream_may_be_in_use():
    stream = Stream(Variant.SOTW, BEFORE)
    for short, asked in (("CDS", ()), ("EDS", ("old",)), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *asked, version="known")
    stream.get()
    for short in ("CDS", "EDS"):
        stream.ack(short)
    assert stream.get() == ["LDS l=1", "RDS r=old"]
    stream.ack("LDS")
    stream.nack("RDS")
    stream.serve(world_with("", route="old"))
    stream.settle()
    assert stream.session.deadline() == DAY


def test_fixed_rejection_ends_despite_a_new_one(variant):
    stream = connect(variant, world_with("a=1 b=1"), names=("a", "b"))
    stream.serve(world_with("a=bad b=1"))
    stream.get()
    stream.nack("CDS", "Error adding/updating cluster(s) a: no")
    stream.serve(world_with("a=2 b=bad"))
    stream.get()
    stream.nack("CDS", "Error adding/updating cluster(s) b: no")
    assert stream.session.rejected(CLUSTER).keys() == {"b"}


def test_r41_bystander_of_a_rejection_may_be_in_use():
    stream = connect(Variant.DELTA, BEFORE)
    stream.serve(world_with("old=1", listeners="l=1>r m=1 n=1", route="old"))
    assert stream.get() == ["LDS m=1 n=1"]
    stream.nack("LDS", "n is bad")
    assert stream.get() == ["LDS m=1"]
    stream.nack("LDS", "m is bad")
    stream.serve(world_with("", listeners="l=1>r m=1 n=1", route="old"))
    stream.settle()
    assert stream.session.deadline() == DAY
