"""What a rollout waits for, and what it does not: cases in one line each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import UNREAD, Proxies
from tests.policy.world import peer, rule, tls
from xds.mesh.model.objects import ROLLOUT, Change, MeshConfig, Ref
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.rollout.peers import NOT_HERE, Elsewhere
from xds.mesh.rollout.transition import Stage

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)
HOST = "web.ns.svc.cluster.local"


def modes(world: Proxies) -> set[str]:
    """The modes that listeners are served which are not what is wanted."""
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
def test_servers_pass_through_permissive_where_clients_have_to_change(before, after, through):
    world = Proxies()
    world.set_mode(before)
    world.settle()
    world.set_mode(after)
    assert modes(world) == through
    world.settle()


def test_a_server_that_lags_is_passed_over_after_the_timeout_and_only_its_own_clients_wait():
    world = Proxies(timeout=30.0)
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("STRICT")
    world.acknowledge("web-2")
    world.step()
    told = {key[0].name for key, mtls in world.mesh.served.mtls.items() if not mtls}
    assert told == {"web-1"}
    assert world.rollout.crossings[KEY].stage is Stage.LISTENER
    world.acknowledge(*world.clients)
    world.step()
    world.acknowledge("web-2")
    world.now = world.rollout.crossings[KEY].served_since + 29
    world.look()
    assert not world.rollout.late
    world.now += 1
    world.step()
    assert {key[0].name for key in world.rollout.late} == {"web-1"}
    assert world.rollout.passed_over == 2  # both of its ports
    assert not world.mesh.served.mtls
    world.acknowledge("web-1")
    world.step()
    assert not world.rollout.late


def test_a_policy_that_must_not_wait_is_in_force_on_both_sides_at_once():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    strict = peer("ns", "STRICT")
    strict = replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"}))
    world.change(strict)
    assert world.rollout.served.modes == world.rollout.served.mtls == {}
    assert world.rollout.locked == 4


def test_what_does_not_wait_is_looked_after_all_the_same_and_named_until_it_is_there():
    world = Proxies(timeout=30.0)
    strict = peer("ns", "STRICT")
    world.change(replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"})))
    crossing = world.rollout.crossings[KEY]
    assert (crossing.stage, crossing.awaits_lock) == (Stage.LISTENER, True)
    refused = replace(world.known(), rejected={WEB: "no"})
    world.mesh = world.rolling.advance(world.mesh, refused, world.now + 40)
    assert crossing.rejection == "no"
    world.now += 31
    world.step()
    assert not world.rollout.crossings
    assert KEY in world.rollout.late
    world.settle()
    assert not world.rollout.late


def test_what_others_say_of_a_pod_that_is_not_known_here_changes_nothing():
    world = Proxies()
    opened = Elsewhere(said=(), opened=frozenset({(Ref("Pod", "ns", "nobody"), 8080)}))
    world.mesh = world.rolling.advance(world.mesh, replace(world.known(), elsewhere=opened), world.now)
    assert not world.rollout.crossings
    assert world.rollout.stands() == {(Ref("Pod", "ns", "nobody"), 8080): NOT_HERE}


def test_a_lock_that_must_not_wait_tells_clients_nothing_that_they_do_already():
    world = Proxies()
    strict = peer("ns", "STRICT")
    world.change(replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"})))
    assert world.rollout.locked == 4
    assert {each.stage for each in world.rollout.crossings.values()} == {Stage.LISTENER}
    assert {each.tells_at for each in world.rollout.crossings.values()} == {0}


def test_one_that_was_on_its_way_is_overtaken_by_one_that_must_not_wait():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("STRICT")
    assert modes(world) == {"PERMISSIVE"}
    strict = peer("ns", "STRICT")
    strict = replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"}))
    world.change(strict)
    assert modes(world) == set()


def test_what_the_policy_itself_does_not_take_is_not_waited_for():
    world = Proxies()
    world.set_mode("STRICT")
    world.settle()
    # Clients send plaintext from now on, which no server takes.
    world.mesh = world.rolling.apply(
        world.mesh, Change(config=MeshConfig(enable_auto_mtls=False)), world.known(), world.now
    )
    assert modes(world) == set()
    assert all(each.tells is each.will for each in world.rollout.crossings.values())
    for each in (*world.servers.values(), *world.clients.values()):
        each.generation = world.rollout.served.generation
        world.hear(each)
    world.step()
    assert not world.rollout.crossings


def test_a_pod_that_is_gone_is_waited_for_no_longer():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("STRICT")
    assert KEY in world.rollout.crossings
    world.change(removed=(WEB,))
    assert {key[0].name for key in world.rollout.crossings} == {"web-2"}


def test_a_rule_with_parts_is_held_for_what_any_of_them_says():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.change(rule("elsewhere", "other.ns.svc.cluster.local", "DISABLE"))
    mutual = TrafficPolicy(tls=tls("ISTIO_MUTUAL"))
    parts = rule(
        "clients",
        HOST,
        policy=TrafficPolicy(ports={80: mutual}),
        subsets=(Subset(name="v1", labels={}, policy=mutual), Subset(name="v2", labels={})),
    )
    world.change(peer("ns", "STRICT"), parts)
    assert world.mesh.get(parts.ref) is None
    assert world.rollout.rules[parts.ref].at is None
    world.settle()
    assert world.mesh.get(parts.ref) == parts


def test_a_rule_that_changes_while_it_is_held_comes_as_it_was_said_last():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    first, second = rule("clients", HOST, "ISTIO_MUTUAL"), rule("clients", HOST, "DISABLE")
    world.change(peer("ns", "STRICT"), first)
    assert world.rollout.rules[first.ref].new == first
    world.change(second)
    # Nothing keeps this one: plaintext is what servers take, and what STRICT does not is not waited for.
    assert world.mesh.get(second.ref) == second


def test_rules_that_may_speak_for_the_same_clients_wait_for_each_other():
    world = Proxies()
    world.set_mode("STRICT")
    world.settle()
    # Plaintext for one client; for all others what the policy will have them send, which nothing keeps.
    narrow = rule("clients", HOST, "DISABLE", name="narrow", selector={"app": "two"})
    wide = rule("clients", "*.local", "ISTIO_MUTUAL", name="wide")
    other = rule("clients", "other.example", "ISTIO_MUTUAL", name="other")
    world.change(peer("ns", "DISABLE"), narrow, wide, other)
    assert [world.mesh.get(each.ref) for each in (narrow, wide, other)] == [None, None, other]
    world.settle()
    assert world.mesh.get(wide.ref) == wide


def test_rules_wait_no_longer_than_anybody():
    world = Proxies(timeout=30.0)
    world.set_mode("DISABLE")
    world.settle()
    held = rule("clients", HOST, "ISTIO_MUTUAL")
    world.change(peer("ns", "PERMISSIVE"), held)
    assert world.mesh.get(held.ref) is None
    world.now += 30
    world.step()
    assert world.mesh.get(held.ref) == held
    # Counted for each port that was waited for, and then for the clients that take neither the mode nor the rule.
    assert world.rollout.passed_over == 4
    world.now += 30
    world.step()
    assert not world.rollout.rules
    assert world.rollout.passed_over == 4 + 4 + 1


def test_a_server_that_was_passed_over_is_named_until_it_has_what_it_should():
    world = Proxies(timeout=30.0)
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("PERMISSIVE")
    world.now += 30
    world.step()
    assert KEY in world.rollout.late
    world.servers["web-1"].connected = False
    world.step()
    # It may go on with what it had, though nobody hears of it.
    assert KEY in world.rollout.late
    world.change(removed=(WEB,))
    assert KEY not in world.rollout.late


def test_without_the_gate_everything_is_as_it_is_wanted():
    world = Proxies(timeout=None)
    world.set_mode("DISABLE")
    held = rule("clients", HOST, "ISTIO_MUTUAL")
    world.change(peer("ns", "STRICT"), held)
    assert world.mesh.get(held.ref) == held
    assert not world.rollout.crossings
    assert world.mesh.served.modes == {}


def test_clients_that_reject_what_belongs_to_others_are_not_waited_for():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("PERMISSIVE")
    world.acknowledge(*world.servers)
    world.step()
    world.acknowledge(*world.clients)
    refusing = {"one.clients": {"outbound|80||other.ns.svc.cluster.local": "no", "BlackHoleCluster": "no"}}
    known = replace(world.known(), refusing=refusing)
    for now in (world.now, world.now + UNREAD):
        world.mesh = world.rolling.advance(world.mesh, known, now)
    assert not world.rollout.crossings


def test_what_installing_creates_is_held_back_by_who_finds_that_servers_do_not_take_it():
    """A control plane starts with values.global.mtls.enabled while servers have DISABLE."""
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.facts[Ref("PeerAuthentication", "ns", "default")] = peer("ns", "PERMISSIVE")
    world.config = MeshConfig(mtls_enabled=True)
    world.wants.append(world.wanted())
    world.start()
    assert [each.at for each in world.rollout.rules.values()] == [None]
    for name in world.clients:
        world.deliver_to_client(name)
        world.check()
    world.settle()


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("others_first", [True, False])
def test_the_meshs_switch_goes_the_same_way(enabled, auto, others_first):
    """values.global.mtls.enabled: STRICT and ISTIO_MUTUAL across the mesh, or PERMISSIVE and what automatic mTLS comes to."""
    world = Proxies()
    world.change(config=MeshConfig(mtls_enabled=not enabled, enable_auto_mtls=auto))
    world.settle()
    world.change(config=MeshConfig(mtls_enabled=enabled, enable_auto_mtls=auto))
    for _ in range(6):
        for each in ("clients", "servers") if others_first else ("servers", "clients"):
            for name, proxy in getattr(world, each).items():
                getattr(world, f"deliver_to_{each[:-1]}")(name)
                world.check()
                world.hear(proxy)
            world.step()
    assert not world.rollout.crossings
    mode = "STRICT" if enabled else "PERMISSIVE"
    assert {each for server in world.servers.values() for each in server.modes.values()} == {mode}
    world.settle()


def test_the_meshs_switch_waits_for_servers_that_a_policy_has_kept_from_mutual_tls():
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.change(peer("ns", "STRICT"), config=MeshConfig(mtls_enabled=True))
    for name in world.clients:
        world.deliver_to_client(name)
        world.check()
    # Somebody has another rule of that name meanwhile, and it is the one that counts.
    own = rule("istio-system", "*.local", "DISABLE", name="default")
    world.change(own)
    world.change(config=MeshConfig(mtls_enabled=False))
    world.settle()
    assert world.mesh.get(own.ref) == own


def test_a_lock_waits_for_connections_of_which_it_is_not_known_yet_what_they_are():
    """Of a server that speaks first: its clients say nothing, and the listener waits for a second that they do."""
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("STRICT")
    world.acknowledge(*world.servers)
    world.look()
    world.acknowledge(*world.clients)
    heard = world.now
    world.look()
    assert modes(world) == {"PERMISSIVE"}
    assert world.rollout.crossings[KEY].stage is Stage.CLIENTS
    world.now = heard + 1.1
    world.look()
    assert modes(world) == {"PERMISSIVE"}
    world.now = heard + UNREAD
    world.look()
    assert modes(world) == set()
    assert world.rollout.locked == 4


@pytest.mark.parametrize("late", ["client", "server"])
def test_who_was_passed_over_and_is_still_not_there_is_waited_for_at_the_next_change(late):
    world = Proxies(timeout=30.0)
    world.set_mode("DISABLE" if late == "client" else "STRICT")
    world.settle()
    world.set_mode("PERMISSIVE")
    for name in world.servers:
        if (late, name) != ("server", "web-1"):
            world.acknowledge(name)
    world.step()
    for name in world.clients:
        if (late, name) != ("client", "two"):
            world.acknowledge(name)
    world.now += 31
    world.step()
    world.step()
    assert KEY in world.rollout.late
    world.set_mode("STRICT" if late == "client" else "DISABLE")
    for _ in range(3):
        world.acknowledge("web-2", "one")
        world.check()
        world.step()
    waiting = world.rollout.crossings[KEY]
    assert waiting.stage is (Stage.CLIENTS if late == "client" else Stage.LISTENER)
    assert waiting.laggards == (("two.clients",) if late == "client" else ())
    world.settle()
    assert not world.rollout.late


def test_a_client_that_rejects_a_rule_goes_on_with_the_one_before():
    world = Proxies()
    before = rule("clients", HOST, "DISABLE", name="for-all")
    world.change(peer("ns", "PERMISSIVE"), before)
    world.settle()
    world.change(peer("ns", "STRICT"), removed=(before.ref,))
    world.acknowledge("one")
    world.clients["two"].said = world.mesh.served.generation  # It has answered, and has the old clusters.
    refusing = {"two.clients": {f"outbound|80||{HOST}": "no"}}
    for now in (world.now, world.now + UNREAD):
        known = replace(world.known(), refusing=refusing)
        world.mesh = world.rolling.advance(world.mesh, known, now)
    assert modes(world) == {"PERMISSIVE"}
    world.settle()


def test_a_rule_that_changes_after_another_change_was_told_has_its_own_time():
    world = Proxies(timeout=30.0)
    world.set_mode("DISABLE")
    world.settle()
    world.change(rule("clients", HOST, "DISABLE", name="for-all"))  # which `two` does not take
    world.now += 28
    world.change(peer("ns", "STRICT"), rule("clients", HOST, "ISTIO_MUTUAL", name="for-all"))
    (held,) = world.rollout.rules.values()
    assert held.at is None
    world.now += 2
    world.look()
    assert held.at is None
    world.deliver_to_client("one")
    world.check()
