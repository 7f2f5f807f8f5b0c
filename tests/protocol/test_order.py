"""Make before break: the order in which types are sent and resources are removed."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, connect, synced, world
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER

BEFORE = world(CDS="old=1", EDS="old=1", LDS="l=1>r", RDS="r=old")
AFTER = world(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new")


def test_r40_types_go_out_in_the_order_in_which_they_are_needed(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1", SDS="s=1", LDS="l=1>r", RDS="r=1"))
    stream.ask("RDS", "r")
    stream.ask("LDS")
    stream.ask("SDS", "s")
    stream.ask("EDS", "a")
    stream.ask("CDS")
    assert stream.get() == ["CDS a=1", "EDS a=1", "SDS s=1"]
    stream.ack("CDS")
    assert stream.get() == ["LDS l=1", "RDS r=1"]


def test_o2_assignments_and_secrets_need_no_cluster_ack(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1", SDS="s=1"))
    stream.ask("CDS")
    assert stream.get() == ["CDS a=1"]
    stream.ask("EDS", "a")
    stream.ask("SDS", "s")
    assert stream.get() == ["EDS a=1", "SDS s=1"]


def test_r42_listeners_and_routes_wait_for_clusters(variant):
    stream = connect(variant, BEFORE, patience=20.0)
    stream.now = 100.0
    assert stream.push(CDS="old=1 new=1", EDS="old=1 new=1", LDS="l=2>r", RDS="r=new") == (
        ["CDS new=1", "EDS new=1"] if variant is Variant.DELTA else ["CDS new=1 old=1", "EDS new=1"]
    )
    assert stream.session.deadline() == 120.0
    stream.now = 119.9
    assert stream.get() == []
    stream.now = 120.0
    assert stream.get() == ["LDS l=2", "RDS r=new"]
    assert stream.session.deadline() is None


def test_r42_timeout_starts_at_the_first_unanswered_response(variant):
    stream = connect(variant, BEFORE, patience=20.0)
    for second in range(25):
        stream.now = float(second)
        stream.serve(world(CDS=f"old=x{second}", EDS="old=1", LDS="l=2>r", RDS="r=1"))
        if "LDS l=2" in stream.get():
            break
    assert stream.now == 20.0


def test_r42_a_rejection_of_the_clusters_ends_the_wait(variant):
    stream = connect(variant, BEFORE)
    assert stream.push(CDS="old=2", EDS="old=1", LDS="l=2>r", RDS="r=old") == ["CDS old=2", "EDS old=1"]
    stream.nack("CDS")
    assert stream.get() == ["LDS l=2"]


def test_r42_client_without_clusters_does_not_wait(variant):
    stream = Stream(variant, AFTER)
    stream.ask("LDS", "l")
    stream.ask("RDS", "r")
    assert stream.get() == ["LDS l=1", "RDS r=new"]


def test_r41_cluster_stays_until_its_routes_are_acked(variant):
    stream = connect(variant, BEFORE)
    stream.serve(AFTER)
    assert stream.get() == ["CDS new=1", "EDS new=1"] or stream.replies[0].resources == {
        "new": "1",
        "old": "1",
    }
    stream.ack("CDS")
    stream.ack("EDS")
    assert stream.get() == ["RDS r=new"]
    stream.ack("RDS")
    assert stream.get() == ["CDS -old" if variant is Variant.DELTA else "CDS new=1"]
    # The assignment is removed after the cluster, if the client still subscribes to it.
    stream.ack("CDS")
    assert stream.get() == (["EDS -old"] if variant is Variant.DELTA else [])


def test_r41_version_covers_lingering_clusters():
    stream = connect(Variant.SOTW, BEFORE)
    stream.serve(AFTER)
    stream.get()
    union, union_version = stream.last["CDS"].resources, stream.last["CDS"].version
    stream.ack("CDS")
    stream.settle()
    assert union.keys() == {"old", "new"}
    assert union_version != stream.last["CDS"].version == AFTER.of(CLUSTER).version


def test_r41_cluster_without_listeners_is_removed_at_once(variant):
    stream = synced(variant, BEFORE, CDS="")
    stream.serve(AFTER)
    assert stream.get() == ["CDS new=1 -old" if variant is Variant.DELTA else "CDS new=1"]


def test_r41_cluster_expires_if_routes_are_never_acked(variant):
    stream = connect(variant, BEFORE, grace=60.0)
    stream.serve(AFTER)
    stream.get()
    stream.ack("CDS")
    stream.ack("EDS")
    assert stream.get() == ["RDS r=new"]
    assert stream.session.deadline() == 60.0
    stream.now = 59.9
    assert stream.get() == []
    stream.now = 60.0
    assert "CDS -old" in stream.get() or stream.last["CDS"].resources == {"new": "1"}


def test_r41_cluster_stays_until_a_new_listener_has_its_routes(variant):
    stream = connect(variant, BEFORE)
    stream.settle(CDS="new=1", EDS="new=1", LDS="l=2>r2", RDS="r2=new")
    assert stream.get() == []
    assert stream.last["LDS"].resources == {"l": "2"}
    assert "old" in stream.last["CDS"].resources or not stream.last["CDS"].removed
    stream.ask("RDS", *(("r", "r2") if variant is Variant.SOTW else ("r2",)), nonce=stream.last["RDS"].nonce)
    assert stream.settle() == (["RDS r2=new"] if variant is Variant.SOTW else ["RDS r2=new", "RDS -r"])
    if variant is Variant.SOTW:
        stream.ask("RDS", "r2", nonce=stream.last["RDS"].nonce)
    else:
        stream.ask("RDS", unsubscribe=("r",))
    stream.settle()
    assert stream.last["CDS"].removed == ("old",) or stream.last["CDS"].resources == {"new": "1"}


def test_r41_returning_cluster_is_not_removed(variant):
    stream = connect(variant, BEFORE)
    stream.push(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new")
    stream.serve(world(CDS="new=1 old=1", EDS="new=1 old=1", LDS="l=1>r", RDS="r=new"))
    stream.ack("CDS")
    stream.settle()
    assert all(
        "old" in reply.resources or not reply.removed for reply in stream.replies if reply.type == "CDS"
    )


@pytest.mark.parametrize("known", [True, False])
def test_r41_assignment_lingers_for_a_later_subscription(variant, known):
    stream = connect(variant, BEFORE, names=("old",) if known else ())
    assert stream.push(LDS="l=1>r", RDS="r=none") == ["RDS r=none"]
    if variant is Variant.SOTW and known:
        stream.ask("EDS", nonce=stream.last["EDS"].nonce)
    stream.ask("EDS", "old")
    assert stream.get() == ["EDS old=1"]


def test_o2_removed_cluster_can_be_acked_before_its_assignment(variant):
    stream = Stream(variant, BEFORE)
    stream.ask("CDS")
    assert stream.get() == ["CDS old=1"]
    stream.serve(world(LDS="l=1>r", RDS="r=none"))
    stream.ask("LDS")
    stream.ask("EDS", "old")
    assert stream.get() == ["EDS old=1"]
    stream.ack("CDS")
    assert stream.get() == ["LDS l=1"]


def test_r41_returning_assignment_replaces_the_lingering_one(variant):
    stream = connect(variant, BEFORE, names=())
    stream.serve(world(LDS="l=1>r", RDS="r=none"))
    stream.serve(world(CDS="old=1", EDS="old=2", LDS="l=1>r", RDS="r=none"))
    stream.ask("EDS", "old")
    assert stream.settle()[0] == "EDS old=2"


def test_r41_unknown_resources_of_an_earlier_stream_linger():
    stream = Stream(Variant.DELTA, AFTER)
    stream.ask("CDS", initial={"old": "1", "new": "1"})
    stream.ask("EDS", "old", "new", initial={"old": "1", "new": "1"})
    assert stream.get() == []  # Its listeners and routes are not sent yet.
    stream.ask("LDS", initial={"l": "1"})
    assert stream.get() == []
    stream.ask("RDS", "r", initial={"r": "old"})
    assert stream.get() == ["RDS r=new"]
    stream.ack("RDS")
    assert stream.get() == ["CDS -old"]


def test_r41_lingering_resource_is_not_updated(variant):
    stream = connect(variant, BEFORE)
    stream.serve(world(CDS="old=2", EDS="old=2", LDS="l=1>r", RDS="r=old"))
    assert stream.push(LDS="l=1>r", RDS="r=none") == ["RDS r=none"]


def test_r41_removed_assignment_lingers_after_reconnect():
    stream = Stream(Variant.DELTA, world(CDS="a=2", EDS="a=1", LDS="l=1>r", RDS="r=a"))
    stream.ask("CDS", initial={"a": "1"})
    assert stream.get() == ["CDS a=2"]
    stream.serve(world(LDS="l=1>r", RDS="r=1"))
    stream.ask("EDS", "a", initial={"a": "1"})
    assert stream.get() == ["EDS a=1"]


def test_r41_resumed_clusters_expire_without_listeners():
    stream = Stream(Variant.DELTA, AFTER)
    stream.ask("CDS", initial={"old": "1", "new": "1"})
    assert stream.get() == []
    assert stream.session.deadline() == 1.0
    stream.now = 1.0
    assert stream.get() == ["CDS -old"]


def test_r41_resumed_clusters_are_removed_on_a_cluster_stream():
    stream = Stream(Variant.DELTA, AFTER, type_url=CLUSTER)
    stream.ask("", initial={"old": "1", "new": "1"})
    assert stream.get() == ["CDS -old"]


def test_reverted_listener_does_not_wait_for_clusters(variant):
    stream = synced(variant, world(CDS="a=1", LDS="l=1"), CDS="", LDS="")
    assert stream.push(CDS="a=2", LDS="l=2") == ["CDS a=2"]
    assert stream.session.deadline() == 20.0
    assert stream.push(CDS="a=2", LDS="l=1") == []
    assert stream.session.deadline() is None


def test_o18_cluster_stays_while_a_removed_listener_drains(variant):
    stream = connect(variant, BEFORE)
    stream.serve(world())
    assert stream.settle() == (["LDS"] if variant is Variant.SOTW else ["LDS -l", "RDS -r"])
    assert stream.session.deadline() == 60.0
    if variant is Variant.SOTW:
        stream.ask("RDS", nonce=stream.last["RDS"].nonce)
    else:
        stream.ask("RDS", unsubscribe=("r",))
    assert stream.get() == ["CDS" if variant is Variant.SOTW else "CDS -old"]


def test_o18_drained_routes_under_a_wildcard_release_the_cluster(variant):
    stream = synced(variant, BEFORE, CDS="", LDS="", RDS="r *")
    stream.serve(world())
    stream.settle()
    assert stream.session.deadline() == 60.0
    if variant is Variant.SOTW:
        stream.ask("RDS", "*", nonce=stream.last["RDS"].nonce)
    else:
        stream.ask("RDS", unsubscribe=("r",))
    assert stream.settle()[-1] == ("CDS" if variant is Variant.SOTW else "CDS -old")


def test_o18_routes_that_come_back_keep_no_cluster_from_going(variant):
    stream = connect(variant, BEFORE)
    stream.settle(CDS="old=1", EDS="old=1")
    stream.settle(LDS="l=1>r", RDS="r=none")
    assert stream.last["CDS"].removed == ("old",) or not stream.last["CDS"].resources


def test_o18_unsent_return_of_routes_still_keeps_the_cluster(variant):
    stream = connect(variant, BEFORE)
    stream.serve(world())
    stream.settle()
    stream.serve(world(LDS="l=1>r", RDS="r=none"))
    stream.serve(world())
    stream.settle()
    assert "old" in stream.last["CDS"].resources or not stream.last["CDS"].removed


def test_o18_unchanged_return_of_routes_releases_the_cluster():
    stream = connect(Variant.SOTW, world(CDS="a=1 b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    assert stream.settle(CDS="a=1 b=1", EDS="a=1 b=1") == ["LDS"]
    assert stream.settle(CDS="a=1", EDS="a=1", LDS="l=1>r", RDS="r=1") == ["LDS l=1", "CDS a=1"]


def test_o18_routes_go_after_the_listener_that_used_them():
    stream = connect(Variant.DELTA, BEFORE)
    assert stream.push(CDS="old=1", EDS="old=1") == ["LDS -l"]
    stream.ack("LDS")
    assert stream.get() == ["RDS -r"]


def test_secrets_go_after_the_clusters_that_used_them():
    stream = synced(Variant.DELTA, world(CDS="a=1", EDS="a=1", SDS="s=1"), CDS="", SDS="s")
    assert stream.push(CDS="b=1", EDS="b=1") == ["CDS b=1 -a"]
    stream.ack("CDS")
    stream.ask("EDS", "b")
    assert stream.get() == ["EDS b=1"]
    stream.ack("EDS")
    assert stream.get() == ["SDS -s"]


def test_removals_of_a_type_without_users_are_not_held(variant):
    stream = synced(variant, world(LDS="l=1 m=1", other="x=1"), LDS="", other="x")
    assert stream.push("other", LDS="m=1") == (
        ["LDS -l", "other -x"] if variant is Variant.DELTA else ["LDS m=1"]
    )
