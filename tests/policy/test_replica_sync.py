"""What a replica may conclude from reports, and when reports do not count."""

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
    sync: ReplicaSync, now: float, version: str = "1", stand: PortReport = BOTH, view: str = ""
) -> None:
    sync.receive("other", version, ReplicaReport(1, view, {KEY: stand}), 15.0, now)


def knows(sync: ReplicaSync, send: Send, now: float = 0.0) -> bool:
    return sync.peer_view(now).knows_send(KEY, send)


def test_replica_without_peers_needs_no_agreement():
    alone = PeerView()
    assert alone.knows_send(KEY, Send.MTLS)
    assert alone.knows_mode(KEY, Mode.STRICT)
    assert not alone.may_refuse(KEY, Send.MTLS)


def test_peers_know_a_report_once_it_is_read_back():
    sync = ReplicaSync()
    sync.publish("", {KEY: BOTH})
    assert not knows(sync, Send.MTLS)
    report = sync.start_write(0.0)
    assert not sync.is_synced
    assert not knows(sync, Send.MTLS)
    sync.read_back(report.number, 0.0)
    assert sync.is_synced
    assert knows(sync, Send.MTLS)


def test_peers_know_only_what_all_pending_reports_say():
    sync = ReplicaSync()
    sync.publish("", {KEY: BOTH})
    sync.read_back(sync.start_write(0.0).number, 0.0)
    # The new report no longer says it. Peers may have read either report.
    sync.publish("", {KEY: MTLS})
    assert not knows(sync, Send.PLAINTEXT)
    later = sync.start_write(0.0)
    sync.publish("", {KEY: BOTH})
    assert not knows(sync, Send.PLAINTEXT)
    again = sync.start_write(0.0)
    sync.read_back(later.number, 0.0)
    assert not knows(sync, Send.PLAINTEXT)
    sync.read_back(again.number, 0.0)
    assert knows(sync, Send.PLAINTEXT)


def test_too_large_report_blocks_everything():
    sync = ReplicaSync()
    sync.publish("", {KEY: BOTH})
    sync.start_write(0.0)
    sync.retract()
    report = sync.start_write(0.0, too_large=True)
    sync.read_back(report.number, 0.0)
    assert sync.has_unpublished
    assert not knows(sync, Send.MTLS)
    sync.receive("other", "1", ReplicaReport(1, "", None), 15.0, 0.0)
    found = sync.peer_view(0.0)
    assert found.may_send(KEY, {Send.PLAINTEXT}) == found.without_report(KEY) == ["other"]


def test_silent_peer_counts_until_its_report_expires():
    sync = ReplicaSync()
    for now in (0.0, 5.0, 10.0, 15.0):
        sync.read_back(sync.start_write(now).number, now)
        if now < 10.0:
            other(sync, now, str(now))
    # The report is read again, but was not renewed.
    other(sync, 15.0, "5.0")
    assert sync.peer_view(19.9).may_send(KEY, {Send.PLAINTEXT}) == ["other"]
    assert sync.expired(20.0) == {"other": "5.0"}
    assert sync.peer_view(20.0).peers == {}
    assert sync.peer_view(20.0).in_transition == frozenset()


def test_isolated_replica_waits_and_expires_no_peer():
    sync = ReplicaSync()
    sync.publish("", {KEY: BOTH})
    sync.read_back(sync.start_write(0.0).number, 0.0)
    other(sync, 0.0)
    assert knows(sync, Send.MTLS, 9.9)
    # Peers may expire this replica from 15 s on.
    found = sync.peer_view(10.0)
    assert found.is_isolated
    assert not found.rules_are_shared
    assert not knows(sync, Send.MTLS, 10.0)
    assert not sync.expired(100.0)
    # After the isolation, peers get their full time again.
    sync.read_back(sync.start_write(100.0).number, 100.5)
    assert knows(sync, Send.MTLS, 100.5)
    assert not sync.expired(109.0)
    assert sync.peer_view(109.0).may_send(KEY, {Send.PLAINTEXT}) == ["other"]


def test_peer_with_other_rules_may_send_anything():
    sync = ReplicaSync()
    sync.publish("new", {KEY: MTLS})
    sync.read_back(sync.start_write(0.0).number, 0.0)
    other(sync, 0.0, stand=MTLS, view="old")
    assert sync.peer_view(0.0).may_send(KEY, {Send.PLAINTEXT}) == ["other"]
    assert sync.peer_view(0.0).in_transition == {KEY}
    other(sync, 0.0, "2", stand=MTLS, view="new")
    assert not sync.peer_view(0.0).may_send(KEY, {Send.PLAINTEXT})
    # A rule that the replica has just read is not reported yet.
    assert sync.peer_view(0.0).rules_are_shared
    sync.publish("newest", {KEY: MTLS})
    assert not sync.peer_view(0.0).rules_are_shared


def test_rules_version_does_not_depend_on_history():
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


def test_unknown_report_number_is_ignored():
    sync = ReplicaSync()
    other(sync, 0.0)
    assert sync.names == {"other"}
    sync.read_back(7, 0.0)
    assert not sync.is_synced
    sync.forget("other")
    assert sync.names == set()
