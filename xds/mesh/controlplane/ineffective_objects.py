"""Report objects that have no effect (`xds.mesh.policy.ineffective`), and log those that stay so for a while.

A thread checks the mesh a few seconds after its last change, or when a user asks: earlier, it would delay the
responses that the change causes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import structlog

from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.controlplane.publisher import traceback_of
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Problem, Ref
from xds.mesh.policy.ineffective import Ineffective, without_effect
from xds.server.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

SETTLE_TIME = 10.0
"""Seconds without effect after which an object is logged and counted. Its pods may be about to start."""
INTERVAL = 2.0
"""Seconds without a change after which the mesh is checked. Also the minimum interval between two checks."""
MAX_DELAY = 10.0
"""Seconds after the last check after which the mesh is checked even if it keeps changing."""
IDLE_FACTOR = 20
"""Minimum pause after a check, as a multiple of its duration."""
MAX_LOGGED = 100
"""Maximum number of log lines in one burst."""
LOG_RATE = 5.0
"""Maximum number of log lines per second after a burst."""

_Key: TypeAlias = tuple[Ref, str, bool]


class IneffectiveObjects:
    """Track which objects have no effect; `run` works until cancelled."""

    def __init__(self, mesh: Callable[[], Mesh], ready: asyncio.Event) -> None:
        """Create a watcher.

        Args:
            mesh: returns the current mesh.
            ready: set once the first mesh is complete.
        """
        self._mesh = mesh
        self._ready = ready
        self._since: dict[_Key, float] = {}
        """When each problem was first found, in seconds of the event loop's clock."""
        self._settled: dict[_Key, Problem] = {}
        self._lines = TokenBucket(MAX_LOGGED, LOG_RATE)
        self._checked_mesh: Mesh | None = None
        self._ineffective = Ineffective()
        """Result of the last check."""
        self._log_error = OnceLogger(log, "failed to check for objects without effect", level="error")
        self._is_checking = asyncio.Lock()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of objects that have had no effect for a while."""
        return tuple(self._settled.values())

    @property
    def found(self) -> tuple[FoundProblem, ...]:
        """The problems of all objects without effect, with when each was first found."""
        problems = _by_key(self._ineffective)
        return tuple(FoundProblem(problem, self._since[key]) for key, problem in problems.items())

    @property
    def by_object(self) -> Mapping[Ref, tuple[Problem, ...]]:
        """The same problems, by object."""
        by_object: dict[Ref, tuple[Problem, ...]] = {}
        for (ref, _, _), problem in self._settled.items():
            by_object[ref] = (*by_object.get(ref, ()), problem)
        return by_object

    async def run(self) -> None:
        """Check the mesh after each change, until cancelled."""
        await self._ready.wait()
        await asyncio.sleep(INTERVAL)  # Leave the CPU to the servers, which start now.
        previous_mesh: Mesh | None = None
        seconds = 0.0
        checked_at = time.monotonic()
        while True:
            mesh = self._mesh()
            is_due = mesh is previous_mesh or time.monotonic() >= checked_at + MAX_DELAY
            previous_mesh = mesh
            if is_due and mesh is not self._checked_mesh:
                started_at = time.perf_counter()
                await self.check()
                checked_at, seconds = time.monotonic(), time.perf_counter() - started_at
            self._settle(asyncio.get_running_loop().time())
            await asyncio.sleep(max(INTERVAL, IDLE_FACTOR * seconds))

    async def check(self) -> None:
        """Check the current mesh now, unless it has been checked. Afterwards, `found` is up to date."""
        async with self._is_checking:
            mesh = self._mesh()
            if mesh is self._checked_mesh:
                return
            try:
                self._ineffective = await asyncio.to_thread(without_effect, mesh, self._ineffective)
                self._log_error("")
            except Exception as error:  # noqa: BLE001 - serving does not depend on it
                self._log_error(f"{type(error).__name__}: {error}", stack=traceback_of(error))
            self._checked_mesh, now = mesh, asyncio.get_running_loop().time()
            self._since = {key: self._since.get(key, now) for key in _by_key(self._ineffective)}

    def _settle(self, now: float) -> None:
        """Update the problems from the result of the last check, and log the difference."""
        problems = _by_key(self._ineffective)
        previous = self._settled
        self._settled = {
            key: problem for key, problem in problems.items() if now >= self._since[key] + SETTLE_TIME
        }
        new = [problem for key, problem in self._settled.items() if key not in previous]
        solved = [problem for key, problem in previous.items() if key not in problems and not problem.notice]
        suppressed = 0
        for problem in new:
            if not self._lines.take(now):
                suppressed += 1
                continue
            fields = {"where": problem.where, "what": problem.what}
            fields |= {"hint": problem.hint} if problem.hint else {}
            if problem.notice:
                log.info("notice", **fields)
            else:
                log.warning("object has no effect", **fields)
        for problem in solved:
            if self._lines.take(now):
                log.info("problem solved", where=problem.where, what=problem.what)
            else:
                suppressed += 1
        if suppressed:
            log.warning("more changes of objects without effect, not logged", count=suppressed)


def _by_key(ineffective: Ineffective) -> dict[_Key, Problem]:
    return {
        (ref, problem.what, problem.notice): problem
        for ref, object_problems in ineffective.problems.items()
        for problem in object_problems
    }
