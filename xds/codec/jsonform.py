"""Protobuf's JSON form of encoded messages, with the field names of the .proto files and every Any opened."""

from __future__ import annotations

import json
from typing import Any

import betterproto2
from google.protobuf import json_format

from xds.codec.describe import full_name
from xds.codec.encoding import encode
from xds.codec.pool import message_class, pool


def to_dict(type_name: str, body: bytes) -> dict[str, Any]:
    """Return the JSON form of an encoded message, given its type URL or its full name.

    A type that is not known, here or in an Any inside, is a KeyError; a body that is no such message is protobuf's
    DecodeError.
    """
    message = message_class(type_name.rpartition("/")[2]).FromString(body)
    try:
        text = json_format.MessageToJson(message, preserving_proto_field_name=True, descriptor_pool=pool)
    except TypeError as error:
        raise KeyError(str(error)) from error
    # By way of text: MessageToDict gives an Any as an OrderedDict, which not every writer takes.
    found: dict[str, Any] = json.loads(text)
    return found


def to_json_dict(message: betterproto2.Message) -> dict[str, Any]:
    """Return the JSON form of a message."""
    return to_dict(full_name(type(message)), encode(message))
