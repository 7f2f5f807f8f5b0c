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

from xds.mesh.controlplane.problem_log import ProblemLog
from xds.mesh.controlplane.problem_times import FoundProblem, SettlingProblems
from xds.mesh.controlplane.publisher import traceback_of
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Problem, Ref
from xds.mesh.policy.ineffective import Ineffective, without_effect

log = structlog.get_logger(__name__)

INTERVAL = 2.0
"""Seconds without a change after which the mesh is checked. Also the minimum interval between two checks."""
MAX_DELAY = 10.0
"""Seconds after the last check after which the mesh is checked even if it keeps changing."""
IDLE_FACTOR = 20
"""Minimum pause after a check, as a multiple of its duration."""

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
        self._tracked = SettlingProblems[_Key]()
        self._problem_log = ProblemLog(log, event="object has no effect")
        self._checked_mesh: Mesh | None = None
        self._ineffective = Ineffective()
        """Result of the last check."""
        self._log_error = OnceLogger(log, "failed to check for objects without effect", level="error")
        self._is_checking = asyncio.Lock()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of objects that have had no effect for a while."""
        return tuple(self._tracked.settled.values())

    @property
    def found(self) -> tuple[FoundProblem, ...]:
        """The problems of all objects without effect, with when each was first found."""
        return tuple(self._tracked.found.values())

    @property
    def by_object(self) -> Mapping[Ref, tuple[Problem, ...]]:
        """The same problems, by object."""
        by_object: dict[Ref, tuple[Problem, ...]] = {}
        for (ref, _, _), problem in self._tracked.settled.items():
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
            self._problem_log.add(self._tracked.settle())
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
            self._checked_mesh = mesh
            self._tracked.find(_by_key(self._ineffective))


def _by_key(ineffective: Ineffective) -> dict[_Key, Problem]:
    return {
        (ref, problem.what, problem.notice): problem
        for ref, object_problems in ineffective.problems.items()
        for problem in object_problems
    }
