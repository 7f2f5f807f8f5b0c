"""Resources rejected only because of others in the same response are sent again once, without the others."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, subscribed, world
from xds.protocol.session import Variant
from xds.protocol.status import State


def unfit(name: str) -> str:
    return f'name: "{name}" connect_timeout {{ }} Proto constraint validation failed'


def clusters(text: str, route: str = "one"):
    assignments = " ".join(f"{word.partition('=')[0]}=1" for word in text.split())
    return world(CDS=text, EDS=assignments, LDS="l=1>r", RDS=f"r={route}")


def connect(variant: Variant, text: str = "one=1") -> Stream:
    """A client with clusters and a route that subscribes to some assignments."""
    stream = Stream(variant, clusters(text))
    for short, names in (("CDS", ()), ("EDS", ("one", "bad", "new", "also")), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.settle()
    stream.replies.clear()
    return stream


def sent(stream: Stream, short: str) -> list[str]:
    return [reply for reply in stream.get() if reply.startswith(short)]


def states(stream: Stream) -> dict[str, State]:
    return {each.name: each.state for each in stream.session.status()[0].resources}


def test_r12_bystanders_are_sent_without_the_rejected_resource(variant):
    stream = connect(variant)
    stream.serve(clusters("one=1 bad=1 new=1", "new"))
    stream.get()
    stream.nack("CDS", unfit("bad"))
    assert stream.get()[0] == ("CDS new=1" if variant is Variant.DELTA else "CDS new=1 one=1")
    assert all(reply.type != "RDS" for reply in stream.replies)
    stream.ack("CDS")
    assert stream.get() == ["RDS r=new"]
    assert states(stream) == {"one": State.SYNCED, "bad": State.ERROR, "new": State.SYNCED}
    stream.serve(clusters("one=1 bad=1 new=2", "new"))
    assert stream.get()[0] == ("CDS new=2" if variant is Variant.DELTA else "CDS new=2 one=1")
    stream.ack("CDS")
    stream.serve(clusters("one=1 bad=2 new=2", "new"))
    assert stream.get()[0] == ("CDS bad=2" if variant is Variant.DELTA else "CDS bad=2 new=2 one=1")
    stream.ack("CDS")
    assert set(states(stream).values()) == {State.SYNCED}


def test_r12_previous_version_replaces_the_suspect_in_the_retry():
    stream = connect(Variant.SOTW, "one=1 bad=1")
    stream.serve(clusters("one=1 bad=2 new=1", "new"))
    stream.get()
    stream.nack("CDS", unfit("bad"))
    assert stream.get()[0] == "CDS bad=1 new=1 one=1"
    stream.ack("CDS")
    assert stream.get() == ["RDS r=new"]
    assert states(stream) == {"one": State.SYNCED, "bad": State.ERROR, "new": State.SYNCED}


def test_r12_unchanged_bystander_keeps_its_previous_version():
    stream = connect(Variant.SOTW, "one=1")
    stream.serve(clusters("one=1 new=1"))
    stream.get()
    stream.nack("CDS", "something is wrong")
    stream.serve(clusters("one=2 new=1"))
    assert sent(stream, "CDS") == ["CDS new=1 one=2"]
    stream.nack("CDS", unfit("one"))
    assert sent(stream, "CDS") == ["CDS new=1 one=1"]


def test_r12_unchanged_bystanders_are_not_sent_again(variant):
    stream = connect(variant)
    stream.serve(clusters("one=1 bad=1"))
    stream.get()
    stream.nack("CDS", unfit("bad"))
    assert sent(stream, "CDS") == []
    assert states(stream) == {"one": State.SYNCED, "bad": State.ERROR}
    stream.serve(clusters("one=2 bad=1"))
    assert stream.settle()[0] == "CDS one=2"
    stream.serve(clusters("one=2"))
    stream.settle()
    assert states(stream) == {"one": State.SYNCED}
    assert stream.session.status()[0].synced


@pytest.mark.parametrize("message", [unfit("new"), "something is wrong"])
def test_r12_bystander_rejected_in_the_retry_is_held(variant, message):
    stream = connect(variant)
    stream.serve(clusters("one=1 bad=1 new=1 also=1"))
    stream.get()
    stream.nack("CDS", unfit("bad"))
    assert len(sent(stream, "CDS")) == 1
    stream.nack("CDS", message)
    assert sent(stream, "CDS") == []
    stream.serve(clusters("one=1 bad=1 new=2 also=1"))
    assert sent(stream, "CDS") == [
        "CDS also=1 new=2" if variant is Variant.DELTA else "CDS also=1 new=2 one=1"
    ]
    stream.ack("CDS")
    stream.get()
    assert states(stream)["bad"] is State.ERROR
    assert states(stream)["also"] is State.SYNCED


def test_r12_each_change_is_retried_once_without_the_rejected(variant):
    stream = connect(variant)
    for version in (1, 2, 3):
        stream.serve(clusters(f"one=1 bad={version} new={version}"))
        with_it = f"CDS bad={version} new={version}"
        without = f"CDS new={version}"
        rest = "" if variant is Variant.DELTA else " one=1"
        assert sent(stream, "CDS") == [with_it + rest]
        stream.nack("CDS", unfit("bad"))
        assert sent(stream, "CDS") == [without + rest]
        stream.ack("CDS")


def test_r12_suspect_fixed_meanwhile_is_sent_with_bystanders(variant):
    stream = connect(variant)
    stream.serve(clusters("one=1 bad=1 new=1"))
    stream.get()
    first = stream.last["CDS"].nonce
    stream.serve(clusters("one=1 bad=2 new=1"))
    stream.nack("CDS", unfit("bad"), nonce=first)
    assert sent(stream, "CDS") == ["CDS bad=2 new=1" if variant is Variant.DELTA else "CDS bad=2 new=1 one=1"]
    stream.nack("CDS", unfit("bad"))
    assert sent(stream, "CDS") == ["CDS new=1" if variant is Variant.DELTA else "CDS new=1 one=1"]


def test_r12_suspect_with_unknown_version_is_not_omitted():
    stream = Stream(Variant.SOTW, clusters("one=1 bad=1"))
    stream.ask("CDS", version="known")
    stream.get()
    stream.nack("CDS", unfit("bad"))
    assert sent(stream, "CDS") == []


def test_r12_bystander_assignments_are_sent_again(variant):
    stream = subscribed(variant, world(EDS="a=1 b=1"), EDS="a b")
    stream.nack("EDS", unfit("a"))
    assert stream.settle() == ["EDS b=1"]


@pytest.mark.parametrize(
    ("message", "retry"), [(f'{unfit("bad")} alt: "one"', ["CDS new=1 one=1"]), (unfit("one"), [])]
)
def test_r12_retry_does_not_omit_a_suspect_that_the_client_uses(message, retry):
    stream = connect(Variant.SOTW)
    stream.serve(clusters("one=1 bad=1 new=1"))
    stream.get()
    stream.nack("CDS", message)
    assert sent(stream, "CDS") == retry
