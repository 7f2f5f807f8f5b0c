"""Since when what changes: which change a response carries, and which ones do not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xds.protocol.events import Acked, Response, Subscribed
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.server.convergence import _MAX_PENDING, ConvergenceTracker
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot


class Traced:
    """A stream and its waits."""

    def __init__(self, variant: Variant = Variant.DELTA) -> None:
        info = StreamInfo(peer="", variant=variant, type_url="")
        self.subscriber = Subscriber(Node(id="n"), info)
        self.stream: Any = SimpleNamespace(subscriber=self.subscriber, info=info)
        self.tracker = ConvergenceTracker()
        self._nonce = 0

    def publish(self, at: float | None, **types: str) -> None:
        urls = {"CDS": CLUSTER, "EDS": ENDPOINT}
        self.subscriber.publish(
            Snapshot({urls[short]: resources(urls[short], text) for short, text in types.items()}), at
        )

    def subscribe(self, type_url: str, *names: str) -> None:
        event = Subscribed(type_url=type_url, names=frozenset(names), wildcard=not names)
        self.tracker.subscribed(self.stream, event)

    def send(self, type_url: str, text: str = "", removed: tuple[str, ...] = ()) -> str:
        self._nonce += 1
        carried = tuple(resources(type_url, text).values())
        nonce = str(self._nonce)
        response = Response(
            type_url=type_url, nonce=nonce, version="", resources=carried, removed=removed, sent_at=0.0
        )
        self.tracker.sent(self.stream, response)
        return nonce

    def answer(self, nonce: str) -> float | None:
        return self.tracker.answered(
            self.stream, Acked(type_url=CLUSTER, nonce=nonce, version="", resources=(), waited=0.0)
        )


def resources(type_url: str, text: str) -> ResourceSet:
    return ResourceSet(Resource.of(type_url, word.partition("=")[0], word.encode()) for word in text.split())


@pytest.fixture
def traced() -> Traced:
    """A stream that has a=1 and b=1 of both types."""
    traced = Traced()
    traced.subscribe(CLUSTER)
    traced.subscribe(ENDPOINT, "a", "b")
    traced.publish(None, CDS="a=1 b=1", EDS="a=1 b=1")
    assert traced.answer(traced.send(CLUSTER, "a=1 b=1")) is None
    assert traced.answer(traced.send(ENDPOINT, "a=1 b=1")) is None
    return traced


def test_first_response_with_part_of_a_change_ends_it(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=2 b=2", EDS="a=1 b=1")
    first, second = traced.send(CLUSTER, "a=2"), traced.send(CLUSTER, "b=2")
    assert traced.answer(second) is None
    assert traced.answer(first) == 5.0
    assert traced.answer(first) is None, "an answer counts once"


def test_each_type_is_measured_separately(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=2 b=1", EDS="a=2 b=1")
    nonce = traced.send(CLUSTER, "a=2")
    traced.publish(6.0, CDS="a=2 b=1", EDS="a=3 b=1")
    assert traced.answer(traced.send(ENDPOINT, "a=3")) == 5.0, "the older change came with the newer one"
    assert traced.answer(nonce) == 5.0


def test_unchanged_resend_contains_no_change(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=1 b=1", EDS="a=1 b=2")
    assert traced.answer(traced.send(ENDPOINT, "a=1")) is None
    assert traced.answer(traced.send(ENDPOINT, "b=2")) == 5.0


def test_change_in_several_snapshots_counts_from_the_first(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=2 b=1", EDS="a=1 b=1")
    traced.publish(6.0, CDS="a=3 b=1", EDS="a=1 b=1")
    assert traced.answer(traced.send(CLUSTER, "a=3")) == 5.0


def test_removal_counts_if_the_variant_can_express_it(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=1", EDS="a=1")
    assert traced.answer(traced.send(ENDPOINT, removed=("b",))) == 5.0
    assert traced.answer(traced.send(CLUSTER, removed=("b",))) == 5.0
    older = Traced(Variant.SOTW)
    older.subscribe(CLUSTER)
    older.subscribe(ENDPOINT, "a", "b")
    older.publish(None, CDS="a=1 b=1", EDS="a=1 b=1")
    older.send(CLUSTER, "a=1 b=1")
    older.publish(5.0, CDS="a=1", EDS="a=1")
    assert older.answer(older.send(CLUSTER, "a=1", removed=("b",))) == 5.0
    # Nothing says so, and when the name comes back that is another change.
    older.publish(None, CDS="a=1 b=1", EDS="a=1 b=1")
    assert older.answer(older.send(ENDPOINT, "b=1")) is None


def test_changes_without_a_subscription_do_not_count(traced: Traced) -> None:
    traced.publish(5.0, CDS="a=1 b=1", EDS="a=1 b=1 c=1")
    traced.subscribe(ENDPOINT, "a", "b", "c")
    assert traced.answer(traced.send(ENDPOINT, "c=1")) is None
    traced.publish(6.0, CDS="a=1 b=1", EDS="a=2 b=2 c=1")
    traced.send(CLUSTER)  # somebody looks
    traced.subscribe(ENDPOINT, "b")
    traced.subscribe(ENDPOINT, "a", "b")
    assert traced.answer(traced.send(ENDPOINT, "a=2")) is None
    assert traced.answer(traced.send(ENDPOINT, "b=2")) == 6.0


def test_collection_is_subscribed_by_one_name() -> None:
    traced = Traced()
    traced.subscribe(ENDPOINT, "xdstp://x/y/*")
    traced.publish(5.0, EDS="xdstp://x/y/a=1 xdstp://x/z/a=1")
    assert traced.answer(traced.send(ENDPOINT, "xdstp://x/z/a=1")) is None
    assert traced.answer(traced.send(ENDPOINT, "xdstp://x/y/a=1")) == 5.0


def test_unsent_and_unanswered_changes_are_limited(traced: Traced) -> None:
    for n in range(3 * _MAX_PENDING):
        traced.publish(float(n), CDS=f"a={n} b=1", EDS="a=1 b=1")
        traced.send(ENDPOINT)
    assert len(traced.tracker._unsent[CLUSTER]) == _MAX_PENDING
    for n in range(3 * _MAX_PENDING):
        traced.publish(float(n), CDS=f"a={n} b=2", EDS="a=1 b=1")
        traced.send(CLUSTER, f"a={n}")
    assert len(traced.tracker._sent) == _MAX_PENDING
