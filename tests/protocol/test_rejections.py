"""Rejected resources are not sent again unchanged, are retried once fixed, and are named."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, subscribed, synced, world
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
    assert stream.push(**{short: "a=1"}) == []
    assert stream.push(**{short: "a=2"}) == [f"{short} a=2"]


def test_r12_a_newer_version_is_sent_at_once(variant):
    stream = subscribed(variant, world(LDS="a=1"), LDS="")
    assert stream.push(LDS="a=2") == ["LDS a=2"]
    stream.nack("LDS")
    assert stream.get() == []
    assert stream.push(LDS="a=3") == ["LDS a=3"]


def test_r12_resources_rejected_together_are_sent_together(variant):
    stream = subscribed(variant, world(EDS="good=1 bad=1"), EDS="good bad other")
    stream.nack("EDS")
    assert stream.push(EDS="good=1 bad=1 other=1") == ["EDS other=1"]
    stream.ack("EDS")
    assert stream.push(EDS="good=1 bad=2 other=1") == ["EDS bad=2 good=1"]
    stream.ack("EDS")
    assert stream.push(EDS="good=1 bad=3 other=1") == ["EDS bad=3"]


def test_r12_bystander_of_two_rejections_is_sent_once_both_are_fixed():
    """`b` was rejected with `c`. Then `a` and `c` were rejected together, and change together."""
    stream = subscribed(Variant.SOTW, world(EDS="a=1 b=1 c=1"), EDS="b *")
    stream.nack("EDS", "no: a")
    assert stream.get() == ["EDS b=1 c=1"]
    stream.nack("EDS", "no: c")
    stream.ask("EDS", "a", "b", "c")
    assert stream.get() == ["EDS a=1 c=1"]
    stream.nack("EDS", "no: a")
    assert stream.push(EDS="a=2 b=1 c=2") == ["EDS a=2 b=1 c=2"]


def test_r12_bystander_is_sent_once_the_rejected_one_is_unsubscribed():
    stream = subscribed(Variant.SOTW, world(CDS="a=1 b=1 c=1"), CDS="a *")
    stream.nack("CDS", "no: b")
    assert stream.get() == ["CDS a=1 c=1"]
    stream.nack("CDS", "no: c")
    assert stream.get() == []
    stream.ask("CDS", "a")
    assert stream.get() == ["CDS a=1"]
    stream.ack("CDS")
    assert stream.get() == []


def test_r12_rejection_of_a_fixed_resource_is_retried_at_once():
    stream = subscribed(Variant.DELTA, world(EDS="good=1 bad=1"), EDS="good bad")
    assert stream.push(EDS="good=1 bad=2") == ["EDS bad=2"]
    stream.nack("EDS", nonce=stream.replies[0].nonce)
    assert stream.get() == ["EDS good=1"]


def test_r12_rejected_resource_is_retried_after_a_removal():
    stream = subscribed(Variant.DELTA, world(EDS="good=1 bad=1"), EDS="good bad")
    stream.nack("EDS")
    assert stream.push(EDS="good=1") == ["EDS good=1 -bad"]


def test_r12_rejected_resource_is_retried_after_unsubscription(variant):
    stream = subscribed(variant, world(EDS="good=1 bad=1"), EDS="good bad")
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
    assert stream.push(CDS="bad=2", EDS="good=1 bad=1") == ["CDS bad=2", "EDS bad=1"]
    stream.nack("EDS", nonce=stream.replies[1].nonce)
    stream.nack("EDS", nonce=stream.replies[3].nonce)
    assert stream.push(CDS="bad=2", EDS="good=1 bad=3") == ["EDS bad=3 good=1"]


def test_r12_skipped_response_may_have_been_rejected():
    stream = subscribed(Variant.SOTW, world(EDS="good=1 bad=1"), EDS="good bad")
    assert stream.push(EDS="good=1 bad=2") == ["EDS bad=2"]
    stream.ack("EDS")
    assert stream.get() == ["EDS good=1"]


def test_r6_stale_nack_is_recorded_without_its_subscription():
    stream = subscribed(Variant.SOTW, world(EDS="good=1 bad=1"), EDS="good bad")
    stream.push(EDS="good=1 bad=2")
    (nacked,) = stream.ask("EDS", nonce=stream.replies[0].nonce, error="bad")
    assert isinstance(nacked, Nacked)
    assert stream.get() == ["EDS good=1"]


def test_r12_rejected_resource_that_returns_is_still_rejected():
    stream = subscribed(Variant.DELTA, world(CDS="c=1", EDS="bad=1", LDS="l=1"), CDS="", LDS="", EDS="bad")
    stream.nack("EDS")
    assert stream.push(CDS="c=1", LDS="l=1") == []
    assert stream.push(CDS="c=1", EDS="bad=1", LDS="l=1") == []


def test_r12_bystander_that_returns_without_the_rejected_is_sent():
    stream = subscribed(Variant.DELTA, world(EDS="good=1 bad=1 other=1"), EDS="good bad")
    stream.nack("EDS")
    stream.serve(world())
    assert stream.push(EDS="good=1") == ["EDS good=1 -bad"]


def test_r12_resource_rejected_alone_waits_for_no_other():
    stream = subscribed(Variant.DELTA, world(EDS="good=1 bad=1"), EDS="good bad")
    stream.nack("EDS")
    stream.ask("EDS", "bad")
    assert stream.get() == ["EDS bad=1"]
    stream.nack("EDS")
    assert stream.push(EDS="good=2 bad=1") == ["EDS good=2"]


def test_r12_rejected_resource_is_not_pushed():
    stream = subscribed(Variant.SOTW, world(CDS="a=1", EDS="a=1"), CDS="", EDS="a")
    stream.serve(world(CDS="a=2", EDS="a=1"))
    assert stream.session.next(0.0)
    stream.nack("EDS")
    assert stream.get() == []


def test_r12_resource_that_returns_after_a_fix_is_sent():
    stream = subscribed(
        Variant.DELTA, world(CDS="c=1", EDS="good=1 bad=1", LDS="l=1"), CDS="", LDS="", EDS="good bad"
    )
    stream.nack("EDS")
    # The other resource may be the cause.
    assert stream.push(CDS="c=1", EDS="bad=1", LDS="l=1") == ["EDS bad=1"]
    stream.nack("EDS")
    assert stream.push(CDS="c=1", EDS="good=1 bad=1", LDS="l=1") == ["EDS good=1"]


def test_r12_rejection_of_unsubscribed_resources_holds_nothing():
    stream = subscribed(Variant.SOTW, world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1"), CDS="", LDS="", RDS="r")
    stream.ack("CDS")
    stream.get()
    stream.ack("LDS")
    stream.ask("RDS")
    stream.nack("RDS")
    assert stream.settle(CDS="a=1") == ["LDS", "CDS a=1"]


def test_r12_rejected_clusters_are_sent_when_others_change():
    stream = subscribed(Variant.SOTW, world(CDS="good=1 bad=1", EDS="good=1"), CDS="", EDS="good")
    stream.nack("CDS")
    stream.ack("EDS")
    stream.serve(world(CDS="good=1 bad=1 new=1", EDS="good=1"))
    # SotW clients delete what a response omits. This client may accept `good` only now, and wait for it.
    assert stream.get() == ["CDS bad=1 good=1 new=1", "EDS good=1"]


def test_r12_rejected_assignment_is_not_pushed_with_its_cluster(variant):
    stream = subscribed(variant, world(CDS="a=1", EDS="a=1"), CDS="", EDS="a")
    stream.ack("CDS")
    stream.nack("EDS")
    assert stream.push(CDS="a=2", EDS="a=1") == ["CDS a=2"]


def test_r11_a_rejection_may_change_the_subscription(variant):
    stream = subscribed(variant, world(EDS="a=1 b=1"), EDS="a")
    names = ("a", "b") if variant is Variant.SOTW else ("b",)
    stream.ask("EDS", *names, nonce=stream.last["EDS"].nonce, error="no")
    assert stream.get() == ["EDS b=1"]


def test_r19_rejected_resource_is_sent_on_resubscription():
    stream = subscribed(Variant.DELTA, world(EDS="a=1"), EDS="a")
    stream.nack("EDS")
    stream.ask("EDS", "a")
    assert stream.get() == ["EDS a=1"]


def test_r10_only_an_error_makes_a_rejection(variant):
    stream = subscribed(variant, world(EDS="a=1"), EDS="a")
    events = stream.ack("EDS")
    assert not any(isinstance(event, Nacked) for event in events)


def test_o8_users_of_rejected_clusters_are_served(variant):
    stream = subscribed(variant, world(CDS="good=1 bad=1", EDS="good=1"), CDS="")
    stream.nack("CDS")
    stream.ask("EDS", "good")
    assert stream.get() == ["EDS good=1"]


def test_unsubscribed_resource_holds_nothing_back(variant):
    stream = subscribed(variant, world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1"), CDS="", LDS="l", RDS="r")
    stream.ack("CDS")
    stream.get()
    stream.ack("LDS")
    stream.nack("RDS")
    stream.settle(CDS="a=1", LDS="", RDS="r=1")
    if variant is Variant.SOTW:
        stream.ask("RDS", nonce=stream.last["RDS"].nonce)
    else:
        stream.ask("RDS", unsubscribe=("r",))
    stream.settle()
    assert stream.last["CDS"].removed == ("b",) or stream.last["CDS"].resources == {"a": "1"}


def test_r27_removal_in_a_rejected_response_is_sent_again():
    stream = synced(Variant.DELTA, world(LDS="l=1 m=1"), LDS="")
    assert stream.push(LDS="m=2") == ["LDS m=2 -l"]
    stream.nack("LDS", "cannot be read")
    assert stream.get() == ["LDS -l"]
    stream.nack("LDS", "no removal")
    assert stream.get() == []


def test_r27_removal_is_dropped_when_the_resource_returns():
    stream = synced(Variant.DELTA, world(LDS="l=1 m=1"), LDS="")
    assert stream.push(LDS="m=2") == ["LDS m=2 -l"]
    stream.serve(world(LDS="l=1 m=2"))
    stream.nack("LDS", "cannot be read")
    assert stream.get() == ["LDS l=1"]


def test_a_rejection_that_removes_only_names_parks_nothing():
    stream = synced(Variant.DELTA, world(SDS="s=1"), SDS="s")
    assert stream.push() == ["SDS -s"]
    (nacked,) = stream.nack("SDS")
    assert (nacked.resources, nacked.removed, nacked.sources) == ((), ("s",), ())
    assert stream.get() == []


def test_rejection_reports_sources_of_the_named_resources(variant):
    stream = subscribed(variant, world(CDS="c=1 c1=1 c12=1 d=1"), CDS="")
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
    stream = subscribed(variant, world(CDS="one=1 two=1"), CDS="")
    (nacked,) = stream.nack("CDS", "malformed")
    assert nacked.sources == ("Object ns/one", "Object ns/two")


def test_rejection_message_is_cut_and_has_no_keys(variant):
    stream = subscribed(variant, world(SDS="s=1"), SDS="s")
    (nacked,) = stream.nack("SDS", 'invalid Secret: inline_bytes: "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQ')
    assert nacked.message == 'invalid Secret: inline_bytes: "'
    stream.push(SDS="s=2")
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
    stream = synced(Variant.SOTW, world(CDS="a=1"), CDS="")
    assert stream.push(CDS="a=2 new=1") == ["CDS a=2 new=1"]
    assert stream.push(CDS="a=2 new=2") == ["CDS a=2 new=2"]
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


@pytest.mark.parametrize("short", ["CDS", "EDS"])
def test_r12_change_that_is_reverted_before_it_is_sent_loses_nothing(variant, short):
    stream = subscribed(variant, world(**{short: "a=1 b=1 c=1"}), **{short: "a b c"})
    stream.nack(short, "no")
    stream.serve(world(**{short: "a=2 b=2 c=1"}))
    assert stream.push(**{short: "a=1 b=1 c=2"}) == [f"{short} a=1 b=1 c=2"]
    stream.ack(short)
    assert stream.session.synced
