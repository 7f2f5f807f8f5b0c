"""The log of what is wrong with the input, at a bounded rate: a user who can write objects must not fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from xds.server.token_bucket import TokenBucket

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.mesh.sources.report import Report

BURST = 200
"""How many problems are logged at once, and how many notices. A log call takes 0.1 ms of the event loop."""
RATE = 5.0
"""How many problems are logged per second after a burst, and how many notices."""


class ProblemLog:
    """Logs problems, notices and what is solved; what is beyond the rate is only counted.

    Problems have a budget of their own, so that notices cannot hide them.
    """

    def __init__(self, log: BoundLogger, clock: Callable[[], float] = time.monotonic) -> None:
        """Make one.

        Args:
            log: where to log.
            clock: returns the time in seconds.
        """
        self._log = log
        self._problems, self._notices = _Lines(clock), _Lines(clock)

    def add(self, report: Report) -> None:
        """Log what a report adds to what is wrong."""
        for problem in report.problems:
            about = {"where": problem.where, "what": problem.what}
            about |= {"hint": problem.hint} if problem.hint else {}
            if problem.notice and self._notices.spend():
                self._log.info("notice", **about)
            elif not problem.notice and self._problems.spend():
                self._log.warning("problem", **about)
        for problem in report.solved:
            if not problem.notice and self._notices.spend():
                self._log.info("solved", where=problem.where, what=problem.what)
        for lines, what in ((self._problems, "problems"), (self._notices, "notices")):
            if omitted := lines.omitted():
                hint = f"at most {BURST} at once and {RATE:g} per second; see xds_problems in /metrics"
                self._log.warning(f"{what} not logged", count=omitted, limit=hint)


class _Lines:
    """The lines of one kind that may be logged, and how many more there were."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budget = TokenBucket(BURST, RATE)
        self._omitted = 0
        self._spent = False

    def spend(self) -> bool:
        """Take one; return whether there was one."""
        if not self._budget.take(self._clock()):
            self._omitted += 1
            return False
        self._spent = True
        return True

    def omitted(self) -> int:
        """Return how many found nothing since the last time; 0 while nothing else is logged either."""
        if not self._spent:
            return 0
        self._spent = False
        omitted, self._omitted = self._omitted, 0
        return omitted
