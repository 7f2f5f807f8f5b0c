"""The rollout state machine: decides what to serve next, so that modes change without a failed request.

A transition has three phases:

- Expand: the server's listener accepts both plaintext and mutual TLS.
- Migrate: once that listener is active, clients change what they send.
- Contract: once no client sends the old kind of traffic, the listener stops accepting it.

Each port of each pod has its own transition. This module uses no clock and no streams: `Rollout.step`
receives the time and the observed state, and returns what to serve next. docs/explanation/rollouts.md
explains the order, and why it needs ACKs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh, ServiceKey
from xds.mesh.model.objects import Change, DestinationRule, MeshConfig, Mode, PortKey, Ref, Served
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import rules
from xds.mesh.rollout.desired import Desired, desired_ports, has_running_sidecar, services_at
from xds.mesh.rollout.peers import ACCEPTED_SENDS, UNKNOWN_POD, PeerView, PortReport
from xds.mesh.rollout.rules import RuleTransition
from xds.mesh.rollout.transition import ObservedState, Transition, WaitingFor, other_than, service_of

_MODE_ACCEPTING = {sends: mode for mode, sends in ACCEPTED_SENDS.items()}
"""The mode that accepts exactly these kinds of traffic."""

_ANY_SEND = ACCEPTED_SENDS[Mode.PERMISSIVE]
"""Both kinds of traffic."""

_CONNECTION_DELAY = 0.2
"""Time that a connection takes from a client's sidecar to the server's sidecar, in seconds."""

API_SERVER = "the API server"
"""Placeholder in `Transition.blocked_by` while this replica's report has not been read back."""


class Step(NamedTuple):
    """One step of all rollouts: what to serve from now on."""

    served: Served
    """The modes of listeners, and what clients are configured to send."""
    rules: Change
    """The DestinationRules that this step releases."""


class Rollout:
    """The transitions of all ports of all pods, and of all DestinationRules.

    `timeout` is the number of seconds to wait for a proxy. None: serve the desired state immediately.
    """

    def __init__(self, timeout: float | None = 30.0) -> None:
        self.timeout = timeout
        self.served = Served(generation=1)
        """The served state, as of the last step."""
        self.transitions: dict[PortKey, Transition] = {}
        """The transitions in progress, by port."""
        self.rule_transitions: dict[Ref, RuleTransition] = {}
        """The transitions of DestinationRules: held rules, and rules that clients have not ACKed."""
        self.skipped_ports: dict[PortKey, Transition] = {}
        """Copies of transitions that skipped a lagging proxy or peer, kept until it has caught up."""
        self.skipped_rules: dict[Ref, RuleTransition] = {}
        """Rule transitions that skipped a lagging client, kept until it has caught up."""
        self.skip_count = 0
        """Number of times a lagging proxy or peer was skipped."""
        self.plaintext_disabled = 0
        """Number of times a port stopped accepting plaintext."""
        self.on_finished: Callable[[float], object] = float
        """Called with the duration of each finished transition, in seconds."""
        self._desired: dict[Ref, dict[int, Desired]] = {}
        self._service_ports: dict[ServiceKey, frozenset[PortKey]] = {}
        """The ports of pods that each service routes to."""
        self._lagging_clients: dict[int, Mapping[str, str]] = {}
        """Cache for one step: by generation, the clients on which it is not active."""
        self._new_ports: set[PortKey] = set()
        """Ports that appeared since the last step. They may be in transition on a peer."""
        self._started: list[Transition] = []
        """Transitions that started since the last step."""
        self._peer_transitions: frozenset[PortKey] = frozenset()
        """Ports in transition on a peer, which waits for this replica's report about them."""

    # --- desired state --------------------------------------------------------------------------------------

    def update_desired(self, mesh: Mesh, removed: Iterable[Ref], now: float) -> None:
        """Read the desired state from a mesh, and start transitions where it differs from the previous one.

        `removed` contains the objects deleted since the last call.
        """
        for ref in removed:
            self._desired.pop(ref, None)
        service_keys: Collection[ServiceKey] | None = mesh.touched
        if service_keys is None:
            service_keys = self._service_ports.keys() | {
                (service.namespace, service.name) for service in mesh.services()
            }
        removed_ports: set[PortKey] = set()
        for service_key in sorted(service_keys):
            service = mesh.service(*service_key)
            ports = dict(desired_ports(mesh, service)) if service else {}
            removed_ports |= self._service_ports.pop(service_key, frozenset()) - ports.keys()
            if ports:
                self._service_ports[service_key] = frozenset(ports)
            for key, desired in ports.items():
                self._set_desired(mesh, key, desired, now)
        for key in removed_ports:
            # A port without a Service needs no transition. If a Service exposes it again, it counts as new.
            if key not in self.transitions and not any(
                key in ports for ports in self._service_ports.values()
            ):
                self._desired.get(key[0], {}).pop(key[1], None)

    def recover(self, mesh: Mesh, pod: Ref, modes: Mapping[int, Mode], now: float) -> None:
        """Continue the transitions of a server that reconnected. `modes` were active, by port."""
        for port, mode in modes.items():
            desired = self._desired.get(pod, {}).get(port)
            key = (pod, port)
            if key in self.transitions:
                # Another replica may have served this mode.
                self.transitions[key].possible_modes.add(mode)
                continue
            if desired is None or desired.mode is mode or self.timeout is None:
                continue
            send = desired.send if desired.send in ACCEPTED_SENDS[mode] else other_than(desired.send)
            transition = self._start(mesh, key, desired._replace(mode=mode, send=send), now)
            transition.desired_mode, transition.desired_send = desired.mode, desired.send
            # What clients send is unknown.
            transition.possible_sends, transition.send_generation = set(_ANY_SEND), self.served.generation

    def assume_mixed_clients(self, now: float) -> None:
        """Assume that clients may send either kind of traffic.

        A peer may have served a different configuration to a client that connects to this replica.
        """
        for transition in self.transitions.values():
            if transition.possible_sends == {transition.served_send}:
                transition.send_since = now
            transition.possible_sends = set(_ANY_SEND)
            transition.acked_since, transition.is_settled = None, False

    def change_rule(self, mesh: Mesh, ref: Ref, new: DestinationRule | None, now: float) -> None:
        """Hold a changed DestinationRule until `step` releases it. If `new` is None, the rule was deleted."""
        previous = self.rule_transitions.get(ref) or self.skipped_rules.pop(ref, None)
        self.rule_transitions[ref] = rules.begin_transition(mesh, previous, ref, new, now)

    def withdraw_rules(self, mesh: Mesh, now: float) -> list[Ref]:
        """Hold the DestinationRules whose traffic servers do not accept yet. Return those in the mesh."""
        for rule in mesh.rules():
            transition = replace(rules.begin_transition(mesh, None, rule.ref, rule, now), old=None)
            if rule.ref not in self.rule_transitions and rules.is_too_early(
                transition, self.transitions, PeerView()
            ):
                self.rule_transitions[rule.ref] = transition
        held = [
            ref
            for ref, rule in self.rule_transitions.items()
            if rule.generation is None and not rule.old and rule.new
        ]
        return [ref for ref in held if mesh.get(ref)]

    def _set_desired(self, mesh: Mesh, key: PortKey, desired: Desired, now: float) -> None:
        """Record the desired state of a port, and start a transition if it changed."""
        pod, port = key
        pod_ports = self._desired.setdefault(pod, {})
        previous = pod_ports.get(port)
        pod_ports[port] = desired
        if previous is None or previous.uid != desired.uid or self.timeout is None:
            # No client uses a new port yet: serve its desired state immediately.
            self.transitions.pop(key, None)
            if self.timeout is not None:
                self._new_ports.add(key)
                hosts = services_at(mesh, key)
                if any(rule.affects(hosts) for rule in self.rule_transitions.values()):
                    # Clients may use the old or the new version of the rule: accept both kinds of traffic.
                    transition = self._start(mesh, key, desired, now)
                    transition.served_mode = transition.next_mode = Mode.PERMISSIVE
                    transition.possible_modes = {transition.served_mode}
            return
        if key in self.transitions:
            transition = self.transitions[key]
            transition.hosts = services_at(mesh, key)
        elif (previous.mode, previous.send) != (desired.mode, desired.send):
            transition = self._start(mesh, key, previous, now)
        else:
            return
        transition.desired_mode, transition.desired_send = desired.mode, desired.send
        transition.immediate = desired.immediate

    def _start(self, mesh: Mesh, key: PortKey, current: Desired, now: float) -> Transition:
        """Start a transition whose active and desired state are both `current`; the caller changes either."""
        transition = self.transitions[key] = Transition(
            desired_mode=current.mode,
            desired_send=current.send,
            immediate=current.immediate,
            served_mode=current.mode,
            mode_generation=0,
            mode_since=now,
            possible_modes={current.mode},
            served_send=current.send,
            send_generation=0,
            send_since=now,
            possible_sends={current.send},
            next_mode=current.mode,
            next_send=current.send,
            hosts=services_at(mesh, key),
            started_at=now,
        )
        self._started.append(transition)
        # Wait again for a proxy that the last transition skipped, unless it has caught up.
        skipped = self.skipped_ports.pop(key, None)
        if skipped and skipped.waiting_for is WaitingFor.LISTENER:
            transition.possible_modes |= skipped.possible_modes
            transition.mode_generation = skipped.mode_generation
        elif skipped and skipped.waiting_for is WaitingFor.CLIENTS:
            transition.possible_sends |= skipped.possible_sends
            transition.send_generation = skipped.send_generation
        return transition

    # --- peers ----------------------------------------------------------------------------------------------

    def port_reports(self) -> dict[PortKey, PortReport]:
        """Return the reports about all ports that are in transition on any replica."""
        reports = dict.fromkeys(self._peer_transitions, UNKNOWN_POD)
        return reports | {key: self._port_report(transition) for key, transition in self.transitions.items()}

    def _port_report(self, transition: Transition) -> PortReport:
        accepted = ACCEPTED_SENDS[transition.desired_mode]
        is_send_accepted = transition.desired_send in accepted
        sends = {transition.next_send, *transition.possible_sends} if is_send_accepted else set()
        for current_sends, new_sends in rules.sends_under_rules(self.rule_transitions, transition):
            if new_sends & accepted:
                sends |= current_sends
        modes = frozenset({transition.next_mode, *transition.possible_modes})
        return PortReport(in_transition=not transition.is_settled, modes=modes, sends=frozenset(sends))

    def _join_peer_transitions(self, mesh: Mesh, peers: PeerView, now: float) -> None:
        """Start transitions for ports that are in transition on a peer.

        The peer waits until this replica reports about them.
        """
        self._peer_transitions = peers.in_transition
        for key in peers.in_transition - self.transitions.keys():
            pod, port = key
            desired = self._desired.get(pod, {}).get(port)
            if desired is None or not has_running_sidecar(mesh, key):
                continue
            transition = self._start(mesh, key, desired, now)
            if key not in self._new_ports:
                continue
            # The port is new only on this replica. Its listener must accept whatever the peers' clients may
            # send, and this replica's clients must send what the listener accepts on every peer.
            transition.served_mode = transition.next_mode = Mode.PERMISSIVE
            transition.possible_modes = {transition.served_mode}
            peer_modes, other_send = peers.possible_modes(key), other_than(desired.send)
            is_desired_accepted = all(desired.send in ACCEPTED_SENDS[mode] for mode in peer_modes)
            if not (is_desired_accepted and not peers.without_report(key)) and all(
                other_send in ACCEPTED_SENDS[mode] for mode in peer_modes
            ):
                transition.served_send = transition.next_send = other_send
                transition.possible_sends = {transition.served_send}
        self._new_ports.clear()

    # --- what to serve --------------------------------------------------------------------------------------

    def step(self, mesh: Mesh, observed: ObservedState, now: float) -> Step | None:
        """Advance each transition as far as is safe. Return None if the served state does not change."""
        self._lagging_clients.clear()
        generation = self.served.generation + 1
        for key in [key for key in self.transitions if not has_running_sidecar(mesh, key)]:
            del self.transitions[key]
        self._join_peer_transitions(mesh, observed.peers, now)
        if observed.reconnected:
            for transition in self._started:
                transition.possible_sends |= _ANY_SEND
        self._started.clear()
        self._forget_caught_up(mesh, observed)
        delay = classification_delay(mesh.config)
        self._confirm_rules(observed, now, delay)
        for key, transition in self.transitions.items():
            self._confirm(key, transition, observed, now, delay)
        released = self._release_rules(observed, generation, now)
        has_moved = False
        for key, transition in tuple(self.transitions.items()):
            has_moved |= self._advance(key, transition, observed, generation, now)
            if self._is_finished(key, transition, observed, now):
                del self.transitions[key]
                self.on_finished(now - transition.started_at)
            else:
                self._update_wait(key, transition, observed)
        modes = {
            key: transition.served_mode
            for key, transition in self.transitions.items()
            if transition.served_mode is not transition.desired_mode
        }
        mtls = {
            key: transition.served_send is Send.MTLS
            for key, transition in self.transitions.items()
            if transition.served_send is not transition.desired_send
        }
        has_changed = (modes, mtls) != (self.served.modes, self.served.mtls)
        if not (has_moved or released or has_changed):
            return None
        self.served = Served(generation=generation, modes=modes, mtls=mtls)
        return Step(
            self.served,
            Change(
                applied=tuple(rule.new for rule in released.values() if rule.new),
                removed=tuple(ref for ref, rule in released.items() if not rule.new),
            ),
        )

    def _is_overdue(self, since: float, now: float) -> bool:
        return self.timeout is None or now >= since + self.timeout

    def _confirm(
        self, key: PortKey, transition: Transition, observed: ObservedState, now: float, classify_delay: float
    ) -> None:
        """Narrow down what may be active, from what proxies have ACKed. Skip proxies after the timeout.

        `classify_delay` is the time, in seconds, that a listener may take to detect a connection's protocol.
        """
        pod, _ = key
        active_generation = observed.servers.get(pod)
        if active_generation is None or active_generation >= transition.mode_generation:
            transition.possible_modes = {transition.served_mode}
        elif (
            transition.possible_modes != {transition.served_mode}
            and not observed.rejected_listeners.get(pod)
            and self._is_overdue(transition.mode_since, now)
        ):
            self._skip(key, transition, WaitingFor.LISTENER, {})
            transition.possible_modes = {transition.served_mode}
        if transition.possible_sends == {transition.served_send}:
            return
        lagging = self._clients_lagging_on_port(transition, observed)
        # Only plaintext connections can be pending: with TLS, the client sends first.
        delay = 0.0 if transition.served_send is Send.PLAINTEXT else classify_delay
        if _is_acked(transition, lagging, now, delay):
            transition.possible_sends = {transition.served_send}
        elif lagging and self._is_overdue(transition.send_since, now):
            self._skip(key, transition, WaitingFor.CLIENTS, lagging)
            transition.possible_sends = {transition.served_send}

    def _is_finished(self, key: PortKey, transition: Transition, observed: ObservedState, now: float) -> bool:
        """Return whether the desired state is settled on all replicas, and no peer needs a report."""
        if not transition.is_done:
            transition.done_since, transition.is_settled = None, False
            return False
        if transition.done_since is None:
            transition.done_since = now
        if transition.immediate or self._is_overdue(transition.done_since, now):
            transition.is_settled = True
        elif not transition.is_settled:
            # Once all replicas are settled at the same time, each may stop reporting the port.
            transition.is_settled = not observed.peers.not_settled(
                key, transition.served_mode, transition.served_send
            )
        return transition.is_settled and key not in observed.peers.in_transition

    def _skip(
        self, key: PortKey, transition: Transition, waiting_for: WaitingFor, lagging: Mapping[str, str]
    ) -> None:
        """Record that a transition skips lagging proxies or peers; `lagging` maps names to errors."""
        self.skipped_ports[key] = replace(
            transition,
            possible_modes=set(transition.possible_modes),
            possible_sends=set(transition.possible_sends),
            waiting_for=waiting_for,
            lagging=tuple(lagging),
            rejection=next(filter(None, lagging.values()), ""),
        )
        self.skip_count += 1

    def _forget_caught_up(self, mesh: Mesh, observed: ObservedState) -> None:
        """Forget skipped proxies and peers that have caught up."""
        for key, skipped in tuple(self.skipped_ports.items()):
            # A disconnected server has not caught up: it may still use the old listener.
            active_generation = observed.servers.get(key[0], -1)
            match skipped.waiting_for:
                case WaitingFor.LISTENER:
                    has_caught_up = active_generation >= skipped.mode_generation
                case WaitingFor.REPLICAS:
                    has_caught_up = key not in self.transitions
                case _:
                    has_caught_up = not self._clients_lagging_on_port(skipped, observed)
            if has_caught_up or not has_running_sidecar(mesh, key):
                del self.skipped_ports[key]
        for ref, rule in tuple(self.skipped_rules.items()):
            if not self._clients_lagging_on_rule(rule, observed):
                del self.skipped_rules[ref]

    def _advance(
        self, key: PortKey, transition: Transition, observed: ObservedState, generation: int, now: float
    ) -> bool:
        """Decide what to serve for a port. Return whether it changed."""
        accepted = ACCEPTED_SENDS[transition.desired_mode]
        previous = (transition.served_mode, transition.served_send)
        if transition.immediate:
            self._serve_mode(transition, transition.desired_mode, generation, now)
            self._serve_send(transition, transition.desired_send, generation, now)
            return previous != (transition.served_mode, transition.served_send)
        is_send_accepted, peers = transition.desired_send in accepted, observed.peers
        is_overdue = transition.blocked_since is not None and self._is_overdue(transition.blocked_since, now)
        # Migrate: switch clients once all modes that may be active accept the desired traffic.
        send_blockers: list[str] | None = None
        transition.next_send = transition.served_send
        if transition.served_send is not transition.desired_send and (
            not is_send_accepted
            or all(transition.desired_send in ACCEPTED_SENDS[mode] for mode in transition.possible_modes)
        ):
            transition.next_send = transition.desired_send
            if is_send_accepted:
                peer_names = peers.may_refuse(key, transition.desired_send)
                if peer_names or not peers.knows_send(key, transition.desired_send):
                    send_blockers = peer_names
            if send_blockers is None or is_overdue:
                self._serve_send(transition, transition.desired_send, generation, now)
        # Expand or contract: accept the desired mode's traffic, and what clients may still send until they
        # have switched.
        required = set(accepted)
        if is_send_accepted:
            required |= transition.possible_sends & ACCEPTED_SENDS[transition.served_mode]
        for current_sends, new_sends in rules.sends_under_rules(self.rule_transitions, transition):
            if new_sends & accepted:
                required |= current_sends & ACCEPTED_SENDS[transition.served_mode]
        transition.next_mode = _MODE_ACCEPTING[frozenset(required)]
        refused = ACCEPTED_SENDS[transition.served_mode] - required
        mode_blockers: list[str] | None = None
        if refused:
            peer_names = peers.may_send(key, refused)
            if peer_names or not peers.knows_mode(key, transition.next_mode):
                mode_blockers = peer_names
        if mode_blockers is None or is_overdue:
            self._serve_mode(transition, transition.next_mode, generation, now)
        is_blocked = send_blockers is not None or mode_blockers is not None
        blockers = [*(send_blockers or ()), *(mode_blockers or ())] if is_blocked else None
        self._update_blockers(key, transition, blockers, now, is_overdue=is_overdue)
        return previous != (transition.served_mode, transition.served_send)

    def _update_blockers(
        self,
        key: PortKey,
        transition: Transition,
        blockers: list[str] | None,
        now: float,
        *,
        is_overdue: bool,
    ) -> None:
        """Record which peers block a transition. Skip them after the timeout.

        `blockers` is None if nothing blocks the transition. It is empty if no peer does, but this replica's
        report has not been read back.
        """
        if blockers is not None and is_overdue:
            self._skip(key, transition, WaitingFor.REPLICAS, dict.fromkeys(transition.blocked_by, ""))
        if blockers is None or is_overdue:
            transition.blocked_since, transition.blocked_by = None, ()
            return
        transition.blocked_by = tuple(sorted(set(blockers))) or (API_SERVER,)
        if transition.blocked_since is None:
            transition.blocked_since = now

    def _serve_mode(self, transition: Transition, mode: Mode, generation: int, now: float) -> None:
        if transition.served_mode is not mode:
            if mode is Mode.STRICT:
                self.plaintext_disabled += 1
            transition.served_mode, transition.mode_generation, transition.mode_since = mode, generation, now
            transition.possible_modes.add(mode)

    def _serve_send(self, transition: Transition, send: Send, generation: int, now: float) -> None:
        if transition.served_send is not send:
            transition.served_send, transition.send_generation, transition.send_since = send, generation, now
            transition.possible_sends.add(send)
            transition.acked_since = None

    def _update_wait(self, key: PortKey, transition: Transition, observed: ObservedState) -> None:
        """Record what a transition waits for."""
        pod, _ = key
        waits_for_clients = transition.possible_sends != {transition.served_send} or any(
            rules.sends_under_rules(self.rule_transitions, transition)
        )
        if transition.possible_modes != {transition.served_mode}:
            transition.waiting_for = WaitingFor.LISTENER
            transition.lagging, transition.rejection = (), observed.rejected_listeners.get(pod, "")
        elif waits_for_clients:
            lagging = self._clients_lagging_on_port(transition, observed)
            transition.waiting_for, transition.lagging = WaitingFor.CLIENTS, tuple(lagging)
            transition.rejection = next(filter(None, lagging.values()), "")
        else:
            transition.waiting_for = WaitingFor.REPLICAS if transition.blocked_by else None
            transition.lagging, transition.rejection = transition.blocked_by, ""

    def _clients_lagging_on_port(self, transition: Transition, observed: ObservedState) -> Mapping[str, str]:
        return self._clients_lagging(transition.send_generation, observed, transition.hosts.__contains__)

    def _clients_lagging_on_rule(self, rule: RuleTransition, observed: ObservedState) -> Mapping[str, str]:
        return self._clients_lagging(rule.generation or 0, observed, lambda service: rule.affects((service,)))

    def _clients_lagging(
        self, generation: int, observed: ObservedState, is_relevant: Callable[[tuple[str, int]], bool]
    ) -> Mapping[str, str]:
        """Return the clients on which a generation is not active, or that rejected a relevant cluster.

        The values are the errors of rejections; empty for other clients.
        """
        if generation not in self._lagging_clients:
            names = sorted(name for name, active in observed.clients.items() if active < generation)
            self._lagging_clients[generation] = dict.fromkeys(names, "")
        if not observed.rejected_clusters:
            return self._lagging_clients[generation]
        lagging = dict(self._lagging_clients[generation])
        for name, clusters in observed.rejected_clusters.items():
            for cluster, error in clusters.items():
                if is_relevant(service_of(cluster)):
                    lagging[name] = error
        return dict(sorted(lagging.items()))

    def _confirm_rules(self, observed: ObservedState, now: float, classify_delay: float) -> None:
        """End the transitions of DestinationRules that all clients have ACKed, or skip lagging clients."""
        for ref, rule in tuple(self.rule_transitions.items()):
            if rule.generation is None:
                continue
            lagging = self._clients_lagging_on_rule(rule, observed)
            rule.lagging, rule.rejection = tuple(lagging), next(filter(None, lagging.values()), "")
            if _is_acked(rule, lagging, now, classify_delay):
                del self.rule_transitions[ref]
            elif lagging and (rule.lagging_since is None or self._is_overdue(rule.lagging_since, now)):
                rule.lagging_since = None
                self.skip_count += 1
                self.skipped_rules[ref] = self.rule_transitions.pop(ref)

    def _release_rules(
        self, observed: ObservedState, generation: int, now: float
    ) -> dict[Ref, RuleTransition]:
        """Release the held rules whose traffic all servers accept, or that have waited for the timeout."""
        held = {ref: rule for ref, rule in self.rule_transitions.items() if rule.generation is None}
        too_early = {
            ref for ref, rule in held.items() if rules.is_too_early(rule, self.transitions, observed.peers)
        }
        overdue = {ref for ref, rule in held.items() if self._is_overdue(rule.since, now)}
        self.skip_count += len(too_early & overdue)
        waiting = rules.with_overlapping(held, too_early - overdue)
        released = {ref: rule for ref, rule in held.items() if ref not in waiting}
        for rule in released.values():
            rule.generation, rule.since = generation, now
            rule.lagging_since = now if rule.lagging_since is None else rule.lagging_since
        return released


def classification_delay(config: MeshConfig) -> float:
    """Return the maximum time until a listener has detected the protocol of a new connection, in seconds.

    A listener waits for the client's first bytes, and then selects a filter chain. If the protocol lets the
    server speak first, the whole wait passes. Until then, the connection is pending, and is refused if the
    listener drops its mode in the meantime.
    """
    return config.protocol_detection_timeout + _CONNECTION_DELAY


def _is_acked(
    transition: Transition | RuleTransition, lagging: Collection[str], now: float, delay: float
) -> bool:
    """Return whether all clients had ACKed at least `delay` seconds ago.

    After this delay, servers have classified the connections that clients opened before they ACKed.
    """
    if lagging:
        transition.acked_since = None
    elif transition.acked_since is None:
        transition.acked_since = now
    return transition.acked_since is not None and now >= transition.acked_since + delay
