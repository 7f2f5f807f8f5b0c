"""Rollouts of several replicas in random order: information arrives late, and no request fails."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tests.policy.replicas_world import Replica, Replicas
from tests.policy.rollout_world import CLIENTS, PORTS, RULES, SERVERS
from xds.mesh.model.objects import Mode
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import PeerView

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
            self.read_reports: 5,
            self.advance: 3,
            self.exchange_reports: 3,
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

    def read_reports(self) -> None:
        self.world.read(self.replica, self.random.choice((1, 2, 99)))

    def advance(self) -> None:
        self.world.step_at(self.replica)

    def exchange_reports(self) -> None:
        """Let replicas exchange reports as they do if nothing is late."""
        for name in self.random.choices(self.names, k=3):
            replica = self.world.replicas[name]
            self.world.write(replica)
            self.world.arrive(replica)
            self.world.read(replica, 99)
            self.world.step_at(replica)

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


def walk(seed: int, names: tuple[str, ...] = ("a", "b"), rounds: int = 4, steps: int = 60) -> None:
    current = Walk(seed, names)
    try:
        for _ in range(rounds):
            current.go(steps)
            current.world.settle()
    except AssertionError as error:
        error.add_note("\n".join(current.history[-120:]))
        raise


@pytest.mark.parametrize("seed", WALKS)
def test_no_request_fails_and_the_desired_state_is_reached(seed: int) -> None:
    walk(seed, ("a", "b") if seed % 4 else ("a", "b", "c"))


@pytest.mark.parametrize("check", ["may_refuse", "may_send"])
def test_model_fails_if_peers_are_ignored(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setattr(PeerView, check, lambda *_: [])
    with pytest.raises(AssertionError, match=r"sends .* which accepts"):
        walks(300)


def walks(count: int) -> None:
    for seed in range(count):
        walk(seed)


class Race:
    """Policies return to plaintext just before a contraction: `web-2` and `two` are on b, `one` on a."""

    def __init__(self) -> None:
        self.world = world = Replicas(("a", "b"))
        self.a, self.b = world.replicas.values()
        world.set_mode("DISABLE")
        world.settle()
        world.set_mode("STRICT")
        for replica in (self.a, self.b):
            world.learn(replica)
        for proxy in ("web-1", "web-2", "one"):
            self.exchange_reports(self.a, self.b)
            world.take(proxy)
        self.exchange_reports(self.a, self.b)
        world.set_mode("DISABLE")
        world.learn(self.a)

    def exchange_reports(self, *replicas: Replica) -> None:
        for replica in replicas * 3:
            self.world.write(replica)
            self.world.arrive(replica)
            self.world.read(replica, 99)
            self.world.step_at(replica)

    def migrate_early(self) -> None:
        self.world.take("one")
        self.world.take("two")
        self.world.step_at(self.b)
        self.exchange_reports(self.b)
        self.world.take("web-2")
        self.world.check()

    def contract_early(self) -> None:
        self.exchange_reports(self.a)
        self.world.take("one")
        self.world.take("two")
        self.world.step_at(self.b)
        self.world.take("web-2")
        self.world.check()


RACES = {"knows_send": Race.migrate_early, "knows_mode": Race.contract_early}


@pytest.mark.parametrize("check", RACES)
def test_replica_acts_only_after_peers_can_know(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    race = Race()
    for run in RACES.values():
        race = Race()
        run(race)
        race.world.settle()
    monkeypatch.setattr(PeerView, check, lambda *_: True)
    race = Race()
    with pytest.raises(AssertionError, match=r"one sends plaintext to web-2:.*, which accepts STRICT"):
        RACES[check](race)


def test_lagging_replica_is_skipped_after_the_timeout() -> None:
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
        world.write(a)
        world.arrive(a)
        world.read(a, 99)
        world.step_at(a)
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
    assert not rollout.transitions
    assert rollout.skip_count == 2 * len(SERVERS) * len(PORTS)
