"""Termination signals raise at safe points only."""

import signal

import pytest

from xds.demo.interrupt import SIGNALS, Interrupted, check, defer_signals
from xds.demo.processes import Processes


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_interrupts_at_the_next_check(number):
    with defer_signals():
        check()
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as raised:
            check()
    assert raised.value.status == 128 + number


def test_first_of_several_signals_counts():
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as raised:
            check()
    assert raised.value.status == 130


def test_signal_ends_a_wait(tmp_path):
    def pending():
        signal.raise_signal(signal.SIGTERM)
        return "everything"

    with defer_signals(), Processes(tmp_path) as processes, pytest.raises(Interrupted):
        processes.wait_for("a thing", pending)


def test_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with defer_signals():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    check()
