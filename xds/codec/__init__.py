"""Protobuf descriptors, fast encoding and JSON for the messages of the envoy-data-plane package."""

from xds.codec.describe import full_name
from xds.codec.encoding import encode, encode_counts, pack, serialize
from xds.codec.join import field, integer_field, join
from xds.codec.jsonform import to_dict, to_json_dict
from xds.codec.pool import message_class, pool, type_url

__all__ = [
    "encode",
    "encode_counts",
    "field",
    "full_name",
    "integer_field",
    "join",
    "message_class",
    "pack",
    "pool",
    "serialize",
    "to_dict",
    "to_json_dict",
    "type_url",
]
