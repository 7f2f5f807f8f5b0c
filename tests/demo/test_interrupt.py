"""Signals that ask to end: an exception, but not in the wrong moment."""

import signal

import pytest

from xds.demo.interrupt import NUMBERS, Interrupted, interruptible, uninterrupted


def interrupted(number, events=(), *, held=False):
    with interruptible():
        if held:
            with uninterrupted():
                signal.raise_signal(number)
                events.append("went on")
        else:
            signal.raise_signal(number)
            events.append("went on")
    events.append("went on afterwards")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_at_once(number):
    events = []
    with pytest.raises(Interrupted) as raised:
        interrupted(number, events)
    assert (raised.value.status, events) == (128 + number, [])


def test_a_signal_at_the_wrong_moment_waits_for_its_end():
    events = []
    with pytest.raises(Interrupted):
        interrupted(signal.SIGTERM, events, held=True)
    assert events == ["went on"]


def test_a_second_signal_does_not_hinder_the_cleaning_up():
    def clean_up():
        with interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        clean_up()
    assert raised.value.status == 130


def test_afterwards_signals_mean_what_they_did_before():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(Interrupted):
        interrupted(signal.SIGHUP, [])
    assert [signal.getsignal(number) for number in NUMBERS] == before
