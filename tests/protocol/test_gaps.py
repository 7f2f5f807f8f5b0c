"""What should be and is not yet: each is strictly expected to fail, so that who mends it moves it to where it belongs."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.session import Variant


@pytest.mark.xfail(reason="clusters come first, though they take one away that is in use")
def test_r41_a_client_that_names_clusters_keeps_those_that_are_gone_until_it_has_its_routes():
    """gRPC names the clusters of the routes that it has when it reconnects, and drops what it is not sent."""
    stream = Stream(Variant.SOTW, world(CDS="b=1", EDS="b=1", LDS="l=1>r", RDS="r=b"))
    for short, name in (("CDS", "a"), ("EDS", "a"), ("LDS", "l"), ("RDS", "r")):
        stream.ask(short, name, version="known")
    assert stream.get()[:2] == ["LDS l=1", "RDS r=b"]
