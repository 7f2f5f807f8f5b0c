"""Resources that a client drops unless it hears in time that they are still good."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf

from xds.snapshot import Resource

_PER_TTL = 2
"""Heartbeats in the time that a resource lives without one."""


@dataclass(frozen=True, slots=True)
class _Beat:
    at: float
    resource: Resource
    """As the client has it. Without its body, which nobody needs again."""


class Heartbeats:
    """When to tell a client what of what it has; it costs what has a time to live."""

    __slots__ = ("_beats",)

    def __init__(self) -> None:
        self._beats: dict[str, _Beat] = {}

    def start(self, resources: Iterable[Resource], now: float) -> None:
        """The client has these as of now. Those without a time to live need no heartbeats, or none any more."""
        for resource in resources:
            if resource.ttl is not None:
                self._beats[resource.name] = _Beat(now + resource.ttl / _PER_TTL, replace(resource, body=b""))
            elif self._beats:
                self._beats.pop(resource.name, None)

    def resume(self, resource: Resource, version: str, now: float) -> None:
        """The client has a version of this from an earlier stream, and its time is running."""
        if resource.ttl is not None:
            self._beats[resource.name] = _Beat(now, replace(resource, version=version, body=b""))

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget what the client no longer has."""
        for name in [name for name in self._beats if not wanted(name)]:
            del self._beats[name]

    def next(self, silent: set[str]) -> float:
        """Return when the next one is due of those that are not to be silent; infinity if none is."""
        return min((beat.at for name, beat in self._beats.items() if name not in silent), default=inf)

    def due(self, silent: set[str], now: float) -> list[Resource]:
        """Return what the client is to be told now: `start` those that it is told."""
        return [beat.resource for name, beat in self._beats.items() if beat.at <= now and name not in silent]
