"""Bounded list of problems: one object or file must not fill the log or memory."""

from __future__ import annotations

from collections.abc import Iterable

from xds.mesh.model.objects import Problem


class Problems:
    """The first problems, and the number of all others.

    Problems and notices have separate limits, so a large number of notices cannot hide a problem.
    """

    def __init__(self, limit: int) -> None:
        """Create an empty list.

        Args:
            limit: maximum number of problems in the list, and maximum number of notices.
        """
        self._limit = limit
        self._kept: list[Problem] = []
        self._count = {False: 0, True: 0}

    def admit(self, *, notice: bool) -> bool:
        """Count a problem, and return whether the list has room for it.

        The caller calls `keep` only if it has, and need not create the problem otherwise.
        """
        self._count[notice] += 1
        return self._count[notice] <= self._limit

    def keep(self, problem: Problem) -> None:
        """Add a problem that `admit` has counted."""
        self._kept.append(problem)

    def add(self, problems: Iterable[Problem]) -> None:
        """Count all problems, and add as many as the list has room for."""
        for problem in problems:
            if self.admit(notice=problem.notice):
                self.keep(problem)

    def listed(self, where: str, subject: str = "") -> tuple[Problem, ...]:
        """Return the first problems, then a summary with the number of all others.

        Args:
            where: place of the summary.
            subject: name of the object; empty if `where` already contains it.
        """
        if not self._kept:
            return ()
        summaries = []
        for notice, word, hint in (
            (False, "problem", "fix the listed problems to see the others"),
            (True, "notice", ""),
        ):
            if (more := self._count[notice] - self._limit) > 0:
                what = f"{more} more {word}{'s' if more > 1 else ''} not listed (the limit is {self._limit})"
                what = f"{subject}: {what}" if subject else what
                summaries.append(Problem(where=where, what=what, hint=hint, notice=notice))
        return (*self._kept, *summaries)
