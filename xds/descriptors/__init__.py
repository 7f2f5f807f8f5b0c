"""Protobuf descriptors, fast encoding and JSON for the messages of envoy_data_plane."""

from xds.descriptors.describe import full_name
from xds.descriptors.encoding import encode, encoded, pack, serialise
from xds.descriptors.jsonform import to_dict, to_json_dict
from xds.descriptors.pool import message_class, pool, type_url

__all__ = [
    "encode",
    "encoded",
    "full_name",
    "message_class",
    "pack",
    "pool",
    "serialise",
    "to_dict",
    "to_json_dict",
    "type_url",
]
