"""Parsing of NACK messages in which a client rejects resources individually."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from xds.snapshot import Resource

_ENVOY = re.compile(r"Error adding/updating (?:cluster|listener)\(s\) ")
"""Beginning of Envoy's message if Envoy accepted the other resources.

`NAME: reason` follows, comma-separated for CDS.
"""

_GRPC = re.compile(r"resource index (\d+): ")
"""Part of a gRPC client's message for each rejected resource, with its index in the response."""

_SEPARATOR = re.compile(r", |\n")
_COLON = ": "

_MAX_MESSAGE_LENGTH = 64 * 1024
_CUT = "...(truncated)"
"""End of Envoy's message if Envoy has truncated it."""


def culprits(message: str, resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """Return the resources that a client rejected individually; empty if it rejected the whole response.

    Envoy rejects clusters and listeners individually, unless it cannot decode the response. gRPC clients
    reject resources of all types individually.
    """
    if len(message) > _MAX_MESSAGE_LENGTH or message.endswith(_CUT):
        return ()
    if envoy := _ENVOY.match(message):
        names = _rejected_names(message[envoy.end() :], {resource.name for resource in resources})
        return tuple(resource for resource in resources if resource.name in names)
    indexes = {int(index) for index in _GRPC.findall(message)}
    return tuple(resource for index, resource in enumerate(resources) if index in indexes)


def _rejected_names(message: str, names: Collection[str]) -> set[str]:
    """Return the names that are followed by a colon, at the beginning or after a comma or line break.

    The client chooses the message and the event loop waits, so the cost must be linear in the message and
    the names.
    """
    longest = max(map(len, names), default=0)
    rejected: set[str] = set()
    for start in (0, *(separator.end() for separator in _SEPARATOR.finditer(message))):
        # A name may contain colons.
        end = message.find(_COLON, start, start + longest + len(_COLON))
        while end >= 0:
            if message[start:end] in names:
                rejected.add(message[start:end])
            end = message.find(_COLON, end + 1, start + longest + len(_COLON))
    return rejected
