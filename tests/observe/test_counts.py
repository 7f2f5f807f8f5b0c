"""Every count is in the minute and the ten minutes that it belongs to, and expires with them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.observe.counts import MINUTES, RETENTION, Counts

NOON = 1_000_000 * 600.0


def test_counts_of_each_minute_are_kept_for_an_hour():
    counts = Counts(NOON)
    counts.add(3, NOON + 10)
    counts.add(4, NOON + 70)

    assert counts.minutes(NOON + 130)[-3:] == [3, 4, 0]
    assert (counts.hour(NOON + 130), counts.day(NOON + 130)) == (7, 7)
    assert counts.hour(NOON + 60 * 60) == 4
    assert counts.hour(NOON + 61 * 60) == 0
    assert counts.day(NOON + 61 * 60) == 7
    assert counts.day(NOON + RETENTION) == 0


def test_time_that_runs_backwards_loses_no_count():
    counts = Counts(NOON)
    counts.add(1, NOON + 120)
    counts.add(1, NOON)

    assert counts.minutes(NOON)[-1] == 2


def test_counts_do_not_overflow():
    counts = Counts(NOON)
    for _ in range(3):
        counts.add(2**32 - 2, NOON)

    assert counts.minutes(NOON)[-1] == 2**32 - 1


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 5)), max_size=30))
def test_minutes_equal_a_list_of_all_events(steps):
    """Advance by minutes and count. The ring equals what a full record of the events comes to."""
    counts, minute, events = Counts(NOON), 0, []
    for advance, count in steps:
        minute += advance
        counts.add(count, NOON + minute * 60)
        events.append((minute, count))
    expected = [
        sum(count for at, count in events if at == minute - back) for back in reversed(range(MINUTES))
    ]
    assert counts.minutes(NOON + minute * 60) == expected
    day = sum(count for at, count in events if at // 10 > minute // 10 - 144)
    assert counts.day(NOON + minute * 60) == day
