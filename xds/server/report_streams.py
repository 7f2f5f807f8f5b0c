"""Streams of reports that clients send without being asked for resources, such as Envoy's load reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Protocol, TypeAlias

from xds.server.fair_share import CpuShare
from xds.server.proxies import StreamInfo
from xds.server.scheduling import RequestPacer

MAX_REPORT_BYTES = 1024 * 1024
"""Maximum size of a report, in bytes. The first report of a stream has a node of about 60 kB."""
REPORTS = (32, 10)
"""Reports of one stream: burst and rate per second. The server reads faster clients later.

Flow control then stops the client. Envoy drops what it cannot send.
"""
ALL_REPORTS = (4_000, 1_000)
"""Reports of all streams: burst and rate per second. Further reports are read, but not parsed."""
CLIENT_SHARE = 0.02
"""Share of one core that the reports of one client may use in the long run.

That is about 20 reports per second with 200 log entries each, the number of entries in Envoy's buffer.
"""
CLIENT_BURST = 0.5
"""CPU seconds that the reports of one client may use in a burst."""
DROP_PAUSE = 2.0
"""Seconds until the next report of a stream is read after one was dropped; twice as long after 1 MiB."""


class AllReportsShare(CpuShare):
    """CPU time of the reports of all clients."""

    BURST = 5.0
    """Burst in CPU seconds: two reports of each of 10,000 clients."""
    SHARE = 0.2
    """Sustained share of one core."""


class ReportBudget:
    """CPU time for reports: of each client, and of all clients together."""

    def __init__(self) -> None:
        self._clients = RequestPacer(CLIENT_SHARE, CLIENT_BURST)
        self._all = AllReportsShare()

    def is_spent(self, client: Hashable) -> bool:
        """Whether the client, or all clients together, have no CPU time left."""
        return self._clients.delay(client) > 0 or self._all.wait(asyncio.get_running_loop().time()) > 0

    def charge(self, client: Hashable, seconds: float) -> None:
        """Charge a client for seconds of work."""
        self._clients.charge(client, seconds)
        self._all.charge(seconds, asyncio.get_running_loop().time())


class ReportStream(Protocol):
    """One open stream of reports."""

    @property
    def client(self) -> Hashable:
        """Client whose CPU budget the reports are charged to."""

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
