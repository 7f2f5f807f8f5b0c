"""What a session learns from its client, as values for the shell to log, count and pass on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from xds.protocol.nacks import culprits
from xds.protocol.wire import ErrorDetail, Node
from xds.snapshot import Resource

_MAX_MESSAGE_LENGTH = 4096
"""Of a client's error message; what goes beyond says nothing new, and is searched for every resource's name."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The first request of a stream said who it is."""

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """What the client wants of a type is now this."""

    type_url: str
    names: frozenset[str]
    wildcard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """The client took a response."""

    type_url: str
    nonce: str
    version: str
    """Of the type as a whole, as the response said."""
    resources: tuple[Resource, ...] = field(repr=False)
    """Everything that the response carried."""
    removed: tuple[str, ...] = ()
    waited: float
    """Seconds from when the response was handed out to when the answer came."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the resources."""
        return tuple(resource.name for resource in self.resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nacked:
    """The client rejected a response. It may have taken parts of it all the same."""

    type_url: str
    nonce: str
    version: str
    code: int
    message: str
    """The client's own words, without any key material that they quote."""
    resources: tuple[Resource, ...] = field(repr=False)
    """Everything that the response carried."""
    removed: tuple[str, ...] = ()
    fresh: tuple[Resource, ...] = field(default=(), repr=False)
    """Those of the resources that may have been news to the client."""
    suspects: tuple[Resource, ...] = field(repr=False)
    """The resources that the message names; all of them if it names none."""
    culprits: tuple[Resource, ...] = field(default=(), repr=False)
    """Those that the client rejected each by itself, as it says; then it took all others of the response."""
    waited: float

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the resources."""
        return tuple(resource.name for resource in self.resources)

    @property
    def sources(self) -> tuple[str, ...]:
        """The objects that the suspects were made from, without repetition."""
        return tuple(dict.fromkeys(source for suspect in self.suspects for source in suspect.sources))


Event: TypeAlias = Connected | Subscribed | Acked | Nacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a session remembers of a response until it is answered."""

    type_url: str
    nonce: str
    version: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    """What the client loses by it: named, or left out of what is all that there is."""
    fresh: tuple[Resource, ...] = ()
    """Those of the resources that may be news to the client."""
    sent_at: float
    generation: int = -1
    """Of the snapshot of which nothing remains to be sent after this; -1: more is to come."""


def acked(response: Response, now: float) -> Acked:
    """Make the event of a response that was taken."""
    return Acked(
        type_url=response.type_url,
        nonce=response.nonce,
        version=response.version,
        resources=response.resources,
        removed=response.removed,
        waited=now - response.sent_at,
    )


def nacked(response: Response, error: ErrorDetail, now: float) -> Nacked:
    """Make the event of a response that was rejected."""
    message = _without_keys(error.message[:_MAX_MESSAGE_LENGTH])
    found = culprits(error.message, response.resources)
    return Nacked(
        type_url=response.type_url,
        nonce=response.nonce,
        version=response.version,
        code=error.code,
        message=message,
        resources=response.resources,
        removed=response.removed,
        fresh=response.fresh,
        suspects=found or _suspects(message, response.resources),
        culprits=found,
        waited=now - response.sent_at,
    )


def _without_keys(message: str) -> str:
    """Cut a message where PEM begins: Envoy quotes the message that it could not validate, keys and all."""
    return message.partition("-----BEGIN")[0]


def _suspects(message: str, resources: Sequence[Resource]) -> tuple[Resource, ...]:
    words = set(_WORD.findall(message))
    named = [
        resource
        for resource in resources
        # Few of many names get through this, and only those need a search of the whole message.
        if words.issuperset(_WORD.findall(resource.name)) and _names(message, resource.name)
    ]
    longest = [
        resource
        for resource in named
        if not any(resource.name != other.name and resource.name in other.name for other in named)
    ]
    return tuple(longest or resources)


def _names(message: str, name: str) -> bool:
    """Whether a message has a name in it, not as a part of a word."""
    start = message.find(name)
    while start >= 0:
        end = start + len(name)
        if not _WORD.match(message[start - 1 : start]) and not _WORD.match(message[end : end + 1]):
            return True
        start = message.find(name, start + 1)
    return False
