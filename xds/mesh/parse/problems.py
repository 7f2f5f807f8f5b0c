"""A bounded list of problems, to limit what one object or file can add to the log and to memory."""

from __future__ import annotations

from collections.abc import Iterable

from xds.mesh.model.objects import Problem


class Problems:
    """The first problems, and the number of the others.

    Problems and notices have separate limits, so that notices cannot hide a problem.
    """

    def __init__(self, limit: int) -> None:
        """Create an empty list.

        Args:
            limit: maximum number of problems, and of notices, in the list.
        """
        self._limit = limit
        self._kept: list[Problem] = []
        self._count = {False: 0, True: 0}

    def admit(self, *, notice: bool) -> bool:
        """Count a problem; return whether there is room for it. If not, the caller need not create it."""
        self._count[notice] += 1
        return self._count[notice] <= self._limit

    def keep(self, problem: Problem) -> None:
        """Add a problem that `admit` has counted."""
        self._kept.append(problem)

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems while there is room, and count all of them."""
        for problem in problems:
            if self.admit(notice=problem.notice):
                self.keep(problem)

    def listed(self, where: str, subject: str = "") -> tuple[Problem, ...]:
        """Return the first problems, then the number of the others.

        Args:
            where: place that the summary names.
            subject: name of the object, if `where` is another text.
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
