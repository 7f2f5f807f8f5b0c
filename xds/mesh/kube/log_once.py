"""What goes wrong again and again is told once."""

from __future__ import annotations

from typing import Any


class OnceLogger:
    """Tells a log what is wrong: again only if it is something else by then, or was right meanwhile."""

    def __init__(self, log: Any, event: str, *, level: str = "warning") -> None:
        self._log, self._event, self._level = log, event, level
        self._said: dict[tuple[tuple[str, object], ...], str] = {}

    def __call__(self, problem: str, **about: object) -> None:
        """Say what is wrong with what `about` names; empty: nothing is any more."""
        key = tuple(about.items())
        if problem and problem != self._said.get(key):
            getattr(self._log, self._level)(self._event, **about, problem=problem)
        if problem:
            self._said[key] = problem
        else:
            self._said.pop(key, None)
