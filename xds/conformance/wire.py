"""Variants, methods and responses of the protocol, and what a check can end with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from xds import testing
from xds.codec import message_class
from xds.conformance.world import SHORT, TYPES, CheckError, read
from xds.snapshot import TYPE_PREFIX
from xds.testing.streams import method_of

_PACKAGE = "envoy.service.discovery.v3"
"""Package of the responses."""
_WRAPPER = f"{TYPE_PREFIX}{_PACKAGE}.Resource"
"""Type URL of the message that gives a SotW resource a TTL."""
_MAX_RESPONSE = 64 * 1024 * 1024
_OPTIONS = (("grpc.max_receive_message_length", _MAX_RESPONSE), ("grpc.use_local_subchannel_pool", 1))
"""Channel arguments: each check has a connection of its own."""


def connect(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Return a channel with a connection of its own; without credentials, in plaintext."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, _OPTIONS)
    return grpc.aio.secure_channel(target, credentials, _OPTIONS)


class Variant(StrEnum):
    """A variant of the protocol."""

    SOTW = "sotw"
    SOTW_ADS = "sotw-ads"
    DELTA = "delta"
    DELTA_ADS = "delta-ads"

    @property
    def is_delta(self) -> bool:
        """Whether the variant is incremental."""
        return self in (Variant.DELTA, Variant.DELTA_ADS)

    @property
    def protocol(self) -> testing.Variant:
        """The variant of the messages."""
        return testing.Variant.DELTA if self.is_delta else testing.Variant.SOTW

    @property
    def is_ads(self) -> bool:
        """Whether all types share a stream."""
        return self in (Variant.SOTW_ADS, Variant.DELTA_ADS)


class NotApplicableError(Exception):
    """The rule does not apply to the server."""


class NeedsAdapterError(NotApplicableError):
    """A check changes resources, which needs an adapter."""

    def __init__(self) -> None:
        super().__init__("needs the adapter")


class EndedError(CheckError):
    """The server ended the stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"the server ended the stream with {code.name}: {details}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A decoded response."""

    type: str
    nonce: str
    version: str
    """Version of the type as a whole."""
    resources: dict[str, str] = field(default_factory=dict)
    """Contents by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions by name (delta only)."""
    removed: frozenset[str]
    identifier: str
    size: int
    """Bytes of the encoded response."""
    ttls: dict[str, float] = field(default_factory=dict)
    """Seconds until a client drops the resource, by name."""
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Other names that the response gives for a resource, by name."""
    without_body: set[str] = field(default_factory=set)
    """Resources without a body: renewed TTLs, and aliases that no resource has."""
    repeated: set[str] = field(default_factory=set)
    """Names that the response contains more than once."""
    bodies: dict[str, bytes] = field(default_factory=dict)
    """Encoded resources, by name."""
    wrapped: set[str] = field(default_factory=set)
    """Resources that are sent inside `envoy.service.discovery.v3.Resource` (SotW only)."""

    def __str__(self) -> str:
        words = [
            (f"{name}={content}" if content else name)
            + (f" (ttl {self.ttls[name]:g}s)" if name in self.ttls else "")
            for name, content in self.resources.items()
        ]
        words += [f"{name} (no body)" for name in sorted(self.without_body)]
        words += [f"{name} (again)" for name in sorted(self.repeated)]
        words += [f"-{name}" for name in sorted(self.removed)]
        return f"{self.type} nonce={self.nonce} version={self.version} [{' '.join(words)}]"


def path_of(short: str, variant: Variant) -> str:
    """Return the path of the method that serves a type."""
    return method_of(variant.protocol, "" if variant.is_ads else TYPES.get(short, short))


def decode(data: bytes, *, delta: bool) -> Response:
    """Decode a response.

    Raises:
        CheckError: The bytes are no response.
    """
    kind = "DeltaDiscoveryResponse" if delta else "DiscoveryResponse"
    try:
        message: Any = message_class(f"{_PACKAGE}.{kind}").FromString(data)
        return _response(message, len(data), delta=delta)
    except DecodeError as error:
        raise CheckError(f"a response cannot be decoded: {error}") from error


def _response(message: Any, size: int, *, delta: bool) -> Response:
    short = SHORT.get(message.type_url, message.type_url)
    response = Response(
        type=short,
        nonce=message.nonce,
        version=message.system_version_info if delta else message.version_info,
        removed=frozenset(message.removed_resources if delta else ()),
        identifier=message.control_plane.identifier,
        size=size,
    )
    for item in message.resources:
        wrapper = item if delta else _unwrapped(item)
        body = wrapper.resource if wrapper else item
        name, content = "", None
        if body.type_url == message.type_url and short in TYPES:
            name, content = read(short, body.value)
        if wrapper:
            name = wrapper.name
        if not name:
            continue  # An unsupported type.
        if name in response.resources or name in response.without_body:
            response.repeated.add(name)
        if content is None:
            response.without_body.add(name)
        else:
            response.resources[name] = content
            response.bodies[name] = body.value
        if wrapper:
            response.versions[name] = wrapper.version
            if wrapper.HasField("ttl"):
                response.ttls[name] = wrapper.ttl.ToTimedelta().total_seconds()
            response.aliases[name] = tuple(wrapper.aliases)
            if not delta:
                response.wrapped.add(name)
    return response


def _unwrapped(item: Any) -> Any:
    """Return the wrapper around a SotW resource; None if there is none."""
    if item.type_url != _WRAPPER:
        return None
    return message_class(_WRAPPER.removeprefix(TYPE_PREFIX)).FromString(item.value)
