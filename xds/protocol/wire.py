"""The wire format of discovery requests.

Only the fields that a server acts on are described; everything else in a request is skipped. The description is
this module's own, in a pool of its own, so that the protocol stands without any generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from xds.protocol.limits import DEFAULT_LIMITS, Limits, RequestError

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


MAX_ID_LENGTH = 1024
"""Bytes of the longest node.id, type_url and other text of a node: they are kept for each stream, and said in the log."""
MAX_CLIENT_FEATURES = 256
"""Items of node.client_features, of at most MAX_ID_LENGTH bytes each: Envoy has fewer than ten."""


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


def parse_request(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Request:
    """Read a DiscoveryRequest. RequestError: it is malformed; LimitError: it has too many names, or too long ones."""
    message = _decode(_REQUEST, data)
    _check(message, limits, "resource_names")
    names = tuple(message.resource_names)
    limits.check_length("resource_names", names)
    return Request(
        node=_node(message),
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=_error(message),
        names=names,
        version=message.version_info,
    )


def parse_delta_request(data: bytes, limits: Limits = DEFAULT_LIMITS) -> DeltaRequest:
    """Read a DeltaDiscoveryRequest. RequestError: it is malformed; LimitError: it has too many names, or too long ones."""
    message = _decode(_DELTA_REQUEST, data)
    _check(
        message,
        limits,
        "resource_names_subscribe",
        "resource_names_unsubscribe",
        "initial_resource_versions",
    )
    subscribe = tuple(message.resource_names_subscribe)
    unsubscribe = tuple(message.resource_names_unsubscribe)
    versions = tuple((pair.key, pair.value) for pair in message.initial_resource_versions)
    limits.check_length("resource_names_subscribe", subscribe)
    limits.check_length("resource_names_unsubscribe", unsubscribe)
    limits.check_length("initial_resource_versions", (name for name, _ in versions))
    return DeltaRequest(
        node=_node(message),
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=_error(message),
        subscribe=subscribe,
        unsubscribe=unsubscribe,
        initial_versions=versions,
    )


def _check(message: Any, limits: Limits, *lists: str) -> None:
    """Refuse what is too much before anything is done with it, and say so in few words: they go into a header."""
    for name in lists:
        limits.check_count(name, len(getattr(message, name)))
    node = message.node
    kept = (
        ("node.id", node.id),
        ("node.cluster", node.cluster),
        ("node.user_agent_name", node.user_agent_name),
        ("node.user_agent_version", node.user_agent_version),
        *(("node.client_features", feature) for feature in node.client_features[:MAX_CLIENT_FEATURES]),
        ("type_url", message.type_url),
    )
    for name, value in kept:
        if len(value.encode()) > MAX_ID_LENGTH:
            raise RequestError(f"{name} is longer than {MAX_ID_LENGTH:,} bytes")
    if len(node.client_features) > MAX_CLIENT_FEATURES:
        raise RequestError(f"node.client_features has more than {MAX_CLIENT_FEATURES} items")


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
