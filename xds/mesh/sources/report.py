"""Updates that sources produce: changed objects, new problems and solved problems."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from xds.mesh.model.objects import Change, Problem

_LINE = re.compile(r":\d+$")


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


def problems_not_in(problems: Iterable[Problem], known: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems that are not in `known`. Line numbers are ignored."""

    def identity(problem: Problem) -> tuple[object, ...]:
        return _LINE.sub("", problem.where), problem.what, problem.hint, problem.notice

    unmatched = Counter(identity(problem) for problem in known)
    new: list[Problem] = []
    for problem in problems:
        if unmatched[identity(problem)]:
            unmatched[identity(problem)] -= 1
        else:
            new.append(problem)
    return tuple(new)
