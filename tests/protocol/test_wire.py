"""The wire format against an independent codec, and against invalid bytes."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from envoy_data_plane.envoy.config.core.v3 import BuildVersion, ControlPlane
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from envoy_data_plane.envoy.type.v3 import SemanticVersion
from envoy_data_plane.google.protobuf import Struct, Value
from envoy_data_plane.google.rpc import Status
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xds.protocol.responses import encode_delta_response, encode_response, encoded_size
from xds.protocol.wire import (
    DeltaRequest,
    ErrorDetail,
    Node,
    RequestError,
    SotwRequest,
    parse_delta_request,
    parse_request,
)
from xds.snapshot import CLUSTER, MAX_TTL, SECRET, VIRTUAL_HOST, Resource

NAMES = st.lists(st.text(max_size=8), max_size=4)
SIZES = st.sampled_from([0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0x1FFFFF, 0x200000])


@given(names=NAMES, version=st.text(max_size=5), type_url=st.text(max_size=5), nonce=st.text(max_size=5))
def test_request_is_decoded_as_the_other_codec_encoded_it(names, version, type_url, nonce):
    message = DiscoveryRequest(
        resource_names=names, version_info=version, type_url=type_url, response_nonce=nonce
    )
    assert parse_request(bytes(message)) == SotwRequest(
        type_url=type_url, nonce=nonce, names=tuple(names), version=version
    )


@given(
    names=NAMES, gone=NAMES, versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
)
def test_delta_request_is_decoded_as_encoded(names, gone, versions):
    message = DeltaDiscoveryRequest(
        type_url=CLUSTER,
        resource_names_subscribe=names,
        resource_names_unsubscribe=gone,
        initial_resource_versions=versions,
        response_nonce="7",
    )
    assert parse_delta_request(bytes(message)) == DeltaRequest(
        type_url=CLUSTER,
        nonce="7",
        subscribe=tuple(names),
        unsubscribe=tuple(gone),
        initial_versions=tuple(versions.items()),
    )


@pytest.mark.parametrize(
    ("parse", "message"), [(parse_request, DiscoveryRequest), (parse_delta_request, DeltaDiscoveryRequest)]
)
def test_the_node_and_the_error_are_read(parse, message):
    data = bytes(
        message(
            node=NodeMessage(
                id="me",
                cluster="mine",
                user_agent_name="envoy",
                user_agent_build_version=BuildVersion(
                    version=SemanticVersion(major_number=1, minor_number=40),
                    metadata=Struct(
                        fields={
                            "revision.status": Value(string_value="Clean"),
                            "ssl.version": Value(string_value="BoringSSL"),
                        }
                    ),
                ),
                client_features=["a", "b"],
            ),
            error_detail=Status(code=13, message="no"),
        )
    )
    request = parse(data)
    assert request.node == Node(
        id="me",
        cluster="mine",
        user_agent_name="envoy",
        user_agent_version="1.40.0",
        tls_library="BoringSSL",
        client_features=("a", "b"),
    )
    assert request.error == ErrorDetail(code=13, message="no")


def test_long_tls_library_is_refused():
    metadata = Struct(fields={"ssl.version": Value(string_value="x" * 1025)})
    node = NodeMessage(id="me", user_agent_build_version=BuildVersion(metadata=metadata))
    with pytest.raises(RequestError, match=r"ssl.version is longer than 1,024 bytes"):
        parse_request(bytes(DiscoveryRequest(node=node)))


def test_user_agent_version_is_free_text():
    data = bytes(
        DiscoveryRequest(node=NodeMessage(id="me", user_agent_name="gRPC", user_agent_version="1.85 x"))
    )
    node = parse_request(data).node
    assert node is not None
    assert (node.user_agent_name, node.user_agent_version) == ("gRPC", "1.85 x")


@settings(deadline=None)
@given(
    names=st.lists(st.text(max_size=8), unique=True, max_size=3), body=SIZES, identifier=st.text(max_size=3)
)
@example(names=["a"], body=0, identifier="")
def test_the_other_codec_reads_a_response(names, body, identifier):
    resources = [Resource.of(CLUSTER, name, b"x" * body) for name in names]
    data = encode_response(
        type_url=CLUSTER, version="v", nonce="1", resources=resources, identifier=identifier
    )
    message = DiscoveryResponse.parse(data)
    assert (message.type_url, message.version_info, message.nonce) == (CLUSTER, "v", "1")
    assert [(each.type_url, each.value) for each in message.resources] == [(CLUSTER, b"x" * body)] * len(
        names
    )
    assert message.control_plane == (ControlPlane(identifier=identifier) if identifier else None)


@settings(deadline=None)
@given(
    names=st.lists(st.text(max_size=8), unique=True, max_size=3),
    body=SIZES,
    removed=NAMES,
    identifier=st.text(max_size=3),
)
def test_the_other_codec_reads_a_delta_response(names, body, removed, identifier):
    resources = [Resource.of(CLUSTER, name, b"x" * body, version="1") for name in names]
    data = encode_delta_response(
        type_url=CLUSTER, version="v", nonce="1", resources=resources, removed=removed, identifier=identifier
    )
    message = DeltaDiscoveryResponse.parse(data)
    assert (message.type_url, message.system_version_info, message.nonce) == (CLUSTER, "v", "1")
    assert [(each.name, each.version) for each in message.resources] == [(name, "1") for name in names]
    for each in message.resources:
        assert each.resource is not None
        assert (each.resource.type_url, each.resource.value) == (CLUSTER, b"x" * body)
    assert message.removed_resources == removed
    assert message.control_plane == (ControlPlane(identifier=identifier) if identifier else None)


@given(
    ttl=st.one_of(st.none(), st.floats(min_value=0.001, max_value=MAX_TTL)),
    aliases=st.lists(st.text(max_size=8), max_size=3),
)
@example(ttl=1.0, aliases=[])
@example(ttl=0.5, aliases=["r/a"])
@example(ttl=MAX_TTL, aliases=[])
def test_other_codec_decodes_aliases_and_ttl(ttl, aliases):
    resource = Resource.of(VIRTUAL_HOST, "r/v", b"body", aliases=tuple(aliases), ttl=ttl)
    data = encode_delta_response(
        type_url=VIRTUAL_HOST,
        version="v",
        nonce="1",
        resources=[resource],
        heartbeats=[resource],
        unknown=["r/x"],
    )
    full, beat, unknown = DeltaDiscoveryResponse.parse(data).resources
    assert (full.name, full.version, full.aliases, full.resource.value) == (
        "r/v",
        resource.version,
        aliases,
        b"body",
    )
    for each in (full, beat):
        assert (each.ttl is None) == (ttl is None)
        assert abs((each.ttl or timedelta()) - timedelta(seconds=ttl or 0)) <= timedelta(microseconds=1)
    assert (beat.name, beat.version, beat.resource) == ("r/v", resource.version, None)
    assert (unknown.name, unknown.aliases, unknown.resource, unknown.ttl) == ("r/x", ["r/x"], None, None)


@given(body=SIZES)
def test_encoded_size_is_the_size_in_a_response(body):
    resource = Resource.of(VIRTUAL_HOST, "a", b"x" * body, aliases=("b", "c"), ttl=300.0)
    without = encode_delta_response(type_url=VIRTUAL_HOST, version="v", nonce="1", resources=[])
    assert len(
        encode_delta_response(type_url=VIRTUAL_HOST, version="v", nonce="1", resources=[resource])
    ) - len(without) == encoded_size(resource)


def test_other_codec_decodes_resource_errors():
    data = encode_delta_response(
        type_url=SECRET, version="v", nonce="1", removed=["a", "b"], errors=[("a", "not yours"), ("b", "")]
    )
    message = DeltaDiscoveryResponse.parse(data)
    assert message.removed_resources == ["a", "b"]
    found = [
        (each.resource_name.name, each.error_detail.code, each.error_detail.message)
        for each in message.resource_errors
    ]
    assert found == [("a", 7, "not yours"), ("b", 7, "")]


@given(data=st.binary(max_size=64))
@example(data=b"\xff")
@example(data=b"\x1a\x02\xff\xfe")
@example(data=b"\x0a\xff\xff\xff\xff\x0f")
@example(data=b"\x0b" * 1000)
def test_any_bytes_are_a_request_or_rejected(data):
    for parse in (parse_request, parse_delta_request):
        with suppress(RequestError):
            parse(data)


@pytest.mark.parametrize("type_url", [CLUSTER, "type.googleapis.com/example.Other"])
@pytest.mark.parametrize("nonce", ["7", "1234567890", "", "x", "2" * 200])
def test_plain_ack_is_decoded_like_any_request(type_url, nonce):
    message = DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
    assert parse_delta_request(bytes(message)) == DeltaRequest(type_url=type_url, nonce=nonce)


def test_ack_with_a_wrong_length_is_malformed():
    message = bytes(DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce="7"))
    for data in (message[:-1], message + b"8", *(message[:-3] + bytes((last,)) for last in b"2X\0")):
        with pytest.raises(RequestError):
            parse_delta_request(data)


def test_metadata_of_the_build_version_is_limited():
    fields = {f"{number}": Value(string_value="x") for number in range(257)}
    build = BuildVersion(version=SemanticVersion(major_number=1), metadata=Struct(fields=fields))
    request = DeltaDiscoveryRequest(
        node=NodeMessage(id="n", user_agent_build_version=build), type_url=CLUSTER
    )
    with pytest.raises(RequestError, match="has more than 256 metadata fields"):
        parse_delta_request(bytes(request))
    del build.metadata.fields["0"]
    assert parse_delta_request(bytes(request)).node.id == "n"


def test_unknown_fields_are_skipped():
    assert parse_request(b"\x22\x01t\xfa\x3e\x03new") == SotwRequest(type_url="t")
