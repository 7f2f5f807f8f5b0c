"""What a client last ACKed of each resource, and what a session stores for it."""

from __future__ import annotations

import pytest

from tests.protocol.stream import TYPES, Stream, world
from tests.protocol.test_status import status
from xds.protocol.acked import UNKNOWN, AckedResource
from xds.protocol.acks import MAX_UNANSWERED
from xds.protocol.session import Variant
from xds.protocol.status import ResourceStatus
from xds.snapshot import SECRET

REJECTED_A = "Error adding/updating cluster(s) a: no"


def versions(stream: Stream, short: str = "CDS") -> dict[str, tuple[str | None, str | None]]:
    """Return the ACKed and the desired version of each resource that differs; `?` if it is not known."""
    return {each.name: (_version(each.acked), _version(each.resource)) for each in differing(stream, short)}


def differing(stream: Stream, short: str = "CDS") -> list[ResourceStatus]:
    kind = status(stream, short)
    return [each for each in kind.resource_statuses(kind.names_to_compare()) if each.differs]


def _version(resource: AckedResource) -> str | None:
    return "?" if resource is UNKNOWN else resource and resource.version


def stored(stream: Stream, short: str = "CDS") -> int:
    return len(stream.session._watch(TYPES[short]).acked)


def synced(variant: Variant, text: str = "a=1 b=1", *, short: str = "CDS", **options: object) -> Stream:
    """Return a client that has ACKed resources."""
    stream = Stream(variant, world(**{short: text}), **options)
    stream.ask(short, *(() if short in {"CDS", "LDS"} else ("a", "b")))
    stream.settle()
    assert versions(stream, short) == {}
    assert stored(stream, short) == 0
    return stream


def test_resource_that_was_never_acked_differs_from_none(variant):
    stream = Stream(variant, world(CDS="a=1"))
    stream.ask("CDS")
    assert versions(stream) == {"a": (None, "1")}
    stream.get()
    assert versions(stream) == {"a": (None, "1")}
    assert stored(stream) == 0, "the first response costs no memory"
    stream.nack("CDS", REJECTED_A)
    assert versions(stream) == {"a": (None, "1")}
    stream.serve(world(CDS="a=2"))
    assert stream.settle() == ["CDS a=2"]
    assert versions(stream) == {}
    assert stored(stream) == 0


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS"])
def test_update_differs_until_it_is_acked(variant, short):
    stream = synced(variant, short=short)
    stream.serve(world(**{short: "a=2 b=1"}))
    assert versions(stream, short) == {"a": ("1", "2")}
    stream.get()
    assert versions(stream, short) == {"a": ("1", "2")}
    stream.serve(world(**{short: "a=3 b=1"}))
    assert versions(stream, short) == {"a": ("1", "3")}
    stream.ack(short)
    assert versions(stream, short) == {"a": ("2", "3")}
    assert stored(stream, short) == 1
    stream.settle()
    assert versions(stream, short) == {}
    assert stored(stream, short) == 0


@pytest.mark.parametrize("short", ["CDS", "EDS"])
def test_rejected_update_differs_until_a_later_one_is_acked(variant, short):
    stream = synced(variant, short=short)
    stream.serve(world(**{short: "a=2 b=2"}))
    stream.get()
    stream.nack(short, "no")
    assert versions(stream, short) == {"a": ("1", "2"), "b": ("1", "2")}
    stream.serve(world(**{short: "a=3 b=1"}))
    assert versions(stream, short) == {"a": ("1", "3")}
    stream.settle()
    assert versions(stream, short) == {}
    assert stored(stream, short) == 0


def test_client_acks_the_other_resources_of_a_response(variant):
    stream = synced(variant)
    stream.serve(world(CDS="a=2 b=2"))
    stream.get()
    stream.nack("CDS", REJECTED_A)
    assert versions(stream) == {"a": ("1", "2")}
    stream.serve(world(CDS="a=2 b=3"))
    stream.settle()
    assert versions(stream) == {"a": ("1", "2")}
    stream.serve(world(CDS="a=1 b=3"))
    stream.settle()
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_update_that_is_reverted_before_it_is_sent_is_forgotten(variant):
    stream = synced(variant)
    stream.serve(world(CDS="a=2 b=1"))
    assert stored(stream) == 1
    stream.serve(world(CDS="a=1 b=1"))
    assert versions(stream) == {}
    assert stored(stream) == 0
    assert stream.get() == []


def test_new_resource_that_is_removed_before_it_is_sent_is_forgotten(variant):
    stream = Stream(variant, world(CDS="a=1"))
    stream.ask("CDS")
    stream.ask("LDS")
    stream.settle()
    stream.serve(world(CDS="a=1", LDS="l=1"))
    stream.serve(world(CDS="a=1"))
    stream.settle()
    assert versions(stream, "LDS") == {}
    assert stored(stream, "LDS") == 0


def test_assignment_that_is_sent_again_stays_acked(variant):
    stream = Stream(variant, world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.settle()
    stream.serve(world(CDS="a=2", EDS="a=1"))
    assert stream.get() == ["CDS a=2", "EDS a=1"]
    assert versions(stream, "EDS") == {}
    stream.nack("EDS", "no")
    assert versions(stream, "EDS") == {}
    stream.serve(world(CDS="a=2", EDS="a=2"))
    assert versions(stream, "EDS") == {"a": ("1", "2")}
    stream.settle()
    assert stored(stream, "EDS") == 0


def test_removal_differs_until_it_is_acked(variant):
    stream = synced(variant)
    stream.serve(world("EDS", CDS="b=1"))
    assert versions(stream) == {}, "the cluster lingers until the session releases it"
    stream.get()
    assert versions(stream) == {"a": ("1", None)}
    stream.ack("CDS")
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_delta_rejected_removal_differs():
    stream = synced(Variant.DELTA)
    stream.serve(world(CDS="b=2"))
    stream.get()
    stream.nack("CDS", "no")
    assert versions(stream) == {"a": ("1", None), "b": ("1", "2")}
    assert stream.settle() == ["CDS -a"]
    assert versions(stream) == {"b": ("1", "2")}


def test_new_resource_that_was_rejected_and_removed_is_forgotten(variant):
    stream = synced(variant)
    stream.serve(world(CDS="a=1 b=1 c=1"))
    stream.get()
    stream.nack("CDS", "Error adding/updating cluster(s) c: no")
    assert versions(stream) == {"c": (None, "1")}
    stream.serve(world(CDS="a=2 b=1 c=1"))
    stream.settle()
    assert versions(stream) == {"c": (None, "1")}
    stream.serve(world(CDS="a=2 b=1"))
    stream.settle()
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_rejected_cluster_that_lingered_is_forgotten(variant):
    stream = Stream(variant, world(CDS="", LDS="l=1"))
    stream.ask("CDS")
    stream.settle()
    stream.ask("LDS")
    stream.get()
    stream.nack("LDS", "Error adding/updating listener(s) l: no")
    stream.serve(world(CDS="c=1", LDS="l=1"))
    stream.get()
    stream.nack("CDS", "Error adding/updating cluster(s) c: no")
    stream.serve(world(CDS="a=1", LDS="l=1"))
    stream.settle()
    stream.now += 100_000
    stream.settle()
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_ack_of_an_older_delta_response_is_not_of_the_newer_one():
    stream = synced(Variant.DELTA)
    for version in "23":
        stream.serve(world(CDS=f"a={version} b=1"))
        stream.get()
    first, second = (reply.nonce for reply in stream.replies[-2:])
    stream.ack("CDS", nonce=first)
    assert versions(stream) == {"a": ("2", "3")}
    stream.nack("CDS", REJECTED_A, nonce=second)
    assert versions(stream) == {"a": ("2", "3")}


def test_acks_out_of_order_end_in_the_latest_version():
    stream = synced(Variant.DELTA)
    for version in "23":
        stream.serve(world(CDS=f"a={version} b=1"))
        stream.get()
    first, second = (reply.nonce for reply in stream.replies[-2:])
    stream.ack("CDS", nonce=second)
    assert versions(stream) == {}
    stream.ack("CDS", nonce=first)
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_unsubscribed_resources_are_forgotten(variant):
    stream = synced(variant, short="SDS")
    stream.serve(world(SDS="a=2 b=2"))
    stream.get()
    nonce = stream.last["SDS"].nonce
    if variant is Variant.SOTW:
        stream.ask("SDS", "b", nonce=nonce, error="no")
    else:
        stream.ask("SDS", unsubscribe=("a",))
        stream.nack("SDS", "no")
    assert versions(stream, "SDS") == {"b": ("1", "2")}
    assert stored(stream, "SDS") == 1


def test_sotw_response_that_is_skipped_is_not_acked():
    stream = synced(Variant.SOTW, short="SDS")
    stream.serve(world(SDS="a=2 b=1"))
    stream.get()
    stream.serve(world(SDS="a=2 b=2"))
    stream.get()
    stream.ack("SDS")
    assert versions(stream, "SDS") == {"a": ("1", "2")}
    stream.settle()
    assert versions(stream, "SDS") == {}
    assert stored(stream, "SDS") == 0


def test_response_that_is_no_longer_awaited_is_not_acked():
    stream = synced(Variant.DELTA, patience=0.0)
    stream.serve(world(CDS="a=2 b=1"))
    stream.get()
    for version in range(MAX_UNANSWERED):
        stream.now += 1.0
        stream.serve(world(CDS=f"a=2 b={version + 2}"))
        stream.get()
    assert versions(stream)["a"] == ("1", "2")


def test_delta_reconnect_knows_only_unchanged_resources():
    stream = Stream(Variant.DELTA)
    stream.ask("CDS", initial={"a": "1", "b": "1", "gone": "1"})
    assert versions(stream) == dict.fromkeys(("a", "b", "gone"), ("?", None))
    stream.serve(world(CDS="a=1 b=2 c=1"))
    assert versions(stream) == {"b": ("?", "2"), "c": (None, "1"), "gone": ("?", None)}
    stream.get()
    assert versions(stream) == {"b": ("?", "2"), "c": (None, "1"), "gone": ("?", None)}
    stream.nack("CDS", "Error adding/updating cluster(s) b: no, c: no")
    assert versions(stream) == {"b": ("?", "2"), "c": (None, "1"), "gone": ("?", None)}
    stream.serve(world("EDS", CDS="a=1 b=3 c=2"))
    stream.now = 100.0
    stream.settle()
    assert versions(stream) == {}
    assert stored(stream) == 0


def test_delta_reconnect_knows_a_version_that_returns_before_it_is_sent():
    stream = Stream(Variant.DELTA, world(CDS="a=2"))
    stream.ask("CDS", initial={"a": "1"})
    stream.serve(world(CDS="a=3"))
    assert versions(stream) == {"a": ("?", "3")}
    stream.serve(world(CDS="a=1"))
    assert versions(stream) == {}
    assert stored(stream) == 0


@pytest.mark.parametrize("short", ["CDS", "SDS"])
def test_sotw_reconnect_knows_nothing_until_the_first_answer(short):
    stream = Stream(Variant.SOTW, world(**{short: "a=1"}))
    names = () if short == "CDS" else ("a",)
    stream.ask(short, *names, version="earlier")
    assert versions(stream, short) == {"a": ("?", "1")}
    stream.get()
    assert versions(stream, short) == {"a": ("?", "1")}
    stream.nack(short, f"{REJECTED_A}")
    assert versions(stream, short) == {"a": ("?", "1")}
    stream.serve(world(**{short: "a=2"}))
    stream.settle()
    assert versions(stream, short) == {}
    assert stored(stream, short) == 0


def test_delta_secrets_of_an_earlier_stream_are_not_known():
    stream = Stream(Variant.DELTA, world(SDS="a=1"))
    stream.ask("SDS", "a", initial={"a": "1"})
    assert versions(stream, "SDS") == {"a": ("?", "1")}
    stream.settle()
    assert versions(stream, "SDS") == {}


def test_older_resources_are_shared(variant):
    first = world(CDS="a=1 b=1")
    streams = [Stream(variant, first) for _ in range(2)]
    for stream in streams:
        stream.ask("CDS")
        stream.settle()
        stream.serve(world(CDS="a=2 b=1"))
    shown = [differing(stream)[0].acked for stream in streams]
    assert shown[0] is shown[1]


def test_secret_is_compared_like_any_resource(variant):
    stream = synced(variant, short="SDS")
    stream.serve(world(SDS="a=2 b=1"))
    assert stream.session.resource_status(SECRET, "a").differs
    assert not stream.session.resource_status(SECRET, "b").differs


def test_late_ack_counts_after_a_later_version_was_rejected():
    stream = Stream(Variant.DELTA, world(CDS="a=1"))
    stream.ask("CDS")
    stream.get()
    stream.serve(world(CDS="a=2"))
    stream.get()
    stream.nack("CDS")
    stream.ask("CDS", nonce="1")
    assert versions(stream) == {"a": ("1", "2")}


def test_late_ack_does_not_replace_a_later_one():
    stream = Stream(Variant.DELTA, world(CDS="a=1 b=1"))
    stream.ask("CDS")
    stream.get()
    stream.serve(world(CDS="a=2 b=1"))
    stream.get()
    stream.ack("CDS")
    stream.serve(world(CDS="a=3 b=1"))
    stream.ask("CDS", nonce="1")
    assert versions(stream) == {"a": ("2", "3")}


def test_assignment_that_was_never_sent_leaves_the_empty_one():
    stream = Stream(Variant.SOTW, world(CDS="a=1"))
    stream.ask("CDS")
    stream.settle()
    stream.ask("EDS", "a")
    stream.settle()
    stream.serve(world(CDS="a=1", EDS="a=1"))
    stream.serve(world(CDS="a=1"))
    stream.settle()
    assert not any(each.differs for each in status(stream, "EDS").resources)
