"""Protobuf descriptors, fast encoding and JSON for the messages of envoy_data_plane."""

from xds.descriptors.encoding import encode, pack
from xds.descriptors.jsonform import to_dict, to_json_dict
from xds.descriptors.pool import message_class, pool, type_url

__all__ = ["encode", "message_class", "pack", "pool", "to_dict", "to_json_dict", "type_url"]
