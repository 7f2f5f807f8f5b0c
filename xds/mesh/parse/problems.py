"""A bounded list of problems: what one object or file can add to the log and to memory."""

from __future__ import annotations

from collections.abc import Iterable

from xds.mesh.model.objects import Problem


class Problems:
    """The first problems that were added, and how many more there were.

    Problems and notices are counted apart, so that notices cannot hide a problem.
    """

    def __init__(self, limit: int) -> None:
        """Make an empty list.

        Args:
            limit: how many problems are kept, and how many notices.
        """
        self._limit = limit
        self._kept: list[Problem] = []
        self._count = {False: 0, True: 0}

    def admit(self, *, notice: bool) -> bool:
        """Count a problem; return whether it is to be kept. One that is not kept need not be made."""
        self._count[notice] += 1
        return self._count[notice] <= self._limit

    def keep(self, problem: Problem) -> None:
        """Keep a problem that `admit` has counted."""
        self._kept.append(problem)

    def add(self, problems: Iterable[Problem]) -> None:
        """Count problems, and keep them if there is room."""
        for problem in problems:
            if self.admit(notice=problem.notice):
                self.keep(problem)

    def listed(self, where: str, subject: str = "") -> tuple[Problem, ...]:
        """Return what is kept, then how many more there were.

        Args:
            where: place that the summary names.
            subject: name of the object, if `where` is not that.
        """
        summaries = []
        for notice, word, hint in (
            (False, "problem", "fix the first ones to see the others"),
            (True, "notice", ""),
        ):
            if (more := self._count[notice] - self._limit) > 0:
                what = f"{more} more {word}{'s' if more > 1 else ''} not listed (the limit is {self._limit})"
                what = f"{subject}: {what}" if subject else what
                summaries.append(Problem(where=where, what=what, hint=hint, notice=notice))
        return (*self._kept, *summaries)
