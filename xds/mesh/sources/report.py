"""Updates that sources produce: changed objects, new problems and solved problems."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from xds.mesh.model.objects import Change, Fact, Problem

_LINE = re.compile(r":\d+$")


class ReadObject(NamedTuple):
    """An object as a source last read it."""

    fact: Fact | None = None
    """The fact in use; None if the object has none."""
    version: str = ""
    """The resourceVersion; empty for an object in a file."""
    rejection: Problem | None = None
    """Why the version that was read is rejected; None if it is in use."""


def rejection_of(problems: Iterable[Problem]) -> Problem | None:
    """Return the first problem of a rejected object that is not a notice."""
    return next((problem for problem in problems if not problem.notice), None)


def with_served_version(problems: Iterable[Problem], version: str) -> tuple[Problem, ...]:
    """Return the problems of a rejected object, of which an earlier version stays in use."""
    return tuple(
        problem if problem.notice else replace(problem, served_version=version) for problem in problems
    )


class SourceUpdate(NamedTuple):
    """Differences from the previous update of a source."""

    change: Change = Change()
    """Changed objects and settings."""
    problems: tuple[Problem, ...] = ()
    """New problems."""
    solved: tuple[Problem, ...] = ()
    """Solved problems."""
    unsettled: bool = False
    """Whether a file is still being written, and must be read again soon."""
    complete: bool = True
    """Whether the source has read everything once. Before that, updates contain only problems."""

    @property
    def empty(self) -> bool:
        """Whether there are no differences."""
        return not self.problems and not self.solved and self.change == Change()


def identity(problem: Problem) -> tuple[object, ...]:
    """Return what distinguishes a problem from others, in all versions of a file."""
    return _LINE.sub("", problem.where), problem.what, problem.hint, problem.notice


def problems_not_in(problems: Iterable[Problem], known: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems that are not in `known`. Line numbers are ignored."""
    unmatched = Counter(identity(problem) for problem in known)
    new: list[Problem] = []
    for problem in problems:
        if unmatched[identity(problem)]:
            unmatched[identity(problem)] -= 1
        else:
            new.append(problem)
    return tuple(new)
