"""The reports and the plan that replicas share.

Every replica publishes a report about its own proxies. The leader makes the plan from all reports, and stores
it only if nobody else has stored another plan since it read the last one (compare and swap). The API server
thus keeps two leaders from acting on different plans, and a new leader continues with the plan that it reads.

Before a replica serves any proxy, it adds itself to the members of the stored plan. A leader that has not
read that cannot store its own plan, and one that has read it waits for the report of the new member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from xds.mesh.rollout.machine import Proposal
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.plan import StoredPlan

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


class Shared(NamedTuple):
    """What replicas share, at one moment."""

    version: str
    """The version of the stored plan; empty if none is stored, or if it was not read yet."""
    stored: StoredPlan | None
    """The stored plan; None if it was not read yet."""
    accepted: Proposal | None
    """A plan of this replica that was stored, and that it does not serve yet."""
    leads: bool
    """Whether this replica makes the plan."""
    is_isolated: bool
    """Whether peers may have expired this replica."""


class ReplicaSync:
    """Keep track of reports and of the plan. The caller writes and reads them."""

    def __init__(self, name: str, leads: Callable[[], bool], duration: float = REPORT_LIFETIME) -> None:
        """Create the state of a replica that has read nothing yet.

        Args:
            name: the name of this replica, which no earlier replica had.
            leads: returns whether this replica makes the plan.
            duration: seconds that a report counts without renewal.
        """
        self.name = name
        self.leads = leads
        self.duration = duration
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be something to write."""
        self.report = Report()
        """The report of this replica."""
        self._peers: dict[str, _Peer] = {}
        self._gone: set[str] = set()
        """The replicas whose report was deleted. Their names do not recur."""
        self._stored: tuple[str, StoredPlan] | None = None
        """The plan that was read last, with the version of its object; "" if there is no such object."""
        self._candidate: tuple[str, Proposal] | None = None
        """The next plan, with the version that it replaces."""
        self._sent: Proposal | None = None
        """The plan that is being stored."""
        self.accepted: Proposal | None = None
        """The last plan of this replica that was stored, until the caller takes it."""
        self._renewed_at = -inf

    # --- the plan -------------------------------------------------------------------------------------------

    @property
    def stored(self) -> StoredPlan | None:
        """The plan that was read last; None if none was."""
        return self._stored[1] if self._stored else None

    @property
    def has_joined(self) -> bool:
        """Whether every later plan considers this replica."""
        return self.stored is not None and self.name in self.stored.members

    def share(self, now: float) -> Shared:
        """Return what replicas share now."""
        version, stored = self._stored or ("", None)
        return Shared(version, stored, self.accepted, self.leads(), self.is_isolated(now))

    def propose(self, version: str, proposal: Proposal) -> None:
        """Set the next plan, which was made from a version of the stored plan."""
        known = self._candidate
        if known is None or (known[0], known[1].plan) != (version, proposal.plan):
            self._candidate = version, proposal
            self.on_change()

    def plan_to_store(self, now: float) -> tuple[str, StoredPlan] | None:
        """Return the plan to store, with the version of the object that it replaces. None: there is none.

        Call `plan_stored` once it is stored, before the next call.
        """
        if self._stored is None:
            return None
        version, stored = self._stored
        self._sent = None
        if self._candidate and self._candidate[0] == version and self.leads():
            self._sent = self._candidate[1]
            members = {self.name, *(name for name in self._peers if not self._is_expired(name, now))}
            return version, self._sent.plan.stored(members)
        if not self.has_joined:
            return version, stored._replace(members=stored.members | {self.name})
        return None

    def plan_stored(self, replaced: str, version: str, plan: StoredPlan) -> None:
        """Record that a plan of `plan_to_store` was stored."""
        if self._stored is None or self._stored[0] not in {replaced, version}:
            return  # A later one was read in the meantime.
        self._stored = version, plan
        self.accepted = self._sent or self.accepted

    def plan_read(self, version: str, plan: StoredPlan) -> None:
        """Record the plan that is stored, or an empty one with version "" if there is none."""
        self._stored = version, plan
        for name in plan.members - self._peers.keys() - self._gone - {self.name}:
            self._peers[name] = _Peer(None, "", self.duration, -inf)
        self.on_change()

    # --- reports --------------------------------------------------------------------------------------------

    def publish(self, report: Report) -> None:
        """Set the report of this replica."""
        if report != self.report:
            self.report = report
            self.on_change()

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
            name: report if report and not report.is_alone else (report or Report()).unknown()
            for name, report in reports.items()
        }
