"""Discovery requests and responses as a client sees them, and the conversation that they make."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, overload

from xds.codec import message_class
from xds.protocol.session import Variant
from xds.protocol.types import short_name
from xds.resources import resource
from xds.snapshot import Resource

_PREFIX = {
    Variant.SOTW: "envoy.service.discovery.v3.Discovery",
    Variant.DELTA: "envoy.service.discovery.v3.DeltaDiscovery",
}
_MAX_ERROR_LENGTH = 200
"""Maximum length of an error in a printed conversation, in characters."""

Decode: TypeAlias = Callable[[str, str, bytes], Resource]
"""Makes a resource from its type URL, its name and its encoded message. SotW responses have no names."""


def request_class(variant: Variant) -> Any:
    """Return the protobuf class of a variant's requests."""
    return message_class(f"{_PREFIX[variant]}Request")


def response_class(variant: Variant) -> Any:
    """Return the protobuf class of a variant's responses."""
    return message_class(f"{_PREFIX[variant]}Response")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A DiscoveryRequest or DeltaDiscoveryRequest, without its node."""

    type_url: str
    """Type URL of the request."""
    names: tuple[str, ...] = ()
    """Names: the whole subscription (SotW), or those that the request adds to it (delta)."""
    unsubscribe: tuple[str, ...] = ()
    """Names that the request removes from the subscription (delta)."""
    version: str = ""
    """Version of the last response that the client accepted (SotW)."""
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    """Names and versions of the resources that the client has from an earlier stream (delta)."""
    nonce: str = ""
    """Nonce of the response that the request answers; empty if it answers none."""
    error: str | None = None
    """Error message of a NACK; None if the request is no NACK."""

    def __str__(self) -> str:
        if self.error is not None:
            error = textwrap.shorten(self.error, _MAX_ERROR_LENGTH, placeholder=" ...")
            return f"{short_name(self.type_url)} NACK {error}"
        known = f"has({' '.join(sorted(self.initial_versions))})" if self.initial_versions else ""
        return _line(self.type_url, self.names, self.unsubscribe, known)

    def encode(self, variant: Variant, node: Mapping[str, str | Sequence[str]] | None = None) -> bytes:
        """Return the encoded message.

        Args:
            variant: Variant of the protocol.
            node: Fields of the node, texts or lists of texts; None for a request without a node.
        """
        request = request_class(variant)(type_url=self.type_url, response_nonce=self.nonce)
        if variant is Variant.SOTW:
            request.resource_names.extend(self.names)
            request.version_info = self.version
        else:
            request.resource_names_subscribe.extend(self.names)
            request.resource_names_unsubscribe.extend(self.unsubscribe)
            request.initial_resource_versions.update(self.initial_versions)
        if self.error is not None:
            request.error_detail.code, request.error_detail.message = 13, self.error
        for name, value in (node or {}).items():
            if isinstance(value, str):
                setattr(request.node, name, value)
            else:
                getattr(request.node, name).extend(value)
        data: bytes = request.SerializeToString()
        return data

    @classmethod
    def decode(cls, data: bytes, variant: Variant) -> Request:
        """Make a request from an encoded message."""
        is_delta = variant is Variant.DELTA
        message = request_class(variant).FromString(data)
        names = message.resource_names_subscribe if is_delta else message.resource_names
        return cls(
            type_url=message.type_url,
            names=tuple(names),
            unsubscribe=tuple(message.resource_names_unsubscribe) if is_delta else (),
            version="" if is_delta else message.version_info,
            initial_versions=dict(message.initial_resource_versions) if is_delta else {},
            nonce=message.response_nonce,
            error=message.error_detail.message if message.HasField("error_detail") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A DiscoveryResponse or DeltaDiscoveryResponse."""

    type_url: str
    """Type URL of the response."""
    nonce: str
    """Nonce of the response."""
    version: str
    """Version of the type (`version_info` or `system_version_info`)."""
    resources: tuple[Resource, ...]
    """Resources. In the delta variant, each has the version that the server sent."""
    removed: tuple[str, ...] = ()
    """Names of removed resources (delta)."""

    def __str__(self) -> str:
        return _line(self.type_url, (resource.name for resource in self.resources), self.removed)

    @classmethod
    def decode(cls, data: bytes, variant: Variant, decode: Decode | None = None) -> Response:
        """Make a response from an encoded message.

        Args:
            data: Encoded message.
            variant: Variant of the protocol.
            decode: Makes a resource; the default is `decode_resource`.
        """
        decode = decode or decode_resource
        message = response_class(variant).FromString(data)
        if variant is Variant.SOTW:
            resources = [decode(item.type_url, "", item.value) for item in message.resources]
            version, removed = message.version_info, ()
        else:
            resources = [
                replace(decode(item.resource.type_url, item.name, item.resource.value), version=item.version)
                for item in message.resources
                if item.HasField("resource")  # Otherwise, it renews a TTL, or an alias that nothing has.
            ]
            version, removed = message.system_version_info, tuple(message.removed_resources)
        return cls(
            type_url=message.type_url,
            nonce=message.nonce,
            version=version,
            resources=tuple(resources),
            removed=removed,
        )


def decode_resource(type_url: str, name: str, body: bytes) -> Resource:
    """Make a resource from an encoded message, with its references if the type is one of Envoy's API."""
    try:
        return resource(body, type_url=type_url, name=name)
    except (TypeError, ValueError):
        return Resource.of(type_url, name, body)


def _line(type_url: str, names: Iterable[str], removed: Iterable[str], *more: str) -> str:
    """Return a message in one line. Names are sorted, because their order on the wire has no meaning."""
    words = [short_name(type_url), *sorted(names), *(f"-{name}" for name in sorted(removed)), *more]
    return " ".join(word for word in words if word)


class Conversation(Sequence[str]):
    """The messages of a client's streams, as lines of text.

    - `< EDS api web -old` is a response with two resources, and the name of a removed one (delta).
    - `> EDS api web` is a request that changes the subscription. It has all names (SotW), or those to add
      and, after `-`, those to remove (delta). `has(web)` is what the client has from an earlier stream
      (delta).
    - `> EDS ACK` and `> EDS NACK message` answer a response.
    - `-- stream of envoy (delta)` is the start of a stream.

    In the SotW variant, each request repeats the nonce and the names: the first request with a nonce is an
    ACK unless it changes the names. An ACK that changes names therefore looks like a request with names.
    """

    def __init__(self) -> None:
        self.messages: list[Request | Response] = []
        """Messages without the marks of streams, oldest first."""
        self._lines: list[str] = []
        self._names: dict[str, frozenset[str]] = {}
        """Names in the last request of each type (SotW)."""
        self._variant = Variant.SOTW

    @property
    def requests(self) -> list[Request]:
        """The requests, oldest first."""
        return [message for message in self.messages if isinstance(message, Request)]

    @property
    def nacks(self) -> list[Request]:
        """The requests that are NACKs, oldest first."""
        return [request for request in self.requests if request.error is not None]

    def open(self, node: str, variant: Variant) -> None:
        """Add the start of a stream."""
        self._names.clear()
        self._variant = variant
        self._lines.append(f"-- stream of {node} ({variant.value})")

    def add(self, message: Request | Response) -> None:
        """Add a message."""
        self.messages.append(message)
        if isinstance(message, Response):
            self._lines.append(f"< {message}")
            return
        previous = self._names.get(message.type_url)
        self._names[message.type_url] = names = frozenset(message.names)
        is_same = names == previous if self._variant is Variant.SOTW else not (names or message.unsubscribe)
        is_ack = message.nonce and message.error is None and is_same
        self._lines.append(f"> {short_name(message.type_url)} ACK" if is_ack else f"> {message}")

    def clear(self) -> None:
        """Forget all messages, for example those before the part that a test checks."""
        self.messages.clear()
        self._lines.clear()

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._lines[index]

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __eq__(self, other: object) -> bool:
        return self._lines == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __str__(self) -> str:
        return "\n".join(self._lines)

    __repr__ = __str__
