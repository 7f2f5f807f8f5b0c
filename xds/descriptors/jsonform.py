"""Protobuf's JSON form of encoded messages, with the field names of the .proto files and every Any opened."""

from __future__ import annotations

from typing import Any

import betterproto2
from google.protobuf import json_format

from xds.descriptors.encoding import encode
from xds.descriptors.pool import message_class, pool, type_url


def to_dict(type_name: str, body: bytes) -> dict[str, Any]:
    """Return the JSON form of an encoded message, given its type URL or full name.

    A type that is not there is a KeyError, at the top and inside an Any; a body that is no such message is a
    google.protobuf.message.DecodeError.
    """
    message = message_class(type_name.rpartition("/")[2]).FromString(body)
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)


def to_json_dict(message: betterproto2.Message) -> dict[str, Any]:
    """Return the JSON form of a message."""
    return to_dict(type_url(message), encode(message))
