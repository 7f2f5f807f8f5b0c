"""Counts over time: per minute for the last hour, and per ten minutes for the last day."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

MINUTES = 60
"""Number of minutes that are kept."""
TENS = 144
"""Number of ten-minute intervals that are kept: 24 h."""
RETENTION = TENS * 600.0
"""Seconds for which counts are kept."""
_MAX = 2**32 - 1


class Counts:
    """Counts in two rings of fixed size, 816 bytes in total. All times are Unix times, in seconds.

    Time that runs backwards counts as the latest time seen.
    """

    __slots__ = ("_minute", "_minutes", "_tens", "total")

    def __init__(self, now: float) -> None:
        self.total = 0
        """Sum of all counts, also of those that are no longer kept."""
        self._minutes = array("I", bytes(4 * MINUTES))
        self._tens = array("I", bytes(4 * TENS))
        self._minute = int(now // 60)

    def add(self, count: int, now: float) -> None:
        """Add to the current minute."""
        self.total += count
        if now // 60 > self._minute:
            self._advance(now)
        index = self._minute % MINUTES
        self._minutes[index] = min(self._minutes[index] + count, _MAX)
        index = self._minute // 10 % TENS
        self._tens[index] = min(self._tens[index] + count, _MAX)

    def minutes(self, now: float) -> list[int]:
        """Return the counts of the last MINUTES minutes, oldest first. The last one is still in progress."""
        self._advance(now)
        start = (self._minute + 1) % MINUTES
        return [*self._minutes[start:], *self._minutes[:start]]

    def tens(self, now: float) -> list[int]:
        """Return the counts of the last TENS ten-minute intervals, oldest first."""
        self._advance(now)
        start = (self._minute // 10 + 1) % TENS
        return [*self._tens[start:], *self._tens[:start]]

    def hour(self, now: float) -> int:
        """Return the count of the last MINUTES minutes."""
        return sum(self.minutes(now))

    def day(self, now: float) -> int:
        """Return the count of the last TENS ten-minute intervals."""
        return sum(self.tens(now))

    @classmethod
    def restore(cls, minutes: Sequence[int], tens: Sequence[int], now: float) -> Counts:
        """Return the counts that `minutes` and `tens` returned now. Missing ones, at the start, are 0.

        Raises:
            ValueError: there are too many counts, or a count is negative or too large.
        """
        counts = cls(now)
        for ring, values, last in (
            (counts._minutes, minutes, counts._minute),
            (counts._tens, tens, counts._minute // 10),
        ):
            if len(values) > len(ring):
                raise ValueError(f"{len(values)} counts, and at most {len(ring)} are allowed")
            for age, value in enumerate(reversed(values)):
                if not 0 <= value <= _MAX:
                    raise ValueError(f"count {value} is not in the range 0 to {_MAX}")
                ring[(last - age) % len(ring)] = value
        return counts

    def _advance(self, now: float) -> None:
        """Clear the intervals that have begun since the last call."""
        previous, current = self._minute, int(now // 60)
        if current <= previous:
            return
        self._minute = current
        _clear(self._minutes, previous, current)
        _clear(self._tens, previous // 10, current // 10)


class SummedCounts(Counts):
    """The sum of counts, which it reads when it is read."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[Counts]) -> None:
        # The rings of its own are not used.
        self._parts = parts

    def minutes(self, now: float) -> list[int]:
        """Return the counts of the last MINUTES minutes, oldest first. The last one is still in progress."""
        return [sum(column) for column in zip(*(part.minutes(now) for part in self._parts), strict=True)]

    def tens(self, now: float) -> list[int]:
        """Return the counts of the last TENS ten-minute intervals, oldest first."""
        return [sum(column) for column in zip(*(part.tens(now) for part in self._parts), strict=True)]


def _clear(ring: array[int], previous: int, current: int) -> None:
    for position in range(max(previous, current - len(ring)) + 1, current + 1):
        ring[position % len(ring)] = 0
