"""The reports of all replicas, and which of them still count."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf

from xds.mesh.rollout.observation import Report

REPORT_LIFETIME = 15.0
"""Seconds after which a report that was not renewed expires. By then, the replica's proxies have moved."""


@dataclass(slots=True)
class _Peer:
    report: Report | None
    """None: the replica is a member of the plan, and its report was not read yet."""
    version: str
    """The version of the object that held the report. It changes with each renewal."""
    duration: float
    """Seconds that the report counts without renewal."""
    seen_at: float
    """When this version was first seen, by this replica's clock: clocks of machines are never compared."""


class Reports:
    """The report of this replica, and those of its peers."""

    def __init__(self, duration: float = REPORT_LIFETIME) -> None:
        """Create the state of a replica that has read nothing yet.

        Args:
            duration: seconds that a report counts without renewal.
        """
        self.duration = duration
        self.own = Report()
        """The report of this replica."""
        self._peers: dict[str, _Peer] = {}
        self._gone: set[str] = set()
        """The replicas whose report was deleted. Their names do not recur."""
        self._renewed_at = -inf

    def renewed(self, started_at: float, now: float) -> None:
        """Record that the own report was written; the write started at `started_at`."""
        if self.is_isolated(now):
            # While isolated, this replica could not read renewals: give every peer its full time again.
            for peer in self._peers.values():
                peer.seen_at = now
        self._renewed_at = started_at

    def is_isolated(self, now: float) -> bool:
        """Whether peers may have expired this replica, because it has not renewed its report in time."""
        return now >= self._renewed_at + self.duration * 2 / 3

    def expect(self, names: AbstractSet[str]) -> None:
        """Count replicas whose reports were not read yet."""
        for name in names - self._peers.keys() - self._gone:
            self._peers[name] = _Peer(None, "", self.duration, -inf)

    def receive(self, name: str, version: str, report: Report, duration: float, now: float) -> None:
        """Record the report of a peer."""
        known = self._peers.get(name)
        if known is None or known.version != version:
            self._peers[name] = _Peer(report, version, duration, now)

    def forget(self, name: str) -> None:
        """Forget a peer whose report was deleted."""
        self._peers.pop(name, None)
        self._gone.add(name)

    @property
    def names(self) -> set[str]:
        """The names of the peers that have a report."""
        return {name for name, peer in self._peers.items() if peer.report}

    def expired(self, now: float) -> dict[str, str]:
        """Return the peers whose reports have expired, with the version last seen.

        Empty while this replica is isolated.
        """
        if self.is_isolated(now):
            return {}
        return {name: peer.version for name, peer in self._peers.items() if self._is_expired(name, now)}

    def alive(self, now: float) -> set[str]:
        """Return the peers that may serve proxies."""
        return {name for name in self._peers if not self._is_expired(name, now)}

    def _is_expired(self, name: str, now: float) -> bool:
        peer = self._peers[name]
        if peer.seen_at == -inf:
            peer.seen_at = now
        return now >= peer.seen_at + peer.duration

    def peers(self, now: float) -> Mapping[str, Report]:
        """Return the reports of peers that have not expired.

        Nothing is known about the proxies of a peer that serves a plan of its own.
        """
        expired = self.expired(now)
        reports = {name: peer.report for name, peer in self._peers.items() if name not in expired}
        return {
            name: report if report and not report.is_alone else (report or Report()).without_progress()
            for name, report in reports.items()
        }
