"""What a replica may conclude from reports, and when they do not count."""

from __future__ import annotations

from tests.policy.world import rule
from xds.mesh.model.objects import DestinationRule, MeshConfig, Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import PeerView, PortReport, ReplicaReport
from xds.mesh.rollout.replica_sync import ReplicaSync, RulesVersion

KEY = (Ref("Pod", "ns", "web"), 8080)
BOTH = PortReport(
    in_transition=True, modes=frozenset({Mode.PERMISSIVE}), sends=frozenset({Send.PLAINTEXT, Send.MTLS})
)
MTLS = BOTH._replace(sends=frozenset({Send.MTLS}))


def other(
    exchange: ReplicaSync, now: float, version: str = "1", stand: PortReport = BOTH, view: str = ""
) -> None:
    exchange.receive("other", version, ReplicaReport(1, view, {KEY: stand}), 15.0, now)


def knows(exchange: ReplicaSync, send: Send, now: float = 0.0) -> bool:
    return exchange.peer_view(now).knows_send(KEY, send)


def test_alone_nobody_has_to_know_anything():
    alone = PeerView()
    assert alone.knows_send(KEY, Send.MTLS)
    assert alone.knows_mode(KEY, Mode.STRICT)
    assert not alone.may_refuse(KEY, Send.MTLS)


def test_what_was_said_is_known_once_it_was_read_back():
    exchange = ReplicaSync()
    exchange.publish("", {KEY: BOTH})
    assert not knows(exchange, Send.MTLS)
    report = exchange.start_write(0.0)
    assert not exchange.is_synced
    assert not knows(exchange, Send.MTLS)
    exchange.read_back(report.number, 0.0)
    assert exchange.is_synced
    assert knows(exchange, Send.MTLS)


def test_what_is_in_no_more_than_some_of_what_others_may_read_is_not_known():
    exchange = ReplicaSync()
    exchange.publish("", {KEY: BOTH})
    exchange.read_back(exchange.start_write(0.0).number, 0.0)
    # It is not said any more; others may have read either, and soon will have read neither.
    exchange.publish("", {KEY: MTLS})
    assert not knows(exchange, Send.PLAINTEXT)
    later = exchange.start_write(0.0)
    exchange.publish("", {KEY: BOTH})
    assert not knows(exchange, Send.PLAINTEXT)
    again = exchange.start_write(0.0)
    exchange.read_back(later.number, 0.0)
    assert not knows(exchange, Send.PLAINTEXT)
    exchange.read_back(again.number, 0.0)
    assert knows(exchange, Send.PLAINTEXT)


def test_a_report_that_is_too_large_lets_nobody_do_anything():
    exchange = ReplicaSync()
    exchange.publish("", {KEY: BOTH})
    exchange.start_write(0.0)
    exchange.retract()
    report = exchange.start_write(0.0, too_large=True)
    exchange.read_back(report.number, 0.0)
    assert exchange.has_unpublished
    assert not knows(exchange, Send.MTLS)
    exchange.receive("other", "1", ReplicaReport(1, "", None), 15.0, 0.0)
    found = exchange.peer_view(0.0)
    assert found.may_send(KEY, {Send.PLAINTEXT}) == found.without_report(KEY) == ["other"]


def test_one_that_says_nothing_any_more_counts_until_its_lease_ends():
    exchange = ReplicaSync()
    for now in (0.0, 5.0, 10.0, 15.0):
        exchange.read_back(exchange.start_write(now).number, now)
        if now < 10.0:
            other(exchange, now, str(now))
    # Seen again, but not renewed.
    other(exchange, 15.0, "5.0")
    assert exchange.peer_view(19.9).may_send(KEY, {Send.PLAINTEXT}) == ["other"]
    assert exchange.expired(20.0) == {"other": "5.0"}
    assert exchange.peer_view(20.0).peers == {}
    assert exchange.peer_view(20.0).in_transition == frozenset()


def test_who_is_cut_off_does_nothing_and_takes_nobody_for_gone():
    exchange = ReplicaSync()
    exchange.publish("", {KEY: BOTH})
    exchange.read_back(exchange.start_write(0.0).number, 0.0)
    other(exchange, 0.0)
    assert knows(exchange, Send.MTLS, 9.9)
    # Others may take us for gone from 15 on.
    found = exchange.peer_view(10.0)
    assert found.is_isolated
    assert not found.rules_are_shared
    assert not knows(exchange, Send.MTLS, 10.0)
    assert not exchange.expired(100.0)
    # Back again: whoever has not been heard of meanwhile has its time.
    exchange.read_back(exchange.start_write(100.0).number, 100.5)
    assert knows(exchange, Send.MTLS, 100.5)
    assert not exchange.expired(109.0)
    assert exchange.peer_view(109.0).may_send(KEY, {Send.PLAINTEXT}) == ["other"]


def test_who_knows_other_rules_may_have_anything_in_force():
    exchange = ReplicaSync()
    exchange.publish("new", {KEY: MTLS})
    exchange.read_back(exchange.start_write(0.0).number, 0.0)
    other(exchange, 0.0, stand=MTLS, view="old")
    assert exchange.peer_view(0.0).may_send(KEY, {Send.PLAINTEXT}) == ["other"]
    assert exchange.peer_view(0.0).in_transition == {KEY}
    other(exchange, 0.0, "2", stand=MTLS, view="new")
    assert not exchange.peer_view(0.0).may_send(KEY, {Send.PLAINTEXT})
    # One that we have just learned of ourselves is not said yet.
    assert exchange.peer_view(0.0).rules_are_shared
    exchange.publish("newest", {KEY: MTLS})
    assert not exchange.peer_view(0.0).rules_are_shared


def test_a_view_is_the_same_however_it_came_to_be():
    def host(mode: str) -> DestinationRule:
        return rule("ns", "web.ns.svc.cluster.local", mode)

    other_rule = rule("ns", "*.local", "DISABLE", name="all")
    one, two = RulesVersion(), RulesVersion()
    one.update([host("DISABLE"), other_rule], (), MeshConfig())
    two.update([other_rule, host("ISTIO_MUTUAL")], (), MeshConfig())
    assert one.version != two.version
    two.update([host("DISABLE")], (), MeshConfig())
    assert one.version == two.version
    one.update([], [other_rule.ref], MeshConfig())
    assert one.version != two.version
    two.update([], [other_rule.ref, other_rule.ref], MeshConfig())
    assert one.version == two.version
    one.update([], [], MeshConfig(default_destination_rule_export_to=(".",)))
    assert one.version != two.version


def test_who_is_heard_has_a_name_until_it_is_forgotten_and_a_report_that_was_never_written_is_none():
    exchange = ReplicaSync()
    other(exchange, 0.0)
    assert exchange.names == {"other"}
    exchange.read_back(7, 0.0)
    assert not exchange.is_synced
    exchange.forget("other")
    assert exchange.names == set()
