"""Resources from Envoy's messages.

`resource` encodes a message once, and derives the resource's name, version and references from its content:

    resource(Cluster(name="web", ...))                  # a message of envoy_data_plane
    resource(data, type_url=CLUSTER)                    # an encoded message
    resource(LbEndpoint(...), name="xdstp://...")       # a message that does not contain its name
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import betterproto2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from xds.codec import encode, full_name, message_class, serialize
from xds.names import check_name, is_elsewhere
from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    TYPE_PREFIX,
    VIRTUAL_HOST,
    Resource,
    ResourceKey,
)

__all__ = [
    "CLUSTER",
    "ENDPOINT",
    "EXTENSION_CONFIG",
    "LB_ENDPOINT",
    "LISTENER",
    "ROUTE",
    "RUNTIME",
    "SCOPED_ROUTE",
    "SECRET",
    "VIRTUAL_HOST",
    "ProtobufMessage",
    "Resource",
    "check_type",
    "resource",
]

_NAME_FIELDS = {
    CLUSTER: "name",
    ENDPOINT: "cluster_name",
    LISTENER: "name",
    ROUTE: "name",
    SECRET: "name",
    SCOPED_ROUTE: "name",
    RUNTIME: "name",
    EXTENSION_CONFIG: "name",
    VIRTUAL_HOST: "",  # Its name is ROUTE_CONFIGURATION/DOMAIN; the message lacks the first part.
    LB_ENDPOINT: "",
}
"""Field with the resource's name, by type; empty if the message does not contain the name."""


class ProtobufMessage(Protocol):
    """A message of the package protobuf, for type checkers that do not know that package's types."""

    @property
    def DESCRIPTOR(self) -> Any:  # noqa: N802
        """Descriptor of the message's type."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        """Return the encoded message."""


def resource(
    message: betterproto2.Message | ProtobufMessage | bytes,
    *,
    type_url: str = "",
    name: str = "",
    sources: Iterable[str] = (),
    aliases: Iterable[str] = (),
    ttl: float | None = None,
    tag: str = "",
) -> Resource:
    """Make a resource from a message, or from an encoded message and its type URL.

    The message is encoded at once, so later changes to it have no effect. Encoded messages are served
    unchanged. The references are the resources that the message makes a client subscribe to on the same
    stream, such as the assignment of an EDS cluster or the secrets of a TLS context. This function is
    thread-safe.

    The ten resource types of Envoy's API are supported. For other types, use `Resource.of`.

    Args:
        message: Message of envoy_data_plane, protobuf message, an Any with one, or encoded message.
        type_url: Type URL; required for an encoded message.
        name: Name of the resource; required for VirtualHost and LbEndpoint, which do not contain it.
        sources: Objects that the resource was made from, such as "clusters.toml:12". Rejections report them.
        aliases: Other names of a virtual host: ROUTE_CONFIGURATION/DOMAIN for each of its domains.
        ttl: Seconds after which a client drops the resource unless the server renews it (delta variant only).
        tag: Word that summarizes the content. It becomes a part of the version; see `xds.snapshot.tag_of`.

    Raises:
        TypeError: The message has an unsupported type, or another argument has the wrong type.
        ValueError: The message has no name or a name other than `name`; its xdstp name is of another type or
            not in the canonical form (see `xds.names`); or the bytes (also inside an Any) are not a message
            of the expected type.
    """
    type_url, body = _encode(message, type_url)
    kind = type_url.rpartition(".")[2]
    parsed = _parse(type_url, body, f"{kind} {name}".rstrip())
    field = _NAME_FIELDS[type_url]
    resource_name = getattr(parsed, field) if field else name
    if not resource_name:
        raise ValueError(
            f"{kind} without a name: set its {field}"
            if field
            else f"{kind} does not contain its name: pass name="
        )
    if name and resource_name != name:
        raise ValueError(f"{kind} {resource_name}: name={name!r} is not its {field}")
    check_name(type_url, resource_name)
    refs = dict.fromkeys(
        (referred_type, referred)
        for referred_type, referred in _refs(parsed, parsed, f"{kind} {resource_name}")
        if not is_elsewhere(referred, resource_name)
    )
    return Resource.of(
        type_url, resource_name, body, refs=tuple(refs), sources=sources, aliases=aliases, ttl=ttl, tag=tag
    )


def check_type(type_url: str) -> None:
    """Raise ValueError unless a string has the form of a type URL."""
    if not type_url.startswith(TYPE_PREFIX) or type_url == TYPE_PREFIX:
        raise ValueError(f"not a type URL: {type_url!r}; type URLs begin with {TYPE_PREFIX}")


def _encode(message: Any, type_url: str) -> tuple[str, bytes]:
    """Return a message's type URL and encoded form."""
    packed = _unpacked(message)
    if packed and packed[0]:
        if type_url not in ("", packed[0]):
            raise ValueError(f"the Any contains {packed[0]}, not {type_url}")
        type_url, message = packed
    if isinstance(message, bytes):
        if not type_url:
            raise ValueError("bytes have no type: call resource(data, type_url=...)")
        check_type(type_url)
        _check_supported(type_url)
        return type_url, message
    if isinstance(message, Message):
        message_type = TYPE_PREFIX + message.DESCRIPTOR.full_name
    elif isinstance(message, betterproto2.Message):
        message_type = TYPE_PREFIX + full_name(type(message))
    elif isinstance(message, bytearray | memoryview):
        kind = type(message).__name__
        raise TypeError(f"{kind} is mutable: pass a copy, resource(bytes(data), type_url=...)")
    else:
        raise TypeError(
            f"{type(message).__name__} is not a protobuf message: pass a message of envoy_data_plane,"
            " or bytes as resource(data, type_url=...)"
        )
    if type_url not in ("", message_type):
        raise ValueError(f"the message is of type {message_type}, not {type_url}")
    _check_supported(message_type)
    return message_type, serialize(message) if isinstance(message, Message) else encode(message)


def _unpacked(message: Any) -> tuple[str, bytes] | None:
    """Return the type URL and the bytes in an Any; None for other messages."""
    if isinstance(message, betterproto2.Message):
        is_any = full_name(type(message)) == _ANY
    else:
        is_any = isinstance(message, Message) and message.DESCRIPTOR.full_name == _ANY
    return (message.type_url, bytes(message.value)) if is_any else None


def _check_supported(type_url: str) -> None:
    if type_url not in _NAME_FIELDS:
        supported = ", ".join(url.rpartition(".")[2] for url in _NAME_FIELDS)
        raise TypeError(
            f"{type_url.removeprefix(TYPE_PREFIX)} is not supported: use Resource.of, or one of {supported}"
        )


def _parse(type_url: str, body: bytes, where: str) -> Any:
    name = type_url.rpartition("/")[2]
    try:
        return message_class(name).FromString(body)
    except DecodeError as error:
        raise ValueError(f"{where}: the bytes are not of type {name}") from error


# --- references ---


class _Link(NamedTuple):
    """Describes how a message type makes a client subscribe to a resource."""

    type_url: str
    """Type URL of the resource."""
    source: str
    """Field with the config source. Only resources from the same stream count as references."""
    name: str
    """Field with the resource's name. If the field is empty, the enclosing message has the name."""


_ANY = "google.protobuf.Any"
_METADATA = "envoy.config.core.v3.Metadata"
_EDS = 3
"""Value of EDS in `envoy.config.cluster.v3.Cluster.DiscoveryType`."""
_LINKS = {
    "envoy.config.cluster.v3.Cluster.EdsClusterConfig": _Link(ENDPOINT, "eds_config", "service_name"),
    "envoy.extensions.filters.network.http_connection_manager.v3.Rds": _Link(
        ROUTE, "config_source", "route_config_name"
    ),
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": _Link(SECRET, "sds_config", "name"),
    "envoy.config.core.v3.ExtensionConfigSource": _Link(EXTENSION_CONFIG, "config_source", ""),
}


def _refs(message: Any, parent: Any, where: str) -> Iterator[ResourceKey]:
    """Yield the references of a message, at any depth."""
    kind = message.DESCRIPTOR.full_name
    if kind == _ANY:
        yield from _refs_in_any(message, parent, where)
        return
    if kind in _LINKS:
        yield from _linked(_LINKS[kind], message, parent)
    elif TYPE_PREFIX + kind == SCOPED_ROUTE and message.route_configuration_name:
        # The config source of the routes is in the listener. It is nearly always the same stream.
        yield ROUTE, message.route_configuration_name
    fields = _fields_with_links(message.DESCRIPTOR)
    if not fields:
        return
    for field, value in message.ListFields():
        if field.number in fields:
            for child in _children(value):
                yield from _refs(child, message, where)


def _children(value: Any) -> Iterable[Any]:
    """Return the messages in a field, which may be singular, repeated or a map."""
    if isinstance(value, Message):
        return (value,)
    return value.values() if isinstance(value, Mapping) else value


def _refs_in_any(packed: Any, parent: Any, where: str) -> Iterator[ResourceKey]:
    try:
        message = _parse(packed.type_url, packed.value, where)
    except KeyError:
        return  # envoy_data_plane does not have the type.
    yield from _refs(message, parent, where)


def _linked(link: _Link, message: Any, parent: Any) -> Iterator[ResourceKey]:
    if link.type_url == ENDPOINT and parent.type != _EDS:
        return
    if message.HasField(link.source):
        source = getattr(message, link.source)
        name = (link.name and getattr(message, link.name)) or parent.name
        if source.WhichOneof("config_source_specifier") in ("ads", "self"):
            yield link.type_url, name


@cache
def _fields_with_links(descriptor: Descriptor) -> frozenset[int]:
    """Return the numbers of the fields that may contain a link, at any depth."""
    return frozenset(
        field.number
        for field in descriptor.fields
        if field.message_type and _may_have_links(field.message_type)
    )


@cache
def _may_have_links(descriptor: Descriptor) -> bool:
    """Whether a message of this type may contain a link, at any depth. Metadata is not searched."""
    seen: set[str] = set()
    unvisited = [descriptor]
    while unvisited:
        current = unvisited.pop()
        if current.full_name == _ANY or current.full_name in _LINKS:
            return True
        if current.full_name != _METADATA and current.full_name not in seen:
            seen.add(current.full_name)
            unvisited += [field.message_type for field in current.fields if field.message_type]
    return False
