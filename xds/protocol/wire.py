"""The wire format of discovery: requests from bytes, responses joined from bytes that are ready already.

Only the fields that a server acts on are described; everything else in a request is skipped. The description is
this module's own, in a pool of its own, so that the protocol stands without any generated code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from xds.snapshot import Resource

_PACKAGE = "xds.protocol.wire"

_STRING = "string"
_INT = "int32"
_MANY = "repeated "

# Initial versions are a map on the wire, which is the same bytes as repeated pairs.
_SCHEMA = {
    "Version": (("major", 1, _INT), ("minor", 2, _INT), ("patch", 3, _INT)),
    "Build": (("version", 1, "Version"),),
    "Node": (
        ("id", 1, _STRING),
        ("cluster", 2, _STRING),
        ("user_agent_name", 6, _STRING),
        ("user_agent_version", 7, _STRING),
        ("user_agent_build_version", 8, "Build"),
        ("client_features", 10, _MANY + _STRING),
    ),
    "Status": (("code", 1, _INT), ("message", 2, _STRING)),
    "Pair": (("key", 1, _STRING), ("value", 2, _STRING)),
    "Request": (
        ("version_info", 1, _STRING),
        ("node", 2, "Node"),
        ("resource_names", 3, _MANY + _STRING),
        ("type_url", 4, _STRING),
        ("response_nonce", 5, _STRING),
        ("error_detail", 6, "Status"),
    ),
    "DeltaRequest": (
        ("node", 1, "Node"),
        ("type_url", 2, _STRING),
        ("resource_names_subscribe", 3, _MANY + _STRING),
        ("resource_names_unsubscribe", 4, _MANY + _STRING),
        ("initial_resource_versions", 5, _MANY + "Pair"),
        ("response_nonce", 6, _STRING),
        ("error_detail", 7, "Status"),
    ),
}


class RequestError(ValueError):
    """A request that no client should send; its stream ends with INVALID_ARGUMENT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who is at the other end, in its own words."""

    id: str
    cluster: str = ""
    user_agent_name: str = ""
    user_agent_version: str = ""
    client_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetail:
    """Why a client rejected a response."""

    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A DiscoveryRequest: the whole subscription to a type, and an answer to the response that it names."""

    node: Node | None = None
    """Only the first request of a stream is sure to have it."""
    type_url: str = ""
    nonce: str = ""
    error: ErrorDetail | None = None
    names: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRequest:
    """A DeltaDiscoveryRequest: changes to the subscription to a type, and an answer to one response."""

    node: Node | None = None
    type_url: str = ""
    nonce: str = ""
    error: ErrorDetail | None = None
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: tuple[tuple[str, str], ...] = ()
    """Name and version of what the client has from an earlier stream."""


def parse_request(data: bytes) -> Request:
    """Read a DiscoveryRequest, or raise RequestError."""
    message = _decode(_REQUEST, data)
    return Request(
        node=_node(message),
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=_error(message),
        names=_names(message.resource_names),
        version=message.version_info,
    )


def parse_delta_request(data: bytes) -> DeltaRequest:
    """Read a DeltaDiscoveryRequest, or raise RequestError."""
    message = _decode(_DELTA_REQUEST, data)
    return DeltaRequest(
        node=_node(message),
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=_error(message),
        subscribe=_names(message.resource_names_subscribe),
        unsubscribe=_names(message.resource_names_unsubscribe),
        initial_versions=tuple((pair.key, pair.value) for pair in message.initial_resource_versions),
    )


def response(
    *, type_url: str, version: str, nonce: str, resources: Iterable[Resource], identifier: str = ""
) -> bytes:
    """Join a DiscoveryResponse."""
    parts = [_text(1, version)]
    for resource in resources:
        parts += _any_head(resource.type_url, len(resource.body)), resource.body
    parts += _text(4, type_url), _text(5, nonce), _control_plane(6, identifier)
    return b"".join(parts)


def delta_response(
    *,
    type_url: str,
    version: str,
    nonce: str,
    resources: Iterable[Resource],
    removed: Iterable[str] = (),
    identifier: str = "",
) -> bytes:
    """Join a DeltaDiscoveryResponse."""
    parts = [_text(1, version)]
    for resource in resources:
        parts += _resource_head(resource), resource.body
    parts += _text(4, type_url), _text(5, nonce)
    parts += (_bytes(6, name.encode()) for name in removed)
    parts.append(_control_plane(7, identifier))
    return b"".join(parts)


def size(resource: Resource) -> int:
    """Return how many bytes a resource takes in a delta response, which is a little more than in the other kind."""
    return len(_resource_head(resource)) + len(resource.body)


# A resource's body is by far the most of it, so what is kept is only what goes before the body: small, and the
# same for every stream. The fields of a message may come in any order, so the body can be the last of them.


@lru_cache(maxsize=1 << 12)
def _any_head(type_url: str, body: int) -> bytes:
    """Everything of a DiscoveryResponse's `resources` element that goes before the resource's own `body` bytes."""
    return _tag(2, _any_size(type_url, body)) + _any(type_url, body)


def _resource_head(resource: Resource) -> bytes:
    """Everything of a DeltaDiscoveryResponse's `resources` element that goes before the resource's own bytes."""
    return _named_head(resource.type_url, resource.name, resource.version, len(resource.body))


@lru_cache(maxsize=1 << 16)
def _named_head(type_url: str, name: str, version: str, body: int) -> bytes:
    wrapper = _any_size(type_url, body)
    head = _text(3, name) + _text(1, version) + _tag(2, wrapper)
    return _tag(2, len(head) + wrapper) + head + _any(type_url, body)


def _any(type_url: str, body: int) -> bytes:
    return _text(1, type_url) + _tag(2, body)


def _any_size(type_url: str, body: int) -> int:
    return len(_any(type_url, body)) + body


def _control_plane(number: int, identifier: str) -> bytes:
    return _bytes(number, _text(1, identifier)) if identifier else b""


def _text(number: int, text: str) -> bytes:
    return _bytes(number, text.encode()) if text else b""


def _bytes(number: int, payload: bytes) -> bytes:
    return _tag(number, len(payload)) + payload


def _tag(number: int, length: int) -> bytes:
    """The start of a length-delimited field with a number below 16."""
    head = bytearray((number << 3 | 2,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Take names out of a request. A thousand proxies name the same resources, whose names need not be there twice."""
    return tuple(map(intern, names))


def _node(message: Any) -> Node | None:
    if not message.HasField("node"):
        return None
    node = message.node
    build = node.user_agent_build_version.version
    numbered = node.HasField("user_agent_build_version")
    return Node(
        id=node.id,
        cluster=node.cluster,
        user_agent_name=node.user_agent_name,
        user_agent_version=f"{build.major}.{build.minor}.{build.patch}"
        if numbered
        else node.user_agent_version,
        client_features=tuple(node.client_features),
    )


def _error(message: Any) -> ErrorDetail | None:
    if not message.HasField("error_detail"):
        return None
    return ErrorDetail(code=message.error_detail.code, message=message.error_detail.message)


def _decode(cls: Any, data: bytes) -> Any:
    try:
        return cls.FromString(data)
    except DecodeError as error:
        raise RequestError("the request is not a protobuf message of the expected type") from error


def _message_class(pool: DescriptorPool, name: str) -> Any:
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _schema() -> DescriptorPool:
    file = FileDescriptorProto(name="xds/protocol/wire.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _SCHEMA.items():
        file.message_type.append(DescriptorProto(name=name, field=[_field(*field) for field in fields]))
    pool = DescriptorPool()
    pool.Add(file)
    return pool


def _field(name: str, number: int, kind: str) -> FieldDescriptorProto:
    many = kind.startswith(_MANY)
    kind = kind.removeprefix(_MANY)
    field = FieldDescriptorProto(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_REPEATED if many else FieldDescriptorProto.LABEL_OPTIONAL,
    )
    match kind:
        case "string":
            field.type = FieldDescriptorProto.TYPE_STRING
        case "int32":
            field.type = FieldDescriptorProto.TYPE_INT32
        case _:
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{kind}"
    return field


_POOL = _schema()
_REQUEST = _message_class(_POOL, "Request")
_DELTA_REQUEST = _message_class(_POOL, "DeltaRequest")
