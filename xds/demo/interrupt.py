"""Signals that ask the demo to end are noted, and acted upon where nothing can be left behind.

Raising from the handler would not do: the exception may come between starting a process and knowing of it, and where it
comes inside of a library's callback, Python prints it and goes on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number
        """The exit status that says so, as shells have it."""


_noted: list[int] = []
"""Signals that came. They are the process's, so this is too."""


@contextmanager
def noting_signals() -> Iterator[None]:
    """Note signals instead of ending at once; `check` then acts upon them."""
    before = {number: signal.signal(number, _note) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted.clear()


def check() -> None:
    """Raise `Interrupted` if a signal was noted. Called often: whenever the demo waits, and for each request."""
    if _noted:
        raise Interrupted(_noted[0])


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)
