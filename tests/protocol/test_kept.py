"""Resources that are not served, and that clients keep if they have them from an earlier stream."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.protocol.stream import TYPES, Stream, world
from xds.protocol.session import Variant
from xds.snapshot import Snapshot

REPORTED = {"CDS": {"a": "1", "b": "1"}, "EDS": {"a": "1", "b": "1"}, "LDS": {"l": "1"}, "RDS": {"r": "1"}}


def keeping(*keys: str, **types: str) -> Snapshot:
    """Make a snapshot: `keeping("CDS a", CDS="b=1")`."""
    kept = ((TYPES[short], name) for short, _, name in (key.partition(" ") for key in keys))
    return replace(world(**types), kept=frozenset(kept))


def reconnected(snapshot: Snapshot | None) -> Stream:
    stream = Stream(Variant.DELTA, snapshot)
    for short, versions in REPORTED.items():
        names = () if short in {"CDS", "LDS"} else versions
        stream.ask(short, *names, initial=versions)
    return stream


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    ("kept", "served", "expected"),
    [
        (["CDS a"], {"CDS": "b=1"}, []),
        (["LDS l", "RDS r"], {"LDS": "", "RDS": "", "CDS": "a=1 b=1"}, []),
        (["EDS b", "CDS a"], {"EDS": "a=1", "CDS": "b=1"}, []),
        ([], {"CDS": "b=1"}, ["CDS -a"]),
    ],
)
def test_a_kept_resource_is_neither_sent_nor_removed(kept, served, expected, is_late):
    everything = {"CDS": "a=1 b=1", "EDS": "a=1 b=1", "LDS": "l=1>r", "RDS": "r=1"}
    snapshot = keeping(*kept, **everything | served)
    stream = reconnected(None if is_late else snapshot)
    if is_late:
        stream.serve(snapshot)
    assert stream.settle() == expected
    stream.now = 100_000.0
    assert stream.settle() == []
    assert stream.session.synced


def test_other_changes_are_sent_meanwhile():
    stream = reconnected(keeping("CDS a", CDS="b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    stream.settle()
    stream.serve(keeping("CDS a", CDS="b=2 c=1", EDS="a=2 b=1 c=1", LDS="l=1>r", RDS="r=2"))
    assert stream.settle()[0] == "CDS b=2 c=1"
    stream.serve(keeping("CDS a", CDS="c=1", EDS="a=2 c=1", LDS="l=1>r", RDS="r=2"))
    assert "CDS -b" in stream.settle()


def test_a_repaired_resource_is_sent():
    stream = reconnected(keeping("CDS a", CDS="b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    stream.settle()
    stream.serve(keeping(CDS="a=2 b=1", EDS="a=1 b=1", LDS="l=1>r", RDS="r=1"))
    assert stream.settle() == ["CDS a=2", "EDS a=1"]


def test_a_resource_that_is_no_longer_kept_is_removed():
    stream = reconnected(keeping("CDS a", CDS="b=1", EDS="b=1", LDS="l=1>r", RDS="r=1"))
    stream.settle()
    stream.serve(keeping(CDS="b=1", EDS="b=1", LDS="l=1>r", RDS="r=1"))
    assert "CDS -a" in stream.settle()


@pytest.mark.parametrize("kept", [["RDS r"], ["LDS l"], ["LDS l", "RDS r"]])
def test_clusters_that_a_kept_resource_may_use_are_removed_when_it_is_repaired(kept):
    served = {"CDS": "b=1", "EDS": "b=1", "LDS": "l=1>r", "RDS": "r=1"}
    stream = reconnected(keeping(*kept, **served | {key[:3]: "" for key in kept}))
    sent = stream.settle()
    for stream.now in (61.0, 80_000.0):
        sent += stream.settle()
    assert sent == ["EDS -a"]  # Envoy keeps the endpoints.
    stream.serve(keeping(**served | {"LDS": "l=2>r", "RDS": "r=2"}))
    assert "CDS -a" in stream.settle()


def test_clusters_that_a_kept_resource_may_use_are_removed_after_a_day():
    stream = reconnected(keeping("RDS r", CDS="b=1", EDS="b=1", LDS="l=1>r", RDS=""))
    sent = stream.settle()
    for stream.now in (61.0, 86_399.0, 86_400.0, 86_459.0):
        sent += stream.settle()
    assert "CDS -a" not in sent
    stream.now = 86_460.0
    assert stream.settle() == ["CDS -a"]


def test_a_client_without_a_kept_resource_is_not_sent_it():
    stream = Stream(Variant.DELTA, keeping("CDS a", "EDS a", CDS="b=1", EDS="b=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a", "b")
    # The client waits for the assignment that it requests by name.
    assert stream.settle() == ["CDS b=1", "EDS b=1 -a"]


def test_only_delta_clients_can_keep_what_they_have():
    stream = Stream(Variant.SOTW, keeping("CDS a", CDS="b=1"))
    stream.ask("CDS", version="1")
    assert stream.get() == ["CDS b=1"]


def test_a_client_has_answered_once_it_has_acked_or_nacked_everything(variant):
    stream, eds = Stream(variant, world(EDS="a=1")), TYPES["EDS"]
    assert stream.session.has_answered(eds)  # It requests nothing.
    stream.ask("EDS", "a")
    assert not stream.session.has_answered(eds)
    stream.get()
    assert not stream.session.has_answered(eds)
    stream.nack("EDS")
    assert stream.session.has_answered(eds)
    stream.serve(world(EDS="a=2"))
    assert not stream.session.has_answered(eds)
    stream.settle()
    assert stream.session.has_answered(eds)
