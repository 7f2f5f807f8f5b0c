"""Status of a session: state and time of each type and resource, and what each type waits for."""

from __future__ import annotations

from random import Random

import pytest

from tests.protocol.stream import SHORT, Stream, subscribed, synced, world
from xds.protocol.session import Variant
from xds.protocol.status import ACK, READ, SNAPSHOT, State, TypeStatus
from xds.snapshot import CLUSTER, SECRET


def status(stream: Stream, short: str) -> TypeStatus:
    return next(each for each in stream.session.status() if SHORT.get(each.type_url, each.type_url) == short)


def states(stream: Stream, short: str) -> dict[str, State]:
    return {each.name: each.state for each in status(stream, short).resources}


def waits(stream: Stream, short: str) -> tuple[str, float] | None:
    waiting = status(stream, short).waiting
    return (SHORT.get(waiting.reason, waiting.reason), waiting.since) if waiting else None


def test_status_has_subscribed_types_in_sending_order(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"))
    assert stream.session.status() == ()
    stream.ask("RDS", "r")
    stream.ask("EDS", "a")
    stream.ask("CDS")
    assert [SHORT[each.type_url] for each in stream.session.status()] == ["CDS", "EDS", "RDS"]
    assert (status(stream, "CDS").wildcard, status(stream, "CDS").names) == (True, frozenset())
    assert (status(stream, "EDS").wildcard, status(stream, "EDS").names) == (False, {"a"})


def test_state_changes_with_responses_and_acks(variant):
    stream = Stream(variant, world(SDS="a=1"))
    stream.now = 1.0
    stream.ask("SDS", "a", "none")
    first = status(stream, "SDS")
    assert states(stream, "SDS") == {"a": State.NOT_SENT, "none": State.NOT_SENT}
    assert (first.synced, first.sent_at, first.acked_at, first.version) == (False, None, None, "")
    assert waits(stream, "SDS") == (READ, 1.0)
    stream.now = 2.0
    stream.get()
    assert states(stream, "SDS")["a"] is State.STALE
    assert (status(stream, "SDS").sent_at, status(stream, "SDS").unanswered) == (2.0, 1)
    assert waits(stream, "SDS") == (ACK, 2.0)
    stream.now = 3.0
    stream.ack("SDS")
    taken = status(stream, "SDS")
    assert states(stream, "SDS") == {"a": State.SYNCED, "none": State.NOT_SENT}
    assert (taken.synced, taken.waiting, taken.acked_at) == (True, None, 3.0)
    assert taken.version == stream.last["SDS"].version
    a, none = taken.resources
    assert (a.version, a.updated_at, a.resource and a.resource.version) == ("1", 2.0, "1")
    assert (none.version, none.updated_at, none.resource) == ("", None, None)
    stream.serve(world(SDS="a=2"))
    assert states(stream, "SDS")["a"] is State.STALE
    assert waits(stream, "SDS") == (READ, 2.0)
    stream.now = 4.0
    stream.get()
    a, _ = status(stream, "SDS").resources
    assert (a.state, a.version, a.updated_at) == (State.STALE, "2", 4.0)


def test_status_of_one_resource(variant):
    stream = Stream(variant, world(SDS="a=1"))
    assert stream.session.resource_status(SECRET, "a") is None
    assert stream.session.resource_status("of no type", "a") is None
    stream.ask("SDS", "a")
    assert stream.session.resource_status(SECRET, "b") is None
    stream.settle()
    found = stream.session.resource_status(SECRET, "a")
    assert found == next(status(stream, "SDS").resources)
    assert found.state is State.SYNCED


def test_unchanged_resource_keeps_its_time(variant):
    stream = synced(variant, world(CDS="a=1 b=1"), CDS="")
    stream.now = 5.0
    stream.settle(CDS="a=1 b=2 c=1")
    assert {each.name: each.updated_at for each in status(stream, "CDS").resources} == {
        "a": 0.0,
        "b": 5.0,
        "c": 5.0,
    }


def test_returning_resource_has_a_new_time(variant):
    stream = synced(variant, world(CDS="a=1"), CDS="")
    for now, text in ((1.0, "b=1"), (2.0, "a=1"), (3.0, "a=1 b=1")):
        stream.now = now
        stream.serve(world(CDS=text))
        stream.settle()
    assert {each.name: each.updated_at for each in status(stream, "CDS").resources} == {"a": 2.0, "b": 3.0}


def test_times_of_large_changes_are_exact():
    """Of large changes that many clients share, only the sets of names are stored."""
    random = Random(1)
    names = [f"c{number}" for number in range(60)]
    versions = dict.fromkeys(names, 0)
    stream = synced(Variant.DELTA, world(CDS=" ".join(f"{name}=0" for name in names)), CDS="")
    expected = dict.fromkeys(names, 0.0)
    for number in range(1, 80):
        stream.now = float(number)
        changed = random.sample(names, random.choice((1, 7, 8, 9, 20, 40, 60)))
        for name in changed:
            if versions.pop(name, None) is None or random.random() < 0.9:
                versions[name] = number
                expected[name] = stream.now
        stream.serve(world(CDS=" ".join(f"{name}={version}" for name, version in versions.items())))
        stream.settle()
        found = {each.name: each.updated_at for each in status(stream, "CDS").resources}
        assert found == {name: expected[name] for name in versions}


def test_times_of_removed_and_unsubscribed_names_are_dropped(variant):
    stream = synced(variant, world(CDS="a=1", EDS="a=1"), CDS="")
    for number in range(50):
        stream.serve(world(CDS=f"c{number}=1", EDS=f"c{number}=1"))
        stream.ask("EDS", f"c{number}", unsubscribe=(f"c{number - 1}",))
        stream.settle()
    assert len(stream.session._watches[CLUSTER].acks._last_sent) <= 1
    assert sum(len(watch.acks._last_sent) for watch in stream.session._watches.values()) <= 2


def test_resource_of_an_earlier_stream_is_synced_without_time():
    stream = Stream(Variant.DELTA, world(CDS="a=1 b=2"))
    stream.ask("CDS", initial={"a": "1", "b": "1"})
    stream.now = 7.0
    stream.settle()
    assert [(each.name, each.state, each.updated_at) for each in status(stream, "CDS").resources] == [
        ("a", State.SYNCED, None),
        ("b", State.SYNCED, 7.0),
    ]


def test_rejected_resource_has_an_error_until_acked(variant):
    stream = Stream(variant, world(SDS="good=1 bad=1"))
    stream.ask("SDS", "good", "bad")
    stream.now = 1.0
    stream.get()
    version = stream.last["SDS"].version
    stream.now = 2.0
    stream.nack("SDS", "secret bad: no")
    assert states(stream, "SDS") == {"bad": State.ERROR, "good": State.STALE}
    bad = next(iter(status(stream, "SDS").resources))
    assert bad.error is not None
    assert (bad.error.message, bad.error.code, bad.error.version, bad.error.at, bad.error.sources) == (
        "secret bad: no",
        13,
        "1",
        2.0,
        ("Object ns/bad",),
    )
    rejected = status(stream, "SDS")
    assert rejected.last_error is not None
    assert (rejected.last_error.version, rejected.last_error.at) == (version, 2.0)
    assert stream.settle() == ["SDS good=1"]
    assert states(stream, "SDS") == {"bad": State.ERROR, "good": State.SYNCED}
    rejected = status(stream, "SDS")
    assert rejected.last_error is not None
    assert (rejected.synced, rejected.waiting) == (False, None)
    stream.push(SDS="good=1 bad=2")
    assert states(stream, "SDS") == {"bad": State.STALE, "good": State.SYNCED}
    assert next(iter(status(stream, "SDS").resources)).error == bad.error
    assert status(stream, "SDS").last_error is not None
    stream.ack("SDS")
    assert states(stream, "SDS") == {"bad": State.SYNCED, "good": State.SYNCED}
    assert next(iter(status(stream, "SDS").resources)).error is None
    assert status(stream, "SDS").last_error is None


def test_rejection_ends_when_the_resource_is_removed(variant):
    stream = subscribed(variant, world(EDS="bad=1"), EDS="bad")
    stream.nack("EDS")
    if variant is Variant.SOTW:
        stream.ask("EDS", nonce=stream.last["EDS"].nonce)
    else:
        stream.ask("EDS", unsubscribe=("bad",))
    assert status(stream, "EDS").last_error is None
    stream.ask("EDS", "bad")
    stream.get()
    stream.nack("EDS")
    stream.serve(world())
    stream.settle()
    assert status(stream, "EDS").last_error is None


def test_rejected_removal_is_reported_until_the_next_ack():
    stream = synced(Variant.DELTA, world(SDS="s=1"), SDS="s")
    stream.push()
    stream.nack("SDS", "no removal")
    last = status(stream, "SDS").last_error
    assert last is not None
    assert last.message == "no removal"
    stream.settle(SDS="s=2")
    assert status(stream, "SDS").last_error is None


def test_lingering_resource_is_stale(variant):
    stream = synced(
        variant, world(CDS="old=1", EDS="old=1", LDS="l=1>r", RDS="r=old"), CDS="", EDS="old", LDS="", RDS="r"
    )
    assert states(stream, "CDS") == {"old": State.SYNCED}
    stream.serve(world(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new"))
    assert states(stream, "CDS") == {"old": State.STALE, "new": State.NOT_SENT}


def test_listeners_and_routes_wait_for_unacked_clusters(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1", LDS="l=1>r", RDS="r=1"))
    for short, names in (("CDS", ()), ("EDS", ("a",)), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.now = 1.0
    stream.get()
    assert waits(stream, "LDS") == waits(stream, "RDS") == ("CDS", 1.0)
    stream.ack("EDS")
    assert waits(stream, "CDS") == (ACK, 1.0)
    stream.ack("CDS")
    assert waits(stream, "CDS") is None
    assert waits(stream, "LDS") == waits(stream, "RDS") == (READ, 1.0)


def test_clusters_wait_for_missing_assignments_and_secrets(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.now = 1.0
    stream.get()
    assert waits(stream, "CDS") == (ACK, 1.0)
    stream.now = 2.0
    stream.ask("LDS")
    assert waits(stream, "CDS") == ("EDS", 1.0)  # It has not subscribed to them yet.
    stream.ask("EDS", "a")
    assert waits(stream, "CDS") == ("EDS", 1.0)
    stream.get()
    assert waits(stream, "CDS") == ("EDS", 1.0)
    stream.ack("EDS")
    assert waits(stream, "CDS") == (ACK, 1.0)


def test_silent_client_is_waiting_for_an_ack(variant):
    stream = synced(variant, world(CDS="a=1", EDS="a=1"), CDS="", EDS="a")
    stream.serve(world(CDS="a=1 b=1", EDS="a=1 b=1"))
    stream.now = 5.0
    stream.get()
    stream.now = 24.0
    assert waits(stream, "CDS") == (ACK, 5.0)
    stream.ask("EDS", *(("a", "b") if variant is Variant.SOTW else ("b",)))
    assert waits(stream, "CDS") == ("EDS", 5.0)


def test_clusters_wait_for_rejected_or_resent_assignments(variant):
    stream = subscribed(variant, world(CDS="a=1", EDS="a=1"), CDS="", EDS="a")
    stream.nack("EDS")
    assert waits(stream, "CDS") == ("EDS", 0.0)
    stream.settle(CDS="a=1", EDS="a=2")
    stream.ack("CDS")
    stream.serve(world(CDS="a=2", EDS="a=2"))
    stream.now = 3.0
    stream.get()
    stream.ask("LDS")
    assert waits(stream, "CDS") == ("EDS", 3.0)
    stream.ack("EDS")
    assert waits(stream, "CDS") == (ACK, 3.0)


def test_listener_waits_for_missing_routes_since_it_was_sent(variant):
    stream = synced(variant, world(LDS="l=1>r", RDS="r=1"), LDS="", RDS="r")
    assert waits(stream, "LDS") is None
    stream.now = 10.0
    stream.settle(LDS="l=1>r m=1>late", RDS="r=1")
    assert waits(stream, "LDS") == ("RDS", 10.0)
    stream.ask("RDS", *(("r", "late") if variant is Variant.SOTW else ("late",)))
    stream.now = 20.0
    stream.settle(LDS="l=2>r m=1>late", RDS="r=1")
    assert waits(stream, "LDS") == ("RDS", 10.0)
    assert not status(stream, "LDS").synced
    stream.settle(LDS="l=2>r m=1>late", RDS="r=1 late=1")
    assert waits(stream, "LDS") is None
    assert status(stream, "LDS").synced


def test_a_rejected_listener_waits_for_nothing(variant):
    stream = subscribed(variant, world(LDS="l=1>r"), LDS="")
    stream.nack("LDS")
    assert waits(stream, "LDS") is None


def test_cluster_does_not_wait_for_a_missing_assignment():
    stream = subscribed(Variant.DELTA, world(CDS="a=1"), CDS="")
    assert waits(stream, "CDS") == ("EDS", 0.0)
    stream.ask("EDS", "a")
    stream.get()
    assert waits(stream, "CDS") == (ACK, 0.0)


def test_stream_for_one_type_waits_for_no_other_type(variant):
    stream = Stream(variant, world(CDS="a=1"), type_url=CLUSTER)
    stream.ask("")
    stream.get()
    assert waits(stream, "CDS") == (ACK, 0.0)


def test_a_type_waits_for_a_snapshot_that_has_it(variant):
    stream = Stream(variant)
    stream.now = 4.0
    stream.ask("CDS")
    assert waits(stream, "CDS") == (SNAPSHOT, 4.0)
    stream.serve(world())
    stream.now = 5.0
    stream.ask("other", "x")
    stream.settle()
    assert waits(stream, "CDS") is None
    assert waits(stream, "other") == (SNAPSHOT, 4.0)
    assert not status(stream, "other").synced


def test_session_reports_the_last_response(variant):
    stream = Stream(variant, world(CDS="a=1 b=1"))
    assert stream.session.sent is None
    stream.ask("CDS")
    stream.settle()
    assert stream.session.sent is None
    stream.serve(world(CDS="a=1"))
    assert stream.session.next(2.0)
    sent = stream.session.sent
    assert sent is not None
    assert (sent.type_url, sent.removed, sent.sent_at) == (CLUSTER, ("b",), 2.0)
    assert [each.name for each in sent.resources] == (["a"] if variant is Variant.SOTW else [])


def test_session_is_synced_when_everything_is_acked(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"))
    assert stream.session.synced
    stream.ask("other", "x")
    stream.ask("CDS")
    assert not stream.session.synced
    stream.get()
    assert not stream.session.synced
    stream.ack("CDS")
    assert stream.session.synced


def test_half_closed_client_is_not_waited_for(variant):
    stream = Stream(variant, world(CDS="a=1", LDS="l=1"))
    stream.ask("CDS")
    stream.ask("LDS")
    assert stream.get() == ["CDS a=1"]
    stream.session.expect_no_acks()
    assert stream.get() == ["LDS l=1"]


def test_resource_to_resend_is_not_synced():
    stream = subscribed(Variant.DELTA, world(SDS="good=1 bad=1"), SDS="good bad")
    stream.nack("SDS")
    stream.ask("SDS", unsubscribe=("bad",))
    assert states(stream, "SDS") == {"good": State.ERROR}
    stream.settle()
    assert states(stream, "SDS") == {"good": State.SYNCED}


@pytest.mark.parametrize("settled", [True, False])
def test_resources_are_counted_by_state(variant, settled):
    stream = Stream(variant, world(SDS="a=1 b=1"))
    stream.ask("SDS", "a", "b", "none")
    if settled:
        stream.settle()
    counts = status(stream, "SDS").counts
    assert +counts == ({State.SYNCED: 2, State.NOT_SENT: 1} if settled else {State.NOT_SENT: 3})


def test_unsent_removal_leaves_no_status(variant):
    stream = Stream(variant, world(SDS="a=1"))
    stream.ask("SDS", "a")
    stream.serve(world())
    assert stream.session._watches[SECRET].lingering == {}
    assert stream.get() == ([] if variant is Variant.SOTW else ["SDS -a"])


def test_rejected_removal_stays_an_error_while_the_cluster_is_kept(variant):
    stream = synced(variant, world(CDS="c=1", LDS="l=1"), CDS="", LDS="")
    assert stream.push() == (["LDS -l"] if variant is Variant.DELTA else ["LDS"])
    stream.nack("LDS")
    stream.get()
    assert status(stream, "LDS").last_error is not None
