"""Conversion of the event loop's clock to timestamps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from xds.server.stream import now


@dataclass(frozen=True, slots=True)
class Clock:
    """A fixed offset between the event loop's clock and the wall clock.

    With one fixed offset, equal times of the event loop have equal timestamps.
    """

    offset: float
    """Seconds to add to a time of the event loop's clock."""

    @classmethod
    def read(cls) -> Self:
        """Read both clocks."""
        return cls(time.time() - now())

    def to_timestamp(self, moment: float) -> Timestamp:
        """Convert a time of the event loop's clock to a timestamp, rounded to milliseconds."""
        timestamp = Timestamp()
        timestamp.FromMilliseconds(round((moment + self.offset) * 1000))
        return timestamp
