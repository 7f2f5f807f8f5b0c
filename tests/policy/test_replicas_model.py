"""Rollouts of several replicas, driven at random: each knows late what the others know, and no request fails."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.policy.replicas_world import Replicas
from tests.policy.rollout_world import CLIENTS, PORTS, RULES, SERVERS

MODES = (None, "DISABLE", "PERMISSIVE", "STRICT")
NAMES = ("a", "b")
mode = st.sampled_from(MODES)
server = st.sampled_from(SERVERS)
proxy = st.sampled_from((*SERVERS, *CLIENTS))
replica = st.sampled_from(NAMES)


class ReplicasMachine(RuleBasedStateMachine):
    """Policies that change, reports and acknowledgements that lag, proxies that move, replicas that die."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Replicas(NAMES)

    @rule(mode=mode)
    def say_for_all(self, mode: str | None) -> None:
        self.world.set_mode(mode)

    @rule(mode=mode, name=server, port=st.sampled_from((0, *PORTS)))
    def say_for_server(self, mode: str | None, name: str, port: int) -> None:
        self.world.set_mode(mode, name=name, port=port)

    @rule(mode=st.sampled_from(RULES), name=st.sampled_from(("", *CLIENTS)))
    def say_for_clients(self, mode: str | None, name: str) -> None:
        self.world.set_rule(mode, name)

    @rule(name=replica, count=st.integers(1, 3))
    def learns(self, name: str, count: int) -> None:
        self.world.learn(self.world.replicas[name], count)

    @rule(name=replica)
    def learns_at_once(self, name: str) -> None:
        self.world.learn_at_once(self.world.replicas[name])

    @rule(name=replica)
    def writes(self, name: str) -> None:
        self.world.write(self.world.replicas[name])

    @rule(name=replica)
    def writing_arrives(self, name: str) -> None:
        self.world.arrive(self.world.replicas[name])

    @rule(name=replica, count=st.integers(1, 4))
    def reads(self, name: str, count: int) -> None:
        self.world.read(self.world.replicas[name], count)

    @rule(name=replica)
    def steps(self, name: str) -> None:
        self.world.step_at(self.world.replicas[name])

    @rule(name=replica)
    def speaks_and_hears(self, name: str) -> None:
        """All that happens within a moment if nothing is late."""
        found = self.world.replicas[name]
        self.world.write(found)
        self.world.arrive(found)
        for each in self.world.replicas.values():
            self.world.read(each, 99)
        self.world.step_at(found)

    @rule(name=proxy, heard=st.booleans())
    def takes(self, name: str, heard: bool) -> None:
        self.world.take(name, heard=heard)

    @rule(name=proxy)
    def answers(self, name: str) -> None:
        self.world.answer(name)

    @rule(name=proxy, to=replica)
    def moves(self, name: str, to: str) -> None:
        self.world.move(name, to)

    @rule(name=proxy)
    def restarts(self, name: str) -> None:
        self.world.restart(name)

    @rule(name=replica)
    def dies(self, name: str) -> None:
        self.world.kill(name, next(each for each in NAMES if each != name))

    @rule()
    def settles(self) -> None:
        self.world.settle()

    @invariant()
    def nobody_is_refused(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


TestReplicas = ReplicasMachine.TestCase
TestReplicas.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
