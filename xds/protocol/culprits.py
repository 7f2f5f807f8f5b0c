"""Which resources of a response a client rejected, if it says so of each by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xds.snapshot import Resource

_ENVOY = re.compile(r"Error adding/updating (?:cluster|listener)\(s\) ")
"""What Envoy begins with when it has taken the rest: then comes `NAME: why`, for clusters with a comma in between."""

_GRPC = re.compile(r"resource index (\d+): ")
"""What gRPC says of each: its place in the response."""

_LONGEST = 64 * 1024
_CUT = "...(truncated)"
"""What Envoy ends with when it leaves out the rest of the message."""


def culprits(message: str, resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """Return what a client rejected and took all others; nothing if its message does not say that in so many words.

    Envoy does so for clusters and listeners, and rejects a response as a whole if it cannot be read. gRPC always does.
    """
    if len(message) > _LONGEST or message.endswith(_CUT):
        return ()
    if envoy := _ENVOY.match(message):
        said = message[envoy.end() :]
        return tuple(resource for resource in resources if _accuses(said, f"{resource.name}: "))
    places = {int(place) for place in _GRPC.findall(message)}
    return tuple(resource for place, resource in enumerate(resources) if place in places)


def _accuses(said: str, name: str) -> bool:
    return said.startswith(name) or f", {name}" in said or f"\n{name}" in said
