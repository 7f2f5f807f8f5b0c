"""Follow the plan that all replicas share, or go on alone if that takes too long."""

from __future__ import annotations

from math import inf

from xds.mesh.model.mesh import Mesh
from xds.mesh.rollout.plan import Plan, StoredPlan
from xds.mesh.rollout.rollout import NextPlan, Rollout
from xds.mesh.rollout.sync import Shared


class Follower:
    """Serve the stored plan, and decide when this replica makes the next one.

    This replica goes on alone, with a plan of its own, if it waits longer than the rollout timeout for its
    plan to be stored, or for a DestinationRule that the stored plan needs.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.is_alone = False
        """Whether this replica serves a plan of its own that could not be stored."""
        self.can_follow = True
        """False if the stored plan names a version of a DestinationRule that this replica does not have."""
        self.proposal: tuple[str, NextPlan] | None = None
        """The plan to store next, with the version that it replaces."""
        self._adopted_plan: StoredPlan | None = None
        """The last plan that was read from the API server and then served."""
        self._adopted_proposal: NextPlan | None = None
        """The last plan of this replica that was stored and then served."""
        self._blocked_since = inf
        """When this replica began to wait: for its plan to be stored, or for a plan that it can follow."""

    def follow(self, shared: Shared, mesh: Mesh, now: float) -> None:
        """Serve the stored plan, if it is new and this replica has the rules that it needs."""
        proposal, stored = shared.stored_proposal, shared.stored
        if proposal and proposal is not self._adopted_proposal and self._may_adopt(proposal.plan):
            self._adopt(proposal, mesh, now)
            self._adopted_proposal = proposal
        self.can_follow = True
        if stored and stored is not self._adopted_plan and self._may_replace(stored):
            if plan := self.rollout.resolve(mesh, stored, now):
                self._adopt(NextPlan(plan), mesh, now)
                self._adopted_plan = stored
            else:
                self.can_follow = False

    def _adopt(self, proposal: NextPlan, mesh: Mesh, now: float) -> None:
        self.rollout.adopt(mesh, proposal, now)
        self.is_alone, self._blocked_since = False, inf

    def _may_adopt(self, plan: Plan) -> bool:
        return plan == self.rollout.plan or self._may_replace(plan)

    def _may_replace(self, plan: Plan | StoredPlan) -> bool:
        """Return whether to replace the served plan.

        Plans of the same generation serve the same state, so one replaces the other. Exception: a plan that
        this replica made alone may serve another state, so only a later generation replaces it.
        """
        return plan.generation >= self.rollout.plan.generation + self.is_alone

    def must_propose(self, shared: Shared, now: float) -> bool:
        """Return whether this replica makes the next plan: if it leads, or if it has waited for too long."""
        if self.is_alone or (shared.leads and self.can_follow):
            return True
        is_cut_off = self.rollout.is_in_progress and shared.is_isolated
        return self._record_wait(self.rollout.has_unplanned_changes or is_cut_off or not self.can_follow, now)

    def propose(self, proposal: NextPlan, shared: Shared, mesh: Mesh, now: float) -> None:
        """Have a plan stored. `follow` serves it once it is; if that takes too long, serve it here, alone."""
        # The stored plan is older than the served one if its Lease was deleted: store the served plan again.
        is_lost = shared.stored is None or shared.stored.generation < self.rollout.plan.generation
        is_new = proposal.plan != self.rollout.plan or not self.can_follow or self.is_alone or is_lost
        if is_new and shared.stored:
            self.proposal = shared.version, proposal
        is_overdue = self._record_wait(is_new, now)
        if not is_new or self.is_alone or is_overdue:
            self.rollout.adopt(mesh, proposal, now)
            self.is_alone = is_new

    def _record_wait(self, is_waiting: bool, now: float) -> bool:
        """Record whether this replica waits now, and return whether it has waited for the whole timeout."""
        self._blocked_since = min(self._blocked_since, now) if is_waiting else inf
        return self.rollout.timeout is not None and now >= self._blocked_since + self.rollout.timeout
