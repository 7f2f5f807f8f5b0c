"""Which resources of a response a client rejected, if it says so of each by itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from xds.snapshot import Resource

_ENVOY = re.compile(r"Error adding/updating (?:cluster|listener)\(s\) ")
"""What Envoy begins with when it has taken the rest: then comes `NAME: why`, for clusters with a comma in between."""

_GRPC = re.compile(r"resource index (\d+): ")
"""What gRPC says of each: its place in the response."""

_SEPARATOR = re.compile(r", |\n")
_COLON = ": "

_MAX_MESSAGE_LENGTH = 64 * 1024
_CUT = "...(truncated)"
"""What Envoy ends with when it leaves out the rest of the message."""


def culprits(message: str, resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """Return what a client rejected and took all others; nothing if its message does not say that in so many words.

    Envoy does so for clusters and listeners, and rejects a response as a whole if it cannot be read. gRPC always does.
    """
    if len(message) > _MAX_MESSAGE_LENGTH or message.endswith(_CUT):
        return ()
    if envoy := _ENVOY.match(message):
        accused = _accused(message[envoy.end() :], {resource.name for resource in resources})
        return tuple(resource for resource in resources if resource.name in accused)
    places = {int(place) for place in _GRPC.findall(message)}
    return tuple(resource for place, resource in enumerate(resources) if place in places)


def _accused(said: str, names: Collection[str]) -> set[str]:
    """Return which names are followed by a colon, at the beginning or after a comma or line break.

    The cost is linear in the message and the names: a client chooses the message, and the event loop waits.
    """
    longest = max(map(len, names), default=0)
    found: set[str] = set()
    for start in (0, *(separator.end() for separator in _SEPARATOR.finditer(said))):
        # A name may itself contain colons.
        end = said.find(_COLON, start, start + longest + len(_COLON))
        while end >= 0:
            if said[start:end] in names:
                found.add(said[start:end])
            end = said.find(_COLON, end + 1, start + longest + len(_COLON))
    return found
