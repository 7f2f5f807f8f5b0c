"""How far changes of mode are, in words: one for every state that an endpoint, or a DestinationRule, can be in."""

from __future__ import annotations

import pytest

from tests.policy.rollout_world import UNREAD
from tests.policy.world import HTTP, TCP, peer, pod, rule, service
from xds.mesh.model.objects import Change, Fact, Pod, Ref, ServicePort
from xds.mesh.rollout.driver import Rolling
from xds.mesh.rollout.peers import Elsewhere
from xds.mesh.rollout.progress import how_many, progress, rules
from xds.mesh.rollout.transition import Known

CLUSTER = "outbound|80||web.ns.svc.cluster.local"
ONE = "one.clients"
RULE = Ref("DestinationRule", "clients", "rule")


def ref(name: str) -> Ref:
    return Ref("Pod", "ns", name)


def web(name: str, **labels: str) -> Pod:
    return pod(name, "ns", app="web", **labels)


class World:
    """A mesh whose proxies answer when the test says so."""

    def __init__(
        self,
        before: str,
        *,
        servers: int = 1,
        ports: tuple[ServicePort, ...] = (HTTP,),
        more: tuple[Fact, ...] = (),
    ) -> None:
        self.rolling = Rolling({}, 30.0)
        self.now = 1000.0
        self.servers = {ref(f"web-{number}"): 0 for number in range(1, servers + 1)}
        self.clients = {ONE: 0}
        self.known: dict[str, object] = {}
        facts = [
            *(web(name.name) for name in self.servers),
            service("web", "ns", *ports, app="web"),
            peer("ns", before),
            *more,
        ]
        self.mesh = self.rolling.first(Change(applied=tuple(facts)), Known(), self.now)

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = ()) -> None:
        change = Change(applied=applied, removed=removed)
        self.mesh = self.rolling.apply(self.mesh, change, self._known(), self.now)

    def step(self, *, seconds: float = 0.0, servers: bool = False, clients: bool = False) -> None:
        """Let time go by, and have all servers or all clients take what was served."""
        self.now += seconds
        generation = self.rolling.rollout.served.generation
        self.servers = dict.fromkeys(self.servers, generation) if servers else self.servers
        self.clients = dict.fromkeys(self.clients, generation) if clients else self.clients
        self.mesh = self.rolling.advance(self.mesh, self._known(), self.now)
        if clients:  # and their last connections are read
            self.now += UNREAD
            self.mesh = self.rolling.advance(self.mesh, self._known(), self.now)

    def says(self, *, after: float = 0.0) -> list[str]:
        rollout = self.rolling.rollout
        return [each.words(self.now + after) for each in (*progress(self.mesh, rollout), *rules(rollout))]

    def _known(self) -> Known:
        return Known(servers=self.servers, clients=self.clients, **self.known)  # type: ignore[arg-type]


def test_nothing_is_on_its_way():
    world = World("DISABLE")
    assert world.says() == []
    world.change(peer("ns", "DISABLE"))
    assert world.says() == []


def test_a_server_is_opened_clients_change_over_and_it_is_locked():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    open_still = "; plaintext is still accepted there"
    assert world.says(after=12) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener (12 s{open_still})"
    ]
    world.step(seconds=3, servers=True)
    assert world.says(after=4) == [f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE} (4 s{open_still})"]
    world.step(seconds=5, clients=True)
    assert world.says() == [f"web.ns: 1/1 endpoints mTLS, web-1 waiting for its listener (0 s{open_still})"]
    [found] = progress(world.mesh, world.rolling.rollout)
    assert (found.endpoints, found.mtls, found.plaintext) == (1, 1, 0)
    world.step(servers=True)
    assert world.says() == []


def test_the_way_back_to_plaintext():
    world = World("STRICT")
    world.change(peer("ns", "DISABLE"))
    assert world.says() == ["web.ns: 0/1 endpoints plaintext, web-1 waiting for its listener (0 s)"]
    world.step(servers=True)
    assert world.says() == [f"web.ns: 0/1 endpoints plaintext, web-1 waiting for {ONE} (0 s)"]
    world.step(clients=True)
    assert world.says() == ["web.ns: 1/1 endpoints plaintext, web-1 waiting for its listener (1 s)"]
    world.step(servers=True)
    assert world.says() == []


def test_a_server_that_rejects_its_listener_stops_there():
    world = World("PERMISSIVE")
    world.known = {"rejected": {ref("web-1"): "not to my taste"}}
    world.change(peer("ns", "STRICT"))
    world.step(seconds=90)
    assert world.says() == [
        (
            "web.ns: 1/1 endpoints mTLS, web-1 stopped, it rejected its listener: not to my taste "
            "(90 s; plaintext is still accepted there)"
        )
    ]


def test_a_client_that_rejects_what_it_is_told():
    world = World("DISABLE")
    world.known = {"refusing": {ONE: {CLUSTER: "no such thing"}}}
    world.change(peer("ns", "PERMISSIVE"))
    world.step(servers=True, clients=True)
    world.step(seconds=1, clients=True)
    assert world.says() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE}, rejected: no such thing (3 s)"
    ]
    world.step(seconds=29)
    assert world.says() == [
        f"web.ns: 1/1 endpoints mTLS, web-1 did not wait for {ONE} any longer, rejected: no such thing (32 s)"
    ]


def test_a_server_is_passed_over_and_said_so_while_the_next_step_is_taken():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    world.step(seconds=30)
    open_still = "; plaintext is still accepted there"
    passed = f"web-1 passed over, its listener was not in force in time (30 s{open_still})"
    assert world.says() == [
        f"web.ns: 0/1 endpoints mTLS, {passed}, web-1 waiting for {ONE} (0 s{open_still})"
    ]
    world.step(servers=True)
    assert world.says() == [f"web.ns: 0/1 endpoints mTLS, web-1 waiting for {ONE} (0 s{open_still})"]


def test_a_lock_that_is_not_in_force_in_time_leaves_the_server_open():
    world = World("PERMISSIVE")
    world.change(peer("ns", "STRICT"))
    world.step(seconds=31)
    assert world.says() == [
        (
            "web.ns: 1/1 endpoints mTLS, web-1 passed over, its listener was not in force in time "
            "(31 s; plaintext is still accepted there)"
        )
    ]
    world.step(servers=True)
    assert world.says() == []


def test_clients_are_passed_over_and_the_server_is_locked():
    world = World("DISABLE")
    world.change(peer("ns", "STRICT"))
    world.step(servers=True)
    world.step(seconds=30)
    world.step(seconds=30, servers=True)
    assert world.says() == [f"web.ns: 1/1 endpoints mTLS, web-1 did not wait for {ONE} any longer (60 s)"]
    world.step(clients=True)
    assert world.says() == []


def test_other_replicas_are_waited_for():
    """They are told first what is about to be done; one that has not seen the same rules yet may have anything in force."""
    world = World("DISABLE")
    world.known = {"elsewhere": Elsewhere(said=({},))}
    world.change(peer("ns", "STRICT"))
    world.step(servers=True)
    open_still = "; plaintext is still accepted there"
    assert world.says() == [f"web.ns: 0/1 endpoints mTLS, web-1 waiting for the API server (0 s{open_still})"]
    world.known = {"elsewhere": Elsewhere(said=({},), others={"xds-a": None, "xds-b": None})}
    world.step(seconds=2)
    assert world.says() == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for replica xds-a and xds-b (2 s{open_still})"
    ]
    world.step(seconds=28)

    [words] = world.says()
    assert "web-1 did not wait for replica xds-a and xds-b any longer (30 s)" in words


def test_clients_without_a_name_are_those_of_a_rule():
    new = rule("clients", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    world = World("PERMISSIVE", more=(rule("clients", "web.ns.svc.cluster.local", "DISABLE"),))
    world.change(peer("ns", "STRICT"), new)
    open_still = "; plaintext is still accepted there"
    assert world.says()[0] == f"web.ns: 1/1 endpoints mTLS, web-1 waiting for clients (0 s{open_still})"


def test_three_are_named_and_the_rest_is_counted():
    world = World("DISABLE", servers=5)
    world.clients = {f"client-{number}.ns": 0 for number in range(4)}
    world.change(peer("ns", "PERMISSIVE"))
    waiting = ", ".join(f"web-{number} waiting for its listener (0 s)" for number in (1, 2, 3))
    assert world.says() == [f"web.ns: 0/5 endpoints mTLS, {waiting}, 2 more endpoints"]
    world.servers = dict.fromkeys(world.servers, world.rolling.rollout.served.generation)
    world.step()
    [words] = world.says()
    assert "web-1 waiting for client-0.ns and client-1.ns and client-2.ns and 1 more clients (0 s)" in words


def test_who_is_stuck_or_waits_longest_is_named_first():
    world = World("DISABLE", servers=5)
    world.change(peer("ns", "PERMISSIVE"))
    generation = world.rolling.rollout.served.generation
    world.servers |= {ref(f"web-{number}"): generation for number in (1, 2, 3)}
    world.known = {"rejected": {ref("web-5"): "no"}}
    world.step(seconds=2)
    [words] = world.says()
    assert words.startswith(
        "web.ns: 0/5 endpoints mTLS, web-5 stopped, it rejected its listener: no (2 s), "
        "web-4 waiting for its listener (2 s), web-1 waiting for one.clients (0 s), 2 more"
    )


def test_a_pod_that_waits_twice_is_named_with_its_ports():
    world = World("DISABLE", ports=(HTTP, TCP))
    world.change(peer("ns", "PERMISSIVE"))
    assert world.says() == [
        "web.ns: 0/2 endpoints mTLS, web-1:8080 waiting for its listener (0 s), web-1:9090 waiting for its listener (0 s)"
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
        (-3, "0 s"),
    ],
)
def test_times_are_short(seconds: float, words: str):
    world = World("DISABLE")
    world.change(peer("ns", "PERMISSIVE"))
    assert world.says(after=seconds) == [
        f"web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener ({words})"
    ]


def test_only_endpoints_with_a_sidecar_count_and_only_those_of_services_that_there_are():
    other = service("other", "away", HTTP)
    world = World("DISABLE", more=(pod("web-old", "ns", sidecar=False, app="web"), other))
    world.change(peer("ns", "PERMISSIVE"))
    assert world.says() == ["web.ns: 0/1 endpoints mTLS, web-1 waiting for its listener (0 s)"]
    rollout = world.rolling.rollout
    assert [each.service for each in progress(world.mesh, rollout, "ns")] == ["web"]
    assert how_many(rollout) == 1
    assert list(progress(world.mesh, rollout, "away")) == []
    # Nothing leads to the pod any more; what it was on its way for is told until it arrives.
    world.change(removed=(Ref("Service", "ns", "web"),))
    assert world.says() == ["web.ns: 0/0 endpoints mTLS, web-1 waiting for its listener (0 s)"]


def test_a_rule_is_held_back_until_servers_take_what_it_says():
    world = World("DISABLE")
    new = rule("clients", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    world.change(peer("ns", "STRICT"), new)
    assert world.says(after=3)[1:] == [
        "DestinationRule/clients/rule held back until its servers take it (3 s)",
    ]
    world.step(servers=True)
    assert world.says()[1:] == ["DestinationRule/clients/rule waiting for one.clients to take it (0 s)"]
    [found] = rules(world.rolling.rollout)
    assert (found.host, found.deleted, found.held) == ("web.ns.svc.cluster.local", False, False)
    world.step(clients=True)
    world.step(servers=True)
    assert world.says() == []


def test_a_rule_that_is_deleted_is_said_to_be():
    world = World("DISABLE", more=(rule("clients", "web.ns.svc.cluster.local", "DISABLE"),))
    world.change(removed=(RULE, Ref("DestinationRule", "clients", "never-was")))
    assert world.says() == [
        "deletion of DestinationRule/clients/rule waiting for one.clients to take it (0 s)"
    ]
    world.step(clients=True)
    assert world.says() == []


def test_a_client_that_rejects_a_rule_is_named_with_what_it_said_until_it_has_taken_it():
    world = World("STRICT", more=(rule("clients", "web.ns.svc.cluster.local", "DISABLE"),))
    world.known = {"refusing": {ONE: {CLUSTER: "no such thing"}}}
    world.change(removed=(RULE,))
    world.step(seconds=1, clients=True)
    deletion = "deletion of DestinationRule/clients/rule"
    rejected = f"{ONE} to take it, rejected: no such thing"
    assert world.says() == [f"{deletion} waiting for {rejected} (2 s)"]
    world.step(seconds=30)
    passed = f"{deletion} did not wait for {ONE} any longer, rejected: no such thing (32 s)"
    assert world.says() == [passed]
    assert world.rolling.rollout.passed_over == 1
    assert world.rolling.due(world.now) < world.now + 2
    world.known = {}
    world.step()
    assert world.says() == []
