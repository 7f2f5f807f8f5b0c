"""Fields of requests and responses: which are used, passed on, or ignored."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
    ResourceLocator,
)

from tests.protocol.stream import NODE, Stream, subscribed, world
from xds.protocol.session import Session, Variant
from xds.protocol.wire import DeltaRequest, SotwRequest, parse_delta_request, parse_request
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet

REQUESTS = {Variant.SOTW: DiscoveryRequest, Variant.DELTA: DeltaDiscoveryRequest}
RESPONSES = {Variant.SOTW: DiscoveryResponse, Variant.DELTA: DeltaDiscoveryResponse}
SETS = """
from xds.snapshot import CLUSTER, Resource, ResourceSet
print(ResourceSet(Resource.of(CLUSTER, name, name.encode()) for name in {"a", "b", "c"}).version)
"""


def test_r1_node_of_a_later_request_is_ignored(variant):
    session = Session(variant)
    request = REQUESTS[variant]
    for node, type_url in ((NODE, CLUSTER), ("somebody-else", CLUSTER), ("", ENDPOINT)):
        session.receive(bytes(request(node=NodeMessage(id=node), type_url=type_url)), 0.0)
        assert session.node is not None
        assert session.node.id == NODE


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.real
def test_r5_the_version_is_the_same_in_every_process(seed):
    """String hashes have a random seed, so the order of a set differs between processes."""
    there = subprocess.run(
        [sys.executable, "-c", SETS],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert there == ResourceSet(Resource.of(CLUSTER, name, name.encode()) for name in "abc").version


@pytest.mark.parametrize(
    ("short", "names"),
    [("CDS", ()), ("LDS", ()), *((short, ("a",)) for short in ("CDS", "EDS", "LDS", "RDS", "SDS"))],
)
def test_r35_first_request_with_the_served_version_is_answered(short, names):
    snapshot = world(**{short: "a=1"})
    before = Stream(Variant.SOTW, snapshot)
    before.ask(short, *names)
    before.get()
    stream = Stream(Variant.SOTW, snapshot)
    stream.ask(short, *names, version=before.last[short].version)
    assert stream.get() == [f"{short} a=1"]


@pytest.mark.parametrize("version", ["", "an older one", "current"])
def test_r10_version_of_an_answer_is_ignored(version):
    stream = subscribed(Variant.SOTW, world(EDS="a=1"), EDS="a")
    said = stream.last["EDS"].version if version == "current" else version
    (acked,) = stream.ask("EDS", "a", nonce=stream.last["EDS"].nonce, version=said)
    assert acked.version == stream.last["EDS"].version
    assert stream.get() == []


def test_r47_locators_in_a_request_are_skipped():
    locator = ResourceLocator(name="a", dynamic_parameters={"env": "prod"})
    request = DiscoveryRequest(type_url=CLUSTER, resource_names=["b"], resource_locators=[locator])
    assert parse_request(bytes(request)) == SotwRequest(type_url=CLUSTER, names=("b",))
    delta = DeltaDiscoveryRequest(
        type_url=CLUSTER,
        resource_names_subscribe=["b"],
        resource_locators_subscribe=[locator],
        resource_locators_unsubscribe=[locator],
    )
    assert parse_delta_request(bytes(delta)) == DeltaRequest(type_url=CLUSTER, subscribe=("b",))


def test_r47_r48_responses_have_no_other_fields(variant):
    stream = Stream(variant, world(CDS="a=1 b=1"))
    stream.ask("CDS", "*", "none")
    messages = []
    for snapshot in (world(CDS="a=2"), world(CDS="a=3")):
        data = stream.session.next(0.0)
        assert data is not None
        messages.append(RESPONSES[variant].parse(data))
        stream._decode(data)
        stream.ack("CDS")
        stream.serve(snapshot)
    for message in messages:
        assert message.resources
        assert message.resource_errors == []
        if variant is Variant.SOTW:
            assert message.canary is False
        else:
            assert message.removed_resources
            assert message.removed_resource_names == []
            assert all(each.resource_name is None for each in message.resources)
            assert all((each.cache_control, each.metadata) == (None, None) for each in message.resources)
