"""A token bucket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """A token bucket that allows `burst` events at once, and `rate` events per second in the long run.

    All times are in seconds of the same monotonic clock.
    """

    burst: float
    rate: float
    _used: float = 0.0
    _updated: float = 0.0

    @property
    def is_half_spent(self) -> bool:
        """Whether at least half of the burst was spent after the last event."""
        return self._used >= self.burst / 2

    def take(self, now: float) -> bool:
        """Return whether an event is within the limit. If it is, count it."""
        self._used = max(0.0, self._used - (now - self._updated) * self.rate)
        self._updated = now
        if self._used + 1 > self.burst:
            return False
        self._used += 1
        return True
