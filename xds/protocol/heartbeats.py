"""Heartbeats for resources with a TTL, which a client drops unless the server renews them in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf

from xds.snapshot import Resource

_PER_TTL = 2
"""Heartbeats per TTL of a resource."""


@dataclass(frozen=True, slots=True)
class _Beat:
    at: float
    """Time of the next heartbeat."""
    resource: Resource
    """Resource as the client has it, without the body."""


class Heartbeats:
    """Schedules the heartbeats of one client and type. Only resources with a TTL are stored."""

    __slots__ = ("_beats",)

    def __init__(self) -> None:
        self._beats: dict[str, _Beat] = {}

    def __bool__(self) -> bool:
        """Whether there are resources with a TTL."""
        return bool(self._beats)

    def start(self, resources: Iterable[Resource], now: float) -> None:
        """Schedule the heartbeats of resources that the client has ACKed now.

        Resources without a TTL need no heartbeats.
        """
        for resource in resources:
            if resource.ttl is not None:
                self._beats[resource.name] = _Beat(now + resource.ttl / _PER_TTL, replace(resource, body=b""))
            else:
                self._beats.pop(resource.name, None)

    def resume(self, resource: Resource, version: str, now: float) -> None:
        """Schedule an immediate heartbeat of a resource that the client has from an earlier stream."""
        if resource.ttl is not None:
            self._beats[resource.name] = _Beat(now, replace(resource, version=version, body=b""))

    def retain(self, predicate: Callable[[str], bool]) -> None:
        """Forget the resources that do not satisfy a predicate."""
        for name in [name for name in self._beats if not predicate(name)]:
            del self._beats[name]

    def next(self, excluded: set[str]) -> float:
        """Return when the next heartbeat is due, except for `excluded` names; infinity if there is none."""
        return min((beat.at for name, beat in self._beats.items() if name not in excluded), default=inf)

    def due(self, excluded: set[str], now: float) -> list[Resource]:
        """Return the resources whose heartbeat is due, except for `excluded` names.

        Call `start` for the resources whose heartbeat is sent.
        """
        return [
            beat.resource for name, beat in self._beats.items() if beat.at <= now and name not in excluded
        ]
