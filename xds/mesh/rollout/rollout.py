"""The state of a rollout: what is desired, what is served, and the plan that leads from one to the other.

`Rollout.update` and `change_rule` record the desired state. `Planner.propose` (`planner.py`) makes the next
plan. `Rollout.adopt` serves a plan; with several replicas, it has to be stored first. This module reads no
clock and no stream: callers pass the time and the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, Mode, PortKey, Ref, ServedDiff
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import Desired, desired_ports, has_running_sidecar, rule_in, services_at
from xds.mesh.rollout.history import History
from xds.mesh.rollout.observation import Ask, Observed
from xds.mesh.rollout.plan import (
    UNKNOWN,
    Plan,
    RuleTransition,
    RuleVersion,
    StoredPlan,
    StoredRule,
    Transition,
    rule_hash,
)
from xds.mesh.rollout.stages import ACCEPTED_SENDS, Staged
from xds.mesh.rollout.waits import Skips, rule_wait

T = TypeVar("T")

MAX_PORTS = 5000
"""Maximum number of ports in a shared plan: the plan has to fit into one Kubernetes object."""
MAX_ASKS = 500
"""Maximum number of ports in a report that the leader has to include in the plan."""


@dataclass(slots=True)
class PortState:
    """A port of a pod with a sidecar: what policies ask for, and what is served.

    The served state is also active, unless the plan contains a transition of the port.
    """

    desired: Desired
    """What policies ask for."""
    mode: Mode
    """The served mode of its listener."""
    send: Send
    """What clients without a DestinationRule are configured to send."""
    changed_at: float
    """When the desired state last changed, in seconds of the event loop's clock."""

    @property
    def is_pending(self) -> bool:
        """Whether the served state is not the desired one."""
        return (self.mode, self.send) != (self.desired.mode, self.desired.send)


@dataclass(slots=True)
class RolloutStats:
    """Counters since the start."""

    skips: int = 0
    """Number of times a lagging proxy or replica was skipped."""
    plaintext_disabled: int = 0
    """Number of times a port became STRICT."""
    on_finished: Callable[[float], object] = float
    """Called with the duration of each finished transition, in seconds."""


@dataclass(frozen=True, slots=True)
class NextPlan:
    """The next plan, and the waits that it ends because the timeout has passed."""

    plan: Plan
    """The plan."""
    skips: Skips = field(default_factory=Skips)
    """Transitions that continue without lagging proxies or replicas."""


class Rollout:
    """The ports and rules of a mesh, and the plan for those in transition.

    `timeout` is the number of seconds to wait for a proxy. With None, the desired state is served at once.
    """

    def __init__(self, timeout: float | None = 30.0) -> None:
        self.timeout = timeout
        """Seconds to wait for a proxy; None not to wait."""
        self.stats = RolloutStats()
        self.history = History()
        """Transitions that have finished."""
        self.plan = Plan()
        """The plan that is served."""
        self.skipped = Skips()
        """Transitions that skipped proxies or replicas which still lag."""
        self.ports: dict[PortKey, PortState] = {}
        """All ports of pods with a sidecar that a Service exposes."""
        self.rules: dict[Ref, RuleTransition] = {}
        """DestinationRules in transition: pending, or served and not active yet. All others are absent."""
        self.pending: set[PortKey] = set()
        """Ports whose desired state is not the served one."""
        self.refusals: dict[PortKey, frozenset[Mode]] = {}
        """Ports whose servers may still have ALLOW policies that refuse what clients are about to send.

        They count as servers in these modes, until they have ACKed the plan that considers them.
        """
        self._service_ports: dict[ServiceKey, frozenset[PortKey]] = {}
        """The ports that each service routes to."""
        self._unexposed: set[PortKey] = set()
        """Ports in transition that no Service exposes any more."""
        self._recovered: dict[PortKey, Mode] = {}
        """The modes that servers reported when they connected, until they have ACKed the plan's listener."""

    @property
    def is_in_progress(self) -> bool:
        """Whether a transition is in progress or about to start."""
        return bool(self.plan.ports or self.rules or self.pending or self._recovered)

    @property
    def has_unplanned_changes(self) -> bool:
        """Whether the plan lacks a changed rule, or a changed port for which it has room."""
        ports = self.plan.ports.keys()
        lacks_ports = len(ports) < MAX_PORTS and not self.pending <= ports
        return lacks_ports or bool(self.unplanned_rules())

    def pods_in_transition(self, mesh: Mesh) -> set[Ref]:
        """Return the pods of which the mode, or what clients send to them, changes."""
        keys = self.plan.ports.keys() | self.pending
        for service in mesh.services() if self.rules else ():
            if any(rule.affects([(service.cluster_host, 0)]) for rule in self.rules.values()):
                keys |= self._service_ports.get(service.key, frozenset())
        return {pod for pod, _ in keys}

    # --- desired state --------------------------------------------------------------------------------------

    def update(self, mesh: Mesh, now: float) -> None:
        """Record the desired state of the services that the last change touched."""
        names: Collection[ServiceKey] | None = mesh.touched
        if names is None:
            names = self._service_ports.keys() | {service.key for service in mesh.services()}
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
            # No client sends to a port that no Service exposes, so its mode changes in one step.
            if not is_exposed:
                self._forget_port(mesh, key)

    def _set_desired(self, mesh: Mesh, key: PortKey, desired: Desired, now: float) -> None:
        """Record the desired state of a port."""
        port = self.ports.get(key)
        self._unexposed.discard(key)
        if port is None or port.desired.uid != desired.uid or self.timeout is None:
            # No client uses a new port yet, so it starts in its desired state. Exception: the plan already
            # contains the port, because another replica has read the pod earlier, and serves it to clients.
            transition = self.plan.ports.get(key) if port is None else None
            port = PortState(desired, desired.mode, desired.send, now)
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

    def _mark(self, key: PortKey, port: PortState) -> None:
        """Add a port to `pending`, or remove it."""
        if port.is_pending:
            self.pending.add(key)
        else:
            self.pending.discard(key)

    def change_rule(self, before: Mesh, ref: Ref, desired: DestinationRule | None, now: float) -> None:
        """Record that a DestinationRule was added, changed or deleted (`desired` is None).

        `before` is the mesh before the change: it has the version that clients are served.
        """
        known, rule = self.rules.get(ref), before.served_rule(ref)
        served: Staged[RuleVersion] = known.rule if known else Staged(rule, 0, (rule,))
        self._set_rule(ref, served, desired, now)

    def _set_rule(
        self, ref: Ref, served: Staged[RuleVersion], desired: DestinationRule | None, now: float
    ) -> None:
        """Record the served and the desired version of a rule, or forget it if it is not in transition."""
        known = self.rules.get(ref)
        is_same = known is not None and known.is_pending and known.desired == desired
        rule = RuleTransition(served, desired, known.pending_since if known and is_same else now)
        if rule.is_pending or not served.is_settled:
            self.rules[ref] = rule
        else:
            self.rules.pop(ref, None)

    # --- recovery -------------------------------------------------------------------------------------------

    def recover(self, pod: Ref, modes: Mapping[int, Mode]) -> None:
        """Record the modes that a server's sidecar reported when it connected."""
        if self.timeout is not None:
            self._recovered.update({(pod, number): mode for number, mode in modes.items()})

    def forget_recovered(self, pod: Ref) -> bool:
        """Forget the modes that a server reported, as its stream ended. Return whether there were any."""
        keys = [key for key in tuple(self._recovered) if key[0] == pod]
        for key in keys:
            self._recovered.pop(key, None)
        return bool(keys)

    def has_unplanned_mode(self, pod: Ref | None = None) -> bool:
        """Return whether a server (None: any) reported a mode that the plan does not consider yet."""
        return any(
            pod in {None, key[0]} and mode not in self._possible_modes(key)
            for key, mode in tuple(self._recovered.items())
        )

    def _possible_modes(self, key: PortKey) -> tuple[Mode, ...]:
        """Return the modes that a port may have active; all of them for an unknown port."""
        transition, port = self.plan.ports.get(key), self.ports.get(key)
        if transition:
            return transition.listener.possible
        return (port.mode,) if port else tuple(Mode)

    def collect_asks(self, servers: Mapping[Ref, int]) -> dict[PortKey, Ask]:
        """Return the ports that the plan has to include, and forget reported modes that servers have left.

        Args:
            servers: the active generation of the listeners of each connected pod.
        """
        asks: dict[PortKey, Ask] = {}
        for key, mode in tuple(self._recovered.items()):
            active, transition = servers.get(key[0]), self.plan.ports.get(key)
            is_acked = transition and active is not None and active >= transition.listener.generation
            if is_acked or (not transition and mode in self._possible_modes(key)):
                self._recovered.pop(key, None)  # Not `del`: `forget_recovered` may run in another thread.
            elif active is not None:
                asks[key] = Ask(mode, min(ACCEPTED_SENDS[mode]), is_from_server=True)
        for key in sorted(self.pending - self.plan.ports.keys() - asks.keys()):
            if (port := self.ports.get(key)) and len(asks) < MAX_ASKS:
                asks[key] = Ask(port.mode, port.send, is_from_server=False)
        return asks

    def unplanned_rules(self) -> frozenset[Ref]:
        """Return the DestinationRules in transition that the plan has to include."""
        return frozenset(self.rules.keys() - self.plan.rules.keys())

    def join(self, mesh: Mesh, observed: Observed, now: float) -> None:
        """Start with the state that peers report for some ports and rules, instead of the desired state."""
        for report in observed.peers.values():
            for key, ask in report.asks.items():
                port = self.ports.get(key)
                if port and key not in self.plan.ports:
                    port.mode, port.send = ask.mode, ask.send
                    self._mark(key, port)
            for ref in report.unplanned_rules - self.rules.keys():
                self._set_rule(ref, Staged(None, 0, (None, UNKNOWN), now), rule_in(mesh, ref), now)

    # --- serving a plan -------------------------------------------------------------------------------------

    def adopt(self, mesh: Mesh, proposal: NextPlan, now: float) -> None:
        """Serve a plan, and record the transitions that it skipped.

        `mesh` may be newer than the one that the plan was made for.
        """
        before, plan = self.plan, proposal.plan
        for key in proposal.skips.ports:
            self.history.skip(key)
        for key, transition in {**before.ports, **plan.ports}.items():
            if plan.ports.get(key) is before.ports.get(key):
                continue
            port = self.ports.get(key)
            if port is None or transition.uid not in {"", port.desired.uid}:
                self.history.end(key, None, now)
                continue  # Another pod has taken the name.
            if transition.listener.current is Mode.STRICT and port.mode is not Mode.STRICT:
                self.stats.plaintext_disabled += 1
            port.mode, port.send = transition.listener.current, transition.clients.current
            self._mark(key, port)
            if key in plan.ports:
                self.history.advance(key, transition, now)
            else:
                self.history.end(key, port.mode, now)
            if key not in plan.ports and not port.is_pending:
                self.stats.on_finished(now - transition.started_at)
        self.plan = plan
        self.refusals = {
            key: modes
            for key, modes in self.refusals.items()
            if key not in plan.ports or not modes.issubset(plan.ports[key].listener.possible)
        }
        for key in self._unexposed - plan.ports.keys():
            self._forget_port(mesh, key)
        for ref, known in ({**self.rules, **plan.rules}).items():
            # A rule that the plan does not contain any more is active.
            rule = known.rule if ref in plan.rules else known.rule.settle()
            self._set_rule(ref, rule, rule_in(mesh, ref), now)
        self.stats.skips += len(proposal.skips)
        self.skipped.rules.update(proposal.skips.rules)
        for key, skipped in proposal.skips.ports.items():
            self.skipped.ports[key] = skipped
            if skipped.wait.is_for_listener:
                self._recovered.pop(key, None)  # Do not wait for the reported mode, either.

    def resolve(self, mesh: Mesh, stored: StoredPlan, now: float) -> Plan | None:
        """Return a stored plan with this replica's objects and times.

        None: the plan needs a version of a DestinationRule that this replica has not read yet.
        """
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
            transition = self._resolve_rule(ref, stored_rule, rule_in(mesh, ref), now)
            if transition is None:
                return None
            rules[ref] = transition
        return Plan(stored.generation, ports, rules)

    def _resolve_rule(
        self, ref: Ref, stored: StoredRule, desired: DestinationRule | None, now: float
    ) -> RuleTransition | None:
        """Return the transition of a stored rule. None: the leader has read another version of the rule."""
        known = self.rules.get(ref)
        served: Staged[RuleVersion] = known.rule if known else Staged(desired, 0, (desired,), now)
        knows_versions = served.generation == stored.generation
        if rule_hash(served.current) != stored.content:
            knows_versions = stored.content == rule_hash(desired)
            if not knows_versions and stored.desired != rule_hash(desired):
                return None
            # If other replicas still serve a version that this one has never read, serve no rule.
            served = served.propose(desired if knows_versions else None, stored.generation, now)
        if not knows_versions:
            served = replace(served, generation=stored.generation).widen((UNKNOWN,), stored.generation, now)
        return RuleTransition(served.settle() if stored.is_settled else served, desired)

    def served(self) -> ServedDiff:
        """Return the served state of ports and rules where it differs from the desired state."""
        pending = {key: port for key in self.pending if (port := self.ports.get(key))}
        return ServedDiff(
            generation=self.plan.generation,
            modes={key: port.mode for key, port in pending.items() if port.mode is not port.desired.mode},
            mtls={
                key: port.send is Send.MTLS
                for key, port in pending.items()
                if port.send is not port.desired.send
            },
            rules={ref: rule.served for ref, rule in self.rules.items() if rule.is_pending},
        )

    # --- progress -------------------------------------------------------------------------------------------

    def forget_caught_up(self, mesh: Mesh, observed: Observed) -> None:
        """Forget skipped transitions whose proxies and replicas have caught up."""
        for ref, (rule, _) in tuple(self.skipped.rules.items()):
            if rule.is_pending:  # It was skipped while servers might still refuse its traffic.
                has_caught_up = not any(rule.affects(port.hosts) for port in self.plan.ports.values())
            else:
                has_caught_up = not rule_wait(rule, observed).lagging
            if has_caught_up:
                del self.skipped.rules[ref]
        for key, (transition, wait) in tuple(self.skipped.ports.items()):
            if wait.is_for_listener:
                # Infinity: no report counts the server. A disconnected server may still use the old listener.
                active = observed.server_generation(key[0])
                has_caught_up = wait.generation <= active < inf
            else:
                has_caught_up = not observed.lagging_clients(wait.generation, transition.hosts.__contains__)
            if has_caught_up or not has_running_sidecar(mesh, key):
                del self.skipped.ports[key]


def as_recovered(port: PortState, mode: Mode) -> PortState:
    """Return a port in the mode that its server's sidecar reported, with a send that this mode accepts."""
    accepted = ACCEPTED_SENDS[mode]
    send = port.desired.send if port.desired.send in accepted else min(accepted)
    return replace(port, mode=mode, send=send)


def _with_times(stage: Staged[T], known: Staged[T] | None, now: float) -> Staged[T]:
    """Return the known stage, which has times, if it equals the stored one."""
    return known if known == stage else replace(stage, since=now)
