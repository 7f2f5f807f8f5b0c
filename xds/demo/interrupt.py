"""Signals that ask the demo to end are noted, and acted upon where nothing can be left behind.

Raising from the handler would not do: the exception may come between starting a process and knowing of it, and where it
comes inside of a library's callback, Python prints it and goes on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number
        """The exit status that says so, as shells have it."""


_received: list[int] = []
"""Signals that came. They are the process's, so this is too."""


@contextmanager
def defer_signals() -> Iterator[None]:
    """Note signals instead of ending at once; `check` then acts upon them."""
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raise `Interrupted` if a signal was noted. Called often: whenever the demo waits, and for each request."""
    if _received:
        raise Interrupted(_received[0])


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
