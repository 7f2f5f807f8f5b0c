"""What a replica does about the plan that all replicas share."""

from __future__ import annotations

from math import inf

from xds.mesh.model.mesh import Mesh
from xds.mesh.rollout.machine import Proposal, Rollout
from xds.mesh.rollout.plan import Plan, StoredPlan
from xds.mesh.rollout.sync import Shared


class Follower:
    """Serve the stored plan, or a plan of this replica's own if none can be stored or followed in time."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.is_alone = False
        """Whether this replica serves a plan of its own that could not be stored."""
        self.can_follow = True
        """False if the stored plan names a version of a DestinationRule that this replica does not have."""
        self.proposal: tuple[str, Proposal] | None = None
        """The plan to store next, with the version that it replaces."""
        self._adopted_plan: StoredPlan | None = None
        """The stored plan that was adopted last."""
        self._adopted_proposal: Proposal | None = None
        """The last plan of this replica that was stored, and is served."""
        self._blocked_since = inf
        """When this replica began to wait: for its plan to be stored, or for a plan that it can follow."""

    def follow(self, shared: Shared, mesh: Mesh, now: float) -> None:
        """Serve the stored plan, if it is new and this replica can follow it."""
        proposal, stored = shared.stored_proposal, shared.stored
        if proposal and proposal is not self._adopted_proposal and self._may_adopt(proposal.plan):
            self._adopt(proposal, mesh, now)
            self._adopted_proposal = proposal
        self.can_follow = True
        if stored and stored is not self._adopted_plan and self._is_newer(stored):
            if plan := self.rollout.resolve(mesh, stored, now):
                self._adopt(Proposal(plan), mesh, now)
                self._adopted_plan = stored
            else:
                self.can_follow = False

    def _adopt(self, proposal: Proposal, mesh: Mesh, now: float) -> None:
        self.rollout.adopt(mesh, proposal, now)
        self.is_alone, self._blocked_since = False, inf

    def _may_adopt(self, plan: Plan) -> bool:
        return plan == self.rollout.plan or self._is_newer(plan)

    def _is_newer(self, plan: Plan | StoredPlan) -> bool:
        """Return whether to serve a plan.

        Plans of the same generation agree on what is served, unless this replica has gone on alone.
        """
        return plan.generation >= self.rollout.plan.generation + self.is_alone

    def must_propose(self, shared: Shared, now: float) -> bool:
        """Return whether this replica makes the next plan."""
        if self.is_alone or (shared.leads and self.can_follow):
            return True
        is_cut_off = self.rollout.is_in_progress and shared.is_isolated
        return self._record_wait(self.rollout.has_unplanned_changes or is_cut_off or not self.can_follow, now)

    def propose(self, proposal: Proposal, shared: Shared, mesh: Mesh, now: float) -> None:
        """Have a plan stored, and serve it once it is. Serve it at once if that takes too long."""
        is_lost = shared.stored is None or shared.stored.generation < self.rollout.plan.generation
        is_new = proposal.plan != self.rollout.plan or not self.can_follow or self.is_alone or is_lost
        if is_new and shared.stored:
            self.proposal = shared.version, proposal
        is_overdue = self._record_wait(is_new, now)
        if not is_new or self.is_alone or is_overdue:
            self.rollout.adopt(mesh, proposal, now)
            self.is_alone = is_new

    def _record_wait(self, is_waiting: bool, now: float) -> bool:
        """Return whether this replica has waited for the whole timeout, and should go on alone."""
        self._blocked_since = min(self._blocked_since, now) if is_waiting else inf
        return self.rollout.timeout is not None and now >= self._blocked_since + self.rollout.timeout
