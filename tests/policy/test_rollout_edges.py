"""Objects and proxies that appear and disappear during a rollout, or between two."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import CLIENTS, Proxies, Server, settled
from tests.policy.world import peer, pod, rule
from xds.mesh.controlplane.controller import MAX_ROLLOUT_DELAY
from xds.mesh.envoy.inbound import decode_modes
from xds.mesh.model.objects import TLS_MODE_LABEL, Change, Mode, Ref
from xds.mesh.policy.mtls import served_mode
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)
HOST = "web.ns.svc.cluster.local"
MODES = ("DISABLE", "PERMISSIVE", "STRICT")


def mode(world: Proxies) -> Mode:
    web = world.mesh.pod("ns", "web-1")
    assert web
    return served_mode(world.mesh, web, 8080).mode


def test_strict_pod_stays_strict_when_it_joins_a_service():
    world = settled("DISABLE")
    web = world.facts[WEB]
    world.change(replace(web, ready=False))
    world.settle()
    world.set_mode("STRICT")
    world.settle()
    assert mode(world) is Mode.STRICT
    world.change(web)
    assert mode(world) is Mode.STRICT
    # Clients do not send what the server refuses.
    world.must_reach = [world.reachable()]
    world.deliver_to_client("one")
    world.check()


@pytest.mark.parametrize("what", ["service", "sidecar"])
def test_port_that_reappears_counts_as_new(what):
    world = settled("DISABLE")
    fact = world.facts[Ref("Service", "ns", "web") if what == "service" else WEB]
    if what == "service":
        gone = Change(removed=(fact.ref,))
    else:
        labels = {name: value for name, value in fact.meta.labels.items() if name != TLS_MODE_LABEL}
        gone = Change(applied=(replace(fact, meta=replace(fact.meta, labels=labels)),))
    for change in (gone, Change(applied=(peer("ns", "STRICT"),))):
        world.mesh = world.rollouts.apply(world.mesh, change, world.observe(), 0.0)
    assert mode(world) is Mode.STRICT
    world.mesh = world.rollouts.apply(world.mesh, Change(applied=(fact,)), world.observe(), 0.0)
    assert mode(world) is Mode.STRICT


def test_server_is_recovered_once_it_is_observed():
    world = settled("DISABLE")
    facts = {**world.facts, **{each.ref: each for each in [peer("ns", "STRICT")]}}
    rollouts = RolloutDriver(1e9)
    rollout = rollouts.rollout
    mesh = rollouts.first_mesh(Change(applied=tuple(facts.values())), Observed(), 0.0)
    # The server connected after the observation, and would count as disconnected.
    rollout.recover(WEB, {8080: Mode.DISABLE, 9090: Mode.DISABLE})
    mesh = rollouts.advance(mesh, Observed(Report(asks=rollout.collect_asks({}))), 0.0)
    assert rollout.has_unplanned_mode(WEB)
    servers = {WEB: -1}
    mesh = rollouts.advance(
        mesh, Observed(Report(servers=Generations(servers), asks=rollout.collect_asks(servers))), 0.0
    )
    assert mesh.served.mtls[KEY] is False
    assert not rollout.has_unplanned_mode(WEB)


@pytest.mark.parametrize("active", MODES)
@pytest.mark.parametrize("not_sent", MODES)
@pytest.mark.parametrize("changed", MODES)
def test_change_before_servers_report_fails_no_request(active, not_sent, changed):
    world = settled(active)
    world.set_mode(not_sent)
    world.start(reports=False)
    world.set_mode(changed)
    for client in CLIENTS:
        world.ack(client)
        world.check()
    world.settle()


def test_immediate_changes_compute_no_endpoints_before_a_sidecar_needs_them():
    rollouts = RolloutDriver(None)
    mesh = rollouts.first_mesh(Change(applied=tuple(settled("DISABLE").facts.values())), Observed(), 0.0)
    rollouts.proxies.start_recovery(mesh, 0.0)
    assert (mesh.memory.lookups, rollouts.rollout.ports) == ({}, {})
    assert not rollouts.proxies.is_recovering(1.0)


def test_stream_that_ends_during_recovery_is_harmless():
    world = settled("DISABLE")
    world.start()
    observed = world.observe()
    world.rollout.forget_recovered(WEB)
    world.mesh = world.rollouts.apply(
        world.mesh, Change(applied=(peer("ns", "STRICT"),)), observed, world.now
    )
    assert world.mesh.get(Ref("PeerAuthentication", "ns", "default")) == peer("ns", "STRICT")
    assert set(world.mesh.served.modes.values()) == {Mode.PERMISSIVE}


def test_advance_returns_the_same_mesh_if_nothing_changes():
    world = settled("STRICT")
    world.rollout.recover(WEB, {8080: Mode.STRICT, 9090: Mode.STRICT})
    before = world.mesh
    world.step()
    assert world.mesh is before


def test_new_pod_accepts_both_versions_of_a_held_rule():
    world = Proxies()
    world.change(peer("ns", "DISABLE"), rule("clients", HOST, "DISABLE", name="for-all"))
    world.settle()
    world.change(peer("ns", "STRICT"), rule("clients", HOST, "ISTIO_MUTUAL", name="for-all"))
    assert [rule.is_pending for rule in world.rollout.rules.values()] == [True]
    new = pod("web-3", "ns", app="web", group="web-3")
    world.servers["web-3"] = Server()
    world.change(new)
    world.deliver_to_server("web-3")
    world.deliver_to_client("one")
    world.must_reach = [wants | {("one", (new.ref, 8080))} for wants in world.must_reach]
    world.check()


def test_new_pod_accepts_traffic_of_lagging_clients():
    world = Proxies()
    before = rule("clients", HOST, "DISABLE", name="for-all")
    world.change(peer("ns", "PERMISSIVE"), before)
    world.settle()
    world.change(peer("ns", "STRICT"), removed=(before.ref,))
    assert set(world.mesh.served.modes.values()) == {Mode.PERMISSIVE}
    new = pod("web-3", "ns", app="web", group="web-3")
    world.change(new)
    assert served_mode(world.mesh, new, 8080).mode is Mode.PERMISSIVE


def test_frequently_changed_rule_keeps_few_versions():
    world = Proxies(timeout=30.0)
    for number in range(50):
        world.now += 1
        world.set_rule("DISABLE" if number % 2 else "ISTIO_MUTUAL")
    (change,) = world.rollout.rules.values()
    assert len(change.rule.possible) <= 3
    world.now += 30
    world.step()
    assert not world.rollout.rules


def test_peer_report_is_checked_while_proxies_are_served():
    rollouts = RolloutDriver(30.0)
    rollouts.checked_at = 0.0
    rollouts.peers_changed()
    assert rollouts.next_check(100.0) + MAX_ROLLOUT_DELAY <= 100.0


def test_arbitrary_versions_and_reports_are_tolerated():
    assert decode_modes(["x", "0.P8080S", f"x.{'1' * 5000}D"]) != {}
