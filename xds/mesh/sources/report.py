"""What a source tells: what changed, and what is wrong that was not, or is no longer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from xds.mesh.model.objects import Change, Problem

_LINE = re.compile(r":\d+$")


class SourceUpdate(NamedTuple):
    """What is different from what was told before."""

    change: Change = Change()
    problems: tuple[Problem, ...] = ()
    """Those that are new."""
    solved: tuple[Problem, ...] = ()
    """Those that are gone."""
    unsettled: bool = False
    """Whether something was left for later, because it is being written."""
    complete: bool = True
    """Whether everything is known. Before, only problems are told."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.problems and not self.solved and self.change == Change()


def problems_not_in(problems: Iterable[Problem], known: Iterable[Problem]) -> tuple[Problem, ...]:
    """Tell which problems are not among the known ones. One that only moved to another line is."""

    def said(problem: Problem) -> tuple[object, ...]:
        return _LINE.sub("", problem.where), problem.what, problem.hint, problem.notice

    left = Counter(said(problem) for problem in known)
    new: list[Problem] = []
    for problem in problems:
        if left[said(problem)]:
            left[said(problem)] -= 1
        else:
            new.append(problem)
    return tuple(new)
