"""Which worlds were in force when, and what a data plane that is always right would have served."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from tests.support.traffic import Sent, Target
from tests.support.world import Cluster, World


@dataclass(slots=True)
class _Reign:
    world: World
    what: str
    begins: float
    ends: float = inf


class History:
    """Worlds, each in force from when it was published until a later one was all in place."""

    def __init__(self, world: World) -> None:
        self._reigns = [_Reign(world, "the beginning", time.monotonic())]

    @property
    def world(self) -> World:
        """The latest."""
        return self._reigns[-1].world

    def publish(self, world: World, what: str = "") -> None:
        """Another world is being introduced."""
        self._reigns.append(_Reign(world, what, time.monotonic()))

    def settle(self) -> None:
        """The latest world is in place, and nothing else."""
        now = time.monotonic()
        for reign in self._reigns[:-1]:
            reign.ends = min(reign.ends, now)

    def faults(self, sent: Iterable[Sent]) -> list[str]:
        """Say of which requests a data plane that is right would have made something else."""
        return [fault for request in sent if (fault := self._fault(request))]

    def served(self, sent: Iterable[Sent]) -> list[Sent]:
        """Return the requests that had to be served."""
        return [request for request in sent if all(_answerers(self._reigns_of(request), request.target))]

    def _fault(self, sent: Sent) -> str:
        reigns = self._reigns_of(sent)
        may = _answerers(reigns, sent.target)
        # A connection to a listener that is going away may still get what was there before.
        wrong = sent.app not in frozenset().union(*may) and (all(may) or (sent.app and not sent.kept))
        if not wrong:
            return ""
        kind = "a kept" if sent.kept else "its own"
        began, took = (sent.began - self._reigns[0].begins) * 1000, (sent.ended - sent.began) * 1000
        worlds = "; ".join(f"{reign.what}: {sorted(reign.world.serves(*sent.target))}" for reign in reigns)
        return (
            f"{began:.0f} ms: {sent.target} on {kind} connection in {took:.0f} ms: "
            f"{sent.code} {sent.text!r}, not {worlds}"
        )

    def _reigns_of(self, sent: Sent) -> list[_Reign]:
        """Return the worlds in force during a request."""
        since = sent.since if sent.kept else sent.began
        first = len(self._reigns)
        while first and self._reigns[first - 1].ends >= since:
            first -= 1
        return [reign for reign in self._reigns[first:] if reign.begins <= sent.ended]


def _answerers(reigns: Sequence[_Reign], target: Target) -> list[frozenset[int]]:
    """Return who may answer, for each state that a proxy can be in while one world replaces another.

    Resources change one by one, so a listener of one world meets the routes of another, and those meet its
    clusters. A resource that only one world has exists throughout: it is added before its use and removed
    afterwards.
    """
    worlds = [reign.world for reign in reigns]
    found: dict[frozenset[int], None] = {}
    for routes in {world.routes_at(target.port) for world in worlds}:
        paths = [world.routes[routes] for world in worlds if routes in world.routes]
        for name in {path.get(target.path) for path in paths} or {None}:
            clusters = [world.clusters[name] for world in worlds if name in world.clusters] if name else []
            found |= dict.fromkeys(frozenset(cluster.endpoints or ()) for cluster in clusters or [Cluster()])
    return list(found)
