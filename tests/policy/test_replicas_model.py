"""Rollouts of several replicas in random order: information arrives late, and no request fails."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tests.policy.replicas_world import Replica, Replicas
from tests.policy.rollout_world import CLIENTS, KEYS, PORTS, RULES, SERVERS, Proxies, settled
from tests.policy.world import peer, rule
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.follower import Follower
from xds.mesh.rollout.observation import Observed
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.planner import Planner
from xds.mesh.rollout.rollout import NextPlan, Rollout
from xds.mesh.rollout.rules import RuleSends
from xds.mesh.rollout.stages import Staged
from xds.mesh.rollout.sync import ReplicaSync

MODES = (None, "DISABLE", "PERMISSIVE", "STRICT")
WALKS = range(40)


class Walk:
    """A random walk: policies change, reports and ACKs lag, proxies move, replicas die."""

    def __init__(self, seed: int, names: tuple[str, ...] = ("a", "b")) -> None:
        self.random = Random(seed)
        self.names = names
        self.world = Replicas(names)
        self.history: list[str] = []
        # Events whose consequences take time are rare.
        self.weights: dict[Callable[[], None], float] = {
            self.set_mode: 1,
            self.set_rule: 0.4,
            self.apply_change: 3,
            self.apply_all_changes: 0.5,
            self.write: 3,
            self.deliver_report: 4,
            self.store: 3,
            self.deliver_plan: 4,
            self.respond: 1,
            self.read: 5,
            self.advance: 3,
            self.elect: 0.2,
            self.exchange: 3,
            self.activate: 6,
            self.ack: 3,
            self.move: 0.5,
            self.restart: 0.2,
            self.kill: 0.2,
        }

    def go(self, steps: int) -> None:
        for _ in range(steps):
            [act] = self.random.choices(list(self.weights), list(self.weights.values()))
            self.history.append(act.__name__)
            act()
            self.world.check()

    @property
    def replica(self) -> Replica:
        name = self.random.choice(self.names)
        self.history.append(f"  {name}")
        return self.world.replicas[name]

    @property
    def proxy(self) -> str:
        proxy = self.random.choice((*SERVERS, *CLIENTS))
        self.history.append(f"  {proxy}")
        return proxy

    def set_mode(self) -> None:
        mode, name = self.random.choice(MODES), self.random.choice(("", "", *SERVERS))
        self.history.append(f"  {mode} for {name or 'all'}")
        self.world.set_mode(mode, name=name, port=self.random.choice((0, *PORTS)) if name else 0)

    def set_rule(self) -> None:
        mode, name = self.random.choice(RULES), self.random.choice(("", *CLIENTS))
        self.history.append(f"  {mode} for {name or 'all'}")
        self.world.set_rule(mode, name)

    def apply_change(self) -> None:
        self.world.learn(self.replica)

    def apply_all_changes(self) -> None:
        self.world.learn_at_once(self.replica)

    def write(self) -> None:
        self.world.write(self.replica)

    def deliver_report(self) -> None:
        self.world.arrive(self.replica)

    def store(self) -> None:
        self.world.store(self.replica)

    def deliver_plan(self) -> None:
        self.world.arrive_plan(self.replica, respond=self.random.random() < 0.7)

    def respond(self) -> None:
        self.world.respond(self.replica)

    def read(self) -> None:
        self.world.read(self.replica, self.random.choice((1, 2, 99)))

    def advance(self) -> None:
        self.world.step_at(self.replica)

    def elect(self) -> None:
        """Change the leader. For a moment there may be none, or two."""
        self.world.leaders = set(self.random.sample(self.names, k=self.random.choice((0, 1, 1, 1, 2))))
        self.history.append(f"  {sorted(self.world.leaders)}")

    def exchange(self) -> None:
        """Let replicas share reports and plans as they do if nothing is late."""
        for name in self.random.choices(self.names, k=3):
            self.world.exchange(self.world.replicas[name])

    def activate(self) -> None:
        self.world.take(self.proxy, ack=self.random.random() < 0.7)

    def ack(self) -> None:
        self.world.answer(self.proxy)

    def move(self) -> None:
        self.world.move(self.proxy, self.random.choice(self.names))

    def restart(self) -> None:
        self.world.restart(self.proxy)

    def kill(self) -> None:
        name = self.random.choice(self.names)
        self.history.append(f"  {name}")
        self.world.kill(name, self.random.choice([each for each in self.names if each != name]))


def walk(seed: int, names: tuple[str, ...] = ("a", "b")) -> None:
    current = Walk(seed, names)
    try:
        for _ in range(4):
            current.go(60)
            current.world.settle()
    except AssertionError as error:
        error.add_note("\n".join(current.history[-120:]))
        raise


@pytest.mark.parametrize("seed", WALKS)
def test_no_request_fails_and_the_desired_state_is_reached(seed: int) -> None:
    walk(seed, ("a", "b") if seed % 4 else ("a", "b", "c"))


def test_lagging_replica_is_skipped_after_the_timeout() -> None:
    """The other replica keeps its Lease, but applies no plan. Proxies may be connected to it."""
    world = Replicas(("a", "b"))
    a = world.replicas["a"]
    rollout = a.rollouts.rollout
    world.set_mode("DISABLE")
    world.settle()
    for proxy in (*SERVERS, *CLIENTS):
        world.move(proxy, "a")
        world.take(proxy)
    rollout.timeout = 30.0
    world.set_mode("STRICT")
    world.learn(a)
    states = []
    for _ in range(20):
        world.exchange(a)
        for proxy in (*SERVERS, *CLIENTS):
            world.take(proxy)
        states.append((world.servers["web-1"].modes[8080], set(world.clients["one"].sends.values())))
        world.now += 10
    assert list(dict.fromkeys(mode for mode, _ in states)) == [Mode.PERMISSIVE, Mode.STRICT]
    plaintext, mtls = ({each} for each in (Send.PLAINTEXT, Send.MTLS))
    migrated_at = [sends for _, sends in states].index(mtls)
    contracted_at = [mode for mode, _ in states].index(Mode.STRICT)
    assert [sends for _, sends in states[:migrated_at]] == [plaintext] * migrated_at
    assert migrated_at >= 3
    assert contracted_at >= migrated_at + 3
    assert not rollout.plan.ports
    assert not a.sync.reports.own.is_alone
    # For each port: the listener expands, clients migrate, the listener contracts.
    assert rollout.stats.skips == 3 * len(SERVERS) * len(PORTS)


# --- what the plan must consider ----------------------------------------------------------------------------


def walk_until(seed: int) -> Callable[[], None]:
    """Return a walk as a scenario: the first one that fails without the condition."""

    def run() -> None:
        walk(seed)

    return run


def servers_accept_both(world: Replicas) -> None:
    """Go from DISABLE to STRICT, until every proxy has ACKed the first plan."""
    world.set_mode("DISABLE")
    world.settle()
    world.set_mode("STRICT")
    replicas = (*world.replicas.values(),)
    for replica in replicas:
        world.learn(replica)
    for replica in replicas * 2:
        world.exchange(replica)
    for proxy in world.home:
        world.take(proxy)
    for replica in reversed(replicas):
        world.step_at(replica)
        world.write(replica)
        world.arrive(replica)


def two_leaders_disagree() -> None:
    """One has read that policies return to plaintext, and ends the transition. The other goes on."""
    world = Replicas(("a", "b"))  # web-1 is connected to a, and the client two to b
    a, b = world.replicas.values()
    servers_accept_both(world)
    world.leaders = {"a", "b"}
    world.set_mode("DISABLE")
    world.read(a, 99)
    world.learn(a)
    world.write(a)
    world.arrive(a)
    world.read(b, 99)
    world.step_at(b)
    for replica in (a, b):
        world.store(replica)
    for replica in (a, b):
        world.arrive_plan(replica)
        world.step_at(replica)
    for proxy in ("web-1", "two"):
        world.take(proxy)
        world.check()
    world.settle()


def response_arrives_late() -> None:
    """A leader's plan is stored. It learns so after a later leader's plans have taken everything back."""
    world = Replicas(("a", "b"))
    a, b = world.replicas.values()
    servers_accept_both(world)
    world.read(a, 99)
    world.step_at(a)
    world.store(a)
    world.arrive_plan(a, respond=False)
    world.leaders = {"b"}
    world.set_mode("DISABLE")
    for replica in (a, b):
        world.learn(replica)
    for _ in range(4):
        for replica in (b, a):
            world.read(replica, 99)
            world.step_at(replica)
            if replica is b:
                world.store(b)
                world.arrive_plan(b)
                world.step_at(b)
            world.write(replica)
            world.arrive(replica)
        for proxy in world.home:
            world.take(proxy)
            world.check()
    assert world.servers["web-2"].modes[8080] is Mode.DISABLE
    world.respond(a)
    world.step_at(a)
    world.take("one")
    world.check()
    world.settle()


def connections_are_unclassified() -> None:
    """Clients change to mutual TLS just after they have opened connections."""
    world = settled("DISABLE")
    world.set_mode("STRICT")
    for names in (SERVERS, CLIENTS):
        world.ack(*names)
        world.advance()
    world.ack(*SERVERS)
    world.check()
    world.settle()


def rule_is_deleted() -> None:
    """Clients send plaintext until they have ACKed the deletion of a rule."""
    world = Proxies()
    world.set_rule("DISABLE")
    world.settle()
    policy = peer("ns", "STRICT")
    world.change(policy, removed=(Ref("DestinationRule", "clients", "for-all"),))
    world.must_reach = [{("one", KEYS[0]), ("two", KEYS[0])}]
    world.ack(*SERVERS)
    world.check()
    world.settle()


def rule_needs_other_servers() -> None:
    """A rule asks for mutual TLS before servers accept it."""
    world = settled("DISABLE")
    world.change(peer("ns", "PERMISSIVE"), rule("clients", "web.ns.svc.cluster.local", "ISTIO_MUTUAL"))
    world.must_reach = [{("one", KEYS[0]), ("two", KEYS[0])}]
    world.ack("one")
    world.check()
    world.settle()


def control_plane_restarts() -> None:
    """Policies change while no control plane runs."""
    world = settled("DISABLE")
    world.facts[Ref("PeerAuthentication", "ns", "default")] = peer("ns", "STRICT")
    world.must_reach.append(world.reachable())
    world.start()
    world.ack("one")
    world.check()
    world.settle()


def clients_return() -> None:
    """Clients have connections that they opened under an earlier control plane."""
    world = settled("DISABLE")
    world.set_mode("PERMISSIVE")
    world.ack(*SERVERS)
    world.start()
    world.ack(*CLIENTS)
    world.advance()
    world.set_mode("STRICT")
    world.ack(*CLIENTS)
    world.advance()
    world.ack(*SERVERS)
    world.check()
    world.settle()


def new_leader_does_not_know_the_old_rule() -> None:
    """The other replica still serves a rule that was deleted before the new leader started."""
    world = Replicas(("a", "b"))
    b = world.replicas["b"]
    world.set_rule("DISABLE")
    world.settle()
    reachable = world.must_reach
    world.set_rule(None)
    world.set_mode("STRICT")
    world.learn(b, 2)
    world.write(b)
    world.arrive(b)
    world.kill("a", "b")
    world.leaders = {"a"}
    world.must_reach = reachable
    a = world.replicas["a"]
    for _ in range(3):
        for replica in (a, b):
            world.exchange(replica)
        for proxy in SERVERS:
            world.take(proxy)
            world.check()
    world.settle()


confirm, propose, lagging_clients = Staged.confirm, ReplicaSync.propose, Observed.lagging_clients


def arrive_always(world: Replicas, replica: Replica, *, respond: bool = True) -> None:
    """Store a plan, whatever is stored."""
    replaced, plan = replica.plans.pop() if replica.plans else ("", None)
    if plan:
        world.version += 1
        world.events.append(("plan", str(world.version), plan))
        replica.responses.append((replaced, str(world.version), plan))
    if respond:
        world.respond(replica)


def accept_always(sync: ReplicaSync, _replaced: str, version: str, plan: StoredPlan) -> None:
    sync._stored = version, plan
    sync.stored_proposal = sync._sent or sync.stored_proposal


def accept_unstored(sync: ReplicaSync, version: str, proposal: NextPlan) -> None:
    propose(sync, version, proposal)
    sync.stored_proposal = proposal


def confirm_at_once(stage: Staged[Send], *, is_acked: bool, now: float, delay: float = 0.0) -> Staged[Send]:
    """Ignore the delay."""
    del delay
    return confirm(stage, is_acked=is_acked, now=now)


@pytest.mark.parametrize(
    ("scenario", "owner", "name", "without"),
    [
        pytest.param(
            walk_until(21),
            Observed,
            "server_generation",
            lambda observed, pod: observed.own.servers.of(pod),
            id="servers of peers",
        ),
        pytest.param(
            walk_until(9),
            Observed,
            "lagging_clients",
            lambda observed, *args: lagging_clients(Observed(observed.own), *args),
            id="clients of peers",
        ),
        pytest.param(walk_until(4), Staged, "confirm", lambda stage, **_: stage.settle(), id="ACKs"),
        pytest.param(two_leaders_disagree, Replicas, "arrive_plan", arrive_always, id="compare and swap"),
        pytest.param(two_leaders_disagree, ReplicaSync, "propose", accept_unstored, id="stored plan"),
        pytest.param(connections_are_unclassified, Staged, "confirm", confirm_at_once, id="delay"),
        pytest.param(rule_is_deleted, RuleSends, "to", lambda *_: (), id="rules in transition"),
        pytest.param(
            rule_needs_other_servers,
            Planner,
            "_is_too_early",
            lambda *_: False,
            id="rules that are too early",
        ),
        pytest.param(control_plane_restarts, Rollout, "collect_asks", lambda *_: {}, id="asks"),
        pytest.param(
            clients_return, Observed, "has_earlier_connections", False, id="connections of earlier streams"
        ),
        pytest.param(
            new_leader_does_not_know_the_old_rule,
            Rollout,
            "unplanned_rules",
            lambda _: frozenset(),
            id="held rules",
        ),
    ],
)
def test_requests_fail_without(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[], None], owner: type, name: str, without: object
) -> None:
    if not scenario.__qualname__.startswith("walk_until"):  # The walks pass above.
        scenario()
    monkeypatch.setattr(owner, name, without)
    with pytest.raises(AssertionError, match=r"sends .* which accepts"):
        scenario()


def test_requests_fail_if_a_late_response_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The later plan has been read, and it is served: each is enough to ignore the response."""
    guards = ((ReplicaSync, "plan_stored", accept_always), (Follower, "_may_replace", lambda *_: True))
    response_arrives_late()
    for owner, name, without in guards:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, without)
            response_arrives_late()
    for owner, name, without in guards:
        monkeypatch.setattr(owner, name, without)
    with pytest.raises(AssertionError, match=r"sends .* which accepts"):
        response_arrives_late()
