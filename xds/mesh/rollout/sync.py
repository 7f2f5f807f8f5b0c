"""The reports and the plan that replicas share.

Every replica publishes a report about its own proxies. The leader makes the plan from all reports, and stores
it only if nobody else has stored another plan since it read the last one (compare and swap). The API server
thus keeps two leaders from acting on different plans, and a new leader continues with the plan that it reads.

Before a replica serves any proxy, it adds itself to the members of the stored plan. A leader that has not
read that cannot store its own plan, and one that has read it waits for the report of the new member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.reports import Reports
from xds.mesh.rollout.rollout import NextPlan


class Shared(NamedTuple):
    """What replicas share, at one moment."""

    version: str
    """The version of the stored plan; empty if none is stored, or if it was not read yet."""
    stored: StoredPlan | None
    """The stored plan; None if it was not read yet."""
    stored_proposal: NextPlan | None
    """The last plan of this replica that was stored."""
    leads: bool
    """Whether this replica makes the plan."""
    is_isolated: bool
    """Whether the report of this replica may have expired at peers."""


class ReplicaSync:
    """The reports and the plan, as far as this replica has read them, and what it has to write.

    It does no I/O: `xds.mesh.kube.replica_leases` reads and writes the Leases.
    """

    def __init__(self, name: str, leads: Callable[[], bool], reports: Reports | None = None) -> None:
        """Create the state of a replica that has read nothing yet.

        Args:
            name: the name of this replica, which no earlier replica had.
            leads: returns whether this replica makes the plan.
            reports: the reports; default: none was read yet.
        """
        self.name = name
        self.leads = leads
        self.reports = reports or Reports()
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be something to write."""
        self._stored: tuple[str, StoredPlan] | None = None
        """The plan that was read last, with the version of its object; "" if there is no such object."""
        self._candidate: tuple[str, NextPlan] | None = None
        """The next plan, with the version that it replaces."""
        self._sent: NextPlan | None = None
        """The plan that is being stored."""
        self.stored_proposal: NextPlan | None = None
        """The last plan of this replica that was stored."""

    # --- the plan -------------------------------------------------------------------------------------------

    @property
    def stored(self) -> StoredPlan | None:
        """The plan that was read last; None if none was."""
        return self._stored[1] if self._stored else None

    @property
    def has_joined(self) -> bool:
        """Whether the stored plan lists this replica as a member, so that later plans consider it."""
        return self.stored is not None and self.name in self.stored.members

    def share(self, now: float) -> Shared:
        """Return what replicas share now."""
        version, stored = self._stored or ("", None)
        return Shared(version, stored, self.stored_proposal, self.leads(), self.reports.is_isolated(now))

    def propose(self, version: str, proposal: NextPlan) -> None:
        """Set the plan to store next. It replaces a version of the stored plan."""
        known = self._candidate
        if known is None or (known[0], known[1].plan) != (version, proposal.plan):
            self._candidate = version, proposal
            self.on_change()

    def plan_to_store(self, now: float) -> tuple[str, StoredPlan] | None:
        """Return the plan to store, with the version that it replaces; None if there is nothing to store.

        This is the next plan, if this replica leads; else the stored plan with this replica as a new member.
        Once it is stored, call `plan_stored`, before the next call of this method.
        """
        if self._stored is None:
            return None
        version, stored = self._stored
        self._sent = None
        if self._candidate and self._candidate[0] == version and self.leads():
            self._sent = self._candidate[1]
            return version, self._sent.plan.stored({self.name} | self.reports.alive(now))
        if not self.has_joined:
            return version, stored._replace(members=stored.members | {self.name})
        return None

    def plan_stored(self, replaced: str, version: str, plan: StoredPlan) -> None:
        """Record that a plan of `plan_to_store` was stored."""
        if self._stored is None or self._stored[0] not in {replaced, version}:
            return  # A later one was read in the meantime.
        self._stored = version, plan
        self.stored_proposal = self._sent or self.stored_proposal

    def plan_read(self, version: str, plan: StoredPlan) -> None:
        """Record the plan that was read; an empty one with version "" if none is stored."""
        self._stored = version, plan
        self.reports.expect(plan.members - {self.name})
        self.on_change()

    def publish(self, report: Report) -> None:
        """Set the report of this replica."""
        if report != self.reports.own:
            self.reports.own = report
            self.on_change()
