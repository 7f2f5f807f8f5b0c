"""Deferred handling of termination signals: a handler records the signal, and `check` raises at a safe point.

Raising in the handler is not safe. The exception could occur after a process has started but before it is
recorded, and Python ignores exceptions in some callbacks.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A termination signal arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number
        """The exit status of a process that a signal terminated, as in a shell."""


_received: list[int] = []
"""Signals that arrived. The list is global, like signal handlers."""


@contextmanager
def defer_signals() -> Iterator[None]:
    """Record termination signals instead of terminating; `check` then raises."""
    previous = {number: signal.signal(number, _record) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raise `Interrupted` if a signal was recorded.

    The demo calls this while it waits and before each request.
    """
    if _received:
        raise Interrupted(_received[0])


def _record(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
