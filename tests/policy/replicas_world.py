"""Several replicas with the same proxies. Each reads policies, plans and reports in its own time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from tests.policy.rollout_world import CLIENTS, PORTS, SERVERS, UNREAD, Client, Proxies, Server
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Ref, merge_changes
from xds.mesh.policy.mtls import served_mode
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.reports import Reports
from xds.mesh.rollout.sync import ReplicaSync

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
    events_read: int = 0
    """The number of writes to the API server that it has read."""
    acked: dict[str, int] = field(default_factory=dict)
    """The ACKed generation of each proxy that is connected or may reconnect."""
    caught_up_at: dict[str, float] = field(default_factory=dict)
    """By reconnected client: when it stopped using a configuration from an earlier stream."""
    reports: list[Report] = field(default_factory=list)
    """Its reports that have not arrived at the API server."""
    plans: list[tuple[str, StoredPlan]] = field(default_factory=list)
    """Its plans that have not arrived at the API server."""
    responses: list[tuple[str, str, StoredPlan]] = field(default_factory=list)
    """Responses to stored plans that have not arrived at the replica."""
    published: Report | None = None


class Replicas(Proxies):
    """Servers and clients, each connected to one of several replicas."""

    def __init__(self, names: tuple[str, ...] = ("a", "b")) -> None:
        self.names = names
        self.changes: list[Change] = []
        self.events: list[tuple[str, str, Report | StoredPlan]] = []
        """The reports (by replica) and plans (by version) that were written, in the order of the writes."""
        self.version = 0
        self.leaders = {names[0]}
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
        """Start a replica. Before it serves, it is a member of the plan."""
        self.started += 1
        sync = ReplicaSync(f"{name}-{self.started}", lambda: name in self.leaders, Reports(FOREVER))
        new = Replica(sync.name, RolloutDriver(FOREVER), sync, Mesh(), len(self.changes))
        sync.plan_read("0", StoredPlan())
        for gone in self.gone:
            sync.reports.forget(gone)
        new.rollouts.enable_sync(sync, self.now)
        self.write(new)
        self.arrive(new)
        while not sync.has_joined:
            self.read(new, len(self.events))
            self.store(new)
            self.arrive_plan(new)
        new.mesh = new.rollouts.first_mesh(
            Change(applied=tuple(self.facts.values())), self.observed_by(new), self.now
        )
        new.rollouts.publish_report()
        self.replicas[name] = new

    def kill(self, name: str, successor: str) -> None:
        """Kill a replica. Its proxies connect to the successor, and its report expires."""
        gone = self.replicas[name]
        for proxy in [proxy for proxy, home in self.home.items() if home == name]:
            self.move(proxy, successor, away=False)
            self.take(proxy)
        self.gone.add(gone.name)
        for replica in self.replicas.values():
            replica.sync.reports.forget(gone.name)
        if self.leaders == {name}:
            self.leaders = {successor}
        for replica in self.replicas.values():
            if replica is not gone:
                self.catch_up(replica)
        self.start_replica(name)

    def catch_up(self, replica: Replica) -> None:
        """Let a replica apply and report everything: a new replica is never ahead of it (docs/adr/0015)."""
        self.learn(replica, len(self.changes))
        self.write(replica)
        while replica.reports:
            self.arrive(replica)

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
            self.apply_at(replica, change)

    def learn_at_once(self, replica: Replica) -> None:
        """Let a replica apply all new changes in one batch, without the states in between."""
        change = merge_changes(self.changes[replica.changes_read :])
        replica.changes_read = len(self.changes)
        self.apply_at(replica, change)

    def apply_at(self, replica: Replica, change: Change) -> None:
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

    def observed_by(self, replica: Replica) -> Observed:
        servers = {Ref("Pod", "ns", name): replica.acked[name] for name in SERVERS if name in replica.acked}
        own = Report(
            generation=replica.mesh.served.generation,
            servers=Generations(servers),
            clients=Generations(
                {f"{name}.clients": replica.acked[name] for name in CLIENTS if name in replica.acked}
            ),
            has_earlier_connections=any(
                name in replica.acked and self.now < replica.caught_up_at.get(name, -inf) + UNREAD
                for name in CLIENTS
            ),
            asks=replica.rollouts.rollout.collect_asks(servers),
        )
        return replica.rollouts.observe(own, self.now)

    # --- the API server -------------------------------------------------------------------------------------

    def write(self, replica: Replica) -> None:
        """Let a replica send its report. It arrives with `arrive`."""
        if replica.published != replica.sync.reports.own:
            replica.published = replica.sync.reports.own
            replica.reports.append(replica.sync.reports.own)

    def arrive(self, replica: Replica) -> None:
        if replica.reports:
            self.events.append(("report", replica.name, replica.reports.pop(0)))

    def store(self, replica: Replica) -> None:
        """Let a replica send its plan. It arrives with `arrive_plan`."""
        if not replica.plans and not replica.responses and (plan := replica.sync.plan_to_store(self.now)):
            replica.plans.append(plan)

    def arrive_plan(self, replica: Replica, *, respond: bool = True) -> None:
        """Store a plan, unless another one was stored in the meantime."""
        if replica.plans:
            replaced, plan = replica.plans.pop()
            if replaced == str(self.version):
                self.version += 1
                self.events.append(("plan", str(self.version), plan))
                replica.responses.append((replaced, str(self.version), plan))
        if respond:
            self.respond(replica)

    def respond(self, replica: Replica) -> None:
        if replica.responses:
            replica.sync.plan_stored(*replica.responses.pop())

    def read(self, replica: Replica, count: int = 1) -> None:
        """Let a replica read the next writes."""
        for kind, name, content in self.events[replica.events_read : replica.events_read + count]:
            replica.events_read += 1
            if isinstance(content, StoredPlan):
                replica.sync.plan_read(name, content)
            elif name != replica.name and name not in self.gone:
                replica.sync.reports.receive(name, f"{kind}{replica.events_read}", content, FOREVER, self.now)

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
            left.rollouts.rollout.forget_recovered(Ref("Pod", "ns", proxy))
            new.rollouts.rollout.recover(Ref("Pod", "ns", proxy), itself.modes)
        elif isinstance(itself, Client) and itself.sends:
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
            replica.rollouts.rollout.forget_recovered(Ref("Pod", "ns", proxy))
        self.replicas[self.home[proxy]].acked[proxy] = -1

    # --- all at rest ----------------------------------------------------------------------------------------

    def exchange(self, replica: Replica) -> None:
        """Let a replica write and read everything."""
        self.read(replica, len(self.events))
        self.respond(replica)
        self.step_at(replica)
        self.store(replica)
        self.arrive_plan(replica)
        self.step_at(replica)
        self.write(replica)
        while replica.reports:
            self.arrive(replica)

    def settle(self) -> None:
        """Deliver everything until nothing changes, and check the result."""
        if len(self.leaders) != 1:
            self.leaders = {min(self.leaders | {self.names[0]})}
        unchanged = 0
        for _ in range(60):
            before = self.state()
            for replica in self.replicas.values():
                self.learn(replica, len(self.changes))
            for replica in self.replicas.values():
                self.exchange(replica)
                self.check()
            for proxy in self.home:
                self.take(proxy)
                self.check()
            unchanged = unchanged + 1 if self.state() == before else 0
            if unchanged == 2:
                break
        for replica in self.replicas.values():
            rollout = replica.rollouts.rollout
            assert not rollout.plan.ports, (replica.name, rollout.plan.ports)
            assert not rollout.rules, (replica.name, rollout.rules)
            served = replica.mesh.served
            assert replace(served, generation=0) == replace(Mesh().served, generation=0), replica.name
            assert {fact.ref: fact for fact in replica.mesh.facts() if fact.ref in self.facts} == self.facts
        mesh = next(iter(self.replicas.values())).mesh
        for name, server in self.servers.items():
            itself = mesh.pod("ns", name)
            assert itself
            assert server.modes == {port: served_mode(mesh, itself, port).mode for port in PORTS}
        self.must_reach = [self.reachable()]

    def state(self) -> object:
        return (
            self.version,
            [
                (replica.mesh, replica.rollouts.rollout.plan, replica.published, dict(replica.acked))
                for replica in self.replicas.values()
            ],
        )
