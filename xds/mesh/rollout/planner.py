"""Make the next plan: advance each transition as far as proxies have ACKed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import Desired, has_running_sidecar, rule_in, services_at
from xds.mesh.rollout.observation import Ask, Observed
from xds.mesh.rollout.plan import UNKNOWN, Plan, RuleTransition, RuleVersion, Transition
from xds.mesh.rollout.rollout import MAX_PORTS, NextPlan, PortState, Rollout, as_recovered
from xds.mesh.rollout.rules import RuleSends, distinct, with_overlapping
from xds.mesh.rollout.stages import ACCEPTED_SENDS, BOTH, MODE_ACCEPTING, Staged
from xds.mesh.rollout.waits import (
    Skipped,
    Skips,
    Wait,
    WaitingFor,
    port_wait,
    rule_wait,
)

_CONNECTION_DELAY = 0.2
"""Seconds that a connection takes at most from the client's sidecar to the server's sidecar."""


class Planner:
    """Make one plan. A planner only reads the rollout: `Rollout.adopt` serves the plan.

    `propose` first considers what proxies have ACKed (`_confirm`, `_confirm_rules`). Then it serves the
    pending rules that servers accept (`_advance_rules`), and takes the next step of each port (`_advance`).
    """

    def __init__(self, rollout: Rollout, mesh: Mesh, observed: Observed, now: float) -> None:
        """Create a planner for one point in time.

        Args:
            rollout: the desired state, and the current plan.
            mesh: the mesh that the desired state was read from.
            observed: the reports about proxies.
            now: the time, in seconds of the event loop's clock.
        """
        self.rollout, self.mesh, self.observed, self.now = rollout, mesh, observed, now
        stored = observed.shared.stored if observed.shared else None
        self.generation = 1 + max(
            rollout.plan.generation,
            stored.generation if stored else 0,
            *(report.generation for report in observed),
        )
        """The generation of the plan, if it serves another state than the current one."""
        self.skips = Skips()
        """Transitions that continue without lagging proxies or replicas, because the timeout has passed."""
        self._is_full = False
        """Whether some ports do not fit into the plan."""

    def propose(self) -> NextPlan:
        """Return the plan that advances every transition as far as is safe."""
        current = self.rollout.plan
        ports = {key: self._confirm(key, transition) for key, transition in self._transitions()}
        rules = self._advance_rules(dict(self._confirm_rules()), ports)
        sends = RuleSends(self.mesh, rules)
        ports = {key: self._advance(key, transition, sends) for key, transition in ports.items()}
        stages = [
            *(stage for port in ports.values() for stage in (port.listener, port.clients)),
            *(transition.rule for transition in rules.values()),
        ]
        # A peer that went on alone follows only a plan with a later generation than its own.
        is_new = any(stage.generation == self.generation for stage in stages) or any(
            report.is_alone and report.generation >= current.generation
            for report in self.observed.peers.values()
        )
        unfinished = {key: port for key, port in ports.items() if not self._is_finished(key, port)}
        return NextPlan(
            Plan(self.generation if is_new else current.generation, unfinished, rules), self.skips
        )

    # --- transitions of ports -------------------------------------------------------------------------------

    def _transitions(self) -> Iterator[tuple[PortKey, Transition]]:
        """Yield the ports in transition, including those that start now."""
        rollout, observed, asks, count = self.rollout, self.observed, self._asks(), 0
        for key in {**rollout.plan.ports, **dict.fromkeys(rollout.pending), **asks, **rollout.refusals}:
            port, transition, asked = rollout.ports.get(key), rollout.plan.ports.get(key), asks.get(key, [])
            if port is None or not has_running_sidecar(self.mesh, key):
                continue
            if transition and transition.uid not in {"", port.desired.uid}:
                continue  # Another pod has taken the name.
            count += 1
            if transition is None and observed.peers and count > MAX_PORTS:
                self._is_full = True
                continue
            transition = self._transition(key, port, asked)
            modes = {ask.mode for ask in asked}
            if observed.server_generation(key[0]) < inf:
                modes |= rollout.refusals.get(key, frozenset())
            listener = transition.listener.widen(modes, self.generation, self.now)
            yield key, transition.with_stages(listener, transition.clients)

    def _asks(self) -> dict[PortKey, list[Ask]]:
        """Return the states that replicas report for each port: first those that servers reported."""
        asks: dict[PortKey, list[Ask]] = {}
        for report in self.observed:
            for key, ask in report.asks.items():
                asks.setdefault(key, []).append(ask)
        return {key: sorted(asked, key=lambda ask: not ask.is_from_server) for key, asked in asks.items()}

    def _transition(self, key: PortKey, port: PortState, asked: Sequence[Ask]) -> Transition:
        """Return the transition of a port: the plan's, or a new one.

        If a server reports a mode that the plan did not expect, the transition starts again from this mode.
        Otherwise, clients might be sent to the server with what it refuses.
        """
        transition, observed = self.rollout.plan.ports.get(key), self.observed
        reported = asked[0].mode if asked and asked[0].is_from_server else None
        if transition and (reported is None or reported in transition.listener.possible):
            return transition
        transition = self._start(key, as_recovered(port, reported) if reported else port)
        # Count clients as sending either if they may not have the state that this replica serves:
        # another replica may serve them an earlier one, or they reconnected with an earlier one.
        if observed.peers or observed.own.has_earlier_connections or asked:
            clients = transition.clients.widen(BOTH, self.generation, self.now)
            transition = replace(transition, clients=clients)
        return transition

    def _start(self, key: PortKey, port: PortState) -> Transition:
        """Return a new transition of a port."""
        transition = start_transition(self.mesh, key, port, self.now)
        # The last transition skipped proxies that still lag. Count what they may use, and wait again.
        if skipped := self.rollout.skipped.ports.get(key):
            old, generation = skipped.transition, skipped.wait.generation
            if skipped.wait.is_for_listener:
                listener = transition.listener.widen(old.listener.possible, generation, self.now)
                return replace(transition, listener=listener)
            clients = transition.clients.widen(old.clients.possible, generation, self.now)
            return replace(transition, clients=clients)
        return transition

    def _confirm(self, key: PortKey, transition: Transition) -> Transition:
        """Settle the stages whose generation proxies have ACKed, or whose wait has timed out."""
        listener, clients, now = transition.listener, transition.clients, self.now
        is_acked = self.observed.server_generation(key[0]) >= listener.generation
        listener = listener.confirm(is_acked=is_acked, now=now)
        is_rejected = bool(self.observed.listener_error(key[0]))
        if not listener.is_settled and not is_rejected and self._is_overdue(listener.since):
            self.skips.ports[key] = Skipped(transition, port_wait(key, transition, self.observed))
            listener = listener.settle()
        if clients.is_settled:
            return transition.with_stages(listener, clients)
        lagging = self.observed.lagging_clients(clients.generation, transition.hosts.__contains__)
        if clients.is_change:
            # Earlier plaintext connections may have sent no bytes yet. Mutual TLS starts with client bytes.
            delay = classification_delay(self.mesh.config) if clients.current is Send.MTLS else 0.0
            clients = clients.confirm(is_acked=not lagging, now=now, delay=delay)
        else:
            # Clients are served the same as before, so an ACK does not tell how old their connections are.
            is_acked = not lagging and not self.observed.has_earlier_connections
            clients = clients.confirm(is_acked=is_acked, now=now)
        if lagging and self._is_overdue(clients.since):
            waiting = replace(transition, listener=listener.settle())
            self.skips.ports[key] = Skipped(transition, port_wait(key, waiting, self.observed))
            clients = clients.settle()
        return transition.with_stages(listener, clients)

    def _advance(self, key: PortKey, transition: Transition, sends: RuleSends) -> Transition:
        """Return the transition, with the next step if that is safe."""
        desired, generation, now = self.rollout.ports[key].desired, self.generation, self.now
        allowed, listener, clients = ACCEPTED_SENDS[desired.mode], transition.listener, transition.clients
        if desired.immediate:
            listener = listener.propose(desired.mode, generation, now)
            return transition.with_stages(listener, clients.propose(desired.send, generation, now))
        # If even the desired mode refuses the desired traffic, waiting would not prevent failures.
        is_forbidden = desired.send not in allowed
        if is_forbidden or all(desired.send in ACCEPTED_SENDS[mode] for mode in listener.possible):
            clients = clients.propose(desired.send, generation, now)
        transition = transition.with_stages(listener, clients)
        arriving = set() if is_forbidden else set(clients.possible)
        for current_sends, desired_sends in sends.to(transition, desired.send):
            if desired_sends & allowed:
                arriving |= current_sends
        # Keep accepting what may still arrive. Do not start to accept what policies forbid: it fails already.
        needed = allowed | (arriving & ACCEPTED_SENDS[listener.current])
        mode = MODE_ACCEPTING[frozenset(needed)]
        return transition.with_stages(listener.propose(mode, generation, now), clients)

    def _is_finished(self, key: PortKey, transition: Transition) -> bool:
        """Return whether the desired state of a port is served and active."""
        desired: Desired = self.rollout.ports[key].desired
        current = (transition.listener.current, transition.clients.current)
        return transition.is_settled and current == (desired.mode, desired.send)

    # --- transitions of rules -------------------------------------------------------------------------------

    def _confirm_rules(self) -> Iterator[tuple[Ref, RuleTransition]]:
        """Yield the rules in transition. Settle those that clients ACKed, or whose wait has timed out."""
        for ref, transition in self._rules().items():
            wait = rule_wait(transition, self.observed)
            delay = classification_delay(self.mesh.config)
            rule = transition.rule.confirm(is_acked=not wait.lagging, now=self.now, delay=delay)
            is_overdue = wait.lagging and self._is_overdue(rule.since) and not transition.is_pending
            if not rule.is_settled and is_overdue:
                self.skips.rules[ref] = Skipped(transition, wait)
                rule = rule.settle()
            if transition.is_pending or not rule.is_settled:
                yield ref, replace(transition, rule=rule)

    def _rules(self) -> dict[Ref, RuleTransition]:
        """Return the rules in transition, including those that only peers report."""
        rules = dict(self.rollout.rules)
        reported = {ref for report in self.observed.peers.values() for ref in report.unplanned_rules}
        for ref in reported - rules.keys():
            rule = rule_in(self.mesh, ref)
            rules[ref] = RuleTransition(Staged(rule, 0, (rule, UNKNOWN), self.now), rule)
        for ref, transition in rules.items():
            if transition.is_unknown and transition.rule.generation == 0:
                # Clients no longer follow an unknown version once they have ACKed this plan.
                rules[ref] = replace(transition, rule=replace(transition.rule, generation=self.generation))
        return rules

    def _advance_rules(
        self, rules: Mapping[Ref, RuleTransition], ports: Mapping[PortKey, Transition]
    ) -> dict[Ref, RuleTransition]:
        """Serve the pending rules whose traffic all servers accept, or whose wait has timed out."""
        pending = {ref: rule for ref, rule in rules.items() if rule.is_pending}
        sends = RuleSends(self.mesh, rules)
        too_early = {ref for ref, rule in pending.items() if self._is_too_early(ref, rule, ports, sends)}
        overdue = {ref for ref, rule in pending.items() if self._is_overdue(rule.pending_since)}
        for ref in too_early & overdue:
            wait = Wait(WaitingFor.LISTENER, 0, pending[ref].pending_since, is_for_listener=True)
            self.skips.rules[ref] = Skipped(pending[ref], wait)
        waiting = with_overlapping(pending, too_early - overdue)
        return {
            ref: rule if ref in waiting or not rule.is_pending else self._with_desired(rule)
            for ref, rule in rules.items()
        }

    def _with_desired(self, transition: RuleTransition) -> RuleTransition:
        """Return the transition of a rule that serves the desired version from now on."""
        new = transition.rule.propose(transition.desired, self.generation, self.now)
        earlier = distinct(version for version in new.possible if version != new.current)
        return RuleTransition(replace(new, possible=(*earlier, new.current)), transition.desired)

    def _is_too_early(
        self, ref: Ref, rule: RuleTransition, ports: Mapping[PortKey, Transition], sends: RuleSends
    ) -> bool:
        """Return whether a server may still refuse traffic that a desired rule causes and policies allow."""
        if self._is_full:
            return True  # A port that does not fit into the plan may refuse it.
        for key, transition in ports.items():
            desired = self.rollout.ports[key].desired
            if rule.affects(transition.hosts) and not desired.immediate:
                caused = sends.under(ref, (rule.desired,), transition.hosts, {transition.clients.current})
                allowed = caused & ACCEPTED_SENDS[desired.mode]
                if not all(allowed <= ACCEPTED_SENDS[mode] for mode in transition.listener.possible):
                    return True
        return False

    def refused_rules(self) -> dict[Ref, RuleTransition]:
        """Return the DestinationRules whose traffic a server would refuse in the mode that it reported.

        Clients are then served without these rules until the servers accept their traffic.
        """
        rollout, refused = self.rollout, {}
        ports = {key: transition for key, transition in rollout.plan.ports.items() if key in rollout.ports}
        for key, asked in self._asks().items():
            if asked[0].is_from_server and (port := rollout.ports.get(key)):
                ports[key] = self._transition(key, port, asked)
        sends = RuleSends(self.mesh, dict(rollout.rules))
        for rule in self.mesh.rules():
            known = rollout.rules.get(rule.ref)
            if known and known.is_pending:
                continue
            # Clients may have any version of a rule that changed before the server reported its mode.
            possible = distinct((None, *(known.rule.possible if known else (rule,))))
            served: Staged[RuleVersion] = Staged(None, rollout.plan.generation, possible, self.now)
            pending = RuleTransition(served, rule, pending_since=self.now)
            if self._is_too_early(rule.ref, pending, ports, sends):
                refused[rule.ref] = pending
        return refused

    def _is_overdue(self, since: float) -> bool:
        """Return whether a wait has timed out."""
        timeout = self.rollout.timeout
        return timeout is None or self.now >= since + timeout


def start_transition(mesh: Mesh, key: PortKey, port: PortState, now: float) -> Transition:
    """Return a transition of a port from its served state."""
    return Transition(
        Staged(port.mode, 0, (port.mode,), now),
        Staged(port.send, 0, (port.send,), now),
        services_at(mesh, key),
        now,
        port.desired.uid,
    )


def classification_delay(config: MeshConfig) -> float:
    """Return the time, in seconds, until a listener has detected the protocol of a new connection.

    A listener waits for the client's first bytes, and selects a filter chain when they arrive or the wait
    times out. The client of a server-first protocol sends none. If the listener changes during this wait, it
    may refuse the connection.
    """
    return config.protocol_detection_timeout + _CONNECTION_DELAY
