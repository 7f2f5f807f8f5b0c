"""Responses have only names that the client subscribes to, and each only once."""

from __future__ import annotations

import pytest

from tests.protocol.stream import TYPES, Stream, synced, world
from xds.protocol.session import Variant

ALL = world(**dict.fromkeys(TYPES, "a=1 b=1"))


def test_r28_only_subscribed_types_and_names_are_sent(variant):
    stream = Stream(variant, ALL)
    stream.ask("CDS", "a")
    stream.ask("EDS", "b")
    assert stream.settle() == ["CDS a=1", "EDS b=1"]
    assert stream.settle(**dict.fromkeys(TYPES, "a=2 b=2 c=1")) == ["CDS a=2", "EDS b=2"]
    stream.serve(world())
    stream.settle()
    assert {reply.type for reply in stream.replies} == {"CDS", "EDS"}
    removed = {(reply.type, name) for reply in stream.replies for name in reply.removed}
    assert removed == ({("CDS", "a"), ("EDS", "b")} if variant is Variant.DELTA else set())


def ask_on_top(stream: Stream, short: str, had: str, name: str) -> None:
    """Subscribe to one more name."""
    names = (had, name) if stream.variant is Variant.SOTW else (name,)
    stream.ask(short, *names, nonce=stream.last[short].nonce)


@pytest.mark.parametrize("short", TYPES)
def test_r28_name_after_a_wildcard_is_sent_again(variant, short):
    stream = Stream(variant, world(**{short: "a=1"}))
    stream.ask(short, "*")
    assert stream.settle() == [f"{short} a=1"]
    ask_on_top(stream, short, "*", "a")
    assert stream.settle() == [f"{short} a=1"]
    stream.ask(short, *stream.names.get(short, ()), nonce=stream.last[short].nonce)
    assert stream.settle() == []


@pytest.mark.parametrize("short", sorted(TYPES.keys() - {"VHDS"}))
def test_r28_name_after_a_collection_is_sent_again(variant, short):
    stream = Stream(variant, world(**{short: "zone/a=1 zone/b=1"}))
    stream.ask(short, "zone/*")
    assert stream.settle() == [f"{short} zone/a=1 zone/b=1"]
    ask_on_top(stream, short, "zone/*", "zone/a")
    full = variant is Variant.SOTW and short in {"CDS", "LDS", "SRDS"}
    assert stream.settle() == [f"{short} zone/a=1 zone/b=1" if full else f"{short} zone/a=1"]


def test_r28_removed_name_is_not_sent_again_after_a_wildcard():
    stream = synced(Variant.SOTW, world(RTDS="a=1 b=1"), RTDS="*")
    stream.serve(world(RTDS="b=1"))
    ask_on_top(stream, "RTDS", "*", "a")
    assert stream.settle() == []
    assert stream.settle(RTDS="a=2 b=1") == ["RTDS a=2"]


def test_r30_resource_subscribed_in_several_ways_is_sent_once(variant):
    stream = Stream(variant, world(LEDS="zone/a=1 zone/b=1"))
    stream.ask("LEDS", "*", "zone/a", "zone/*", "zone/a", "*")
    assert stream.settle() == ["LEDS zone/a=1 zone/b=1"]
    assert stream.settle(LEDS="zone/a=2 zone/b=1") == ["LEDS zone/a=2"]


def test_r30_lingering_resource_that_returns_is_sent_once(variant):
    stream = Stream(variant, world(CDS="old=1", EDS="old=1", LDS="l=1>r", RDS="r=old"))
    for short, names in (("CDS", ()), ("EDS", ("old",)), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.settle()
    stream.replies.clear()
    stream.push(CDS="new=1", EDS="new=1", LDS="l=1>r", RDS="r=new")
    # The cluster lingers until its routes are removed. The returning one replaces it.
    stream.serve(world(CDS="old=2 new=1", EDS="old=1 new=1", LDS="l=1>r", RDS="r=old"))
    stream.ack("CDS")
    stream.settle()
    clusters = [reply.resources.get("old") for reply in stream.replies if reply.type == "CDS"]
    assert clusters == (["1", "2"] if variant is Variant.SOTW else [None, "2"])
