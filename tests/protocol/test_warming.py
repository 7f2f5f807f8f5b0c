"""Clusters that wait for their assignments, and how the server avoids unnecessary waits."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, connect, subscribed, synced, world
from xds.protocol.session import Variant
from xds.snapshot import ENDPOINT

BEFORE = world(CDS="old=1", EDS="old=1", LDS="l=1>r", RDS="r=old")


def test_r38_assignment_of_a_changed_cluster_is_sent_again(variant):
    stream = connect(variant, BEFORE)
    assert stream.settle(CDS="old=2", EDS="old=1", LDS="l=1>r", RDS="r=old") == ["CDS old=2", "EDS old=1"]


def test_r38_only_assignments_of_changed_clusters_are_resent(variant):
    both = world(CDS="old=1 new=1", EDS="old=1 new=1")
    stream = connect(variant, both)
    stream.serve(world(CDS="old=1 new=2", EDS="old=1 new=1"))
    assert [text for text in stream.settle() if text.startswith("EDS")] == ["EDS new=1"]


def test_r38_returning_cluster_gets_its_assignment_again(variant):
    stream = connect(variant, world(CDS="old=1", EDS="old=1 new=1"))
    stream.settle(EDS="old=1 new=1")
    assert stream.settle(CDS="old=1", EDS="old=1 new=1") == ["CDS old=1", "EDS old=1"]


def test_r38_a_client_without_assignments_gets_none(variant):
    stream = synced(variant, BEFORE, CDS="")
    assert stream.settle(CDS="old=2", EDS="old=1") == ["CDS old=2"]


def test_r38_other_references_are_not_sent_again(variant):
    stream = connect(variant, world(LDS="l=1>r", RDS="r=1"))
    # R39: the client knows the route configuration.
    assert stream.settle(LDS="l=2>r", RDS="r=1") == ["LDS l=2"]


def test_r38_assignment_is_resent_if_its_cluster_differs():
    stream = Stream(Variant.DELTA, world(CDS="a=2 b=1", EDS="a=1 b=1"))
    stream.ask("CDS", initial={"a": "1", "b": "1"})
    assert stream.get() == ["CDS a=2"]
    stream.ask("EDS", "a", "b", initial={"a": "1", "b": "1"})
    assert stream.settle() == ["EDS a=1"]


def test_o16_new_cluster_without_assignment_can_be_acked(variant):
    stream = subscribed(variant, world(CDS="a=1 b=1", EDS="b=1"), CDS="")
    stream.ask("EDS", "a", "b", "no-cluster")
    assert stream.get() == [
        "EDS a=empty b=1" if variant is Variant.SOTW else "EDS b=1 -a -no-cluster",
    ]


def test_o16_later_assignment_is_sent_and_its_removal_is_not(variant):
    stream = synced(variant, world(CDS="a=1"), CDS="", EDS="a")
    assert stream.settle(CDS="a=1", EDS="a=1") == ["EDS a=1"]
    assert stream.settle(CDS="a=1") == ([] if variant is Variant.SOTW else ["EDS -a"])


def test_o16_changed_cluster_without_assignment_can_be_acked(variant):
    stream = connect(variant, BEFORE, names=("old",))
    stream.settle(CDS="old=1", LDS="l=1>r", RDS="r=old")
    stream.serve(world(CDS="old=2", LDS="l=1>r", RDS="r=old"))
    empty = "EDS old=empty" if variant is Variant.SOTW else "EDS -old"
    assert stream.settle() == ["CDS old=2", empty]
    assert stream.settle(CDS="old=2", EDS="old=1", LDS="l=1>r", RDS="r=old") == ["EDS old=1"]


def test_o16_early_assignment_is_answered_with_its_cluster(variant):
    stream = Stream(variant, world())
    stream.ask("CDS")
    stream.ask("EDS", "a")
    assert stream.settle() == (["CDS"] if variant is Variant.SOTW else ["CDS", "EDS -a"])
    assert stream.settle(CDS="a=1") == ["CDS a=1", "EDS a=empty" if variant is Variant.SOTW else "EDS -a"]


@pytest.mark.parametrize("known", [True, False])
def test_o16_assignment_stream_answers_for_existing_clusters(known):
    snapshot = world(CDS="a=1")
    stream = Stream(Variant.SOTW, snapshot if known else None, type_url=ENDPOINT)
    stream.ask("", "a", "b")
    if not known:
        assert stream.get() == []
        stream.serve(snapshot)
    stream.names["EDS"] = ("a", "b")
    assert stream.settle() == ["EDS a=empty"]
    assert stream.settle(CDS="a=1 b=1") == ["EDS b=empty"]
    stream.ask("", nonce=stream.last["EDS"].nonce)
    stream.ask("", "a", nonce=stream.last["EDS"].nonce)
    assert stream.get() == ["EDS a=empty"]


@pytest.mark.parametrize("mended", [False, True])
def test_o16_removed_rejected_assignment_is_sent_empty(variant, mended):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"), grace=60.0)
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.get()
    stream.nack("EDS")
    if mended:
        stream.serve(world(CDS="a=1", EDS="a=2"))  # It is removed before it could be sent.
    assert stream.push(CDS="a=1") == []  # The cluster may be removed as well, because it is not ACKed.
    stream.now = 60.0
    assert stream.get() == ["EDS a=empty" if variant is Variant.SOTW else "EDS -a"]


def test_o16_empty_assignment_is_retried_after_a_fix():
    stream = subscribed(Variant.SOTW, world(CDS="a=1 b=1", EDS="b=1"), CDS="", EDS="a b")
    stream.nack("EDS")
    assert stream.settle(CDS="a=1 b=1", EDS="b=2") == ["EDS a=empty b=2"]
    stream.ack("CDS")
    assert stream.session.synced
