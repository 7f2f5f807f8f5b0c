"""The codec of somebody else does what tests rely on."""

from __future__ import annotations

import pytest

from tests.peers.xdsprotos import CodecError

RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"
LISTENER = {
    "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
    "name": "l",
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "hcm",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network"
                        ".http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "s",
                        "codec_type": "HTTP2",
                    },
                }
            ]
        }
    ],
}


def test_any_messages_are_decoded(codec):
    message = {"version_info": "1", "resources": [LISTENER]}
    body = codec.encode(RESPONSE, message)
    assert b"HttpConnectionManager" in body
    assert codec.decode(RESPONSE, body) == message


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        (RESPONSE, b"\xff", "DecodeError"),
        (RESPONSE, b"\xfa\x3f\x01x", "no field 1023 in envoy.service.discovery.v3.DiscoveryResponse"),
        (RESPONSE, b"\x12\x05\x0a\x03a/x", "Couldn't find message x"),
        ("envoy.config.cluster.v3.Nothing", b"", "Nothing"),
    ],
)
def test_wrong_message_is_an_error(codec, name, body, problem):
    with pytest.raises(CodecError, match=problem):
        codec.decode(name, body)


def test_unknown_field_in_an_any_is_an_error(codec):
    url = b"type.googleapis.com/envoy.config.core.v3.Address"
    packed = b"\x0a" + bytes([len(url)]) + url + b"\x12\x04\xfa\x3f\x01x"
    with pytest.raises(
        CodecError, match=r"resources\.value: no field 1023 in envoy\.config\.core\.v3\.Address"
    ):
        codec.decode(RESPONSE, b"\x12" + bytes([len(packed)]) + packed)


def test_invalid_json_form_is_an_error(codec):
    with pytest.raises(CodecError, match="no_such_field"):
        codec.encode(RESPONSE, {"no_such_field": 1})
