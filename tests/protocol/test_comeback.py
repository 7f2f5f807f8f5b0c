"""Clients that lost their last stream while clusters were warming: Envoy then asks for these last, when they are warm."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.session import Variant
from xds.snapshot import ENDPOINT

WORLD = world(CDS="a=2 new=1", EDS="a=1 new=1", SDS="s=1", LDS="l=1>r", RDS="r=new")


@pytest.fixture(params=Variant, ids=lambda variant: variant.value)
def variant(request) -> Variant:
    return request.param


def come_back(variant: Variant, **options) -> Stream:
    """A client that has the old routes, and waits for the assignment of a cluster that has changed."""
    stream = Stream(variant, WORLD, **options)
    stream.ask("EDS", "a", **brought(variant, a="1"))
    stream.ask("LDS", **brought(variant, l="1"))
    stream.ask("RDS", "r", **brought(variant, r="a"))
    return stream


def brought(variant: Variant, **versions: str) -> dict:
    return {"initial": versions} if variant is Variant.DELTA else {"version": "1"}


def test_r38_it_is_sent_the_assignments_that_it_says_it_has(variant):
    stream = come_back(variant)
    assert stream.get() == ["EDS a=1"]
    stream.ack("EDS")
    assert stream.get() == []


def test_r38_so_is_it_if_the_server_had_nothing_to_serve_yet():
    stream = Stream(Variant.DELTA)
    stream.ask("EDS", "a", "gone", initial={"a": "1", "gone": "1"})
    assert stream.get() == []
    stream.serve(WORLD)
    assert stream.get() == ["EDS a=1 -gone"]


def test_r43_its_routes_wait_for_the_clusters_that_it_will_ask_for(variant):
    stream = come_back(variant)
    stream.get()
    stream.ask("CDS", **brought(variant, a="2"))
    assert stream.get() == ["CDS new=1" if variant is Variant.DELTA else "CDS a=2 new=1", *again(variant)]
    stream.ask("EDS", "a", "new") if variant is Variant.SOTW else stream.ask("EDS", "new")
    assert stream.get() == ["EDS new=1"]
    stream.ack("CDS")
    assert stream.get() == (["RDS r=new"] if variant is Variant.DELTA else ["LDS l=1", "RDS r=new"])


def again(variant: Variant) -> list[str]:
    """What follows clusters that may all be news."""
    return ["EDS a=1"] if variant is Variant.SOTW else []


def test_r42_its_routes_do_not_wait_for_ever(variant):
    stream = come_back(variant)
    assert stream.get() == ["EDS a=1"]
    assert stream.session.deadline() == 1.0
    stream.now = 1.0
    assert stream.get() == (["RDS r=new"] if variant is Variant.DELTA else ["LDS l=1", "RDS r=new"])


def test_r42_and_not_at_all_if_it_can_answer_nothing(variant):
    stream = come_back(variant)
    stream.session.expect_no_answers()
    assert stream.get()[-1] == "RDS r=new"


def test_r36_who_asks_for_clusters_first_is_not_sent_the_assignments_that_it_has():
    stream = Stream(Variant.DELTA, WORLD)
    stream.ask("CDS", initial={"a": "2", "new": "1"})
    stream.ask("EDS", "a", "new", initial={"a": "1", "new": "1"})
    assert stream.get() == []


def test_r36_nor_is_a_stream_of_assignments_alone():
    stream = Stream(Variant.DELTA, WORLD, type_url=ENDPOINT)
    stream.ask("", "a", initial={"a": "1"})
    assert stream.get() == []


def test_r42_the_routes_of_a_new_client_do_not_wait_for_clusters_that_it_does_not_ask_for(variant):
    stream = Stream(variant, WORLD)
    stream.ask("EDS", "a")
    stream.ask("RDS", "r")
    assert stream.get() == ["EDS a=1", "RDS r=new"]
