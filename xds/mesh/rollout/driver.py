"""Apply changes to the mesh, and advance rollouts: the entry point of this package for the controller."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change
from xds.mesh.rollout.desired import rule_in
from xds.mesh.rollout.follower import Follower
from xds.mesh.rollout.observation import Observed, Report
from xds.mesh.rollout.permissions import Permissions
from xds.mesh.rollout.planner import Planner
from xds.mesh.rollout.proxies import ProxyTracker
from xds.mesh.rollout.rollout import NextPlan, Rollout
from xds.mesh.rollout.rules import changed_rules
from xds.mesh.rollout.sync import ReplicaSync

JOIN_TIMEOUT = 10.0
"""Seconds after which a replica serves its sidecars although it has not joined the plan."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks of the progress of proxies, during a transition."""
SKIPPED_CHECK_INTERVAL = 1.0
"""Seconds between two checks while no transition is in progress, but skipped proxies still lag."""
MAX_STEPS = 8
"""Maximum number of plans that one call makes. The next one follows at once if it waits for no proxy."""


class RolloutDriver:
    """Return the mesh to serve after each change and each step of a rollout.

    Only `first_mesh`, `apply` and `advance` may run in a thread.
    """

    def __init__(self, timeout: float | None) -> None:
        """Create a driver without a mesh.

        Args:
            timeout: seconds to wait for a proxy. None: serve the desired state at once.
        """
        self.rollout = Rollout(timeout)
        """The desired and the served state, and the current plan."""
        self.proxies = ProxyTracker(self.rollout)
        """The progress of proxies."""
        self.sync: ReplicaSync | None = None
        """What replicas share; None without other replicas."""
        self.follower = Follower(self.rollout)
        """Decides when to serve the shared plan, and when to make the next one."""
        self.permissions = Permissions(self.rollout)
        """The ALLOW policies of pods in transition."""
        self.observed = Observed()
        """The reports that were last collected."""
        self.checked_at = -inf
        """When the progress of proxies was last checked, in seconds of the event loop's clock."""
        self._must_check = False
        """Whether peers have changed since the last check."""
        self._join_deadline = -inf
        """When to build the first mesh even if the plan does not list this replica."""
        self._has_mesh = False
        """Whether the first mesh was built."""
        self._report = Report()
        """The report about the plan that this replica serves."""

    # --- replicas -------------------------------------------------------------------------------------------

    def enable_sync(self, sync: ReplicaSync, now: float) -> bool:
        """Start sharing reports and the plan. Return False if the rollout timeout is disabled."""
        self.proxies.is_replicated = True
        if self.rollout.timeout is None:
            return False
        self.sync, self._join_deadline = sync, now + JOIN_TIMEOUT
        return True

    def may_have_peers(self, now: float) -> bool:
        """Return whether sidecars may be connected to another replica."""
        if self.sync is None:
            return self.proxies.is_replicated
        return self.sync.reports.is_isolated(now) or bool(self.sync.reports.peers(now))

    def earliest_apply(self, now: float) -> float:
        """Return when to build the first mesh: when the plan lists this replica, or after JOIN_TIMEOUT."""
        return now if self.sync is None or self.sync.has_joined else max(self._join_deadline, now)

    def peers_changed(self) -> None:
        """Schedule a check, because a report or a plan has arrived, or this replica's plan was stored."""
        self._must_check = True

    def publish_report(self) -> None:
        """Pass this replica's report, and the plan that it has made, to `sync`, which has them written."""
        if self.sync:
            if proposal := self.follower.proposal:
                self.sync.propose(*proposal)
                self.follower.proposal = None
            # Without a transition, the progress of proxies changes nothing: do not write each ACK.
            is_needed = self.rollout.is_in_progress
            self.sync.publish(self._report.shared() if is_needed else self._report.without_progress())

    # --- checks ---------------------------------------------------------------------------------------------

    def next_check(self, now: float) -> float:
        """Return when to check the progress of proxies again; infinity to wait for an event."""
        if self._must_check:
            # Not `now`: an overdue check stays overdue, so queued translations delay it only once.
            return min(now, self.checked_at + CHECK_INTERVAL)
        if self.rollout.is_in_progress or not self.follower.can_follow:
            return max(self.checked_at + CHECK_INTERVAL, now)
        return max(self.checked_at + SKIPPED_CHECK_INTERVAL, now) if self.rollout.skipped else inf

    def collect_progress(self, mesh: Mesh, now: float) -> Observed:
        """Return the reports of this replica and of its peers, and remember the time of this check."""
        self.checked_at, self._must_check = now, False
        return self.observe(self.proxies.collect_report(mesh, now, is_alone=self.follower.is_alone), now)

    def observe(self, report: Report, now: float) -> Observed:
        """Return a report of this replica, with the reports and the plan that replicas share now."""
        if self.sync is None:
            self.observed = Observed(report)
        else:
            self.observed = Observed(report, self.sync.reports.peers(now), self.sync.share(now))
        return self.observed

    # --- steps ----------------------------------------------------------------------------------------------

    def first_mesh(self, change: Change, observed: Observed, now: float) -> Mesh:
        """Return the first mesh to serve.

        It serves the desired state, except where the stored plan, or a peer's report, has another one.
        """
        mesh, self._has_mesh = Mesh(change.applied, change.config), True
        if self.rollout.timeout is None:
            return mesh
        if observed.shared:
            self.follower.follow(observed.shared, mesh, now)
        self.rollout.update(mesh, now)
        self.rollout.join(mesh, observed, now)
        return self.advance(mesh, observed, now)

    def apply(self, mesh: Mesh, change: Change, observed: Observed, now: float) -> Mesh:
        """Return the mesh to serve after a change."""
        if not self._has_mesh:
            return self.first_mesh(change, observed, now)
        after = mesh.apply(change)
        if self.rollout.timeout is None:
            return after
        for ref in changed_rules(mesh, after, change):
            self.rollout.change_rule(mesh, ref, rule_in(after, ref), now)
        self.rollout.update(after, now)
        self.permissions.update(mesh, after, change, now)
        return self.advance(after, observed, now)

    def advance(self, mesh: Mesh, observed: Observed, now: float) -> Mesh:
        """Return the mesh to serve after progress of proxies; the same object if the served state stays."""
        rollout, follower, shared = self.rollout, self.follower, observed.shared
        if rollout.timeout is None:
            return mesh
        rollout.forget_caught_up(mesh, observed)
        if shared is None:
            self._plan(mesh, observed, now)
        else:
            follower.follow(shared, mesh, now)
            if follower.must_propose(shared, now):
                follower.propose(self._propose(mesh, observed, now), shared, mesh, now)
        served = replace(rollout.served(), allow=self.permissions.served(mesh, now))
        if shared:
            self._report = replace(
                observed.own,
                generation=served.generation,
                is_alone=follower.is_alone,
                asks=rollout.collect_asks(observed.own.servers.named),
                unplanned_rules=rollout.unplanned_rules(),
            )
        return mesh if served == mesh.served else mesh.with_served(served)

    def _plan(self, mesh: Mesh, observed: Observed, now: float) -> None:
        """Make plans, and serve each at once, until the next one has to wait for proxies."""
        for _ in range(MAX_STEPS):
            proposal = self._propose(mesh, observed, now)
            is_new = proposal.plan != self.rollout.plan
            self.rollout.adopt(mesh, proposal, now)
            if not is_new:
                break
            # The plan contains these ports now. Do not count the reported modes as possible again.
            observed = replace(observed, own=replace(observed.own, asks={}))

    def _propose(self, mesh: Mesh, observed: Observed, now: float) -> NextPlan:
        """Return the next plan. First stop serving the rules that servers refuse in their reported modes."""
        planner = Planner(self.rollout, mesh, observed, now)
        if any(ask.is_from_server for report in observed for ask in report.asks.values()):
            self.rollout.rules.update(planner.refused_rules())
        return planner.propose()
