"""The wire format of discovery requests.

The schema below contains only the fields that a server uses; other fields of a request are skipped. It has
its own descriptor pool, so `xds.protocol` needs no generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from xds.protocol.limits import DEFAULT_LIMITS, Limits, RequestError
from xds.protocol.order import ORDER
from xds.protocol.subscription import NO_NAMES, NameList

_PACKAGE = "xds.protocol.wire"

_STRING = "string"
_INT = "int32"
_REPEATED = "repeated "

# `initial_resource_versions` and the fields of a Struct are maps, which have the same wire format as repeated
# pairs.
_SCHEMA = {
    "Version": (("major", 1, _INT), ("minor", 2, _INT), ("patch", 3, _INT)),
    "Value": (("string_value", 3, _STRING),),
    "Field": (("key", 1, _STRING), ("value", 2, "Value")),
    "Struct": (("fields", 1, _REPEATED + "Field"),),
    "Build": (("version", 1, "Version"), ("metadata", 2, "Struct")),
    "Node": (
        ("id", 1, _STRING),
        ("cluster", 2, _STRING),
        ("user_agent_name", 6, _STRING),
        ("user_agent_version", 7, _STRING),
        ("user_agent_build_version", 8, "Build"),
        ("client_features", 10, _REPEATED + _STRING),
    ),
    "Status": (("code", 1, _INT), ("message", 2, _STRING)),
    "Pair": (("key", 1, _STRING), ("value", 2, _STRING)),
    "Request": (
        ("version_info", 1, _STRING),
        ("node", 2, "Node"),
        ("resource_names", 3, _REPEATED + _STRING),
        ("type_url", 4, _STRING),
        ("response_nonce", 5, _STRING),
        ("error_detail", 6, "Status"),
    ),
    "DeltaRequest": (
        ("node", 1, "Node"),
        ("type_url", 2, _STRING),
        ("resource_names_subscribe", 3, _REPEATED + _STRING),
        ("resource_names_unsubscribe", 4, _REPEATED + _STRING),
        ("initial_resource_versions", 5, _REPEATED + "Pair"),
        ("response_nonce", 6, _STRING),
        ("error_detail", 7, "Status"),
    ),
}


MAX_ID_LENGTH = 1024
"""Maximum length of type_url and of each string of a node, in bytes.

These strings are stored per stream and logged.
"""
MAX_CLIENT_FEATURES = 256
"""Maximum number of items in node.client_features. Envoy sends fewer than ten."""
MAX_BUILD_FIELDS = 256
"""Maximum number of fields in the metadata of the client's build version. Envoy sends about five."""
_TLS_LIBRARY = "ssl.version"
"""Key of the TLS library in the metadata of Envoy's build version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The client's node, as the client describes itself."""

    id: str
    """ID of the node (`node.id`)."""
    cluster: str = ""
    """Cluster that the node belongs to (`node.cluster`)."""
    user_agent_name: str = ""
    """Name of the client, such as `envoy` (`node.user_agent_name`)."""
    user_agent_version: str = ""
    """Version of the client: its build version if it sends one, otherwise `node.user_agent_version`."""
    tls_library: str = ""
    """TLS library of the client, such as `BoringSSL` or `BoringSSL-FIPS`.

    It is `ssl.version` in the metadata of the client's build version."""
    client_features: tuple[str, ...] = ()
    """Features that the client supports (`node.client_features`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetail:
    """The error of a NACK (`error_detail`)."""

    code: int
    """Status code (google.rpc.Code)."""
    message: str
    """Error message of the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SotwRequest:
    """A DiscoveryRequest. It contains the whole subscription to a type, and may answer a response."""

    node: Node | None = None
    """Node of the client. Only the first request of a stream must have it."""
    type_url: str = ""
    """Type URL of the request; empty if the stream is for one type only."""
    nonce: str = ""
    """Nonce of the response that the request answers; empty if it answers none."""
    error: ErrorDetail | None = None
    """Error of a NACK; None in an ACK."""
    names: tuple[str, ...] = ()
    """All names that the client subscribes to."""
    version: str = ""
    """Version of the last response that the client accepted (`version_info`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRequest:
    """A DeltaDiscoveryRequest. It changes the subscription to a type, and may answer a response."""

    node: Node | None = None
    """Node of the client. Only the first request of a stream must have it."""
    type_url: str = ""
    """Type URL of the request; empty if the stream is for one type only."""
    nonce: str = ""
    """Nonce of the response that the request answers; empty if it answers none."""
    error: ErrorDetail | None = None
    """Error of a NACK; None in an ACK."""
    subscribe: NameList = NO_NAMES
    """Names to subscribe to."""
    unsubscribe: tuple[str, ...] = ()
    """Names to unsubscribe from."""
    initial_versions: tuple[tuple[str, str], ...] = ()
    """Name and version of each resource that the client has from an earlier stream
    (`initial_resource_versions`).
    """


def parse_request(data: bytes, limits: Limits = DEFAULT_LIMITS) -> SotwRequest:
    """Decode a DiscoveryRequest.

    Raises:
        RequestError: The request is malformed.
        LimitError: The request has too many names, or a name is too long.
    """
    message = _decode(_REQUEST, data)
    _check(message, limits, "resource_names")
    names = tuple(message.resource_names)
    limits.check_length("resource_names", names)
    return SotwRequest(
        node=_node(message),
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=_error(message),
        names=names,
        version=message.version_info,
    )


def parse_delta_request(data: bytes, limits: Limits = DEFAULT_LIMITS) -> DeltaRequest:
    """Decode a DeltaDiscoveryRequest.

    Raises:
        RequestError: The request is malformed.
        LimitError: The request has too many names, or a name is too long.
    """
    if len(data) <= _MAX_ACK and (plain := _parse_ack(data)):
        return plain
    is_common = _MIN_CACHED <= len(data) <= _MAX_CACHED and not data.startswith(_NODE_TAG)
    return _parse_common(data, limits) if is_common else _parse_delta(data, limits)


@lru_cache(maxsize=16)
def _parse_common(data: bytes, limits: Limits) -> DeltaRequest:
    """Decode a request that many clients send, such as a subscription to all assignments."""
    return _parse_delta(data, limits)


def _parse_delta(data: bytes, limits: Limits) -> DeltaRequest:
    message = _decode(_DELTA_REQUEST, data)
    _check(
        message,
        limits,
        "resource_names_subscribe",
        "resource_names_unsubscribe",
        "initial_resource_versions",
    )
    subscribe = NameList(message.resource_names_subscribe)
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


@lru_cache(maxsize=256)
def _parse_ack(data: bytes) -> DeltaRequest | None:
    """Decode a delta request that has only the URL of a common type and a nonce; return None for another one.

    Nearly all requests are such ACKs. They are decoded in a sixth of the time that a protobuf message takes,
    and many clients send the same bytes.
    """
    end = data.find(_NONCE_TAG)
    type_url = _TYPE_FIELDS.get(data[:end])
    nonce = data[end + 2 :]
    if type_url is None or not nonce.isdigit() or data[end + 1] != len(nonce):
        return None
    return DeltaRequest(type_url=type_url, nonce=nonce.decode())


def _check(message: Any, limits: Limits, *lists: str) -> None:
    """Check a request's size before it is processed.

    Error messages must be short, because gRPC sends them in a header.
    """
    for name in lists:
        limits.check_count(name, len(getattr(message, name)))
    _check_length("type_url", message.type_url)
    if not message.HasField("node"):
        return
    node = message.node
    if len(node.user_agent_build_version.metadata.fields) > MAX_BUILD_FIELDS:
        raise RequestError(f"node.user_agent_build_version has more than {MAX_BUILD_FIELDS} metadata fields")
    stored = (
        ("node.id", node.id),
        ("node.cluster", node.cluster),
        ("node.user_agent_name", node.user_agent_name),
        ("node.user_agent_version", node.user_agent_version),
        (_TLS_LIBRARY, _tls_library(node)),
        *(("node.client_features", feature) for feature in node.client_features[:MAX_CLIENT_FEATURES]),
    )
    for name, value in stored:
        _check_length(name, value)
    if len(node.client_features) > MAX_CLIENT_FEATURES:
        raise RequestError(f"node.client_features has more than {MAX_CLIENT_FEATURES} items")


def _check_length(name: str, value: str) -> None:
    if len(value.encode()) > MAX_ID_LENGTH:
        raise RequestError(f"{name} is longer than {MAX_ID_LENGTH:,} bytes")


def _node(message: Any) -> Node | None:
    if not message.HasField("node"):
        return None
    node = message.node
    build = node.user_agent_build_version.version
    has_build = node.HasField("user_agent_build_version")
    return Node(
        id=node.id,
        cluster=node.cluster,
        user_agent_name=node.user_agent_name,
        user_agent_version=f"{build.major}.{build.minor}.{build.patch}"
        if has_build
        else node.user_agent_version,
        tls_library=_tls_library(node),
        client_features=tuple(node.client_features),
    )


def _tls_library(node: Any) -> str:
    fields = node.user_agent_build_version.metadata.fields
    return next((field.value.string_value for field in fields if field.key == _TLS_LIBRARY), "")


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
    repeated = kind.startswith(_REPEATED)
    kind = kind.removeprefix(_REPEATED)
    field = FieldDescriptorProto(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL,
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


_MIN_CACHED, _MAX_CACHED = 4096, 256 * 1024
"""Sizes of other requests whose decoded form is cached, in bytes. Smaller ones are decoded fast enough."""
_MAX_ACK = 128
"""Maximum size of a request that may be an ACK without other fields, in bytes."""
_NODE_TAG = b"\n"
"""Tag of `node`: field 1, length-delimited. No other client sends the same node."""
_NONCE_TAG = b"2"
"""Tag of `response_nonce`: field 6, length-delimited."""
_TYPE_FIELDS = {b"\x12" + bytes((len(url),)) + url.encode(): url for url in ORDER}
"""URLs of the common types, by the encoded field `type_url`."""
_POOL = _schema()
_REQUEST = _message_class(_POOL, "Request")
_DELTA_REQUEST = _message_class(_POOL, "DeltaRequest")
