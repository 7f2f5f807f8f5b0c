"""A rate-limited log of problems in the input.

A user who can write objects must not be able to fill the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger as BoundLogger

from xds.mesh.sources.report import SourceUpdate
from xds.server.token_bucket import TokenBucket

BURST = 200
"""Problems that are logged at once, and as many notices. A log call takes 0.1 ms of the event loop."""
RATE = 5.0
"""Problems that are logged per second after a burst, and as many notices."""


class ProblemLog:
    """Logs problems, notices and solved problems; counts those that exceed the rate.

    Problems and notices have separate budgets, so that notices cannot hide problems.
    """

    def __init__(self, log: BoundLogger, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a problem log.

        Args:
            log: the logger to write to.
            clock: returns the time in seconds.
        """
        self._log = log
        self._problems, self._notices = _LineBudget(clock), _LineBudget(clock)

    def add(self, report: SourceUpdate) -> None:
        """Log the new and the solved problems of a report."""
        for problem in report.problems:
            fields = {"where": problem.where, "what": problem.what}
            fields |= {"hint": problem.hint} if problem.hint else {}
            if problem.notice and self._notices.spend():
                self._log.info("notice", **fields)
            elif not problem.notice and self._problems.spend():
                self._log.warning("problem found", **fields)
        for problem in report.solved:
            if not problem.notice and self._notices.spend():
                self._log.info("problem solved", where=problem.where, what=problem.what)
        for budget, kind in ((self._problems, "problems"), (self._notices, "notices")):
            if omitted := budget.take_omitted():
                limit = f"{BURST} at once, then {RATE:g} per second; /metrics counts all in xds_problems"
                self._log.warning(f"{kind} not logged", count=omitted, limit=limit)


class _LineBudget:
    """The log lines of one kind that may still be written, and the number of lines omitted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budget = TokenBucket(BURST, RATE)
        self._omitted = 0
        self._spent = False

    def spend(self) -> bool:
        """Take one line; return whether there was one left."""
        if not self._budget.take(self._clock()):
            self._omitted += 1
            return False
        self._spent = True
        return True

    def take_omitted(self) -> int:
        """Return the number of lines omitted since the last call; 0 if no line was written since then."""
        if not self._spent:
            return 0
        self._spent = False
        omitted, self._omitted = self._omitted, 0
        return omitted
