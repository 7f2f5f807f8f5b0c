"""When problems were found, and which of them have lasted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from xds.mesh.model.objects import Problem
from xds.mesh.sources.report import SourceUpdate, identity
from xds.server.stream import now

K = TypeVar("K")

SETTLE_TIME = 10.0
"""Seconds after which a problem has lasted. Pods and replicas that start or stop cause short ones."""


class FoundProblem(NamedTuple):
    """A problem, and when it was found."""

    problem: Problem
    """The problem."""
    found_at: float | None
    """When it was found, in seconds of the event loop's clock; None if it is not known."""


class ProblemTimes:
    """Remember when each problem of a source was found, until it is solved."""

    def __init__(self) -> None:
        self._found_at: dict[tuple[object, ...], float] = {}

    def add(self, update: SourceUpdate) -> None:
        """Record the new and the solved problems of an update."""
        for problem in update.solved:
            self._found_at.pop(identity(problem), None)
        for problem in update.problems:
            self._found_at.setdefault(identity(problem), now())

    def found(self, problems: Iterable[Problem]) -> tuple[FoundProblem, ...]:
        """Return problems, with when each was found."""
        return tuple(FoundProblem(problem, self._found_at.get(identity(problem))) for problem in problems)


class SettlingProblems(Generic[K]):
    """Problems that count once they have lasted for a while. K identifies a problem."""

    def __init__(self) -> None:
        self.found: Mapping[K, FoundProblem] = {}
        """All problems of the last check."""
        self.settled: Mapping[K, Problem] = {}
        """Those of them that have lasted for SETTLE_TIME."""

    def find(self, problems: Mapping[K, Problem]) -> None:
        """Record the result of a check."""
        found_at, checked_at = {key: found.found_at for key, found in self.found.items()}, now()
        self.found = {
            key: FoundProblem(item, found_at.get(key, checked_at)) for key, item in problems.items()
        }

    def settle(self) -> SourceUpdate:
        """Update `settled`. Return the problems that are new there, and those that are solved."""
        before, latest = self.settled, now() - SETTLE_TIME
        self.settled = {
            key: found.problem
            for key, found in self.found.items()
            if found.found_at is not None and found.found_at <= latest
        }
        new = tuple(problem for key, problem in self.settled.items() if key not in before)
        solved = tuple(problem for key, problem in before.items() if key not in self.settled)
        return SourceUpdate(problems=new, solved=solved)
