"""Several replicas with the same proxies. Each reads policies and reports in its own time."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from tests.policy.rollout_world import CLIENTS, PORTS, SERVERS, UNREAD, Client, Proxies, Server
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Ref
from xds.mesh.policy.mtls import served_mode
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.peers import ReplicaReport
from xds.mesh.rollout.replica_sync import ReplicaSync
from xds.mesh.rollout.transition import ObservedState

FOREVER = 1e9
"""A timeout that never expires: no proxy is skipped and no replica expires, unless a test asks for it."""


@dataclass
class Replica:
    name: str
    rollouts: RolloutDriver
    sync: ReplicaSync
    mesh: Mesh
    changes_read: int
    """The number of changes that it has applied."""
    reports_read: int
    """The number of reports that it has read."""
    acked: dict[str, int] = field(default_factory=dict)
    """The ACKed generation of each proxy that is connected or may reconnect."""
    caught_up_at: dict[str, float] = field(default_factory=dict)
    """By reconnected client: when it stopped using a configuration from an earlier stream."""
    in_flight: list[ReplicaReport] = field(default_factory=list)
    """Its reports that have not arrived at the API server."""


class Replicas(Proxies):
    """Servers and clients, each connected to one of several replicas."""

    def __init__(self, names: tuple[str, ...] = ("a", "b")) -> None:
        self.names = names
        self.changes: list[Change] = []
        self.written: list[tuple[str, ReplicaReport]] = []
        """The written reports, in the order in which all replicas read them."""
        self.replicas: dict[str, Replica] = {}
        self.home = {name: names[index % len(names)] for index, name in enumerate((*SERVERS, *CLIENTS))}
        self.started = 0
        self.gone: set[str] = set()
        super().__init__(FOREVER)

    # --- control planes -------------------------------------------------------------------------------------

    def start(self) -> None:
        for name in self.names:
            self.start_replica(name)
        for proxy, name in self.home.items():
            self.replicas[name].acked[proxy] = -1

    def start_replica(self, name: str) -> None:
        """Start a replica. Before it serves, it has written a report and read those of its peers."""
        rollouts, sync = RolloutDriver({}, FOREVER), ReplicaSync(FOREVER)
        rollouts.sync = sync
        self.started += 1
        new = Replica(f"{name}-{self.started}", rollouts, sync, Mesh(), len(self.changes), 0)
        self.written.append((new.name, sync.start_write(self.now)))
        self.read(new, len(self.written))
        new.mesh = rollouts.first_mesh(
            Change(applied=tuple(self.facts.values())), self.observed_by(new), self.now
        )
        rollouts.publish_report()
        self.replicas[name] = new

    def kill(self, name: str, successor: str) -> None:
        """Kill a replica. Its proxies connect to the successor, and its report expires."""
        gone = self.replicas[name]
        for proxy in [proxy for proxy, home in self.home.items() if home == name]:
            self.move(proxy, successor, away=False)
            self.take(proxy)
        self.catch_up(self.replicas[successor])
        self.start_replica(name)
        self.gone.add(gone.name)
        for replica in self.replicas.values():
            replica.sync.forget(gone.name)

    def catch_up(self, replica: Replica) -> None:
        """Let a replica apply and report everything: a new replica is never ahead of it (docs/adr/0015)."""
        self.learn(replica, len(self.changes))
        self.write(replica)
        while replica.in_flight:
            self.arrive(replica)
        self.read(replica, len(self.written))
        self.step_at(replica)

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = ()) -> None:
        for ref in removed:
            self.facts.pop(ref, None)
        self.facts.update({fact.ref: fact for fact in applied})
        self.changes.append(Change(applied=applied, removed=removed))
        if hasattr(self, "must_reach"):
            self.must_reach.append(self.reachable())

    def learn(self, replica: Replica, count: int = 1) -> None:
        """Let a replica apply the next changes, one by one."""
        for change in self.changes[replica.changes_read : replica.changes_read + count]:
            replica.changes_read += 1
            replica.mesh = replica.rollouts.apply(replica.mesh, change, self.observed_by(replica), self.now)
            replica.rollouts.publish_report()

    def learn_at_once(self, replica: Replica) -> None:
        """Let a replica apply all new changes in one batch, without the states in between."""
        last: dict[Ref, Fact | None] = {}
        for change in self.changes[replica.changes_read :]:
            last |= dict.fromkeys(change.removed) | {fact.ref: fact for fact in change.applied}
        replica.changes_read = len(self.changes)
        change = Change(
            applied=tuple(fact for fact in last.values() if fact),
            removed=tuple(ref for ref, fact in last.items() if fact is None),
        )
        replica.mesh = replica.rollouts.apply(replica.mesh, change, self.observed_by(replica), self.now)
        replica.rollouts.publish_report()

    def step(self) -> None:
        for replica in self.replicas.values():
            self.step_at(replica)

    def step_at(self, replica: Replica) -> None:
        self.advance_at(replica)
        self.now += UNREAD
        self.advance_at(replica)

    def advance_at(self, replica: Replica) -> None:
        replica.mesh = replica.rollouts.advance(replica.mesh, self.observed_by(replica), self.now)
        replica.rollouts.publish_report()

    def observed_by(self, replica: Replica) -> ObservedState:
        return ObservedState(
            servers={
                Ref("Pod", "ns", name): replica.acked[name] for name in SERVERS if name in replica.acked
            },
            clients={f"{name}.clients": replica.acked[name] for name in CLIENTS if name in replica.acked},
            reconnected=frozenset(
                f"{name}.clients"
                for name in CLIENTS
                if name in replica.acked and self.now < replica.caught_up_at.get(name, -inf) + UNREAD
            ),
            peers=replica.sync.peer_view(self.now),
        )

    # --- reports --------------------------------------------------------------------------------------------

    def write(self, replica: Replica) -> None:
        """Let a replica send its report. It arrives with `arrive`."""
        if replica.sync.has_unpublished:
            replica.in_flight.append(replica.sync.start_write(self.now))

    def arrive(self, replica: Replica) -> None:
        if replica.in_flight:
            self.written.append((replica.name, replica.in_flight.pop(0)))

    def read(self, replica: Replica, count: int = 1) -> None:
        """Let a replica read the next reports."""
        for name, report in self.written[replica.reports_read : replica.reports_read + count]:
            replica.reports_read += 1
            if name == replica.name:
                replica.sync.read_back(report.number, self.now)
            elif name not in self.gone:
                replica.sync.receive(name, str(report.number), report, FOREVER, self.now)

    # --- proxies --------------------------------------------------------------------------------------------

    def move(self, proxy: str, to: str, *, away: bool = True) -> None:
        """Move a proxy to another replica. The old one waits for it until it has ACKed at the new one."""
        left, new = self.replicas[self.home[proxy]], self.replicas[to]
        if left is new:
            return
        self.home[proxy] = to
        if not away:
            left.acked.pop(proxy, None)
        new.acked[proxy] = -1
        new.caught_up_at.pop(proxy, None)
        itself = {**self.servers, **self.clients}[proxy]
        itself.generation = itself.acked = -1
        if isinstance(itself, Server) and itself.modes:
            new.rollouts.recover(Ref("Pod", "ns", proxy), itself.modes)
        elif isinstance(itself, Client) and itself.sends:
            new.rollouts._must_assume_mixed = True
            new.caught_up_at[proxy] = inf
        # A proxy is served only after the replica has seen the configuration that it brings.
        self.step_at(new)

    def take(self, proxy: str, *, ack: bool = True) -> None:
        """Let a proxy activate what it is served."""
        replica = self.replicas[self.home[proxy]]
        self.mesh = replica.mesh
        if proxy in SERVERS:
            self.deliver_to_server(proxy)
        else:
            self.deliver_to_client(proxy)
        if ack:
            self.answer(proxy)

    def answer(self, proxy: str) -> None:
        itself = {**self.servers, **self.clients}[proxy]
        home = self.replicas[self.home[proxy]]
        home.acked[proxy] = max(home.acked.get(proxy, -1), itself.generation)
        home.caught_up_at[proxy] = min(home.caught_up_at.get(proxy, -inf), self.now)
        if home.acked[proxy] >= 0:
            for replica in self.replicas.values():
                if replica is not home:
                    replica.acked.pop(proxy, None)

    def restart(self, proxy: str) -> None:
        (self.servers if proxy in SERVERS else self.clients)[proxy] = (
            Server() if proxy in SERVERS else Client()
        )
        for replica in self.replicas.values():
            replica.acked.pop(proxy, None)
            replica.caught_up_at.pop(proxy, None)
        self.replicas[self.home[proxy]].acked[proxy] = -1

    # --- all at rest ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Deliver everything until nothing changes, and check the result."""
        for _ in range(60):
            before = [
                (each.mesh, each.reports_read, each.rollouts.rollout.port_reports())
                for each in self.replicas.values()
            ]
            for replica in self.replicas.values():
                self.learn(replica, len(self.changes))
                self.write(replica)
                while replica.in_flight:
                    self.arrive(replica)
            for replica in self.replicas.values():
                self.read(replica, len(self.written))
                self.step_at(replica)
                self.check()
            for proxy in self.home:
                self.take(proxy)
                self.check()
            self.step()
            after = [
                (each.mesh, each.reports_read, each.rollouts.rollout.port_reports())
                for each in self.replicas.values()
            ]
            if before == after and not any(each.sync.has_unpublished for each in self.replicas.values()):
                break
        for replica in self.replicas.values():
            rollout = replica.rollouts.rollout
            assert not rollout.transitions, (replica.name, rollout.transitions)
            assert not rollout.rule_transitions
            assert (replica.mesh.served.modes, replica.mesh.served.mtls) == ({}, {})
            assert {fact.ref: fact for fact in replica.mesh.facts() if fact.ref in self.facts} == self.facts
        mesh = next(iter(self.replicas.values())).mesh
        for name, server in self.servers.items():
            itself = mesh.pod("ns", name)
            assert itself
            assert server.modes == {port: served_mode(mesh, itself, port).mode for port in PORTS}
        self.must_reach = [self.reachable()]
