"""Several control planes over the same proxies: each learns of policies, and of what the others say, in its own time."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.policy.rollout_world import CLIENTS, PORTS, SERVERS, UNREAD, Client, Proxies, Server
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Ref
from xds.mesh.policy.mtls import accepted
from xds.mesh.rollout.driver import Rolling
from xds.mesh.rollout.peers import Report
from xds.mesh.rollout.replica_sync import Exchange
from xds.mesh.rollout.transition import Known

FOREVER = 1e9
"""No waiting ends here by itself, and no replica is forgotten unless the test says so."""


@dataclass
class Replica:
    name: str
    rolling: Rolling
    exchange: Exchange
    mesh: Mesh
    learned: int
    """How many of the changes it knows,"""
    read: int
    """and how many of the reports."""
    said: dict[str, int] = field(default_factory=dict)
    """By proxy that is, or may be about to come back to be, connected: what it has acknowledged."""
    unread: list[Report] = field(default_factory=list)
    """Its reports that are on their way to the API server."""


class Replicas(Proxies):
    """Servers and clients, each connected to one of several control planes."""

    def __init__(self, names: tuple[str, ...] = ("a", "b")) -> None:
        self.names = names
        self.changes: list[Change] = []
        self.log: list[tuple[str, Report]] = []
        """What was written, in the order in which everybody reads it."""
        self.replicas: dict[str, Replica] = {}
        self.of = {name: names[index % len(names)] for index, name in enumerate((*SERVERS, *CLIENTS))}
        self.started = 0
        self.gone: set[str] = set()
        super().__init__(FOREVER)

    # --- control planes ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        for name in self.names:
            self.start_replica(name)
        for proxy, name in self.of.items():
            self.replicas[name].said[proxy] = -1

    def start_replica(self, name: str) -> None:
        """Have a replica join: it is known to the others, and knows what they said, before it serves anybody."""
        rolling, exchange = Rolling({}, FOREVER), Exchange(FOREVER)
        rolling.exchange = exchange
        self.started += 1
        new = Replica(f"{name}-{self.started}", rolling, exchange, Mesh(), len(self.changes), 0)
        self.log.append((new.name, exchange.write(self.now)))
        self.read(new, len(self.log))
        new.mesh = rolling.first(Change(applied=tuple(self.facts.values())), self.known_to(new), self.now)
        rolling.tell()
        self.replicas[name] = new

    def kill(self, name: str, successor: str) -> None:
        """End a replica without a word. Its proxies go to another one; then nobody reckons with it any more."""
        gone = self.replicas[name]
        for proxy in [proxy for proxy, of in self.of.items() if of == name]:
            self.move(proxy, successor, away=False)
            self.take(proxy)
        self.catch_up(self.replicas[successor])
        self.start_replica(name)
        self.gone.add(gone.name)
        for replica in self.replicas.values():
            replica.exchange.forget(gone.name)

    def catch_up(self, replica: Replica) -> None:
        """Have a replica know, and have told, all there is: another one that starts is never ahead of it (docs/adr/0015)."""
        self.learn(replica, len(self.changes))
        self.write(replica)
        while replica.unread:
            self.arrive(replica)
        self.read(replica, len(self.log))
        self.step_at(replica)

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = ()) -> None:
        for ref in removed:
            self.facts.pop(ref, None)
        self.facts.update({fact.ref: fact for fact in applied})
        self.changes.append(Change(applied=applied, removed=removed))
        if hasattr(self, "wants"):
            self.wants.append(self.wanted())

    def learn(self, replica: Replica, count: int = 1) -> None:
        """Have a replica learn of the next changes, one after the other."""
        for change in self.changes[replica.learned : replica.learned + count]:
            replica.learned += 1
            replica.mesh = replica.rolling.apply(replica.mesh, change, self.known_to(replica), self.now)
            replica.rolling.tell()

    def learn_at_once(self, replica: Replica) -> None:
        """Have it learn of all that is new in one piece, and of nothing that was so between."""
        last: dict[Ref, Fact | None] = {}
        for change in self.changes[replica.learned :]:
            last |= dict.fromkeys(change.removed) | {fact.ref: fact for fact in change.applied}
        replica.learned = len(self.changes)
        change = Change(
            applied=tuple(fact for fact in last.values() if fact),
            removed=tuple(ref for ref, fact in last.items() if fact is None),
        )
        replica.mesh = replica.rolling.apply(replica.mesh, change, self.known_to(replica), self.now)
        replica.rolling.tell()

    def step(self) -> None:
        for replica in self.replicas.values():
            self.step_at(replica)

    def step_at(self, replica: Replica) -> None:
        self.look_at(replica)
        self.now += UNREAD
        self.look_at(replica)

    def look_at(self, replica: Replica) -> None:
        replica.mesh = replica.rolling.advance(replica.mesh, self.known_to(replica), self.now)
        replica.rolling.tell()

    def known_to(self, replica: Replica) -> Known:
        return Known(
            servers={Ref("Pod", "ns", name): replica.said[name] for name in SERVERS if name in replica.said},
            clients={f"{name}.clients": replica.said[name] for name in CLIENTS if name in replica.said},
            returned=frozenset(
                f"{name}.clients"
                for name in CLIENTS
                if replica.said.get(name, 0) < 0 and self.clients[name].sends
            ),
            elsewhere=replica.exchange.elsewhere(self.now),
        )

    # --- reports -----------------------------------------------------------------------------------------------------

    def write(self, replica: Replica) -> None:
        """Have a report sent; it arrives with `arrive`."""
        if replica.exchange.has_news:
            replica.unread.append(replica.exchange.write(self.now))

    def arrive(self, replica: Replica) -> None:
        if replica.unread:
            self.log.append((replica.name, replica.unread.pop(0)))

    def read(self, replica: Replica, count: int = 1) -> None:
        """Have a replica read the next reports."""
        for name, report in self.log[replica.read : replica.read + count]:
            replica.read += 1
            if name == replica.name:
                replica.exchange.read_back(report.number, self.now)
            elif name not in self.gone:
                replica.exchange.hear(name, str(report.number), report, FOREVER, self.now)

    # --- proxies -----------------------------------------------------------------------------------------------------

    def move(self, proxy: str, to: str, *, away: bool = True) -> None:
        """Have a proxy connect to another replica. The one that it leaves reckons with it until it is at home there."""
        left, new = self.replicas[self.of[proxy]], self.replicas[to]
        if left is new:
            return
        self.of[proxy] = to
        if not away:
            left.said.pop(proxy, None)
        new.said[proxy] = -1
        itself = {**self.servers, **self.clients}[proxy]
        itself.generation = itself.said = -1
        if isinstance(itself, Server) and itself.modes:
            new.rolling._came_back[Ref("Pod", "ns", proxy)] = itself.modes
        elif isinstance(itself, Client) and itself.sends:
            new.rolling._has_met = True
        # Nothing is served to who has just come before it is known what it brings.
        self.step_at(new)

    def take(self, proxy: str, *, heard: bool = True) -> None:
        """Have a proxy put in force what it is served."""
        replica = self.replicas[self.of[proxy]]
        self.mesh = replica.mesh
        if proxy in SERVERS:
            self.deliver_to_server(proxy)
        else:
            self.deliver_to_client(proxy)
        if heard:
            self.answer(proxy)

    def answer(self, proxy: str) -> None:
        itself = {**self.servers, **self.clients}[proxy]
        home = self.replicas[self.of[proxy]]
        home.said[proxy] = max(home.said.get(proxy, -1), itself.generation)
        if home.said[proxy] >= 0:
            for replica in self.replicas.values():
                if replica is not home:
                    replica.said.pop(proxy, None)

    def restart(self, proxy: str) -> None:
        (self.servers if proxy in SERVERS else self.clients)[proxy] = (
            Server() if proxy in SERVERS else Client()
        )
        for replica in self.replicas.values():
            replica.said.pop(proxy, None)
        self.replicas[self.of[proxy]].said[proxy] = -1

    # --- all at rest -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything arrive until nothing changes any more."""
        for _ in range(60):
            before = [
                (each.mesh, each.read, each.rolling.rollout.stands()) for each in self.replicas.values()
            ]
            for replica in self.replicas.values():
                self.learn(replica, len(self.changes))
                self.write(replica)
                while replica.unread:
                    self.arrive(replica)
            for replica in self.replicas.values():
                self.read(replica, len(self.log))
                self.step_at(replica)
                self.check()
            for proxy in self.of:
                self.take(proxy)
                self.check()
            self.step()
            after = [(each.mesh, each.read, each.rolling.rollout.stands()) for each in self.replicas.values()]
            if before == after and not any(each.exchange.has_news for each in self.replicas.values()):
                break
        for replica in self.replicas.values():
            rollout = replica.rolling.rollout
            assert not rollout.crossings, (replica.name, rollout.crossings)
            assert not rollout.rules
            assert (replica.mesh.served.modes, replica.mesh.served.mtls) == ({}, {})
            assert {fact.ref: fact for fact in replica.mesh.facts() if fact.ref in self.facts} == self.facts
        mesh = next(iter(self.replicas.values())).mesh
        for name, server in self.servers.items():
            itself = mesh.pod("ns", name)
            assert itself
            assert server.modes == {port: accepted(mesh, itself, port).mode for port in PORTS}
        self.wants = [self.wanted()]
