"""Rollouts of several replicas, driven at random: each knows late what the others know, and no request fails."""

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
    """Policies that change, reports and acknowledgements that lag, proxies that move, replicas that die."""

    def __init__(self, seed: int, names: tuple[str, ...] = ("a", "b")) -> None:
        self.random = Random(seed)
        self.names = names
        self.world = Replicas(names)
        self.done: list[str] = []
        # What is rare is what needs time to have consequences.
        self.weights: dict[Callable[[], None], float] = {
            self.says: 1,
            self.says_for_clients: 0.4,
            self.learns: 3,
            self.learns_at_once: 0.5,
            self.writes: 3,
            self.arrives: 4,
            self.reads: 5,
            self.steps: 3,
            self.speaks_and_hears: 3,
            self.takes: 6,
            self.answers: 3,
            self.moves: 0.5,
            self.restarts: 0.2,
            self.dies: 0.2,
        }

    def go(self, steps: int) -> None:
        for _ in range(steps):
            [act] = self.random.choices(list(self.weights), list(self.weights.values()))
            self.done.append(act.__name__)
            act()
            self.world.check()

    @property
    def replica(self) -> Replica:
        name = self.random.choice(self.names)
        self.done.append(f"  {name}")
        return self.world.replicas[name]

    @property
    def proxy(self) -> str:
        proxy = self.random.choice((*SERVERS, *CLIENTS))
        self.done.append(f"  {proxy}")
        return proxy

    def says(self) -> None:
        mode, name = self.random.choice(MODES), self.random.choice(("", "", *SERVERS))
        self.done.append(f"  {mode} for {name or 'all'}")
        self.world.set_mode(mode, name=name, port=self.random.choice((0, *PORTS)) if name else 0)

    def says_for_clients(self) -> None:
        mode, name = self.random.choice(RULES), self.random.choice(("", *CLIENTS))
        self.done.append(f"  {mode} for {name or 'all'}")
        self.world.set_rule(mode, name)

    def learns(self) -> None:
        self.world.learn(self.replica)

    def learns_at_once(self) -> None:
        self.world.learn_at_once(self.replica)

    def writes(self) -> None:
        self.world.write(self.replica)

    def arrives(self) -> None:
        self.world.arrive(self.replica)

    def reads(self) -> None:
        self.world.read(self.replica, self.random.choice((1, 2, 99)))

    def steps(self) -> None:
        self.world.step_at(self.replica)

    def speaks_and_hears(self) -> None:
        """Do what happens within a moment if nothing is late."""
        for name in self.random.choices(self.names, k=3):
            replica = self.world.replicas[name]
            self.world.write(replica)
            self.world.arrive(replica)
            self.world.read(replica, 99)
            self.world.step_at(replica)

    def takes(self) -> None:
        self.world.take(self.proxy, ack=self.random.random() < 0.7)

    def answers(self) -> None:
        self.world.answer(self.proxy)

    def moves(self) -> None:
        self.world.move(self.proxy, self.random.choice(self.names))

    def restarts(self) -> None:
        self.world.restart(self.proxy)

    def dies(self) -> None:
        name = self.random.choice(self.names)
        self.done.append(f"  {name}")
        self.world.kill(name, self.random.choice([each for each in self.names if each != name]))


def walk(seed: int, names: tuple[str, ...] = ("a", "b"), rounds: int = 4, steps: int = 60) -> None:
    going = Walk(seed, names)
    try:
        for _ in range(rounds):
            going.go(steps)
            going.world.settle()
    except AssertionError as error:
        error.add_note("\n".join(going.done[-120:]))
        raise


@pytest.mark.parametrize("seed", WALKS)
def test_no_request_fails_and_the_desired_state_is_reached(seed: int) -> None:
    walk(seed, ("a", "b") if seed % 4 else ("a", "b", "c"))


@pytest.mark.parametrize("question", ["may_refuse", "may_send"])
def test_model_fails_if_peers_are_ignored(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    monkeypatch.setattr(PeerView, question, lambda *_: [])
    with pytest.raises(AssertionError, match=r"sends .* which takes"):
        walks(300)


def walks(count: int) -> None:
    for seed in range(count):
        walk(seed)


class Race:
    """A lock that is about to come while policy goes back to plaintext: `web-2` and `two` are with b, `one` with a."""

    def __init__(self) -> None:
        self.world = world = Replicas(("a", "b"))
        self.a, self.b = world.replicas.values()
        world.set_mode("DISABLE")
        world.settle()
        world.set_mode("STRICT")
        for replica in (self.a, self.b):
            world.learn(replica)
        for proxy in ("web-1", "web-2", "one"):
            self.speak(self.a, self.b)
            world.take(proxy)
        self.speak(self.a, self.b)
        world.set_mode("DISABLE")
        world.learn(self.a)

    def speak(self, *replicas: Replica) -> None:
        for replica in replicas * 3:
            self.world.write(replica)
            self.world.arrive(replica)
            self.world.read(replica, 99)
            self.world.step_at(replica)

    def tells_before_it_is_known(self) -> None:
        self.world.take("one")
        self.world.take("two")
        self.world.step_at(self.b)
        self.speak(self.b)
        self.world.take("web-2")
        self.world.check()

    def locks_before_it_is_known(self) -> None:
        self.speak(self.a)
        self.world.take("one")
        self.world.take("two")
        self.world.step_at(self.b)
        self.world.take("web-2")
        self.world.check()


RACES = {"knows_send": Race.tells_before_it_is_known, "knows_mode": Race.locks_before_it_is_known}


@pytest.mark.parametrize("question", RACES)
def test_replica_acts_only_after_peers_can_know(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    race = Race()
    for run in RACES.values():
        race = Race()
        run(race)
        race.world.settle()
    monkeypatch.setattr(PeerView, question, lambda *_: True)
    race = Race()
    with pytest.raises(AssertionError, match=r"one sends plaintext to web-2:.*, which takes STRICT"):
        RACES[question](race)


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
    found = []
    for _ in range(20):
        world.write(a)
        world.arrive(a)
        world.read(a, 99)
        world.step_at(a)
        for proxy in (*SERVERS, *CLIENTS):
            world.take(proxy)
        found.append((world.servers["web-1"].modes[8080], set(world.clients["one"].sends.values())))
        world.now += 10
    assert list(dict.fromkeys(mode for mode, _ in found)) == [Mode.PERMISSIVE, Mode.STRICT]
    plaintext, mtls = ({each} for each in (Send.PLAINTEXT, Send.MTLS))
    told = [sends for _, sends in found].index(mtls)
    locked = [mode for mode, _ in found].index(Mode.STRICT)
    assert [sends for _, sends in found[:told]] == [plaintext] * told
    assert told >= 3
    assert locked >= told + 3
    assert not rollout.transitions
    assert rollout.skip_count == 2 * len(SERVERS) * len(PORTS)
