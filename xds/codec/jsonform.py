"""Protobuf JSON of encoded messages, with the .proto files' field names and the content of each Any."""

from __future__ import annotations

import json
from typing import Any

import betterproto2
from google.protobuf import json_format

from xds.codec.describe import full_name
from xds.codec.encoding import encode
from xds.codec.pool import message_class, pool

_PLAIN = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))
"""Messages whose JSON form is any JSON value."""


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
    result: dict[str, Any] = _sorted_maps(json.loads(text), message.DESCRIPTOR)
    return result


def _sorted_maps(value: Any, descriptor: Any) -> Any:
    """Sort the maps in the JSON form of a message. Protobuf orders them differently in each process."""
    if descriptor.full_name in _PLAIN:
        return _sorted(value)
    if descriptor.full_name == "google.protobuf.Any" and value:
        descriptor = pool.FindMessageTypeByName(value["@type"].rpartition("/")[2])
        if descriptor.full_name in _PLAIN:
            return value | {"value": _sorted(value["value"])}
    for field in descriptor.fields if isinstance(value, dict) else ():
        kind, content = field.message_type, value.get(field.name)
        if kind is None or content is None:
            continue
        if kind.GetOptions().map_entry:
            item = kind.fields_by_name["value"].message_type
            value[field.name] = {
                key: _sorted_maps(content[key], item) if item else content[key] for key in sorted(content)
            }
        elif isinstance(content, list):
            value[field.name] = [_sorted_maps(each, kind) for each in content]
        else:
            value[field.name] = _sorted_maps(content, kind)
    return value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def to_json_dict(message: betterproto2.Message) -> dict[str, Any]:
    """Return the JSON form of a message."""
    return to_dict(full_name(type(message)), encode(message))
