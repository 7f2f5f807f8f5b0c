"""Streams of reports that clients send without being asked for resources, such as Envoy's load reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from xds.server.proxies import StreamInfo

MAX_REPORT_BYTES = 1024 * 1024
"""Maximum size of a report, in bytes. The first report of a stream has a node of about 60 kB."""
REPORTS = (32, 10)
"""Reports of one stream: burst and rate per second. The server reads faster clients later.

Flow control then stops the client. Envoy drops what it cannot send.
"""
ALL_REPORTS = (4_000, 1_000)
"""Reports of all streams: burst and rate per second. Further reports are read, but not parsed."""


class ReportStream(Protocol):
    """One open stream of reports."""

    @property
    def response(self) -> bytes | None:
        """Response to the first report; None if there is none."""

    def receive(self, report: bytes) -> None:
        """Handle a report. It is never larger than MAX_REPORT_BYTES.

        Raises:
            Refused: the stream ends with this status.
        """

    def dropped(self, reason: str) -> None:
        """Count a report that was not handled."""

    def close(self) -> None:
        """Release the stream's resources. Called exactly once."""


OpenReports: TypeAlias = Callable[[StreamInfo, bytes], ReportStream]
"""Accepts a stream by its first report, which it also handles. Raises `Refused` to refuse the stream."""
