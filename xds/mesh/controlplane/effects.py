"""Reports objects that have no effect (`xds.mesh.policy.effect`), once that has been so for a while.

Nothing waits for it: the mesh is examined in a thread, after it has changed and not more often than every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import structlog

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Problem, Ref
from xds.mesh.policy.effect import Ineffective, without_effect
from xds.server.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

SETTLE_TIME = 10.0
"""Seconds that an object must have had no effect before it is reported: its pods may be about to start."""
INTERVAL = 2.0
"""Seconds between two examinations of the mesh, at least."""
IDLE_FACTOR = 20
"""How many times as long as an examination took nothing is examined after it."""
MAX_LOGGED = 100
"""Lines that are added to the log at once,"""
LOG_RATE = 5.0
"""and per second after that."""

_Key: TypeAlias = tuple[Ref, str, bool]


class EffectWatcher:
    """Knows which objects have no effect; `run` works until cancelled."""

    def __init__(self, mesh: Callable[[], Mesh], ready: asyncio.Event) -> None:
        """Make one.

        Args:
            mesh: returns what is in force.
            ready: set once everything is known.
        """
        self._mesh = mesh
        self._ready = ready
        self._since: dict[_Key, float] = {}
        """When each problem was found first, in seconds of the event loop's clock."""
        self._settled: dict[_Key, Problem] = {}
        self._lines = TokenBucket(MAX_LOGGED, LOG_RATE)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What has had no effect for a while."""
        return tuple(self._settled.values())

    @property
    def by_object(self) -> Mapping[Ref, tuple[Problem, ...]]:
        """The same, by object."""
        found: dict[Ref, tuple[Problem, ...]] = {}
        for (ref, _, _), problem in self._settled.items():
            found[ref] = (*found.get(ref, ()), problem)
        return found

    async def run(self) -> None:
        """Examine the mesh whenever it has changed."""
        await self._ready.wait()
        examined: Mesh | None = None
        found = Ineffective()
        failure = ""
        took = 0.0
        while True:
            mesh = self._mesh()
            if mesh is not examined:
                began = time.perf_counter()
                try:
                    found = await asyncio.to_thread(without_effect, mesh, found)
                    failure = ""
                except Exception as error:  # noqa: BLE001 - serving does not depend on it
                    said = f"{type(error).__name__}: {error}"
                    if said != failure:
                        log.error("failed to check for objects without effect", problem=said)  # noqa: TRY400
                    failure = said
                examined, took = mesh, time.perf_counter() - began
            self._settle(found, asyncio.get_running_loop().time())
            await asyncio.sleep(max(INTERVAL, IDLE_FACTOR * took))

    def _settle(self, found: Ineffective, now: float) -> None:
        """Take note of what has no effect now, and log what is different from before."""
        problems = {
            (ref, problem.what, problem.notice): problem
            for ref, each in found.problems.items()
            for problem in each
        }
        self._since = {key: self._since.get(key, now) for key in problems}
        before = self._settled
        self._settled = {
            key: problem for key, problem in problems.items() if now >= self._since[key] + SETTLE_TIME
        }
        new = [problem for key, problem in self._settled.items() if key not in before]
        solved = [problem for key, problem in before.items() if key not in problems and not problem.notice]
        more = 0
        for problem in new:
            if not self._lines.take(now):
                more += 1
                continue
            said = {"where": problem.where, "what": problem.what}
            said |= {"hint": problem.hint} if problem.hint else {}
            if problem.notice:
                log.info("notice", **said)
            else:
                log.warning("object has no effect", **said)
        for problem in solved:
            if self._lines.take(now):
                log.info("solved", where=problem.where, what=problem.what)
            else:
                more += 1
        if more:
            log.warning("more changes of objects without effect, not logged", count=more)
