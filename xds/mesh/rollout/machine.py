"""Decide what to serve next, so that modes change without a failed request.

A transition has three phases. Expand: the server's listener accepts both plaintext and mutual TLS. Migrate:
once that listener is active, clients change what they send. Contract: once no client sends the old kind of
traffic, the listener stops accepting it. Each port of each pod changes on its own.

This module knows neither clocks nor streams. `update` receives the desired state. `propose` receives the time
and the reports about proxies, and returns the next plan. `adopt` makes a plan the one that is served; with
several replicas, that is a plan that the API server has stored. docs/explanation/rollouts.md explains the
order, and why it needs ACKs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from xds.mesh.model.mesh import Mesh, ServiceKey
from xds.mesh.model.objects import DestinationRule, Mode, PortKey, Ref, Served
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import Desired, desired_ports, has_running_sidecar, rule_in, services_at
from xds.mesh.rollout.observation import Ask, Observed
from xds.mesh.rollout.plan import (
    UNKNOWN,
    Plan,
    RuleTransition,
    RuleVersion,
    StoredPlan,
    Transition,
    rule_hash,
)
from xds.mesh.rollout.stages import ACCEPTED_SENDS, Staged
from xds.mesh.rollout.waits import Skips, clients_lagging_on_rule

T = TypeVar("T")

MAX_PORTS = 5000
"""Ports in transition at a time, if the plan is shared: the most that fits into one Kubernetes object."""
MAX_ASKS = 500
"""Maximum number of ports that a replica asks the leader to include in the plan, at a time."""


@dataclass(slots=True)
class Port:
    """A port of a pod with a sidecar. Outside of transitions, its state is served and active."""

    desired: Desired
    """What policies ask for."""
    mode: Mode
    """The mode of its listener."""
    send: Send
    """What clients send to it."""
    changed_at: float
    """When the desired state last changed, in seconds of the event loop's clock."""

    @property
    def is_pending(self) -> bool:
        """Whether something else is desired."""
        return (self.mode, self.send) != (self.desired.mode, self.desired.send)


@dataclass(slots=True)
class RolloutStats:
    """Counters since the start."""

    skips: int = 0
    """Number of times a lagging proxy or replica was skipped."""
    plaintext_disabled: int = 0
    """Number of times a port stopped accepting plaintext."""
    on_finished: Callable[[float], object] = float
    """Called with the duration of each finished transition, in seconds."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next plan, and what it gives up waiting for."""

    plan: Plan
    """The plan."""
    skips: Skips = field(default_factory=Skips)
    """What goes on without a lagging proxy or replica."""


class Rollout:
    """The ports and rules of a mesh, and the plan for those in transition.

    `timeout` is the number of seconds to wait for a proxy. With None, the desired state is served at once.
    """

    def __init__(self, timeout: float | None = 30.0) -> None:
        self.timeout = timeout
        self.stats = RolloutStats()
        self.plan = Plan()
        """The plan that is served."""
        self.skipped = Skips()
        """Transitions that skipped a lagging proxy or replica."""
        self.ports: dict[PortKey, Port] = {}
        self.rules: dict[Ref, RuleTransition] = {}
        """DestinationRules whose served version is not the desired one, or not yet active."""
        self.pending: set[PortKey] = set()
        """Ports whose desired state is not the served one."""
        self._service_ports: dict[ServiceKey, frozenset[PortKey]] = {}
        """The ports that each service leads to."""
        self._unexposed: set[PortKey] = set()
        """Ports in transition that no Service exposes any more."""
        self._recovered: dict[PortKey, Mode] = {}
        """Modes that servers had active when they connected, until they have ACKed a listener of the plan."""

    @property
    def is_active(self) -> bool:
        """Whether a transition is in progress or about to start."""
        return bool(self.plan.ports or self.rules or self.pending or self._recovered)

    @property
    def has_unplanned(self) -> bool:
        """Whether something has changed that the plan could consider and does not yet."""
        ports = self.plan.ports.keys()
        is_full = len(ports) >= MAX_PORTS
        return not ((is_full or self.pending <= ports) and self.rules.keys() <= self.plan.rules.keys())

    # --- desired state --------------------------------------------------------------------------------------

    def update(self, mesh: Mesh, now: float) -> None:
        """Read the desired state of the services that the last change touched."""
        names: Collection[ServiceKey] | None = mesh.touched
        if names is None:
            names = self._service_ports.keys() | {
                (service.namespace, service.name) for service in mesh.services()
            }
        gone: set[PortKey] = set()
        for name in sorted(names):
            service = mesh.service(*name)
            ports = dict(desired_ports(mesh, service)) if service else {}
            gone |= self._service_ports.pop(name, frozenset()) - ports.keys()
            if ports:
                self._service_ports[name] = frozenset(ports)
            for key, desired in ports.items():
                self._set_desired(mesh, key, desired, now)
        for key in gone:
            is_exposed = any(key in ports for ports in self._service_ports.values())
            # If no Service exposes the port, its mode changes in one step. If exposed again, it is new.
            if not is_exposed:
                self._forget_port(mesh, key)

    def _set_desired(self, mesh: Mesh, key: PortKey, desired: Desired, now: float) -> None:
        port = self.ports.get(key)
        self._unexposed.discard(key)
        if port is None or port.desired.uid != desired.uid or self.timeout is None:
            # No client uses a new port yet, unless another replica leads clients to it.
            port = Port(desired, desired.mode, desired.send, now)
            is_known = key in self.ports
            transition = None if is_known else self.plan.ports.get(key)
            if transition:
                port.mode, port.send = transition.listener.current, transition.clients.current
            elif any(rule.affects(services_at(mesh, key)) for rule in self.rules.values()):
                port.mode = Mode.PERMISSIVE  # Clients may follow any version of the rule.
            self.ports[key] = port
        elif port.desired != desired:
            if (port.desired.mode, port.desired.send) != (desired.mode, desired.send):
                port.changed_at = now
            port.desired = desired
        self._mark(key, port)

    def _forget_port(self, mesh: Mesh, key: PortKey) -> None:
        """Forget a port that no Service exposes, once its transition has ended."""
        if key in self.plan.ports and has_running_sidecar(mesh, key):
            self._unexposed.add(key)
        else:
            self._unexposed.discard(key)
            self.ports.pop(key, None)
            self.pending.discard(key)

    def _mark(self, key: PortKey, port: Port) -> None:
        if port.is_pending:
            self.pending.add(key)
        else:
            self.pending.discard(key)

    def change_rule(self, before: Mesh, ref: Ref, desired: DestinationRule | None, now: float) -> None:
        """Record that a DestinationRule changes, or is deleted (None). `before` is the previous mesh."""
        known, rule = self.rules.get(ref), before.served_rule(ref)
        served: Staged[RuleVersion] = known.rule if known else Staged(rule, 0, (rule,))
        self._set_rule(ref, served, desired, now)

    def _set_rule(
        self, ref: Ref, served: Staged[RuleVersion], desired: DestinationRule | None, now: float
    ) -> None:
        known = self.rules.get(ref)
        is_same = known is not None and known.is_held and known.desired == desired
        rule = RuleTransition(served, desired, known.held_since if known and is_same else now)
        if rule.is_held or not served.is_settled:
            self.rules[ref] = rule
        else:
            self.rules.pop(ref, None)

    # --- recovery -------------------------------------------------------------------------------------------

    def recover(self, pod: Ref, modes: Mapping[int, Mode]) -> None:
        """Record the modes that a server already had active when it connected."""
        if self.timeout is not None:
            self._recovered.update({(pod, number): mode for number, mode in modes.items()})

    def forget_recovered(self, pod: Ref) -> bool:
        """Forget what a server had active, because its stream ended. Return whether there was anything."""
        keys = [key for key in tuple(self._recovered) if key[0] == pod]
        for key in keys:
            self._recovered.pop(key, None)
        return bool(keys)

    def has_unconsidered(self, pod: Ref | None = None) -> bool:
        """Return whether a server (or any) has a mode active that the plan does not consider yet."""
        return any(
            pod in {None, key[0]} and mode not in self._possible_modes(key)
            for key, mode in tuple(self._recovered.items())
        )

    def _possible_modes(self, key: PortKey) -> tuple[Mode, ...]:
        transition, port = self.plan.ports.get(key), self.ports.get(key)
        if transition:
            return transition.listener.possible
        return (port.mode,) if port else tuple(Mode)

    def asks(self, servers: Mapping[Ref, int]) -> dict[PortKey, Ask]:
        """Return the ports that the plan has to include.

        `servers` has the active generation of the listeners of each connected pod.
        """
        asks: dict[PortKey, Ask] = {}
        for key, mode in tuple(self._recovered.items()):
            active, transition = servers.get(key[0]), self.plan.ports.get(key)
            is_acked = transition and active is not None and active >= transition.listener.generation
            if is_acked or (not transition and mode in self._possible_modes(key)):
                self._recovered.pop(key, None)  # The event loop may have dropped it.
            elif active is not None:
                asks[key] = Ask(mode, min(ACCEPTED_SENDS[mode]), is_active=True)
        for key in sorted(self.pending - self.plan.ports.keys() - asks.keys()):
            if (port := self.ports.get(key)) and len(asks) < MAX_ASKS:
                asks[key] = Ask(port.mode, port.send, is_active=False)
        return asks

    def held_rules(self) -> frozenset[Ref]:
        """Return the DestinationRules that the plan has to include."""
        return frozenset(self.rules.keys() - self.plan.rules.keys())

    def join(self, mesh: Mesh, observed: Observed, now: float) -> None:
        """Start with what other replicas serve where it is not the desired state."""
        for report in observed.peers.values():
            for key, ask in report.asks.items():
                port = self.ports.get(key)
                if port and key not in self.plan.ports:
                    port.mode, port.send = ask.mode, ask.send
                    self._mark(key, port)
            for ref in report.held_rules - self.rules.keys():
                self._set_rule(ref, Staged(None, 0, (None, UNKNOWN), now), rule_in(mesh, ref), now)

    # --- serving a plan -------------------------------------------------------------------------------------

    def adopt(self, mesh: Mesh, proposal: Proposal, now: float) -> None:
        """Serve a plan. `mesh` may be newer than the one that the plan was made for."""
        before, plan = self.plan, proposal.plan
        for key, transition in {**before.ports, **plan.ports}.items():
            if plan.ports.get(key) is before.ports.get(key):
                continue
            port = self.ports.get(key)
            if port is None or transition.uid not in {"", port.desired.uid}:
                continue  # Another pod has taken the name.
            if transition.listener.current is Mode.STRICT and port.mode is not Mode.STRICT:
                self.stats.plaintext_disabled += 1
            port.mode, port.send = transition.listener.current, transition.clients.current
            self._mark(key, port)
            if key not in plan.ports and not port.is_pending:
                self.stats.on_finished(now - transition.started_at)
        self.plan = plan
        for key in self._unexposed - plan.ports.keys():
            self._forget_port(mesh, key)
        for ref, known in ({**self.rules, **plan.rules}).items():
            rule = known.rule if ref in plan.rules else known.rule.settled()
            self._set_rule(ref, rule, rule_in(mesh, ref), now)
        self.stats.skips += len(proposal.skips)
        self.skipped.rules.update(proposal.skips.rules)
        for key, skipped in proposal.skips.ports.items():
            self.skipped.ports[key] = skipped
            if skipped.wait.is_for_listener:
                self._recovered.pop(key, None)

    def resolve(self, mesh: Mesh, stored: StoredPlan, now: float) -> Plan | None:
        """Return a stored plan with what this replica knows about it. None: it does not know a rule yet."""
        ports = {}
        for key, (listener, clients) in stored.ports.items():
            known = self.plan.ports.get(key)
            ports[key] = Transition(
                _with_times(listener, known.listener if known else None, now),
                _with_times(clients, known.clients if known else None, now),
                known.hosts if known else services_at(mesh, key),
                known.started_at if known else now,
                known.uid if known else "",
            )
        rules = {}
        for ref, stored_rule in stored.rules.items():
            known_rule, fact = self.rules.get(ref), rule_in(mesh, ref)
            served: Staged[RuleVersion] = known_rule.rule if known_rule else Staged(fact, 0, (fact,), now)
            generation = stored_rule.generation
            is_known = served.generation == generation
            if rule_hash(served.current) != stored_rule.content:
                is_known = stored_rule.content == rule_hash(fact)
                if not is_known and stored_rule.desired != rule_hash(fact):
                    return None
                # If the leader still serves a version that this replica has never read, serve none.
                served = served.propose(fact if is_known else None, generation, now)
            if not is_known:
                served = replace(served, generation=generation).widen((UNKNOWN,), generation, now)
            rules[ref] = RuleTransition(served.settled() if stored_rule.is_settled else served, fact)
        return Plan(stored.generation, ports, rules)

    def state(self) -> Served:
        """Return what to serve now."""
        pending = {key: port for key in self.pending if (port := self.ports.get(key))}
        return Served(
            generation=self.plan.generation,
            modes={key: port.mode for key, port in pending.items() if port.mode is not port.desired.mode},
            mtls={
                key: port.send is Send.MTLS
                for key, port in pending.items()
                if port.send is not port.desired.send
            },
            rules={ref: rule.served for ref, rule in self.rules.items() if rule.is_held},
        )

    # --- progress -------------------------------------------------------------------------------------------

    def forget_caught_up(self, mesh: Mesh, observed: Observed) -> None:
        """Forget skipped proxies and replicas that have caught up."""
        for ref, (rule, _) in tuple(self.skipped.rules.items()):
            if rule.is_held:
                has_caught_up = not any(rule.affects(port.hosts) for port in self.plan.ports.values())
            else:
                has_caught_up = not clients_lagging_on_rule(rule, observed)
            if has_caught_up:
                del self.skipped.rules[ref]
        for key, (transition, wait) in tuple(self.skipped.ports.items()):
            if wait.is_for_listener:
                # A server that is disconnected has not caught up: it may still run with the old listener.
                active = observed.server_generation(key[0])
                has_caught_up = wait.generation <= active < inf
            else:
                has_caught_up = not observed.lagging_clients(wait.generation, transition.hosts.__contains__)
            if has_caught_up or not has_running_sidecar(mesh, key):
                del self.skipped.ports[key]


def as_recovered(port: Port, mode: Mode) -> Port:
    """Return a port as its server's sidecar has it."""
    accepted = ACCEPTED_SENDS[mode]
    send = port.desired.send if port.desired.send in accepted else min(accepted)
    return replace(port, mode=mode, send=send)


def _with_times(stage: Staged[T], known: Staged[T] | None, now: float) -> Staged[T]:
    return known if known == stage else replace(stage, since=now)
