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
"""Maximum burst of logged problems; the same for notices. A log call takes 0.1 ms of the event loop."""
RATE = 5.0
"""Problems logged per second after a burst; the same for notices."""


class ProblemLog:
    """Logs problems, notices and solved problems, up to a rate, and counts the lines that exceed it.

    Problems and notices have separate limits, so that notices cannot hide problems.
    """

    def __init__(
        self, log: BoundLogger, clock: Callable[[], float] = time.monotonic, *, event: str = "problem found"
    ) -> None:
        """Create a problem log.

        Args:
            log: the logger to write to.
            clock: returns the time in seconds.
            event: the event of a new problem.
        """
        self._log, self._event = log, event
        self._problems, self._notices = _LineBudget(clock), _LineBudget(clock)

    def add(self, update: SourceUpdate) -> None:
        """Log the new and the solved problems of an update."""
        for problem in update.problems:
            fields = {"where": problem.where, "what": problem.what}
            fields |= {"hint": problem.hint} if problem.hint else {}
            if problem.notice and self._notices.spend():
                self._log.info("notice", **fields)
            elif not problem.notice and self._problems.spend():
                self._log.warning(self._event, **fields)
        for problem in update.solved:
            if not problem.notice and self._notices.spend():
                self._log.info("problem solved", where=problem.where, what=problem.what)
        for budget, kind in ((self._problems, "problems"), (self._notices, "notices")):
            if omitted := budget.take_omitted():
                limit = f"{BURST} at once, then {RATE:g} per second; the metric xds_problems counts all"
                self._log.warning(f"{kind} not logged", count=omitted, limit=limit)


class _LineBudget:
    """A rate limit for one kind of log line. Counts the lines omitted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bucket = TokenBucket(BURST, RATE)
        self._omitted = 0
        self._has_written = False

    def spend(self) -> bool:
        """Return whether a line may be written now, and count it as written or omitted."""
        if not self._bucket.take(self._clock()):
            self._omitted += 1
            return False
        self._has_written = True
        return True

    def take_omitted(self) -> int:
        """Return the number of omitted lines, and reset it; 0 if no line was written since the last call."""
        if not self._has_written:
            return 0
        self._has_written = False
        omitted, self._omitted = self._omitted, 0
        return omitted
