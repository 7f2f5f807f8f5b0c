"""What goes into plans and reports, and what a replica does with those that it does not fully know."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from tests.policy.rollout_world import Proxies, settled
from tests.policy.world import HTTP, peer, pod, rule, service
from xds.mesh.model.objects import Change, DestinationRule, Mode, Ref
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import planner
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import MAX_LAGGING, Ask, Generations, Observed, Report
from xds.mesh.rollout.plan import UNKNOWN, Phase, Plan, StoredPlan, StoredRule, Transition, rule_hash
from xds.mesh.rollout.planner import Planner
from xds.mesh.rollout.rollout import NextPlan
from xds.mesh.rollout.stages import BOTH, Staged
from xds.mesh.rollout.waits import WaitingFor

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)
HOST = "web.ns.svc.cluster.local"
OLD = rule("clients", HOST, "DISABLE", name="for-all")
NEW = rule("clients", HOST, "ISTIO_MUTUAL", name="for-all")
NEWEST = rule("clients", "*.local", "ISTIO_MUTUAL", name="for-all")
RULE = OLD.ref


# --- reports ------------------------------------------------------------------------------------------------


def names(count: int) -> list[str]:
    return [f"client-{number:03}.ns" for number in range(count)]


def test_shared_report_lists_only_proxies_that_lag():
    own = Report(generation=7, servers=Generations({WEB: 6}), clients=Generations({"one.ns": 7, "two.ns": 3}))
    shared = own.shared()
    assert shared.servers == Generations({WEB: 6}, 7)
    assert shared.clients == Generations({"two.ns": 3}, 7)


def test_shared_report_names_a_limited_number_of_proxies():
    lagging = dict(zip(names(MAX_LAGGING + 1), range(MAX_LAGGING + 1), strict=True))
    shared = Report(generation=100, clients=Generations(lagging | {"current.ns": 100})).shared()
    assert len(shared.clients.named) == MAX_LAGGING
    assert shared.clients.others == 0
    observed = Observed(peers={"other": shared})
    assert list(observed.lagging_clients(0, lambda _: True)) == []
    assert "other" in observed.lagging_clients(1, lambda _: True)


def test_report_with_too_many_rejections_is_unknown():
    rejected = {name: {f"of {name}": "no"} for name in names(MAX_LAGGING + 1)}
    asks = {KEY: Ask(Mode.STRICT, Send.MTLS, is_from_server=True)}
    own = Report(generation=7, rejected_clusters=rejected, asks=asks)
    assert own.shared() == own.without_progress()
    assert own.without_progress().asks == asks
    assert own.without_progress().has_earlier_connections


def test_report_of_many_rejections_of_the_same_clusters_names_the_first_clients():
    """For example, all clients reject a cluster that they use."""
    rejected = {name: {"common": "no"} for name in names(1000)}
    first, *_, other = names(500)
    rejected[other] = {"common": "no", "rare": "not this"}
    shared = Report(generation=7, rejected_clusters=rejected, clients=Generations({"one.ns": 7})).shared()
    assert shared.rejected_clusters == {first: {"common": "no"}, other: {"rare": "not this"}}
    assert shared.clients == Generations({}, 7)


def test_rejections_of_all_replicas_count():
    clusters = {f"outbound|80||{HOST}": "no such thing", "outbound|80||other": "other", "BlackHole": "none"}
    peer_report = Report(
        generation=7,
        servers=Generations(others=7),
        clients=Generations(others=7),
        rejected_clusters={"one.ns": clusters},
    )
    observed = Observed(Report(rejected_listeners={WEB: "no"}), {"other": peer_report})
    assert observed.lagging_clients(7, lambda service: service == (HOST, 80)) == {"one.ns": "no such thing"}
    assert observed.lagging_clients(7, lambda _: False) == {}
    assert observed.listener_error(WEB) == "no"
    assert observed.listener_error(Ref("Pod", "ns", "web-2")) == ""


# --- phases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "sends", "phase"),
    [
        ((Mode.DISABLE, Mode.PERMISSIVE), (Send.PLAINTEXT,), Phase.EXPAND),
        ((Mode.PERMISSIVE,), BOTH, Phase.MIGRATE),
        ((Mode.DISABLE, Mode.PERMISSIVE), BOTH, Phase.EXPAND),
        ((Mode.PERMISSIVE, Mode.STRICT), (Send.MTLS,), Phase.CONTRACT),
        ((Mode.PERMISSIVE,), (Send.MTLS,), Phase.EXPAND),
    ],
)
def test_phase_follows_from_what_may_be_active(modes, sends, phase):
    transition = Transition(Staged(modes[-1], 1, modes), Staged(sends[-1], 1, sends))
    assert transition.phase is phase
    assert transition.is_settled is (len(modes) == len(sends) == 1)


# --- ports --------------------------------------------------------------------------------------------------


def test_port_that_no_service_exposes_ends_its_transition_first():
    world = settled("DISABLE")
    world.set_mode("STRICT")
    assert KEY in world.rollout.plan.ports
    everything = Change(removed=(Ref("Service", "ns", "web"),))
    world.mesh = world.rollouts.apply(world.mesh, everything, world.observe(), world.now)
    assert KEY in world.rollout.plan.ports
    assert KEY in world.rollout.ports
    for _ in range(10):
        for server in world.servers.values():
            server.acked = world.mesh.served.generation
        for client in world.clients.values():
            client.acked = world.mesh.served.generation
        world.step()
    assert not world.rollout.ports


def test_port_of_a_second_service_stays():
    world = Proxies()
    other = service("other", "ns", HTTP, app="web")
    world.change(other)
    world.change(removed=(other.ref,))
    assert KEY in world.rollout.ports


def test_new_port_starts_as_the_plan_serves_it():
    """Another replica leads clients to a port whose Service this one reads only now."""
    world = settled("DISABLE")
    staged = Transition(
        Staged(Mode.PERMISSIVE, 9, (Mode.DISABLE, Mode.PERMISSIVE)),
        Staged(Send.PLAINTEXT, 0, (Send.PLAINTEXT,)),
    )
    new = (Ref("Pod", "ns", "web-3"), 8080)
    world.rollout.adopt(world.mesh, NextPlan(Plan(9, {new: staged})), world.now)
    assert new not in world.rollout.ports
    after = world.mesh.apply(Change(applied=(pod("web-3", "ns", app="web"), peer("ns", "STRICT"))))
    world.rollout.update(after, world.now)
    port = world.rollout.ports[new]
    assert (port.mode, port.send) == (Mode.PERMISSIVE, Send.PLAINTEXT)
    assert new in world.rollout.pending


def test_plan_for_an_earlier_pod_of_the_name_is_ignored():
    world = settled("DISABLE")
    stage = Staged(Mode.STRICT, 9, (Mode.STRICT,)), Staged(Send.MTLS, 9, (Send.MTLS,))
    world.rollout.adopt(world.mesh, NextPlan(Plan(9, {KEY: Transition(*stage, uid="gone")})), world.now)
    assert world.rollout.ports[KEY].mode is Mode.DISABLE
    proposal = Planner(world.rollout, world.mesh, world.observe(), world.now).propose()
    assert KEY not in proposal.plan.ports


def test_shared_plan_has_a_limited_number_of_ports(monkeypatch):
    monkeypatch.setattr(planner, "MAX_PORTS", 3)
    for peers, count in (
        ({}, 4),
        ({"other": Report(servers=Generations(others=0), clients=Generations(others=0))}, 3),
    ):
        world = settled("DISABLE")
        change = Change(applied=(peer("ns", "STRICT"),))
        observed = Observed(world.observe().own, peers)
        world.mesh = world.rollouts.apply(world.mesh, change, observed, world.now)
        assert len(world.rollout.plan.ports) == count
        assert world.rollout.has_unplanned_changes is (count == 3)


def test_replica_asks_for_a_limited_number_of_ports(monkeypatch):
    monkeypatch.setattr("xds.mesh.rollout.rollout.MAX_ASKS", 3)
    world = settled("DISABLE")
    mesh = world.mesh.apply(Change(applied=(peer("ns", "STRICT"),)))
    world.rollout.update(mesh, world.now)
    assert len(world.rollout.pending) == 4
    asks = world.rollout.collect_asks({})
    assert list(asks.values()) == [Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=False)] * 3


def test_started_replica_joins_with_what_its_peers_serve():
    """It has read the newest policies, which its peers do not serve yet."""
    asks = {
        KEY: Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=False),
        (Ref("Pod", "ns", "unknown"), 1): Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=False),
    }
    lagging = Report(
        servers=Generations(others=0),
        clients=Generations(others=0),
        asks=asks,
        unplanned_rules=frozenset({RULE}),
    )
    facts = [*Proxies().facts.values(), peer("ns", "STRICT")]
    rollouts = RolloutDriver(30.0)
    mesh = rollouts.first_mesh(Change(applied=tuple(facts)), Observed(peers={"other": lagging}), 0.0)
    assert set(mesh.served.modes.values()) == {Mode.PERMISSIVE}
    assert mesh.served.mtls[KEY] is False
    assert rollouts.rollout.rules[RULE].is_unknown
    # Clients may follow any version of the rule, so the server accepts both, once the peer has applied this.
    transition = rollouts.rollout.plan.ports[KEY]
    assert transition.listener.possible == (Mode.DISABLE, Mode.PERMISSIVE)
    assert set(transition.clients.possible) == set(BOTH)


def test_recovered_modes_are_forgotten_when_the_stream_ends():
    world = settled("DISABLE", timeout=30.0)
    world.rollout.recover(WEB, {8080: Mode.STRICT})
    assert world.rollout.has_unplanned_mode()
    assert world.rollout.forget_recovered(WEB)
    assert not world.rollout.forget_recovered(WEB)
    assert not world.rollout.has_unplanned_mode()


def test_without_timeout_nothing_is_recovered():
    world = Proxies(timeout=None)
    world.rollout.recover(WEB, {8080: Mode.STRICT})
    assert not world.rollout.is_in_progress


def test_held_rule_is_released_although_a_server_rejects_its_listener():
    """A rejection lasts until a user reacts, so the listener is not skipped. The rule is."""
    world = settled("DISABLE", timeout=30.0)
    world.change(peer("ns", "PERMISSIVE"), NEW)
    for server in world.servers.values():
        world.reject(server)
    world.now += 29
    world.advance()
    assert world.mesh.served_rule(RULE) is None
    world.now += 1
    world.advance()
    assert world.mesh.served_rule(RULE) == NEW
    assert KEY not in world.rollout.skipped.ports
    wait = world.rollout.skipped.rules[RULE].wait
    assert (wait.waiting_for, wait.is_for_listener) == (WaitingFor.LISTENER, True)
    world.advance()
    assert RULE in world.rollout.skipped.rules, "the server has not caught up"
    world.settle()
    world.advance()
    assert RULE not in world.rollout.skipped.rules


# --- rules of a stored plan ---------------------------------------------------------------------------------


def stored(served: DestinationRule | None, desired: DestinationRule | None, **changed: object) -> StoredPlan:
    found = StoredRule(rule_hash(served), rule_hash(desired), 9, is_settled=False)._replace(**changed)
    return StoredPlan(9, {}, {RULE: found})


def resolve(known: DestinationRule | None, plan: StoredPlan) -> Plan | None:
    """Resolve a plan at a replica that has read one version of a rule."""
    world = Proxies()
    if known:
        world.change(known)
        world.settle()
    return world.rollout.resolve(world.mesh, plan, world.now)


def test_known_rule_is_resolved():
    plan = resolve(OLD, stored(OLD, NEW))
    assert plan
    assert plan.rules[RULE].rule == Staged(OLD, 9, (OLD, UNKNOWN))
    assert plan.rules[RULE].is_unknown, "which version clients followed before is not known"
    settled = resolve(OLD, stored(OLD, NEW, is_settled=True))
    assert settled
    assert not settled.rules[RULE].is_unknown
    same = resolve(OLD, stored(OLD, NEW, generation=0))
    assert same
    assert not same.rules[RULE].is_unknown


def test_rule_whose_earlier_version_is_not_known_may_do_anything():
    plan = resolve(NEW, stored(OLD, NEW))
    assert plan
    transition = plan.rules[RULE]
    assert transition.is_unknown
    assert transition.desired == NEW
    assert transition.rule.current is None


def test_plan_with_a_rule_that_was_not_read_yet_has_to_wait():
    assert resolve(None, stored(NEW, NEW)) is None
    assert resolve(OLD, stored(NEW, NEWEST)) is None


def test_version_that_the_leader_serves_is_served():
    world = Proxies()
    world.change(OLD)
    world.settle()
    mesh = world.mesh.apply(Change(applied=(NEW,)))
    world.rollout.change_rule(world.mesh, RULE, NEW, world.now)
    plan = world.rollout.resolve(mesh, stored(NEW, NEW), world.now)
    assert plan
    assert plan.rules[RULE].rule.possible == (OLD, NEW)
    assert not plan.rules[RULE].is_pending


def test_hash_covers_everything_that_clients_follow():
    assert rule_hash(None) == ""
    hashes = {rule_hash(each) for each in (OLD, NEW, NEWEST, replace(OLD, host="*"))}
    assert len(hashes) == 4
    labelled = replace(OLD, meta=replace(OLD.meta, labels={"a": "b"}))
    assert rule_hash(labelled) == rule_hash(OLD)


def test_rule_that_only_a_peer_knows_is_waited_for():
    """The peer serves a version of a rule that was deleted before this replica started."""
    world = Proxies()
    held = Report(
        generation=1,
        servers=Generations(others=1),
        clients=Generations(others=1),
        unplanned_rules=frozenset({RULE}),
        has_earlier_connections=False,
    )
    observed = Observed(world.observe().own, {"other": held})
    proposal = Planner(world.rollout, world.mesh, observed, world.now).propose()
    transition = proposal.plan.rules[RULE]
    assert transition.is_unknown
    assert transition.rule.generation == proposal.plan.generation > held.generation
    world.rollout.adopt(world.mesh, proposal, world.now)
    for report, is_known in (
        (held, False),
        (Report(generation=9, servers=Generations(others=9), clients=Generations(others=9)), True),
    ):
        own = Report(generation=9, clients=Generations({"one.clients": 9}))
        for now in (world.now, world.now + 2):
            proposal = Planner(world.rollout, world.mesh, Observed(own, {"other": report}), now).propose()
            world.rollout.adopt(world.mesh, proposal, now)
        assert (RULE not in proposal.plan.rules) is is_known


def test_server_that_no_report_counts_is_active():
    assert Observed().server_generation(WEB) == inf


def test_rule_that_changes_again_gets_its_own_timeout():
    """Clients that ACK in time are not skipped because another one lagged behind an earlier change."""
    world = Proxies(timeout=30.0)
    world.set_rule("DISABLE")
    world.now += 29
    world.set_rule("ISTIO_MUTUAL")
    assert world.rollout.rules[RULE].served.policy.tls.mode is TlsMode.ISTIO_MUTUAL
    world.now += 1
    world.advance()
    assert not world.rollout.rules[RULE].rule.is_settled
    assert not world.rollout.skipped.rules
    world.settle()


def test_held_rule_that_changes_again_gets_its_own_timeout():
    world = settled("DISABLE", timeout=30.0)
    world.change(peer("ns", "PERMISSIVE"), NEW)
    for server in world.servers.values():
        world.reject(server)
    world.now += 29
    world.change(replace(NEW, host="*"))
    world.now += 1
    world.advance()
    assert world.rollout.rules[RULE].is_pending


def test_rule_is_held_while_ports_do_not_fit_into_the_plan(monkeypatch):
    monkeypatch.setattr(planner, "MAX_PORTS", 1)
    world = settled("DISABLE")
    peers = {"other": Report(generation=9, servers=Generations(others=9), clients=Generations(others=9))}
    change = Change(applied=(peer("ns", "PERMISSIVE"), NEW))
    before = Observed(world.observe().own, peers)
    world.mesh = world.rollouts.apply(world.mesh, change, before, world.now)
    world.ack(*world.servers)
    observed = Observed(world.observe().own, peers)
    proposal = Planner(world.rollout, world.mesh, observed, world.now).propose()
    assert proposal.plan.rules[RULE].is_pending


def test_active_mode_counts_beside_what_another_replica_serves():
    world = settled("STRICT")
    served = Report(
        generation=9, clients=Generations(others=9), asks={KEY: Ask(Mode.PERMISSIVE, Send.MTLS, False)}
    )
    own = replace(world.observe().own, asks={KEY: Ask(Mode.DISABLE, Send.PLAINTEXT, True)})
    proposal = Planner(world.rollout, world.mesh, Observed(own, {"other": served}), world.now).propose()
    assert set(proposal.plan.ports[KEY].listener.possible) >= {Mode.DISABLE, Mode.PERMISSIVE}
    assert proposal.plan.ports[KEY].clients.current is Send.PLAINTEXT


def test_rule_is_withdrawn_for_a_server_of_another_replica():
    world = Proxies()
    world.change(peer("ns", "STRICT"), NEW)
    world.settle()
    asks = {KEY: Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=True)}
    peers = {
        "other": Report(generation=9, servers=Generations(others=9), clients=Generations(others=9), asks=asks)
    }
    mesh = world.rollouts.advance(world.mesh, Observed(world.observe().own, peers), world.now)
    assert mesh.served_rule(RULE) is None
