"""When the reports and the plan of other replicas count, and when a replica goes on without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import UNREAD, facts
from tests.policy.world import peer, rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, DestinationRule, Fact, Mode, Pod, Ref
from xds.mesh.rollout.driver import JOIN_TIMEOUT, RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.mesh.rollout.plan import Plan, StoredPlan, StoredRule
from xds.mesh.rollout.reports import Reports
from xds.mesh.rollout.rollout import NextPlan
from xds.mesh.rollout.stages import Staged
from xds.mesh.rollout.sync import ReplicaSync

KEY = (Ref("Pod", "ns", "web-1"), 8080)
WEB = KEY[0]
RULE = Ref("DestinationRule", "ns", "rule")
FIRST = NextPlan(Plan(generation=7))
SECOND = NextPlan(Plan(generation=8))
CURRENT = Report(generation=5, servers=Generations(others=5), clients=Generations(others=5))
READ = StoredPlan(1, members=frozenset({"own"}))
# It serves a version of a rule that no longer exists.
UNRESOLVABLE = READ._replace(generation=9, rules={RULE: StoredRule("gone", "gone", 9, False)})


def client_rule(mode: str) -> DestinationRule:
    return rule("ns", "web.ns.svc.cluster.local", mode)


def new(*members: str, version: str = "1", is_leader: bool = True) -> ReplicaSync:
    """Return a replica that has read a plan, and renewed its report."""
    sync = ReplicaSync("own", lambda: is_leader)
    sync.plan_read(version, StoredPlan(5, members=frozenset(members)))
    sync.reports.renewed(0.0, 0.0)
    return sync


def receive(sync: ReplicaSync, now: float, version: str = "1", report: Report = CURRENT) -> None:
    sync.reports.receive("other", version, report, 15.0, now)


def store(sync: ReplicaSync, version: str, now: float = 0.0) -> StoredPlan:
    """Let the API server store the plan of a replica."""
    candidate = sync.plan_to_store(now)
    assert candidate
    sync.plan_stored(candidate[0], version, candidate[1])
    return candidate[1]


# --- joining ------------------------------------------------------------------------------------------------


def test_replica_joins_as_a_member_before_it_serves():
    sync = ReplicaSync("own", lambda: True)
    rollouts = RolloutDriver(30.0)
    assert rollouts.enable_sync(sync, 100.0)
    assert sync.plan_to_store(100.0) is None, "it must not replace a plan that it has not read"
    assert rollouts.earliest_apply(101.0) == 100.0 + JOIN_TIMEOUT
    stored = StoredPlan(5, {}, {}, frozenset({"other"}))
    sync.plan_read("1", stored)
    assert not sync.has_joined
    assert store(sync, "2") == stored._replace(members=frozenset({"other", "own"}))
    assert sync.has_joined
    assert sync.stored_proposal is None, "joining changes nothing that is served"
    assert sync.plan_to_store(101.0) is None
    assert rollouts.earliest_apply(101.0) == 101.0


def test_replica_starts_without_peers_after_the_timeout():
    rollouts = RolloutDriver(30.0)
    rollouts.enable_sync(ReplicaSync("own", lambda: False), 100.0)
    assert rollouts.earliest_apply(150.0) == 150.0


def test_first_replica_creates_the_plan():
    sync = ReplicaSync("own", lambda: False)
    sync.plan_read("", StoredPlan())
    assert sync.plan_to_store(0.0) == ("", StoredPlan(members=frozenset({"own"})))


def test_replica_that_was_dropped_from_the_plan_joins_again():
    sync = new("own")
    assert sync.plan_to_store(0.0) is None
    sync.plan_read("2", StoredPlan(6, members=frozenset({"other"})))
    assert store(sync, "3").members == {"own", "other"}


def test_leader_that_has_not_read_a_new_member_cannot_store():
    """It would not wait for the new member's proxies."""
    server, plan = "1", StoredPlan(5, members=frozenset({"own"}))
    leader = new("own", version=server)
    leader.propose("1", FIRST)
    candidate = leader.plan_to_store(0.0)
    assert candidate
    joining = ReplicaSync("new", lambda: False)
    joining.plan_read(server, plan)
    store(joining, server := "2")
    assert candidate[0] != server
    assert joining.stored
    leader.plan_read(server, joining.stored)
    assert leader.plan_to_store(0.0) is None, "the proposal did not consider the new member"
    assert leader.reports.peers(0.0) == {"new": Report().without_progress()}
    leader.propose("2", SECOND)
    assert store(leader, "3").members == {"own", "new"}
    assert leader.stored_proposal is SECOND


# --- compare and swap ---------------------------------------------------------------------------------------


def test_only_the_proposal_that_was_sent_is_accepted():
    sync = new("own")
    sync.propose("1", FIRST)
    candidate = sync.plan_to_store(0.0)
    assert candidate
    sync.propose("1", SECOND)
    sync.plan_stored(candidate[0], "2", candidate[1])
    assert sync.stored_proposal is FIRST
    assert sync.stored == FIRST.plan.stored({"own"})
    # The second proposal would replace a plan that is no longer the stored one.
    assert sync.plan_to_store(0.0) is None


def test_plan_that_was_read_in_the_meantime_wins():
    sync = new("own")
    sync.propose("1", FIRST)
    candidate = sync.plan_to_store(0.0)
    assert candidate
    later = StoredPlan(9, members=frozenset({"own", "other"}))
    sync.plan_read("3", later)
    sync.plan_stored(candidate[0], "2", candidate[1])
    assert sync.stored == later
    assert sync.stored_proposal is None
    assert sync.plan_to_store(0.0) is None


def test_own_plan_may_be_read_before_the_response_arrives():
    sync = new("own")
    sync.propose("1", FIRST)
    candidate = sync.plan_to_store(0.0)
    assert candidate
    sync.plan_read("2", candidate[1])
    sync.plan_stored(candidate[0], "2", candidate[1])
    assert sync.stored_proposal is FIRST


def test_response_without_a_plan_is_ignored():
    sync = ReplicaSync("own", lambda: True)
    sync.plan_stored("1", "2", StoredPlan())
    assert sync.stored is None


def test_replica_that_no_longer_leads_stores_nothing():
    leaders = {"own"}
    sync = ReplicaSync("own", lambda: "own" in leaders)
    sync.plan_read("1", StoredPlan(5, members=frozenset({"own"})))
    sync.propose("1", FIRST)
    leaders.clear()
    assert sync.plan_to_store(0.0) is None


def test_same_proposal_is_announced_once():
    calls = []
    sync = new("own")
    sync.on_change = lambda: calls.append(1)
    sync.propose("1", FIRST)
    sync.propose("1", NextPlan(Plan(generation=7)))
    assert len(calls) == 1
    sync.propose("1", SECOND)
    sync.plan_read("2", StoredPlan(6, members=frozenset({"own"})))
    sync.propose("2", SECOND)
    assert len(calls) == 4
    nothing_read = ReplicaSync("own", lambda: True)
    nothing_read.propose("", FIRST)
    assert nothing_read.plan_to_store(0.0) is None


def test_same_report_is_announced_once():
    calls = []
    sync = new("own")
    sync.on_change = lambda: calls.append(1)
    for _ in range(2):
        sync.publish(CURRENT)
    assert len(calls) == 1
    assert sync.reports.own is CURRENT


# --- reports ------------------------------------------------------------------------------------------------


def test_silent_peer_counts_until_its_report_expires():
    sync = new("own")
    for now in (0.0, 5.0, 10.0, 15.0):
        sync.reports.renewed(now, now)
        if now < 10.0:
            receive(sync, now, str(now))
    # The report is read again, but was not renewed.
    receive(sync, 15.0, "5.0")
    assert sync.reports.peers(19.9) == {"other": CURRENT}
    assert sync.reports.expired(20.0) == {"other": "5.0"}
    assert sync.reports.peers(20.0) == {}
    sync.propose("1", FIRST)
    assert store(sync, "2", 20.0).members == {"own"}


def test_expiry_follows_the_clock_of_the_reader():
    """A report counts from when it was first seen, whatever the writer's clock says, with its duration."""
    sync = new("own")
    sync.reports.renewed(1e6, 1e6)
    sync.reports.receive("other", "1", CURRENT, 3.0, 1e6)
    assert sync.reports.peers(1e6 + 2.9) == {"other": CURRENT}
    assert sync.reports.peers(1e6 + 3.0) == {}


def test_isolated_replica_expires_no_peer():
    sync = new("own")
    receive(sync, 0.0)
    assert not sync.reports.is_isolated(9.9)
    # Peers may expire this replica from 15 s on.
    assert sync.reports.is_isolated(10.0)
    assert sync.reports.expired(100.0) == {}
    assert sync.reports.peers(100.0) == {"other": CURRENT}
    # After the isolation, peers get their full time again.
    sync.reports.renewed(100.0, 100.5)
    assert not sync.reports.is_isolated(100.5)
    assert sync.reports.expired(109.0) == {}
    for now in (105.0, 110.0):
        sync.reports.renewed(now, now)
    assert sync.reports.expired(115.4) == {}
    assert sync.reports.expired(115.5) == {"other": "1"}


def test_renewal_counts_from_when_the_write_began():
    sync = new("own")
    sync.reports.renewed(5.0, 14.0)
    assert sync.reports.is_isolated(15.0)


def test_member_without_report_may_use_anything():
    sync = new("own", "silent")
    assert sync.reports.names == set(), "it has no Lease"
    assert sync.reports.peers(0.0) == {"silent": Report().without_progress()}
    observed = Observed(CURRENT, sync.reports.peers(0.0))
    assert observed.server_generation(WEB) == -1
    assert list(observed.lagging_clients(5, lambda _: True)) == ["silent"]
    assert observed.has_earlier_connections
    receive(sync, 1.0)
    assert sync.reports.names == {"other"}
    assert sync.reports.expired(9.0) == {}
    sync.reports.renewed(9.0, 9.0)
    # The first look at it counts, since when it became a member is not known.
    assert sync.reports.expired(15.0) == {"silent": ""}
    assert sync.reports.peers(15.0) == {"other": CURRENT}


def test_forgotten_member_does_not_come_back():
    sync = new("own", "other")
    receive(sync, 0.0)
    sync.reports.forget("other")
    assert sync.reports.names == set()
    assert sync.reports.peers(0.0) == {}
    # The plan of a leader that has not forgotten it yet.
    sync.plan_read("2", StoredPlan(6, members=frozenset({"own", "other"})))
    assert sync.reports.peers(0.0) == {}
    sync.reports.forget("never-known")


def test_peer_with_a_plan_of_its_own_counts_as_unknown():
    sync = new("own")
    receive(sync, 0.0, report=replace(CURRENT, is_alone=True, unplanned_rules=frozenset({RULE})))
    [report] = sync.reports.peers(0.0).values()
    assert report == Report(generation=5, is_alone=True, unplanned_rules=frozenset({RULE})).without_progress()
    observed = Observed(CURRENT, {"other": report})
    assert observed.server_generation(WEB) == -1
    assert list(observed.lagging_clients(1, lambda _: True)) == ["other"]
    receive(sync, 1.0, "2")
    assert sync.reports.peers(1.0) == {"other": CURRENT}


# --- a replica with proxies ---------------------------------------------------------------------------------


class Alone:
    """A replica whose policies go from DISABLE to STRICT. Nothing is stored unless the test asks for it."""

    def __init__(self, *more: Fact, is_leader: bool = True, stored: StoredPlan | None = READ) -> None:
        """Create the replica. `stored` is the plan that it has read; None if it has read none."""
        self.now = 0.0
        self.is_leader = is_leader
        self.sync = ReplicaSync("own", lambda: self.is_leader, Reports(1e9))
        if stored:
            self.sync.plan_read("1", stored)
        self.sync.reports.renewed(0.0, 0.0)
        self.rollouts = RolloutDriver(30.0)
        assert self.rollouts.enable_sync(self.sync, self.now)
        self.acked = -1
        self.mesh = Mesh()
        self.apply(*facts(), *more, peer("ns", "DISABLE"))
        self.apply(peer("ns", "STRICT"))

    def observe(self) -> Observed:
        report = Report(
            generation=self.mesh.served.generation,
            servers=Generations({Ref("Pod", "ns", name): self.acked for name in ("web-1", "web-2")}),
            clients=Generations({"one.clients": self.acked}),
        )
        return self.rollouts.observe(report, self.now)

    def apply(self, *applied: Fact) -> None:
        self.mesh = self.rollouts.apply(self.mesh, Change(applied=applied), self.observe(), self.now)
        self.rollouts.publish_report()

    def advance(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.advance_from(self.observe())

    def advance_from(self, observed: Observed) -> None:
        """Advance, given what was observed earlier."""
        self.mesh = self.rollouts.advance(self.mesh, observed, self.now)
        self.rollouts.publish_report()

    def finish(self) -> None:
        """Let proxies ACK, without storing anything."""
        for _ in range(4):
            self.acked = self.mesh.served.generation
            self.advance()
            self.advance(UNREAD)

    @property
    def mode(self) -> Mode:
        """The mode that the first server is served."""
        return self.mesh.served.modes.get(KEY, Mode.STRICT)


# --- what happens during a check ----------------------------------------------------------------------------


def test_plan_that_is_read_during_a_check_is_not_overwritten():
    """The check does not know of it."""
    world = Alone()
    observed = world.observe()
    world.sync.plan_read("2", StoredPlan(20, members=frozenset({"own", "other"})))
    world.advance_from(observed)
    assert world.sync.plan_to_store(world.now) is None
    assert world.mesh.served.generation < 20
    world.advance()
    assert world.mesh.served.generation == 20
    assert world.mode is Mode.DISABLE
    candidate = world.sync.plan_to_store(world.now)
    assert candidate
    assert candidate[0] == "2"
    assert candidate[1].generation > 20
    assert KEY in candidate[1].ports


def test_plan_that_is_stored_during_a_check_is_served_by_the_next_one():
    world = Alone()
    observed = world.observe()
    plan = store(world.sync, "2")
    world.advance_from(observed)
    assert world.mode is Mode.DISABLE
    assert world.sync.plan_to_store(world.now) is None, "its next plan does not consider the stored one"
    assert world.sync.stored_proposal, "it does not serve it yet"
    world.advance()
    assert world.mode is Mode.PERMISSIVE
    assert world.mesh.served.generation == plan.generation


def test_later_plan_is_served_if_it_is_read_before_the_own_one_is_served():
    world = Alone()
    own = store(world.sync, "2")
    assert own.ports[KEY][0].current is Mode.PERMISSIVE
    generation = own.generation + 1
    listener = Staged(Mode.DISABLE, generation, (Mode.DISABLE, Mode.PERMISSIVE))
    later = StoredPlan(generation, {**own.ports, KEY: (listener, own.ports[KEY][1])}, members=own.members)
    world.sync.plan_read("3", later)
    world.advance()
    assert world.mesh.served.generation == generation
    assert world.mode is Mode.DISABLE
    assert world.rollouts.rollout.plan.stored(own.members) == later
    candidate = world.sync.plan_to_store(world.now)
    assert candidate
    assert candidate[0] == "3"
    assert candidate[1].generation > generation


def test_plan_that_was_stored_is_served_after_a_step_that_failed(monkeypatch):
    """Without it, the replica does not know the version of the rule that the stored plan names."""
    world = Alone()
    world.apply(client_rule("DISABLE"))
    plan = store(world.sync, "2")
    with monkeypatch.context() as patch:
        patch.setattr(world.rollouts.rollout, "update", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.apply(client_rule("SIMPLE"))
    world.apply(client_rule("SIMPLE"))
    assert world.mesh.served.generation == plan.generation
    assert world.mode is Mode.PERMISSIVE


def test_own_plan_is_not_resolved_again_once_it_is_stored():
    """What is stored does not say which pods it was made for."""
    pods = [fact for fact in facts() if isinstance(fact, Pod)]
    world = Alone(*(replace(pod, meta=replace(pod.meta, uid="uid")) for pod in pods))
    store(world.sync, "2")
    for _ in range(2):
        world.advance()
        assert world.mode is Mode.PERMISSIVE
        assert world.rollouts.rollout.plan.ports[KEY].uid == "uid"


# --- going on alone -----------------------------------------------------------------------------------------


def test_plan_that_is_not_stored_is_not_served():
    world = Alone()
    world.advance(29.9)
    assert world.mode is Mode.DISABLE
    assert not world.sync.reports.own.is_alone
    store(world.sync, "2")
    world.advance()
    assert world.mode is Mode.PERMISSIVE
    assert not world.sync.reports.own.is_alone


def test_replica_goes_on_alone_if_its_plan_cannot_be_stored():
    world = Alone()
    world.advance(30.0)
    assert world.mode is Mode.PERMISSIVE
    assert world.sync.reports.own.is_alone
    generation = world.mesh.served.generation
    assert world.sync.reports.own.generation == generation > 1
    world.finish()
    assert world.mode is Mode.STRICT
    assert not world.rollouts.rollout.plan.ports
    assert world.mesh.served.generation > generation
    assert world.sync.reports.own.is_alone, "other replicas still know another plan"


def test_replica_that_is_not_the_leader_goes_on_alone():
    """There may be no leader, or one that this replica does not hear from."""
    world = Alone(is_leader=False)
    world.advance(29.9)
    assert world.mode is Mode.DISABLE
    assert world.sync.plan_to_store(world.now) is None
    assert world.sync.reports.own.asks.keys() >= {KEY}
    world.advance(0.1)
    assert world.mode is Mode.PERMISSIVE
    assert world.sync.reports.own.is_alone


def test_replica_that_was_alone_follows_the_next_stored_plan():
    world = Alone(is_leader=False)
    world.advance(30.0)
    own = world.rollouts.rollout.plan
    world.sync.plan_read("2", own.stored({"own", "other"})._replace(generation=own.generation))
    world.advance()
    assert world.sync.reports.own.is_alone, "a plan of the same generation is not its own plan"
    world.sync.plan_read("3", own.stored({"own", "other"})._replace(generation=own.generation + 1))
    world.advance()
    assert not world.sync.reports.own.is_alone
    assert world.mesh.served.generation == own.generation + 1
    assert world.mode is Mode.PERMISSIVE
    # It waits its full time again before it leaves the common plan.
    world.finish()
    assert world.mode is Mode.PERMISSIVE


def test_leader_that_was_alone_stores_what_it_serves():
    world = Alone()
    world.advance(30.0)
    world.finish()
    generation, mode = world.mesh.served.generation, world.mode
    if world.sync.plan_to_store(world.now):
        store(world.sync, "2")
    world.advance()
    assert world.mesh.served.generation >= generation
    assert world.mode is mode


def test_plan_that_is_stored_late_takes_nothing_back():
    """The leader went on alone in the meantime."""
    world = Alone()
    candidate = world.sync.plan_to_store(world.now)
    assert candidate
    world.advance(30.0)
    world.finish()
    generation = world.mesh.served.generation
    assert generation > candidate[1].generation
    world.sync.plan_stored(candidate[0], "2", candidate[1])
    world.advance()
    assert world.mode is Mode.STRICT
    assert world.mesh.served.generation >= generation
    assert world.sync.reports.own.is_alone
    store(world.sync, "3")
    world.advance()
    assert world.mode is Mode.STRICT
    assert not world.sync.reports.own.is_alone


def test_plan_that_is_no_longer_needed_does_not_shorten_the_next_wait():
    world = Alone()
    world.apply(peer("ns", "DISABLE"))
    world.now += 1000.0
    world.apply(peer("ns", "STRICT"))
    world.advance()
    assert not world.sync.reports.own.is_alone


def test_leader_gives_a_plan_for_a_peer_that_is_alone():
    """The peer takes only a plan that is newer than its own."""
    world = Alone()
    store(world.sync, "2")
    world.advance()
    generation = world.mesh.served.generation
    world.sync.reports.receive("other", "1", Report(generation=generation + 5, is_alone=True), 1e9, world.now)
    world.advance()
    candidate = world.sync.plan_to_store(world.now)
    assert candidate
    assert candidate[1].generation > generation + 5


def test_leader_that_cannot_serve_the_stored_plan_replaces_it_after_the_timeout():
    world = Alone(client_rule("DISABLE"), stored=UNRESOLVABLE)
    world.advance(29.9)
    assert world.sync.plan_to_store(world.now) is None
    assert world.mesh.served.generation < 9
    world.advance(0.1)
    assert store(world.sync, "2").generation == 10
    world.advance()
    assert world.mesh.served.generation == 10
    assert not world.sync.reports.own.is_alone


def test_follower_that_cannot_serve_the_stored_plan_goes_on_alone_after_the_timeout():
    world = Alone(client_rule("DISABLE"))
    store(world.sync, "2")
    world.advance()
    world.is_leader = False
    world.sync.plan_read("3", UNRESOLVABLE)
    world.advance()
    assert not world.rollouts.rollout.has_unplanned_changes, "nothing else makes it wait"
    world.advance(29.9)
    assert not world.sync.reports.own.is_alone
    world.advance(0.1)
    assert world.sync.reports.own.is_alone
    assert world.mesh.served.generation == 10


def test_plan_that_was_made_before_one_was_read_is_not_stored():
    """It does not consider what other replicas serve."""
    world = Alone(stored=None)
    world.advance(30.0)
    assert world.mode is Mode.PERMISSIVE
    world.sync.plan_read("", StoredPlan())
    assert world.sync.plan_to_store(world.now) == ("", StoredPlan(members=frozenset({"own"})))


@pytest.mark.parametrize("has_sync", [False, True])
def test_peers_are_possible_as_far_as_is_known(has_sync):
    rollouts = RolloutDriver(30.0 if has_sync else None)
    assert not rollouts.may_have_peers(0.0)
    sync = new("own")
    assert rollouts.enable_sync(sync, 0.0) is has_sync
    assert rollouts.may_have_peers(0.0) is not has_sync
    assert rollouts.may_have_peers(10.0)
    receive(sync, 1.0)
    sync.reports.renewed(5.0, 5.0)
    assert rollouts.may_have_peers(5.0)
