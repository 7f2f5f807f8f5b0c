"""Events of a session: connection, subscriptions, ACKs and NACKs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

from xds.protocol.nacks import culprits
from xds.protocol.shared import SharedChange
from xds.protocol.wire import ErrorDetail, Node
from xds.snapshot import Resource

_MAX_MESSAGE_LENGTH = 4096
"""Maximum length of an error message, in characters.

Each message is searched for the names of all resources.
"""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The first request of a stream, which identifies the client's node."""

    node: Node
    """Node of the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """A change of the client's subscription to a type."""

    type_url: str
    """Type URL of the subscription."""
    names: frozenset[str]
    """All names that the client subscribes to now."""
    wildcard: bool
    """Whether the client subscribes to all resources of the type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """The client ACKed a response."""

    type_url: str
    """Type URL of the response."""
    nonce: str
    """Nonce of the response."""
    version: str
    """Version of the type in the response."""
    resources: tuple[Resource, ...] = field(repr=False)
    """All resources in the response."""
    removed: tuple[str, ...] = ()
    """Names of the resources that the response removed."""
    waited: float
    """Seconds between the response and the ACK."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the resources in the response."""
        return tuple(resource.name for resource in self.resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nacked:
    """The client NACKed a response. It may have accepted some of its resources."""

    type_url: str
    """Type URL of the response."""
    nonce: str
    """Nonce of the response."""
    version: str
    """Version of the type in the response."""
    code: int
    """Status code of the NACK (google.rpc.Code)."""
    message: str
    """Error message of the client, without private keys that it quotes."""
    resources: tuple[Resource, ...] = field(repr=False)
    """All resources in the response."""
    removed: tuple[str, ...] = ()
    """Names of the resources that the response removed."""
    fresh: tuple[Resource, ...] = field(default=(), repr=False)
    """Resources in the response that may have been new to the client."""
    suspects: tuple[Resource, ...] = field(repr=False)
    """Resources that the error message names; all resources of the response if it names none."""
    culprits: tuple[Resource, ...] = field(default=(), repr=False)
    """Resources that the client rejected individually.

    If there are any, the client accepted all other resources in the response.
    """
    waited: float
    """Seconds between the response and the NACK."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the resources in the response."""
        return tuple(resource.name for resource in self.resources)

    @property
    def sources(self) -> tuple[str, ...]:
        """Objects that the suspects were made from, without duplicates."""
        return tuple(dict.fromkeys(source for suspect in self.suspects for source in suspect.sources))


Event: TypeAlias = Connected | Subscribed | Acked | Nacked


@dataclass(slots=True, kw_only=True)  # A frozen one takes longer to make, and each response needs one.
class Response:
    """A response that was sent. A session stores it until the client answers."""

    type_url: str
    """Type URL of the response."""
    nonce: str
    """Nonce of the response."""
    version: str
    """Version of the type in the response."""
    resources: tuple[Resource, ...]
    """Resources in the response."""
    removed: tuple[str, ...] = ()
    """Names of resources that the response removes, explicitly or by omission from the full state."""
    fresh: tuple[Resource, ...] = ()
    """Resources that may be new to the client."""
    new: Collection[str] = ()
    """Names of resources that the client had in no version, except for those that the shared change adds."""
    content: Mapping[str, Resource] | None = None
    """Full-state types only: all resources that the client has after this response, by name."""
    shared: SharedChange | None = None
    """Change that the first of the resources are from; None if each was chosen for this client."""
    sent_at: float
    """Time when the response was sent, in seconds of the clock that the session uses."""
    generation: int = -1
    """Generation of the snapshot that this response completes for the type; -1 if more responses follow."""

    def new_names(self) -> Iterable[str]:
        """Return the names of all resources that the client had in no version."""
        return chain(self.new, self.shared.added) if self.shared else self.new


def acked(response: Response, now: float) -> Acked:
    """Make the event for the ACK of a response."""
    return Acked(
        type_url=response.type_url,
        nonce=response.nonce,
        version=response.version,
        resources=response.resources,
        removed=response.removed,
        waited=now - response.sent_at,
    )


def nacked(response: Response, error: ErrorDetail, now: float) -> Nacked:
    """Make the event for the NACK of a response."""
    message = _without_private_keys(error.message[:_MAX_MESSAGE_LENGTH])
    rejected = culprits(error.message, response.resources)
    return Nacked(
        type_url=response.type_url,
        nonce=response.nonce,
        version=response.version,
        code=error.code,
        message=message,
        resources=response.resources,
        removed=response.removed,
        fresh=response.fresh,
        suspects=rejected or _suspects(message, response.resources),
        culprits=rejected,
        waited=now - response.sent_at,
    )


def _without_private_keys(message: str) -> str:
    """Truncate an error message where PEM begins.

    Envoy quotes resources that fail validation, including private keys.
    """
    return message.partition("-----BEGIN")[0]


def _suspects(message: str, resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """Return the resources that an error message names; all resources if it names none.

    If a name is a part of another name in the message, only the longer name counts.
    """
    words = set(_WORD.findall(message))
    mentioned = [
        resource
        for resource in resources
        # The comparison of words is cheap and excludes most names, so few names are searched in the message.
        if words.issuperset(_WORD.findall(resource.name)) and _contains_name(message, resource.name)
    ]
    longest = [
        resource
        for resource in mentioned
        if not any(resource.name != other.name and resource.name in other.name for other in mentioned)
    ]
    return tuple(longest or resources)


def _contains_name(message: str, name: str) -> bool:
    """Whether a message contains a name as a whole word."""
    start = message.find(name)
    while start >= 0:
        end = start + len(name)
        if not _WORD.match(message[start - 1 : start]) and not _WORD.match(message[end : end + 1]):
            return True
        start = message.find(name, start + 1)
    return False
