"""The JSON form has the names of the .proto files and the content of each Any."""

from datetime import timedelta

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as tcp_proxy
from envoy_data_plane.envoy.service.discovery import v3 as discovery
from envoy_data_plane.google.protobuf import Any as PackedMessage
from envoy_data_plane.google.protobuf import ListValue, NullValue, Struct, Value
from google.protobuf.message import DecodeError

from xds.codec import encode, full_name, pack, to_dict, to_json_dict, type_url


def test_json_has_proto_names_and_decoded_anys() -> None:
    router = PackedMessage(type_url="type.googleapis.com/envoy.extensions.filters.http.router.v3.Router")
    manager = hcm.HttpConnectionManager(
        stat_prefix="inbound",
        codec_type=hcm.HttpConnectionManagerCodecType.HTTP2,
        delayed_close_timeout=timedelta(seconds=1),
        http_filters=[hcm.HttpFilter(name="router", typed_config=router)],
    )
    inbound = listener.Listener(
        name="virtualInbound",
        filter_chains=[
            listener.FilterChain(filters=[listener.Filter(name="hcm", typed_config=pack(manager))])
        ],
    )
    want = {
        "name": "virtualInbound",
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "hcm",
                        "typed_config": {
                            "@type": type_url(hcm.HttpConnectionManager),
                            "stat_prefix": "inbound",
                            "codec_type": "HTTP2",
                            "delayed_close_timeout": "1s",
                            "http_filters": [{"name": "router", "typed_config": {"@type": router.type_url}}],
                        },
                    }
                ]
            }
        ],
    }
    assert to_json_dict(inbound) == want
    assert to_dict(full_name(listener.Listener), encode(inbound)) == want
    assert to_dict(type_url(listener.Listener), encode(inbound)) == want


def test_structs_are_plain_json() -> None:
    node = core.Node(
        id="sidecar~127.0.0.1~a.b~b.svc.cluster.local",
        metadata=Struct(
            fields={
                "NAME": Value(string_value="a"),
                "PORT": Value(number_value=15001),
                "NONE": Value(null_value=NullValue.NULL_VALUE),
                "LABELS": Value(struct_value=Struct(fields={"app": Value(string_value="a")})),
                "LIST": Value(list_value=ListValue(values=[Value(bool_value=False)])),
            }
        ),
    )
    assert to_json_dict(node)["metadata"] == {
        "NAME": "a",
        "PORT": 15001,
        "NONE": None,
        "LABELS": {"app": "a"},
        "LIST": [False],
    }


def test_an_unknown_type_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        to_dict("type.googleapis.com/envoy.config.cluster.v3.Nothing", b"")


def test_an_any_of_an_unknown_type_is_a_key_error_that_names_it() -> None:
    unknown = PackedMessage(type_url="type.googleapis.com/xds.type.v3.TypedStruct", value=b"\n\1x")
    response = discovery.DiscoveryResponse(resources=[unknown])
    with pytest.raises(KeyError, match=r"xds\.type\.v3\.TypedStruct"):
        to_json_dict(response)


def test_invalid_body_raises_decode_error() -> None:
    with pytest.raises(DecodeError):
        to_dict(type_url(tcp_proxy.TcpProxy), b"\xff")


def test_maps_are_sorted() -> None:
    """Protobuf orders them differently in each process."""
    names = [f"n{number}" for number in range(50)]
    nested = Value(struct_value=Struct(fields={name: Value(bool_value=True) for name in ("z", "a")}))
    fields = {name: Value(list_value=ListValue(values=[nested])) for name in names}
    metadata = core.Metadata(filter_metadata={name: Struct(fields=fields) for name in names})
    inbound = listener.Listener(filter_chains=[listener.FilterChain(metadata=metadata)])
    (chain,) = to_json_dict(inbound)["filter_chains"]
    found = chain["metadata"]["filter_metadata"]
    assert list(found) == sorted(names)
    assert [list(each) for each in found.values()] == [sorted(names)] * 50
    assert [list(each) for each in found["n0"]["n0"]] == [["a", "z"]]


def test_empty_any_and_any_of_a_struct() -> None:
    assert to_json_dict(listener.Filter(name="x", typed_config=PackedMessage())) == {
        "name": "x",
        "typed_config": {},
    }
    struct = Struct(fields={name: Value(bool_value=True) for name in ("z", "a")})
    found = to_json_dict(listener.Filter(typed_config=pack(struct)))["typed_config"]
    assert list(found["value"]) == ["a", "z"]
