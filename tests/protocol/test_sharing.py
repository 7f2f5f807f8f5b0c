"""Responses for many streams are joined once, and cached only while they are of use."""

from __future__ import annotations

from tests.protocol.stream import Stream, subscribed, world
from xds.protocol import responses
from xds.protocol.responses import encode_delta_response, first_part
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, Resource

BUDGET = 10_000


def some(count: int) -> tuple[Resource, ...]:
    return tuple(Resource.of(CLUSTER, f"n{number}", b"body") for number in range(count))


def test_the_same_resources_are_joined_once():
    resources = some(3)
    taken, joined = first_part(resources, BUDGET)
    assert taken == resources
    assert first_part((*resources,), BUDGET)[1] is joined
    plain = encode_delta_response(type_url=CLUSTER, version="1", nonce="2", resources=resources)
    assert encode_delta_response(type_url=CLUSTER, version="1", nonce="2", joined=(joined,)) == plain


def test_equal_resources_are_not_confused_in_the_cache():
    first, second = some(3), tuple(Resource.of(CLUSTER, f"n{number}", b"other") for number in range(3))
    assert first_part(first, BUDGET)[1] != first_part(second, BUDGET)[1]


def test_another_budget_gives_another_part():
    resources = some(3)
    assert len(first_part(resources, BUDGET)[0]) == 3
    assert len(first_part(resources, 1)[0]) == 1


def test_cache_of_joined_parts_is_bounded():
    for _ in range(3 * responses._MAX_CACHED_PARTS):
        first_part(some(2), BUDGET)
    assert len(responses._parts) == responses._MAX_CACHED_PARTS


def test_streams_with_equal_responses_share_bytes():
    served = world(CDS="a=1 b=1 c=1")
    streams = [Stream(Variant.DELTA, served) for _ in range(2)]
    for stream in streams:
        stream.ask("CDS")
        assert stream.get() == ["CDS a=1 b=1 c=1"]


def test_many_removed_names_are_split_like_resources(monkeypatch):
    stream = subscribed(Variant.DELTA, world(CDS=" ".join(f"n{number}=1" for number in range(5))), CDS="")
    stream.ack("CDS")
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 40)
    assert stream.push() == ["CDS -n0 -n1", "CDS -n2 -n3", "CDS -n4"]
