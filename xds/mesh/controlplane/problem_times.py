"""When the problems of a source were found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from xds.mesh.model.objects import Problem
from xds.mesh.sources.report import SourceUpdate, identity
from xds.server.stream import now


class FoundProblem(NamedTuple):
    """A problem, and when it was found."""

    problem: Problem
    """The problem."""
    found_at: float | None
    """When it was found, in seconds of the event loop's clock; None if it is not known."""


class ProblemTimes:
    """Remember when each problem was found, until it is solved."""

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
