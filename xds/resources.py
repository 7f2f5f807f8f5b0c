"""Envoy's messages as resources: encoded once, with the name, the version and the references that their content has.

resource(Cluster(name="web", ...))                  # a message of envoy_data_plane
resource(data, type_url=CLUSTER)                    # ready bytes
resource(LbEndpoint(...), name="xdstp://...")       # a message that does not say its name
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import betterproto2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from xds.codec import encode, full_name, message_class, serialize
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
    VIRTUAL_HOST: "",  # It is asked for as ROUTE_CONFIGURATION/DOMAIN, of which it knows only a part.
    LB_ENDPOINT: "",
}
"""By type that clients ask for, the field with the name that they ask by; empty where the message does not say it."""


def resource(
    message: betterproto2.Message | Message | bytes,
    *,
    type_url: str = "",
    name: str = "",
    sources: Iterable[str] = (),
    aliases: Iterable[str] = (),
    ttl: float | None = None,
    tag: str = "",
) -> Resource:
    """Make a resource of a message, or of an encoded one and its `type_url`.

    The message is encoded here: what is done to it afterwards changes nothing. Bytes are served as they are. `name` is
    for types that do not say their own: VirtualHost and LbEndpoint. `sources` are the objects that it was made from, as
    a rejection is to name them. For `aliases`, `ttl` and `tag` see Resource.

    For types other than Envoy's own ten there is `Resource.of`. It may be called by several threads at the same time.

    Raises:
        TypeError: it is no message, or of no type that clients ask for, or something else is of the wrong type.
        ValueError: it has no name or another one than `name`, or the bytes are not of that type, here or in an Any inside.
    """
    type_url, body = _encoded(message, type_url)
    kind = type_url.rpartition(".")[2]
    parsed = _parse(type_url, body, f"{kind} {name}".rstrip())
    field = _NAME_FIELDS[type_url]
    own = getattr(parsed, field) if field else name
    if not own:
        raise ValueError(
            f"{kind} without a name: set its {field}"
            if field
            else f"{kind} does not say its name: give name="
        )
    if name and own != name:
        raise ValueError(f"{kind} {own}: name={name!r} is not its {field}")
    refs = tuple(dict.fromkeys(_refs(parsed, parsed, f"{kind} {own}")))
    return Resource.of(type_url, own, body, refs=refs, sources=sources, aliases=aliases, ttl=ttl, tag=tag)


def check_type(type_url: str) -> None:
    """Raise ValueError for what is not the form of a type URL."""
    if not type_url.startswith(TYPE_PREFIX) or type_url == TYPE_PREFIX:
        raise ValueError(f"not a type URL: {type_url!r}; it begins with {TYPE_PREFIX}")


def _encoded(message: Any, type_url: str) -> tuple[str, bytes]:
    """Return a message's type and bytes."""
    if isinstance(message, bytes):
        if not type_url:
            raise ValueError("bytes do not say their type: give resource(data, type_url=...)")
        check_type(type_url)
        _check_asked_for(type_url)
        return type_url, message
    if isinstance(message, Message):
        own = TYPE_PREFIX + message.DESCRIPTOR.full_name
    elif isinstance(message, betterproto2.Message):
        own = TYPE_PREFIX + full_name(type(message))
    elif isinstance(message, bytearray | memoryview):
        kind = type(message).__name__
        raise TypeError(f"{kind} may change: give a copy, resource(bytes(data), type_url=...)")
    else:
        raise TypeError(
            f"{type(message).__name__} is no protobuf message: give one of envoy_data_plane,"
            " or bytes as resource(data, type_url=...)"
        )
    if type_url not in ("", own):
        raise ValueError(f"the message is of type {own}, not {type_url}")
    _check_asked_for(own)
    return own, serialize(message) if isinstance(message, Message) else encode(message)


def _check_asked_for(type_url: str) -> None:
    if type_url not in _NAME_FIELDS:
        known = ", ".join(known.rpartition(".")[2] for known in _NAME_FIELDS)
        raise TypeError(
            f"{type_url.removeprefix(TYPE_PREFIX)} is none of {known}; for a type of your own, make a Resource.of"
        )


def _parse(type_url: str, body: bytes, where: str) -> Any:
    name = type_url.rpartition("/")[2]
    try:
        return message_class(name).FromString(body)
    except DecodeError as error:
        raise ValueError(f"{where}: the bytes are no {name}") from error


# --- references ------------------------------------------------------------------------------------------------------


class _Link(NamedTuple):
    """A message that makes a client subscribe to a resource by its name."""

    type_url: str
    source: str
    """The field that says where to ask; only what is asked on the same stream counts."""
    name: str
    """The field with the resource's name; if it is empty, that is the name of the message around."""


_ANY = "google.protobuf.Any"
_METADATA = "envoy.config.core.v3.Metadata"
_EDS = 3
"""`envoy.config.cluster.v3.Cluster.DiscoveryType`."""
_LINKS = {
    "envoy.config.cluster.v3.Cluster.EdsClusterConfig": _Link(ENDPOINT, "eds_config", "service_name"),
    "envoy.extensions.filters.network.http_connection_manager.v3.Rds": _Link(
        ROUTE, "config_source", "route_config_name"
    ),
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": _Link(SECRET, "sds_config", "name"),
    "envoy.config.core.v3.ExtensionConfigSource": _Link(EXTENSION_CONFIG, "config_source", ""),
}


def _refs(message: Any, around: Any, where: str) -> Iterator[ResourceKey]:
    """Go through what a message and all that is in it make a client subscribe to by name."""
    kind = message.DESCRIPTOR.full_name
    if kind == _ANY:
        yield from _refs_in_any(message, around, where)
        return
    if kind in _LINKS:
        yield from _linked(_LINKS[kind], message, around)
    elif TYPE_PREFIX + kind == SCOPED_ROUTE and message.route_configuration_name:
        # Where to ask for it is in the listener, which nearly always says the same stream.
        yield ROUTE, message.route_configuration_name
    followed = _followed(message.DESCRIPTOR)
    if not followed:
        return
    for field, value in message.ListFields():
        if field.number in followed:
            for part in _parts(value):
                yield from _refs(part, message, where)


def _parts(value: Any) -> Iterable[Any]:
    """Return the messages in a field, whether it is of one, of many, or a map."""
    if isinstance(value, Message):
        return (value,)
    return value.values() if isinstance(value, Mapping) else value


def _refs_in_any(packed: Any, around: Any, where: str) -> Iterator[ResourceKey]:
    try:
        message = _parse(packed.type_url, packed.value, where)
    except KeyError:
        return  # Not one of envoy_data_plane's types: nobody can say what is in it.
    yield from _refs(message, around, where)


def _linked(link: _Link, message: Any, around: Any) -> Iterator[ResourceKey]:
    if link.type_url == ENDPOINT and around.type != _EDS:
        return
    if message.HasField(link.source):
        source = getattr(message, link.source)
        name = (link.name and getattr(message, link.name)) or around.name
        if source.WhichOneof("config_source_specifier") in ("ads", "self"):
            yield link.type_url, name


@cache
def _followed(descriptor: Descriptor) -> frozenset[int]:
    """Return the fields of a message that there may be links behind."""
    return frozenset(
        field.number for field in descriptor.fields if field.message_type and _leads(field.message_type)
    )


@cache
def _leads(descriptor: Descriptor) -> bool:
    """Whether there may be a link in a message of this type, at any depth. Metadata is data, not configuration."""
    seen: set[str] = set()
    ahead = [descriptor]
    while ahead:
        one = ahead.pop()
        if one.full_name == _ANY or one.full_name in _LINKS:
            return True
        if one.full_name != _METADATA and one.full_name not in seen:
            seen.add(one.full_name)
            ahead += [field.message_type for field in one.fields if field.message_type]
    return False
