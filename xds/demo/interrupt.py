"""Signals that ask the demo to end become an exception, held back where it would leave something behind."""

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


class _State:
    """What belongs to the process, as its signals do."""

    holders = 0
    """How many are holding the exception back."""
    held = 0
    """The signal that came meanwhile."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` at the first signal that asks to end; more of them do not hinder the cleaning up."""
    before = {number: signal.signal(number, _interrupt) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Raise `Interrupted` only afterwards, if a signal comes in between.

    Blocking the signals would not do: another thread would take them, and the exception still be raised in this one.
    """
    _State.holders += 1
    try:
        yield
    finally:
        _State.holders -= 1
        if _State.held and not _State.holders:
            number, _State.held = _State.held, 0
            raise Interrupted(number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for each in NUMBERS:
        signal.signal(each, signal.SIG_IGN)
    if not _State.holders:
        raise Interrupted(number)
    _State.held = number
