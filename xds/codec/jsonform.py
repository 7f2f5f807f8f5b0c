"""Protobuf JSON of encoded messages, with the .proto files' field names and the content of each Any."""

from __future__ import annotations

import json
from typing import Any

import betterproto2
from google.protobuf import json_format

from xds.codec.describe import full_name
from xds.codec.encoding import encode
from xds.codec.pool import message_class, pool


def to_dict(type_name: str, body: bytes) -> dict[str, Any]:
    """Return the JSON form of an encoded message.

    Args:
        type_name: Type URL or full name of the message.
        body: Encoded message.

    Raises:
        KeyError: The type, or the type of an Any inside, is unknown.
        google.protobuf.message.DecodeError: The body is not a message of the type.
    """
    message = message_class(type_name.rpartition("/")[2]).FromString(body)
    try:
        text = json_format.MessageToJson(message, preserving_proto_field_name=True, descriptor_pool=pool)
    except TypeError as error:
        raise KeyError(str(error)) from error
    # MessageToDict returns an Any as an OrderedDict, which some serializers do not accept.
    result: dict[str, Any] = json.loads(text)
    return result


def to_json_dict(message: betterproto2.Message) -> dict[str, Any]:
    """Return the JSON form of a message."""
    return to_dict(full_name(type(message)), encode(message))
