"""What a rollout waits for, and what it does not wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import UNREAD, Proxies, settled
from tests.policy.world import peer, rule, tls
from xds.mesh.model.objects import ROLLOUT, Change, MeshConfig, Mode, Ref
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.observation import Ask, Observed
from xds.mesh.rollout.progress import accepts_plaintext
from xds.mesh.rollout.waits import WaitingFor, port_wait

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)
HOST = "web.ns.svc.cluster.local"
STRICT = peer("ns", "STRICT")
IMMEDIATE = replace(STRICT, meta=replace(STRICT.meta, annotations={ROLLOUT: "immediate"}))


def modes(world: Proxies) -> set[str]:
    """Return the served modes that differ from the desired ones."""
    return {mode.value for mode in world.mesh.served.modes.values()}


@pytest.mark.parametrize(
    ("before", "after", "through"),
    [
        ("DISABLE", "STRICT", {"PERMISSIVE"}),
        ("STRICT", "DISABLE", {"PERMISSIVE"}),
        ("DISABLE", "PERMISSIVE", set()),
        ("PERMISSIVE", "DISABLE", {"PERMISSIVE"}),
        ("PERMISSIVE", "STRICT", set()),
        ("STRICT", "PERMISSIVE", set()),
    ],
)
def test_servers_expand_to_permissive_if_clients_must_migrate(before, after, through):
    world = settled(before)
    world.set_mode(after)
    assert modes(world) == through
    world.settle()


def test_lagging_server_delays_only_its_own_clients():
    world = settled("DISABLE", timeout=30.0)
    world.set_mode("STRICT")
    world.ack("web-2")
    world.step()
    unchanged = {key[0].name for key, mtls in world.mesh.served.mtls.items() if not mtls}
    assert unchanged == {"web-1"}
    assert world.wait(KEY).waiting_for is WaitingFor.LISTENER
    world.ack(*world.clients)
    world.step()
    world.ack("web-2")
    world.now = world.wait(KEY).since + 29
    world.advance()
    assert not world.rollout.skipped.ports
    world.now += 1
    world.step()
    assert {key[0].name for key in world.rollout.skipped.ports} == {"web-1"}
    assert world.rollout.stats.skips == 2  # both ports of web-1
    assert not world.mesh.served.mtls
    world.ack("web-1")
    world.step()
    assert not world.rollout.skipped.ports


def test_immediate_policy_changes_both_sides_at_once():
    world = settled("DISABLE")
    world.change(IMMEDIATE)
    assert world.mesh.served.modes == world.mesh.served.mtls == {}
    assert world.rollout.stats.plaintext_disabled == 4


def test_immediate_transition_is_tracked_until_active():
    world = Proxies(timeout=30.0)
    world.change(IMMEDIATE)
    assert world.wait(KEY).waiting_for is WaitingFor.LISTENER
    assert accepts_plaintext(world.rollout, KEY, world.rollout.plan.ports[KEY])
    refused = Observed(replace(world.observe().own, rejected_listeners={WEB: "no"}))
    world.mesh = world.rollouts.advance(world.mesh, refused, world.now + 40)
    assert port_wait(KEY, world.rollout.plan.ports[KEY], refused).rejection == "no"
    world.now += 31
    world.step()
    assert not world.rollout.plan.ports
    assert KEY in world.rollout.skipped.ports
    world.settle()
    assert not world.rollout.skipped.ports


def test_ask_about_unknown_pod_changes_nothing():
    world = Proxies()
    asks = {(Ref("Pod", "ns", "unknown"), 8080): Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=True)}
    observed = Observed(replace(world.observe().own, asks=asks))
    world.mesh = world.rollouts.advance(world.mesh, observed, world.now)
    assert not world.rollout.plan.ports


def test_immediate_strict_keeps_clients_that_use_mtls():
    world = Proxies()
    world.change(IMMEDIATE)
    assert world.rollout.stats.plaintext_disabled == 4
    assert {world.wait(key).waiting_for for key in world.rollout.plan.ports} == {WaitingFor.LISTENER}
    assert {each.clients.generation for each in world.rollout.plan.ports.values()} == {0}


def test_immediate_policy_ends_a_gradual_transition():
    world = settled("DISABLE")
    world.set_mode("STRICT")
    assert modes(world) == {"PERMISSIVE"}
    world.change(IMMEDIATE)
    assert modes(world) == set()


def test_traffic_that_policies_forbid_is_not_waited_for():
    world = settled("STRICT")
    # From now on clients send plaintext, which no server accepts.
    world.mesh = world.rollouts.apply(
        world.mesh, Change(config=MeshConfig(enable_auto_mtls=False)), world.observe(), world.now
    )
    assert modes(world) == set()
    assert all(
        transition.clients.current is world.rollout.ports[key].desired.send
        for key, transition in world.rollout.plan.ports.items()
    )
    for each in (*world.servers.values(), *world.clients.values()):
        each.generation = world.mesh.served.generation
        world.receive_ack(each)
    world.step()
    assert not world.rollout.plan.ports


def test_deleted_pod_is_no_longer_waited_for():
    world = settled("DISABLE")
    world.set_mode("STRICT")
    assert KEY in world.rollout.plan.ports
    world.change(removed=(WEB,))
    assert {key[0].name for key in world.rollout.plan.ports} == {"web-2"}


def test_rule_is_held_if_any_part_needs_it():
    world = settled("DISABLE")
    world.change(rule("elsewhere", "other.ns.svc.cluster.local", "DISABLE"))
    mutual = TrafficPolicy(tls=tls("ISTIO_MUTUAL"))
    parts = rule(
        "clients",
        HOST,
        policy=TrafficPolicy(ports={80: mutual}),
        subsets=(Subset(name="v1", labels={}, policy=mutual), Subset(name="v2", labels={})),
    )
    world.change(peer("ns", "STRICT"), parts)
    assert world.mesh.served_rule(parts.ref) is None
    assert world.rollout.rules[parts.ref].is_pending
    world.settle()
    assert world.mesh.served_rule(parts.ref) == parts


def test_held_rule_is_released_in_its_last_version():
    world = settled("DISABLE")
    first, second = rule("clients", HOST, "ISTIO_MUTUAL"), rule("clients", HOST, "DISABLE")
    world.change(peer("ns", "STRICT"), first)
    assert world.rollout.rules[first.ref].desired == first
    world.change(second)
    # This version is not held: servers accept plaintext now, and STRICT forbids it in any case.
    assert world.mesh.served_rule(second.ref) == second


def test_overlapping_rules_are_released_together():
    world = settled("STRICT")
    # Plaintext for one client, and mutual TLS for all others, which servers already accept.
    narrow = rule("clients", HOST, "DISABLE", name="narrow", selector={"app": "two"})
    wide = rule("clients", "*.local", "ISTIO_MUTUAL", name="wide")
    other = rule("clients", "other.example", "ISTIO_MUTUAL", name="other")
    world.change(peer("ns", "DISABLE"), narrow, wide, other)
    assert [world.mesh.served_rule(each.ref) for each in (narrow, wide, other)] == [None, None, other]
    world.settle()
    assert world.mesh.served_rule(wide.ref) == wide


def test_held_rule_is_released_after_the_timeout():
    world = settled("DISABLE", timeout=30.0)
    held = rule("clients", HOST, "ISTIO_MUTUAL")
    world.change(peer("ns", "PERMISSIVE"), held)
    assert world.mesh.served_rule(held.ref) is None
    world.now += 30
    world.step()
    assert world.mesh.served_rule(held.ref) == held
    # Once for each port, and later for the clients, which ACK neither the mode nor the rule.
    assert world.rollout.stats.skips == 4
    world.now += 30
    world.step()
    assert not world.rollout.rules
    assert world.rollout.stats.skips == 4 + 4 + 1


def test_skipped_server_is_tracked_until_it_catches_up():
    world = settled("DISABLE", timeout=30.0)
    world.set_mode("PERMISSIVE")
    world.now += 30
    world.step()
    assert KEY in world.rollout.skipped.ports
    world.servers["web-1"].connected = False
    world.step()
    # The server may still run with its old listener although it is disconnected.
    assert KEY in world.rollout.skipped.ports
    world.change(removed=(WEB,))
    assert KEY not in world.rollout.skipped.ports


def test_without_timeout_the_desired_state_is_served_at_once():
    world = Proxies(timeout=None)
    world.set_mode("DISABLE")
    held = rule("clients", HOST, "ISTIO_MUTUAL")
    world.change(peer("ns", "STRICT"), held)
    assert world.mesh.served_rule(held.ref) == held
    assert not world.rollout.plan.ports
    assert world.mesh.served.modes == {}


def test_rejection_of_unrelated_cluster_is_ignored():
    world = settled("DISABLE")
    world.set_mode("PERMISSIVE")
    world.ack(*world.servers)
    world.step()
    world.ack(*world.clients)
    rejected = {"one.clients": {"outbound|80||other.ns.svc.cluster.local": "no", "BlackHoleCluster": "no"}}
    observed = Observed(replace(world.observe().own, rejected_clusters=rejected))
    for now in (world.now, world.now + UNREAD):
        world.mesh = world.rollouts.advance(world.mesh, observed, now)
    assert not world.rollout.plan.ports


def test_installed_rule_is_withdrawn_if_servers_refuse_it():
    """The control plane starts with values.global.mtls.enabled while servers have DISABLE."""
    world = settled("DISABLE")
    world.facts[Ref("PeerAuthentication", "ns", "default")] = peer("ns", "PERMISSIVE")
    world.config = MeshConfig(mtls_enabled=True)
    world.must_reach.append(world.reachable())
    world.start()
    assert [rule.is_pending for rule in world.rollout.rules.values()] == [True]
    for name in world.clients:
        world.deliver_to_client(name)
        world.check()
    world.settle()


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("others_first", [True, False])
def test_mesh_wide_mtls_setting_rolls_out_gradually(enabled, auto, others_first):
    """values.global.mtls.enabled means STRICT and ISTIO_MUTUAL, otherwise PERMISSIVE and automatic mTLS."""
    world = Proxies()
    world.change(config=MeshConfig(mtls_enabled=not enabled, enable_auto_mtls=auto))
    world.settle()
    world.change(config=MeshConfig(mtls_enabled=enabled, enable_auto_mtls=auto))
    for _ in range(6):
        for each in ("clients", "servers") if others_first else ("servers", "clients"):
            for name, proxy in getattr(world, each).items():
                getattr(world, f"deliver_to_{each[:-1]}")(name)
                world.check()
                world.receive_ack(proxy)
            world.step()
    assert not world.rollout.plan.ports
    mode = "STRICT" if enabled else "PERMISSIVE"
    assert {each for server in world.servers.values() for each in server.modes.values()} == {mode}
    world.settle()


def test_mesh_wide_setting_waits_for_disabled_servers():
    world = settled("DISABLE")
    world.change(peer("ns", "STRICT"), config=MeshConfig(mtls_enabled=True))
    for name in world.clients:
        world.deliver_to_client(name)
        world.check()
    # In the meantime a user creates a rule of that name, which overrides the installed one.
    own = rule("istio-system", "*.local", "DISABLE", name="default")
    world.change(own)
    world.change(config=MeshConfig(mtls_enabled=False))
    world.settle()
    assert world.mesh.served_rule(own.ref) == own


def test_contraction_waits_for_unclassified_connections():
    """Where the server speaks first, the listener waits a second for the client before it classifies it."""
    world = settled("DISABLE")
    world.set_mode("STRICT")
    world.ack(*world.servers)
    world.advance()
    world.ack(*world.clients)
    heard = world.now
    world.advance()
    assert modes(world) == {"PERMISSIVE"}
    assert world.wait(KEY).waiting_for is WaitingFor.CLIENTS
    world.now = heard + 1.1
    world.advance()
    assert modes(world) == {"PERMISSIVE"}
    world.now = heard + UNREAD
    world.advance()
    assert modes(world) == set()
    assert world.rollout.stats.plaintext_disabled == 4


@pytest.mark.parametrize("late", ["client", "server"])
def test_skipped_proxy_is_waited_for_in_the_next_transition(late):
    world = settled("DISABLE" if late == "client" else "STRICT", timeout=30.0)
    world.set_mode("PERMISSIVE")
    for name in world.servers:
        if (late, name) != ("server", "web-1"):
            world.ack(name)
    world.step()
    for name in world.clients:
        if (late, name) != ("client", "two"):
            world.ack(name)
    world.now += 31
    world.step()
    world.step()
    assert KEY in world.rollout.skipped.ports
    world.set_mode("STRICT" if late == "client" else "DISABLE")
    for _ in range(3):
        world.ack("web-2", "one")
        world.check()
        world.step()
    waiting = world.wait(KEY)
    assert waiting.waiting_for is (WaitingFor.CLIENTS if late == "client" else WaitingFor.LISTENER)
    assert waiting.lagging == (("two.clients",) if late == "client" else ())
    world.settle()
    assert not world.rollout.skipped.ports


def test_client_that_rejects_a_rule_keeps_the_old_one():
    world = Proxies()
    before = rule("clients", HOST, "DISABLE", name="for-all")
    world.change(peer("ns", "PERMISSIVE"), before)
    world.settle()
    world.change(peer("ns", "STRICT"), removed=(before.ref,))
    world.ack("one")
    world.clients["two"].acked = world.mesh.served.generation  # It has answered, but keeps the old clusters.
    rejected = {"two.clients": {f"outbound|80||{HOST}": "no"}}
    for now in (world.now, world.now + UNREAD):
        observed = Observed(replace(world.observe().own, rejected_clusters=rejected))
        world.mesh = world.rollouts.advance(world.mesh, observed, now)
    assert modes(world) == {"PERMISSIVE"}
    world.settle()
