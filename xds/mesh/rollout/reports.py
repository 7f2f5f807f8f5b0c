"""The reports of all replicas, and when they expire."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf

from xds.mesh.rollout.observation import Report

REPORT_LIFETIME = 15.0
"""Seconds after which a report expires without renewal. By then, the replica's proxies have reconnected."""


@dataclass(slots=True)
class _Peer:
    report: Report | None
    """The last report; None if only the plan named the replica so far."""
    version: str
    """The version of the object that held the report. It changes with each renewal."""
    duration: float
    """Seconds after which the report expires without renewal."""
    seen_at: float
    """When this replica first read this version; -inf until the first check of a peer without a report.

    It is a time of this replica's clock: replicas do not compare their clocks.
    """


class Reports:
    """The report of this replica, and those of its peers."""

    def __init__(self, duration: float = REPORT_LIFETIME) -> None:
        """Create the state of a replica that has read nothing yet.

        Args:
            duration: seconds after which the report of this replica expires without renewal; also for peers
                whose report was not read yet.
        """
        self.duration = duration
        self.own = Report()
        """The report of this replica."""
        self._peers: dict[str, _Peer] = {}
        self._gone: set[str] = set()
        """The replicas whose report was deleted. No later replica has the same name."""
        self._renewed_at = -inf
        """When the last write of the own report started."""

    def renewed(self, started_at: float, now: float) -> None:
        """Record that the report of this replica was written. The write started at `started_at`."""
        if self.is_isolated(now):
            # While isolated, this replica could not read renewals: give every peer its full time again.
            for peer in self._peers.values():
                peer.seen_at = now
        self._renewed_at = started_at

    def is_isolated(self, now: float) -> bool:
        """Return whether the report of this replica may have expired at peers, because it was not renewed."""
        return now >= self._renewed_at + self.duration * 2 / 3

    def expect(self, names: AbstractSet[str]) -> None:
        """Count the members of the plan as peers, even if their reports were not read yet."""
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

        No report expires while this replica is isolated: it cannot read renewals.
        """
        if self.is_isolated(now):
            return {}
        return {name: peer.version for name, peer in self._peers.items() if self._check_expiry(name, now)}

    def alive(self, now: float) -> set[str]:
        """Return the peers whose reports have not expired."""
        return {name for name in self._peers if not self._check_expiry(name, now)}

    def _check_expiry(self, name: str, now: float) -> bool:
        """Return whether a report has expired. The first check of a peer without one starts its time."""
        peer = self._peers[name]
        if peer.seen_at == -inf:
            peer.seen_at = now
        return now >= peer.seen_at + peer.duration

    def peers(self, now: float) -> Mapping[str, Report]:
        """Return the reports of the peers that count: all but the expired ones.

        A peer counts without progress if its report was not read yet, or if it serves a plan of its own.
        """
        expired = self.expired(now)
        reports = {name: peer.report for name, peer in self._peers.items() if name not in expired}
        return {
            name: report if report and not report.is_alone else (report or Report()).without_progress()
            for name, report in reports.items()
        }
