"""What should be and is not yet: each is strictly expected to fail, so that who mends it moves it to where it belongs."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.session import Variant


@pytest.fixture(params=Variant, ids=lambda variant: variant.value)
def variant(request) -> Variant:
    return request.param


@pytest.mark.xfail(reason="what was rejected as a whole is held as a whole, and its routes are sent")
def test_r12_what_was_rejected_because_of_another_is_sent_without_it(variant):
    """Envoy takes nothing of a response in which one resource breaks a constraint of its proto, and names that one."""
    stream = Stream(variant, world(CDS="one=1", EDS="one=1", LDS="l=1>r", RDS="r=one"))
    for short, names in (("CDS", ()), ("EDS", ("one", "new")), ("LDS", ()), ("RDS", ("r",))):
        stream.ask(short, *names)
    stream.settle()
    stream.replies.clear()
    stream.serve(world(CDS="one=1 bad=1 new=1", EDS="one=1 new=1", LDS="l=1>r", RDS="r=new"))
    stream.get()
    stream.nack("CDS", 'name: "bad" connect_timeout { } Proto constraint validation failed')
    assert stream.get()[0] == ("CDS new=1" if variant is Variant.DELTA else "CDS new=1 one=1")
    assert all(reply.type != "RDS" for reply in stream.replies)


@pytest.mark.xfail(reason="clusters come first, though they take one away that is in use")
def test_r41_a_client_that_names_clusters_keeps_those_that_are_gone_until_it_has_its_routes():
    """gRPC names the clusters of the routes that it has when it reconnects, and drops what it is not sent."""
    stream = Stream(Variant.SOTW, world(CDS="b=1", EDS="b=1", LDS="l=1>r", RDS="r=b"))
    for short, name in (("CDS", "a"), ("EDS", "a"), ("LDS", "l"), ("RDS", "r")):
        stream.ask(short, name, version="known")
    assert stream.get()[:2] == ["LDS l=1", "RDS r=b"]
