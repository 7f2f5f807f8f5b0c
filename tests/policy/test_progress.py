"""The summaries of rollouts: one case for each state of an endpoint or a DestinationRule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import UNREAD
from tests.policy.world import HTTP, TCP, peer, pod, rule, service
from xds.mesh.controlplane.rollout_text import port_line, rule_summary, service_summary
from xds.mesh.model.objects import Change, Fact, Pod, Ref, ServicePort
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.progress import (
    API_SERVER,
    count_services,
    port_progress,
    port_waits,
    ports_in_transition,
    rule_progress,
    service_progress,
)
from xds.mesh.rollout.sync import ReplicaSync
from xds.mesh.rollout.waits import WaitingFor

CLUSTER = "outbound|80||web.ns.svc.cluster.local"
ONE = "one.clients"
RULE = Ref("DestinationRule", "clients", "rule")


def ref(name: str) -> Ref:
    return Ref("Pod", "ns", name)


def web(name: str, **labels: str) -> Pod:
    return pod(name, "ns", app="web", **labels)


class World:
    """A mesh whose proxies ACK when the test says so."""

    def __init__(
        self,
        before: str,
        *,
        servers: int = 1,
        ports: tuple[ServicePort, ...] = (HTTP,),
        more: tuple[Fact, ...] = (),
    ) -> None:
        self.rollouts = RolloutDriver(30.0)
        self.now = 1000.0
        self.servers = {ref(f"web-{number}"): 0 for number in range(1, servers + 1)}
        self.clients = {ONE: 0}
        self.peers: dict[str, Report] = {}
        self.rejected_listeners: dict[Ref, str] = {}
        self.rejected_clusters: dict[str, dict[str, str]] = {}
        facts = [
            *(web(name.name) for name in self.servers),
            service("web", "ns", *ports, app="web"),
            peer("ns", before),
            *more,
        ]
        self.mesh = self.rollouts.first_mesh(Change(applied=tuple(facts)), Observed(), self.now)

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = ()) -> None:
        change = Change(applied=applied, removed=removed)
        self.mesh = self.rollouts.apply(self.mesh, change, self._observe(), self.now)
        self.rollouts.publish_report()

    def step(self, *, seconds: float = 0.0, servers: bool = False, clients: bool = False) -> None:
        """Let time pass, and let all servers or all clients ACK."""
        self.now += seconds
        generation = self.mesh.served.generation
        self.servers = dict.fromkeys(self.servers, generation) if servers else self.servers
        self.clients = dict.fromkeys(self.clients, generation) if clients else self.clients
        self.mesh = self.rollouts.advance(self.mesh, self._observe(), self.now)
        if clients:  # and servers classify their last connections
            self.now += UNREAD
            self.mesh = self.rollouts.advance(self.mesh, self._observe(), self.now)
        self.rollouts.publish_report()

    def summaries(self, *, after: float = 0.0) -> list[str]:
        now = self.now + after
        services = [service_summary(each, now) for each in service_progress(self.mesh, self.rollouts)]
        return services + [rule_summary(each, now) for each in rule_progress(self.rollouts)]

    def _observe(self) -> Observed:
        own = Report(
            generation=self.mesh.served.generation,
            servers=Generations(self.servers),
            clients=Generations(self.clients),
            rejected_listeners=self.rejected_listeners,
            rejected_clusters=self.rejected_clusters,
        )
        self.rollouts.observed = replace(self.rollouts.observe(own, self.now), peers=self.peers)
        return self.rollouts.observed


def test_unchanged_policy_starts_no_transition():
    world = World("DISABLE")
    assert world.summaries() == []
    world.change(peer("ns", "DISABLE"))
    assert world.summaries() == []


def test_strict_expands_migrates_and_contracts():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    still_open = "; still accepts plaintext"
    assert world.summaries(after=12) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener (12s{still_open})"
    ]
    world.step(seconds=3, servers=True)
    assert world.summaries(after=4) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE} (4s{still_open})"
    ]
    world.step(seconds=5, clients=True)
    assert world.summaries() == [
        f"web.ns: 1/1 endpoints mTLS, web-1 waiting for its listener (0s{still_open})"
    ]
    [found] = service_progress(world.mesh, world.rollouts)
    assert (found.endpoints, found.mtls, found.plaintext) == (1, 1, 0)
    world.step(servers=True)
    assert world.summaries() == []


def test_disable_expands_migrates_and_contracts():
    world = World("STRICT")
    world.change(peer("ns", "DISABLE"))
    assert world.summaries() == ["web.ns: 0/1 endpoints plaintext, web-1 waiting for its listener (0s)"]
    world.step(servers=True)
    assert world.summaries() == [f"web.ns: 0/1 endpoints plaintext, web-1 waiting for {ONE} (0s)"]
    world.step(clients=True)
    assert world.summaries() == ["web.ns: 1/1 endpoints plaintext, web-1 waiting for its listener (1s)"]
    world.step(servers=True)
    assert world.summaries() == []


def test_rejected_listener_stops_the_transition():
    world = World("PERMISSIVE")
    world.rejected_listeners = {ref("web-1"): "not to my taste"}
    world.change(peer("ns", "STRICT"))
    world.step(seconds=90)
    assert world.summaries() == [
        (
            "web.ns: 1/1 endpoints mTLS, web-1 stopped, its listener was rejected: not to my taste "
            "(1m30s; still accepts plaintext)"
        )
    ]


def test_rejecting_client_is_skipped_after_the_timeout():
    world = World("DISABLE")
    world.rejected_clusters = {ONE: {CLUSTER: "no such thing"}}
    world.change(peer("ns", "PERMISSIVE"))
    world.step(servers=True, clients=True)
    world.step(seconds=1, clients=True)
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE}, rejected: no such thing (3s)"
    ]
    world.step(seconds=29)
    assert world.summaries() == [
        f"web.ns: 1/1 endpoints mTLS, web-1 skipped {ONE}, rejected: no such thing (32s)"
    ]


def test_skipped_server_is_shown_during_the_next_phase():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    world.step(seconds=30)
    still_open = "; still accepts plaintext"
    passed = f"web-1 skipped, its listener was not active in time (30s{still_open})"
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, {passed}, web-1 waiting for {ONE} (0s{still_open})"
    ]
    world.step(servers=True)
    assert world.summaries() == [f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE} (0s{still_open})"]


def test_skipped_contraction_leaves_plaintext_open():
    world = World("PERMISSIVE")
    world.change(peer("ns", "STRICT"))
    world.step(seconds=31)
    assert world.summaries() == [
        (
            "web.ns: 1/1 endpoints mTLS, web-1 skipped, its listener was not active in time "
            "(31s; still accepts plaintext)"
        )
    ]
    world.step(servers=True)
    assert world.summaries() == []


def test_skipped_clients_are_shown_after_contraction():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    world.step(servers=True)
    world.step(seconds=30)
    world.step(seconds=30, servers=True)
    assert world.summaries() == [f"web.ns: 1/1 endpoints mTLS, web-1 skipped {ONE} (1m)"]
    world.step(clients=True)
    assert world.summaries() == []


def test_plan_that_is_not_stored_is_shown():
    world = World("DISABLE")
    sync = ReplicaSync("own", lambda: True)
    sync.plan_read("1", StoredPlan(1, members=frozenset({"own"})))
    assert world.rollouts.enable_sync(sync, world.now)
    world.change(peer("ns", "STRICT"))
    still_open = "; still accepts plaintext"
    assert world.summaries(after=2) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for the API server (2s{still_open})"
    ]
    candidate = sync.plan_to_store(world.now)
    assert candidate
    sync.plan_stored(candidate[0], "2", candidate[1])
    world.step()
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener (0s{still_open})"
    ]


def test_lagging_replicas_are_shown():
    """The server or its clients may be connected to a replica that has not applied the plan."""
    world = World("DISABLE")
    world.peers = dict.fromkeys(("xds-a", "xds-b"), Report().without_progress())
    world.change(peer("ns", "STRICT"))
    world.step(servers=True)
    still_open = "; still accepts plaintext"
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for replica xds-a, xds-b (0s{still_open})"
    ]
    applied = Report(generation=2, servers=Generations(others=2), clients=Generations(others=2))
    world.peers = {"xds-a": applied, "xds-b": applied}
    world.step(seconds=2)
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE}, xds-a, xds-b (0s{still_open})"
    ]
    world.peers["xds-b"] = replace(applied, generation=3, clients=Generations(others=3))
    world.step(clients=True)
    assert world.summaries() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for replica xds-a (1s{still_open})"
    ]
    world.step(seconds=29)
    [summary] = world.summaries()
    assert "web-1 skipped replica xds-a (30s)" in summary


def test_ports_are_listed_with_what_they_wait_for():
    world = World("DISABLE", ports=(HTTP, TCP))
    world.change(peer("ns", "PERMISSIVE"))
    found = {key: wait.waiting_for for key, _, wait in port_waits(world.rollouts)}
    assert found == {(ref("web-1"), port): WaitingFor.LISTENER for port in (8080, 9090)}


def test_port_that_waits_for_room_in_the_plan_is_in_transition():
    world = World("DISABLE", servers=2)
    world.change(peer("ns", "PERMISSIVE"))
    rollout, keys = world.rollouts.rollout, [(ref("web-1"), 8080), (ref("web-2"), 8080)]
    rollout.plan = replace(rollout.plan, ports={keys[0]: rollout.plan.ports[keys[0]]})
    assert ports_in_transition(rollout) == set(keys)
    progress = port_progress(world.mesh, world.rollouts, [*keys, (ref("unknown"), 8080)])
    assert [port_line(each) for each in progress] == [
        "web-1.ns:8080 waiting for its listener",
        f"web-2.ns:8080 waiting for {API_SERVER}",
    ]


def test_skipped_port_that_no_service_exposes_is_not_shown():
    world = World("PERMISSIVE")
    world.change(peer("ns", "STRICT"))
    world.step(seconds=31)
    world.change(removed=(Ref("Service", "ns", "web"),))
    assert world.rollouts.rollout.skipped.ports
    assert [each.waiting for each in service_progress(world.mesh, world.rollouts)] == [()]


def test_clients_of_a_rule_are_not_named():
    new = rule("clients", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    world = World("PERMISSIVE", more=(rule("clients", "web.ns.svc.cluster.local", "DISABLE"),))
    world.change(peer("ns", "STRICT"), new)
    still_open = "; still accepts plaintext"
    assert world.summaries()[0] == f"web.ns: 1/1 endpoints mTLS, web-1 waiting for clients (0s{still_open})"


def test_three_endpoints_are_named_and_others_counted():
    world = World("DISABLE", servers=5)
    world.clients = {f"client-{number}.ns": 0 for number in range(4)}
    world.change(peer("ns", "PERMISSIVE"))
    waiting = ", ".join(f"web-{number} waiting for its listener (0s)" for number in (1, 2, 3))
    assert world.summaries() == [f"web.ns: 0/5 endpoints mTLS, {waiting} and 2 more endpoints"]
    world.servers = dict.fromkeys(world.servers, world.mesh.served.generation)
    world.step()
    [summary] = world.summaries()
    assert "web-1 waiting for client-0.ns, client-1.ns, client-2.ns and 1 more clients (0s)" in summary


def test_stalled_and_oldest_endpoints_are_named_first():
    world = World("DISABLE", servers=5)
    world.change(peer("ns", "PERMISSIVE"))
    generation = world.mesh.served.generation
    world.servers |= {ref(f"web-{number}"): generation for number in (1, 2, 3)}
    world.rejected_listeners = {ref("web-5"): "no"}
    world.step(seconds=2)
    [summary] = world.summaries()
    assert summary.startswith(
        "web.ns: 0/5 endpoints mTLS, web-5 stopped, its listener was rejected: no (2s), "
        "web-4 waiting for its listener (2s), web-1 waiting for one.clients (0s) and 2 more"
    )


def test_pod_with_two_waiting_ports_is_named_with_ports():
    world = World("DISABLE", ports=(HTTP, TCP))
    world.change(peer("ns", "PERMISSIVE"))
    assert world.summaries() == [
        (
            "web.ns: 0/2 endpoints mTLS, web-1:8080 waiting for its listener (0s), "
            "web-1:9090 waiting for its listener (0s)"
        )
    ]


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [
        (0, "0s"),
        (119, "1m59s"),
        (120, "2m"),
        (7199, "1h59m"),
        (7200, "2h"),
        (200_000, "2d7h"),
        (-3, "0s"),
    ],
)
def test_durations_are_short(seconds: float, duration: str):
    world = World("DISABLE")
    world.change(peer("ns", "PERMISSIVE"))
    assert world.summaries(after=seconds) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener ({duration})"
    ]


def test_only_endpoints_with_a_sidecar_count():
    other = service("other", "away", HTTP)
    world = World("DISABLE", more=(pod("web-old", "ns", sidecar=False, app="web"), other))
    world.change(peer("ns", "PERMISSIVE"))
    assert world.summaries() == ["web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener (0s)"]
    assert [each.service for each in service_progress(world.mesh, world.rollouts, "ns")] == ["web"]
    assert count_services(world.mesh, world.rollouts) == 1
    assert list(service_progress(world.mesh, world.rollouts, "away")) == []
    # No service leads to the pod, but its transition is shown until it is done.
    world.change(removed=(Ref("Service", "ns", "web"),))
    assert world.summaries() == ["web.ns: 0/0 endpoints mTLS, web-1 waiting for its listener (0s)"]


def test_held_rule_is_shown_until_servers_accept_it():
    world = World("DISABLE")
    new = rule("clients", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    world.change(peer("ns", "STRICT"), new)
    assert world.summaries(after=3)[1:] == [
        "DestinationRule clients/rule held until its servers accept it (3s)",
    ]
    world.step(servers=True)
    assert world.summaries()[1:] == ["DestinationRule clients/rule waiting for one.clients (0s)"]
    [found] = rule_progress(world.rollouts)
    assert (found.host, found.deleted, found.held) == ("web.ns.svc.cluster.local", False, False)
    world.step(clients=True)
    world.step(servers=True)
    assert world.summaries() == []


def test_client_that_rejects_a_rule_is_shown():
    world = World("STRICT", more=(rule("clients", "web.ns.svc.cluster.local", "DISABLE"),))
    world.rejected_clusters = {ONE: {CLUSTER: "no such thing"}}
    world.change(removed=(RULE,))
    world.step(seconds=1, clients=True)
    deletion = "deletion of DestinationRule clients/rule"
    rejected = f"{ONE}, rejected: no such thing"
    assert world.summaries() == [f"{deletion} waiting for {rejected} (2s)"]
    world.step(seconds=30)
    passed = f"{deletion} skipped {ONE}, rejected: no such thing (32s)"
    assert world.summaries() == [passed]
    assert world.rollouts.rollout.stats.skips == 1
    assert world.rollouts.next_check(world.now) < world.now + 2
    world.rejected_clusters = {}
    world.step()
    assert world.summaries() == []
