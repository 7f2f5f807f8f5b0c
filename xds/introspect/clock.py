"""Moments of the event loop's clock, as answers tell them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from xds.server.stream import now


@dataclass(frozen=True, slots=True)
class Clock:
    """The event loop's clock and everybody's, as they stood to each other once: what did not change stays the same."""

    offset: float

    @classmethod
    def read(cls) -> Self:
        """Compare them."""
        return cls(time.time() - now())

    def to_timestamp(self, moment: float) -> Timestamp:
        """Return a moment of the event loop's clock as everybody would say it."""
        stamp = Timestamp()
        stamp.FromMilliseconds(round((moment + self.offset) * 1000))
        return stamp
