"""Token buckets, for one or many clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
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

    def take(self, now: float) -> bool:
        """Return whether an event is within the limit. If it is, count it."""
        self._used = max(0.0, self._used - (now - self._updated) * self.rate)
        self._updated = now
        if self._used + 1 > self.burst:
            return False
        self._used += 1
        return True

    def give_back(self) -> float:
        """Do not count an event that was within the limit. Return how many events count now."""
        self._used = max(0.0, self._used - 1)
        return self._used


class TokenBuckets:
    """A token bucket for each client. Beyond `limit` clients, those that were seen last are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def of(self, client: Hashable, burst: float, rate: float) -> TokenBucket:
        """Return the bucket of a client. A new one has this burst and rate."""
        bucket = self._buckets.pop(client, None) or TokenBucket(burst, rate)
        self._buckets[client] = bucket
        if len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return bucket

    def give_back(self, client: Hashable) -> None:
        """Do not count an event of a client that was within its limit. Forget a client without events."""
        if (bucket := self._buckets.get(client)) and not bucket.give_back():
            del self._buckets[client]
