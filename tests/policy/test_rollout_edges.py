"""What comes and goes while a rollout is on its way, or between two of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import Proxies, Server
from tests.policy.world import peer, pod, rule
from xds.mesh.controlplane.controller import ROLL_ANYWAY
from xds.mesh.envoy.inbound import accepting
from xds.mesh.kube.report_codec import decode_report
from xds.mesh.model.objects import TLS_MODE_LABEL, Change, Mode, Ref
from xds.mesh.policy.mtls import served_mode
from xds.mesh.rollout.driver import Rolling
from xds.mesh.rollout.transition import Known

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)
HOST = "web.ns.svc.cluster.local"


def disabled() -> Proxies:
    world = Proxies()
    world.set_mode("DISABLE")
    world.settle()
    return world


def mode(world: Proxies) -> Mode:
    web = world.mesh.pod("ns", "web-1")
    assert web
    return served_mode(world.mesh, web, 8080).mode


def test_a_pod_that_was_locked_while_no_service_led_to_it_stays_locked_when_one_does():
    world = disabled()
    web = world.facts[WEB]
    world.change(replace(web, ready=False))
    world.settle()
    world.set_mode("STRICT")
    world.settle()
    assert mode(world) is Mode.STRICT
    world.change(web)
    assert mode(world) is Mode.STRICT
    # Nor are clients told to send what it does not take.
    world.wants = [world.wanted()]
    world.deliver_to_client("one")
    world.check()


@pytest.mark.parametrize("what", ["service", "sidecar"])
def test_what_goes_and_comes_again_is_new(what):
    world = disabled()
    fact = world.facts[Ref("Service", "ns", "web") if what == "service" else WEB]
    if what == "service":
        gone = Change(removed=(fact.ref,))
    else:
        labels = {name: value for name, value in fact.meta.labels.items() if name != TLS_MODE_LABEL}
        gone = Change(applied=(replace(fact, meta=replace(fact.meta, labels=labels)),))
    for change in (gone, Change(applied=(peer("ns", "STRICT"),))):
        world.mesh = world.rolling.apply(world.mesh, change, world.known(), 0.0)
    assert mode(world) is Mode.STRICT
    world.mesh = world.rolling.apply(world.mesh, Change(applied=(fact,)), world.known(), 0.0)
    assert mode(world) is Mode.STRICT


def test_a_server_that_comes_back_is_recovered_once_it_is_known_to_be_there():
    world = disabled()
    facts = {**world.facts, **{each.ref: each for each in [peer("ns", "STRICT")]}}
    rolling = Rolling({}, 1e9)
    mesh = rolling.first(Change(applied=tuple(facts.values())), Known(), 0.0)
    # It came after it was asked who is there, and would be taken for gone.
    rolling._came_back[WEB] = {8080: Mode.DISABLE, 9090: Mode.DISABLE}
    mesh = rolling.advance(mesh, Known(), 0.0)
    assert WEB in rolling._came_back
    mesh = rolling.advance(mesh, Known(servers={WEB: -1}), 0.0)
    assert mesh.served.mtls[KEY] is False


def test_a_server_whose_stream_ends_while_it_is_recovered_loses_nothing_but_itself(monkeypatch):
    world = disabled()
    world.start()
    refs = [Ref("Pod", "ns", name) for name in world.servers]
    came_back = world.rolling._came_back
    came_back.update({ref: {8080: Mode.DISABLE, 9090: Mode.DISABLE} for ref in refs})
    recover = world.rollout.recover

    def recover_and_lose_the_other(*which: object) -> None:
        recover(*which)
        came_back.clear()

    monkeypatch.setattr(world.rollout, "recover", recover_and_lose_the_other)
    world.change(peer("ns", "STRICT"))
    assert world.mesh.get(Ref("PeerAuthentication", "ns", "default")) == peer("ns", "STRICT")
    assert set(world.mesh.served.modes.values()) == {Mode.PERMISSIVE}


def test_a_mesh_is_itself_if_nothing_is_to_be_served_anew():
    world = Proxies()
    world.set_mode("STRICT")
    world.settle()
    world.rolling._came_back[WEB] = {8080: Mode.STRICT, 9090: Mode.STRICT}
    before = world.mesh
    world.step()
    assert world.mesh is before


def test_a_pod_that_comes_while_a_rule_is_held_takes_what_both_rules_say():
    world = Proxies()
    world.change(peer("ns", "DISABLE"), rule("clients", HOST, "DISABLE", name="for-all"))
    world.settle()
    world.change(peer("ns", "STRICT"), rule("clients", HOST, "ISTIO_MUTUAL", name="for-all"))
    assert [each.at for each in world.rollout.rules.values()] == [None]
    new = pod("web-3", "ns", app="web", group="web-3")
    world.servers["web-3"] = Server()
    world.change(new)
    world.deliver_to_server("web-3")
    world.deliver_to_client("one")
    world.wants = [wants | {("one", (new.ref, 8080))} for wants in world.wants]
    world.check()


def test_a_pod_that_comes_before_clients_have_taken_a_rule_takes_what_they_send():
    world = Proxies()
    before = rule("clients", HOST, "DISABLE", name="for-all")
    world.change(peer("ns", "PERMISSIVE"), before)
    world.settle()
    world.change(peer("ns", "STRICT"), removed=(before.ref,))
    assert set(world.mesh.served.modes.values()) == {Mode.PERMISSIVE}
    new = pod("web-3", "ns", app="web", group="web-3")
    world.change(new)
    assert served_mode(world.mesh, new, 8080).mode is Mode.PERMISSIVE


def test_a_rule_that_changes_again_and_again_is_remembered_once_and_waited_for_once():
    world = Proxies(timeout=30.0)
    for number in range(50):
        world.now += 1
        world.set_rule("DISABLE" if number % 2 else "ISTIO_MUTUAL")
    (change,) = world.rollout.rules.values()
    assert len(change.others) <= 2
    world.now += 30
    world.step()
    assert not world.rollout.rules


def test_others_are_heard_soon_though_proxies_are_still_being_served():
    rolling = Rolling({}, 30.0)
    rolling._looked = 0.0
    rolling.hear()
    assert rolling.due(100.0) + ROLL_ANYWAY <= 100.0


def test_versions_and_reports_may_be_anything():
    assert accepting(["x", "0.P8080S", f"x.{'1' * 5000}D"]) != {}
    for text in ('{"number":1e999,"view":""}', '{"number":' + "[" * 100_000 + "}", "{}", "?"):
        assert decode_report(text).stands is None
