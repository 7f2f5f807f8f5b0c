"""Clients that reconnect to a world that has changed.

Envoy subscribes to clusters last if some were warming when its last stream ended. gRPC names the clusters
that it has, and deletes those that it is not sent.
"""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

WORLD = world(CDS="a=2 new=1", EDS="a=1 new=1", SDS="s=1", LDS="l=1>r", RDS="r=new")


def come_back(variant: Variant, **options) -> Stream:
    """A client with the old routes that waits for the assignment of a changed cluster."""
    stream = Stream(variant, WORLD, **options)
    stream.ask("EDS", "a", **brought(variant, a="1"))
    stream.ask("LDS", **brought(variant, l="1"))
    stream.ask("RDS", "r", **brought(variant, r="a"))
    return stream


def brought(variant: Variant, **versions: str) -> dict:
    return {"initial": versions} if variant is Variant.DELTA else {"version": "1"}


def test_r38_reconnect_while_warming_resends_assignments(variant):
    stream = come_back(variant)
    assert stream.get() == ["EDS a=1"]
    stream.ack("EDS")
    assert stream.get() == []


def test_r38_assignment_is_resent_after_a_late_snapshot():
    stream = Stream(Variant.DELTA)
    stream.ask("EDS", "a", "gone", initial={"a": "1", "gone": "1"})
    assert stream.get() == []
    stream.serve(WORLD)
    assert stream.get() == ["EDS a=1 -gone"]


def test_r43_routes_wait_for_clusters_of_a_warming_client(variant):
    stream = come_back(variant)
    stream.get()
    stream.ask("CDS", **brought(variant, a="2"))
    assert stream.get() == ["CDS new=1" if variant is Variant.DELTA else "CDS a=2 new=1", *again(variant)]
    stream.ask("EDS", "a", "new") if variant is Variant.SOTW else stream.ask("EDS", "new")
    assert stream.get() == ["EDS new=1"]
    stream.ack("CDS")
    assert stream.get() == (["RDS r=new"] if variant is Variant.DELTA else ["LDS l=1", "RDS r=new"])


def again(variant: Variant) -> list[str]:
    """Return what follows clusters that may all be new to the client."""
    return ["EDS a=1"] if variant is Variant.SOTW else []


def test_r42_wait_of_routes_is_limited(variant):
    stream = come_back(variant)
    assert stream.get() == ["EDS a=1"]
    assert stream.session.deadline() == 1.0
    stream.now = 1.0
    assert stream.get() == (["RDS r=new"] if variant is Variant.DELTA else ["LDS l=1", "RDS r=new"])


def test_r42_routes_do_not_wait_without_expected_acks(variant):
    stream = come_back(variant)
    stream.session.expect_no_acks()
    assert stream.get()[-1] == "RDS r=new"


def test_r36_reported_assignments_are_not_resent_after_clusters():
    stream = Stream(Variant.DELTA, WORLD)
    stream.ask("CDS", initial={"a": "2", "new": "1"})
    stream.ask("EDS", "a", "new", initial={"a": "1", "new": "1"})
    assert stream.get() == []


def test_r36_nor_is_a_stream_of_assignments_alone():
    stream = Stream(Variant.DELTA, WORLD, type_url=ENDPOINT)
    stream.ask("", "a", initial={"a": "1"})
    assert stream.get() == []


def test_r42_routes_of_a_new_client_do_not_wait_for_clusters(variant):
    stream = Stream(variant, WORLD)
    stream.ask("EDS", "a")
    stream.ask("RDS", "r")
    assert stream.get() == ["EDS a=1", "RDS r=new"]


# --- clusters by name ---

MOVED = world(CDS="b=1", EDS="b=1", LDS="l=1>r", RDS="r=b")


def named(snapshot=MOVED, *, clusters: tuple[str, ...] = ("a",), users=("LDS", "RDS"), **options) -> Stream:
    stream = Stream(Variant.SOTW, snapshot, **options)
    for short, names in (("CDS", clusters), ("EDS", clusters), ("LDS", ("l",)), ("RDS", ("r",))):
        if short in {"CDS", "EDS", *users}:
            stream.ask(short, *names, version="known")
    return stream


def test_r41_resumed_clusters_stay_until_the_routes_are_acked():
    stream = named()
    assert stream.get() == ["LDS l=1", "RDS r=b"]
    stream.ack("LDS")
    assert stream.get() == []
    stream.ask("CDS", "a", "b")
    assert stream.get() == []
    stream.ack("RDS")
    assert stream.get() == ["CDS b=1"]
    stream.ask("EDS", "a", "b")
    assert stream.get() == ["EDS b=1"]
    assert not stream.session.synced
    for short in ("CDS", "EDS"):
        stream.ack(short)
    assert stream.session.synced


def test_r41_status_of_resumed_clusters_waits_for_listeners():
    stream = named()
    stream.now = 3.0
    stream.get()
    clusters = stream.session.status()[0]
    assert clusters.waiting is not None
    assert (clusters.waiting.reason, clusters.waiting.since) == (LISTENER, 3.0)


def test_r41_resumed_cluster_that_returns_is_sent_at_once():
    stream = named()
    stream.get()
    stream.serve(world(CDS="a=1 b=1", EDS="b=1", LDS="l=1>r", RDS="r=b"))
    assert stream.get()[0] == "CDS a=1"


def test_r41_clusters_are_sent_once_removed_names_are_dropped():
    stream = named(clusters=("a", "b"))
    stream.get()
    stream.ask("CDS", "b")
    assert stream.get()[0] == "CDS b=1"


def test_r41_clusters_of_rejected_routes_expire():
    stream = named()
    stream.get()
    stream.ack("LDS")
    stream.nack("RDS")
    assert stream.get() == []
    assert stream.session.deadline() == 20.0
    stream.now = 20.0
    assert stream.get() == ["CDS"]
    stream.ask("CDS", "b", nonce=stream.last["CDS"].nonce)
    assert stream.get() == ["CDS b=1"]


def test_r41_nor_are_those_that_nothing_is_asked_for_to_use():
    stream = named(users=())
    assert stream.get() == []
    assert stream.session.deadline() == 1.0
    stream.now = 1.0
    assert stream.get() == ["CDS"]


@pytest.mark.parametrize("clusters", [("b",), ()])
def test_r43_existing_clusters_are_sent_first(clusters):
    assert named(clusters=clusters).get()[0] == "CDS b=1"


def test_r41_new_client_keeps_no_removed_cluster():
    stream = Stream(Variant.SOTW, MOVED)
    stream.ask("CDS", "a")
    assert stream.get() == ["CDS"]
    stream = Stream(Variant.SOTW, MOVED, type_url=CLUSTER)
    stream.ask("", "a", version="known")
    assert stream.get() == ["CDS"]


def test_r41_nothing_lingers_without_expected_acks():
    stream = Stream(Variant.SOTW, MOVED)
    stream.ask("CDS", "a", version="known")
    stream.session.expect_no_acks()
    assert stream.get() == ["CDS"]
