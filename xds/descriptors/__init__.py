"""Protobuf descriptors, fast encoding and JSON for the messages of envoy_data_plane."""

from xds.descriptors.describe import full_name
from xds.descriptors.encoding import encode, pack
from xds.descriptors.jsonform import to_dict, to_json_dict
from xds.descriptors.pool import message_class, pool, type_url

__all__ = ["encode", "full_name", "message_class", "pack", "pool", "to_dict", "to_json_dict", "type_url"]
