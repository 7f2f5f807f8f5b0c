"""Rejected resources are not sent again unchanged, are retried once fixed, and are named."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.events import Nacked
from xds.protocol.session import Variant


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS", "RDS", "SDS"])
def test_r12_rejected_resource_is_not_sent_again_until_changed(variant, short):
    stream = Stream(variant, world(**{short: "a=1"}))
    stream.ask(short, "a")
    stream.get()
    (nacked,) = stream.nack(short)
    assert isinstance(nacked, Nacked)
    assert stream.get() == []
    stream.serve(world(**{short: "a=1"}))
    assert stream.get() == []
    stream.serve(world(**{short: "a=2"}))
    assert stream.get() == [f"{short} a=2"]


def test_r12_a_newer_version_is_sent_at_once(variant):
    stream = Stream(variant, world(LDS="a=1"))
    stream.ask("LDS")
    stream.get()
    stream.serve(world(LDS="a=2"))
    assert stream.get() == ["LDS a=2"]
    stream.nack("LDS")
    assert stream.get() == []
    stream.serve(world(LDS="a=3"))
    assert stream.get() == ["LDS a=3"]


def test_r12_resources_rejected_together_are_sent_together(variant):
    stream = Stream(variant, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad", "other")
    stream.get()
    stream.nack("EDS")
    stream.serve(world(EDS="good=1 bad=1 other=1"))
    assert stream.get() == ["EDS other=1"]
    stream.ack("EDS")
    stream.serve(world(EDS="good=1 bad=2 other=1"))
    assert stream.get() == ["EDS bad=2 good=1"]
    stream.ack("EDS")
    stream.serve(world(EDS="good=1 bad=3 other=1"))
    assert stream.get() == ["EDS bad=3"]


def test_r12_bystander_of_two_rejections_is_sent_once_both_are_fixed():
    """`b` was rejected with `c`. Then `a` and `c` were rejected together, and change together."""
    stream = Stream(Variant.SOTW, world(EDS="a=1 b=1 c=1"))
    stream.ask("EDS", "b", "*")
    stream.get()
    stream.nack("EDS", "no: a")
    assert stream.get() == ["EDS b=1 c=1"]
    stream.nack("EDS", "no: c")
    stream.ask("EDS", "a", "b", "c")
    assert stream.get() == ["EDS a=1 c=1"]
    stream.nack("EDS", "no: a")
    stream.serve(world(EDS="a=2 b=1 c=2"))
    assert stream.get() == ["EDS a=2 b=1 c=2"]


def test_r12_bystander_is_sent_once_the_rejected_one_is_unsubscribed():
    stream = Stream(Variant.SOTW, world(CDS="a=1 b=1 c=1"))
    stream.ask("CDS", "a", "*")
    stream.get()
    stream.nack("CDS", "no: b")
    assert stream.get() == ["CDS a=1 c=1"]
    stream.nack("CDS", "no: c")
    assert stream.get() == []
    stream.ask("CDS", "a")
    assert stream.get() == ["CDS a=1"]
    stream.ack("CDS")
    assert stream.get() == []


def test_r12_rejection_of_a_fixed_resource_is_retried_at_once():
    stream = Stream(Variant.DELTA, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.serve(world(EDS="good=1 bad=2"))
    assert stream.get() == ["EDS bad=2"]
    stream.nack("EDS", nonce=stream.replies[0].nonce)
    assert stream.get() == ["EDS good=1"]


def test_r12_rejected_resource_is_retried_after_a_removal():
    stream = Stream(Variant.DELTA, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.nack("EDS")
    stream.serve(world(EDS="good=1"))
    assert stream.get() == ["EDS good=1 -bad"]


def test_r12_rejected_resource_is_retried_after_unsubscription(variant):
    stream = Stream(variant, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.nack("EDS")
    if variant is Variant.SOTW:
        stream.ask("EDS", "good", nonce=stream.last["EDS"].nonce)
    else:
        stream.ask("EDS", unsubscribe=("bad",))
    assert stream.get() == ["EDS good=1"]


def test_r12_fixed_resource_holds_back_nothing(variant):
    stream = Stream(variant, world(CDS="bad=1", EDS="good=1 bad=1"))
    stream.ask("CDS")
    stream.ask("EDS", "good", "bad")
    assert stream.get() == ["CDS bad=1", "EDS bad=1 good=1"]
    stream.serve(world(CDS="bad=2", EDS="good=1 bad=1"))
    assert stream.get() == ["CDS bad=2", "EDS bad=1"]
    stream.nack("EDS", nonce=stream.replies[1].nonce)
    stream.nack("EDS", nonce=stream.replies[3].nonce)
    stream.serve(world(CDS="bad=2", EDS="good=1 bad=3"))
    assert stream.get() == ["EDS bad=3 good=1"]


def test_r12_skipped_response_may_have_been_rejected():
    stream = Stream(Variant.SOTW, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.serve(world(EDS="good=1 bad=2"))
    assert stream.get() == ["EDS bad=2"]
    stream.ack("EDS")
    assert stream.get() == ["EDS good=1"]


def test_r6_stale_nack_is_recorded_without_its_subscription():
    stream = Stream(Variant.SOTW, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.serve(world(EDS="good=1 bad=2"))
    stream.get()
    (nacked,) = stream.ask("EDS", nonce=stream.replies[0].nonce, error="bad")
    assert isinstance(nacked, Nacked)
    assert stream.get() == ["EDS good=1"]


def test_r12_rejected_resource_that_returns_is_still_rejected():
    stream = Stream(Variant.DELTA, world(CDS="c=1", EDS="bad=1", LDS="l=1"))
    stream.ask("CDS")
    stream.ask("LDS")
    stream.ask("EDS", "bad")
    stream.get()
    stream.nack("EDS")
    stream.serve(world(CDS="c=1", LDS="l=1"))
    assert stream.get() == []
    stream.serve(world(CDS="c=1", EDS="bad=1", LDS="l=1"))
    assert stream.get() == []


def test_r12_resource_rejected_alone_waits_for_no_other():
    stream = Stream(Variant.DELTA, world(EDS="good=1 bad=1"))
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.nack("EDS")
    stream.ask("EDS", "bad")
    assert stream.get() == ["EDS bad=1"]
    stream.nack("EDS")
    stream.serve(world(EDS="good=2 bad=1"))
    assert stream.get() == ["EDS good=2"]


def test_r12_rejected_resource_is_not_pushed():
    stream = Stream(Variant.SOTW, world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.get()
    stream.serve(world(CDS="a=2", EDS="a=1"))
    assert stream.session.next(0.0)
    stream.nack("EDS")
    assert stream.get() == []


def test_r12_resource_that_returns_after_a_fix_is_sent():
    stream = Stream(Variant.DELTA, world(CDS="c=1", EDS="good=1 bad=1", LDS="l=1"))
    stream.ask("CDS")
    stream.ask("LDS")
    stream.ask("EDS", "good", "bad")
    stream.get()
    stream.nack("EDS")
    stream.serve(world(CDS="c=1", EDS="bad=1", LDS="l=1"))
    assert stream.get() == ["EDS bad=1"]  # The other resource may be the cause.
    stream.nack("EDS")
    stream.serve(world(CDS="c=1", EDS="good=1 bad=1", LDS="l=1"))
    assert stream.get() == ["EDS good=1"]


def test_r12_rejection_of_unsubscribed_resources_holds_nothing():
    stream = Stream(Variant.SOTW, world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    stream.ask("CDS")
    stream.ask("LDS")
    stream.ask("RDS", "r")
    stream.get()
    stream.ack("CDS")
    stream.get()
    stream.ack("LDS")
    stream.ask("RDS")
    stream.nack("RDS")
    stream.serve(world(CDS="a=1"))
    assert stream.settle() == ["LDS", "CDS a=1"]


def test_r12_rejected_clusters_are_sent_when_others_change():
    stream = Stream(Variant.SOTW, world(CDS="good=1 bad=1", EDS="good=1"))
    stream.ask("CDS")
    stream.ask("EDS", "good")
    stream.get()
    stream.nack("CDS")
    stream.ack("EDS")
    stream.serve(world(CDS="good=1 bad=1 new=1", EDS="good=1"))
    # SotW clients delete what a response omits. This client may accept `good` only now, and wait for it.
    assert stream.get() == ["CDS bad=1 good=1 new=1", "EDS good=1"]


def test_r12_rejected_assignment_is_not_pushed_with_its_cluster(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.get()
    stream.ack("CDS")
    stream.nack("EDS")
    stream.serve(world(CDS="a=2", EDS="a=1"))
    assert stream.get() == ["CDS a=2"]


def test_r11_a_rejection_may_change_the_subscription(variant):
    stream = Stream(variant, world(EDS="a=1 b=1"))
    stream.ask("EDS", "a")
    stream.get()
    names = ("a", "b") if variant is Variant.SOTW else ("b",)
    stream.ask("EDS", *names, nonce=stream.last["EDS"].nonce, error="no")
    assert stream.get() == ["EDS b=1"]


def test_r19_rejected_resource_is_sent_on_resubscription():
    stream = Stream(Variant.DELTA, world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.get()
    stream.nack("EDS")
    stream.ask("EDS", "a")
    assert stream.get() == ["EDS a=1"]


def test_r10_only_an_error_makes_a_rejection(variant):
    stream = Stream(variant, world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.get()
    events = stream.ack("EDS")
    assert not any(isinstance(event, Nacked) for event in events)


def test_o8_users_of_rejected_clusters_are_served(variant):
    stream = Stream(variant, world(CDS="good=1 bad=1", EDS="good=1"))
    stream.ask("CDS")
    stream.get()
    stream.nack("CDS")
    stream.ask("EDS", "good")
    assert stream.get() == ["EDS good=1"]


def test_unsubscribed_resource_holds_nothing_back(variant):
    stream = Stream(variant, world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    stream.ask("CDS")
    stream.ask("LDS", "l")
    stream.ask("RDS", "r")
    stream.get()
    stream.ack("CDS")
    stream.get()
    stream.ack("LDS")
    stream.nack("RDS")
    stream.serve(world(CDS="a=1", LDS="", RDS="r=1"))
    stream.settle()
    if variant is Variant.SOTW:
        stream.ask("RDS", nonce=stream.last["RDS"].nonce)
    else:
        stream.ask("RDS", unsubscribe=("r",))
    stream.settle()
    assert stream.last["CDS"].removed == ("b",) or stream.last["CDS"].resources == {"a": "1"}


def test_r27_removal_in_a_rejected_response_is_sent_again():
    stream = Stream(Variant.DELTA, world(LDS="l=1 m=1"))
    stream.ask("LDS")
    stream.settle()
    stream.serve(world(LDS="m=2"))
    assert stream.get() == ["LDS m=2 -l"]
    stream.nack("LDS", "cannot be read")
    assert stream.get() == ["LDS -l"]
    stream.nack("LDS", "no removal")
    assert stream.get() == []


def test_r27_removal_is_dropped_when_the_resource_returns():
    stream = Stream(Variant.DELTA, world(LDS="l=1 m=1"))
    stream.ask("LDS")
    stream.settle()
    stream.serve(world(LDS="m=2"))
    assert stream.get() == ["LDS m=2 -l"]
    stream.serve(world(LDS="l=1 m=2"))
    stream.nack("LDS", "cannot be read")
    assert stream.get() == ["LDS l=1"]


def test_a_rejection_that_removes_only_names_parks_nothing():
    stream = Stream(Variant.DELTA, world(SDS="s=1"))
    stream.ask("SDS", "s")
    stream.settle()
    stream.serve(world())
    assert stream.get() == ["SDS -s"]
    (nacked,) = stream.nack("SDS")
    assert (nacked.resources, nacked.removed, nacked.sources) == ((), ("s",), ())
    assert stream.get() == []


def test_rejection_reports_sources_of_the_named_resources(variant):
    stream = Stream(variant, world(CDS="c=1 c1=1 c12=1 d=1"))
    stream.ask("CDS")
    stream.get()
    stream.now = 3.0
    (nacked,) = stream.nack("CDS", "Error adding/updating cluster(s) c12: bad, c12: worse")
    assert nacked.sources == ("Object ns/c12",)
    assert nacked.code == 13
    assert nacked.message == "Error adding/updating cluster(s) c12: bad, c12: worse"
    assert (nacked.nonce, nacked.version, nacked.waited) == (
        stream.last["CDS"].nonce,
        stream.last["CDS"].version,
        3.0,
    )
    assert set(nacked.names) == {"c", "c1", "c12", "d"}


def test_rejection_without_names_suspects_all_resources(variant):
    stream = Stream(variant, world(CDS="one=1 two=1"))
    stream.ask("CDS")
    stream.get()
    (nacked,) = stream.nack("CDS", "malformed")
    assert nacked.sources == ("Object ns/one", "Object ns/two")


def test_rejection_message_is_cut_and_has_no_keys(variant):
    stream = Stream(variant, world(SDS="s=1"))
    stream.ask("SDS", "s")
    stream.get()
    (nacked,) = stream.nack("SDS", 'invalid Secret: inline_bytes: "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQ')
    assert nacked.message == 'invalid Secret: inline_bytes: "'
    stream.serve(world(SDS="s=2"))
    stream.get()
    (nacked,) = stream.nack("SDS", "x" * 100_000)
    assert len(nacked.message) == 4096


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS"])
def test_r12_change_before_the_nack_is_sent_at_once(variant, short):
    stream = Stream(variant, world(**{short: "a=1"}))
    stream.ask(short, "a")
    stream.get()
    stream.serve(world(**{short: "a=2"}))
    stream.nack(short)
    assert stream.get() == [f"{short} a=2"]


def test_rejection_of_an_unsubscribed_resource_is_forgotten(variant):
    stream = Stream(variant, world(EDS="a=bad"))
    stream.ask("EDS", "a")
    assert stream.get() == ["EDS a=bad"]
    stream.ask("EDS", unsubscribe=("a",))
    (event,) = stream.nack("EDS", "no")
    assert event.suspects
    (status,) = stream.session.status()
    assert status.synced
    assert not status.last_error


def test_r12_unanswered_resource_is_not_omitted():
    """A warming client withholds its answer, and answers a later response first."""
    stream = Stream(Variant.SOTW, world(CDS="a=1"))
    stream.ask("CDS")
    stream.settle()
    stream.serve(world(CDS="a=2 new=1"))
    assert stream.get() == ["CDS a=2 new=1"]
    stream.serve(world(CDS="a=2 new=2"))
    assert stream.get() == ["CDS a=2 new=2"]
    stream.nack("CDS", "Proto constraint validation failed (new: no)")
    assert stream.get() == ["CDS a=2 new=1"]
    stream.ack("CDS")
    assert stream.get() == []


def test_changed_resources_that_are_removed_are_not_retried():
    stream = Stream(Variant.DELTA, world(ECDS="a=1 b=1"))
    stream.ask("ECDS", "a", "b")
    stream.get()
    stream.nack("ECDS")
    stream.serve(world(ECDS="a=2 b=2"))
    stream.serve(world(ECDS=""))
    assert stream.get() == []
