"""A logger for recurring problems that omits repetitions."""

from __future__ import annotations

from typing import Any


class OnceLogger:
    """Logs a problem once, and again only after it has changed or was solved in between."""

    def __init__(self, log: Any, event: str, *, level: str = "warning") -> None:
        self._log, self._event, self._level = log, event, level
        self._last: dict[tuple[tuple[str, object], ...], str] = {}

    def __call__(self, problem: str, *, stack: str = "", **facts: object) -> None:
        """Log a problem, unless it is the last one logged for these facts. An empty problem means solved.

        Args:
            problem: the problem.
            stack: traceback of an unexpected error, logged with it.
            facts: what it is about.
        """
        key = tuple(facts.items())
        if problem and problem != self._last.get(key):
            traceback = {"stack": stack} if stack else {}
            getattr(self._log, self._level)(self._event, **facts, problem=problem, **traceback)
        if problem:
            self._last[key] = problem
        else:
            self._last.pop(key, None)
