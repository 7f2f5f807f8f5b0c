"""Report the progress of proxies to the rollout, and apply its steps to the mesh.

The driver has no state about resources: the session knows the newest generation that its proxy has ACKed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, TypeAlias

from xds.mesh.envoy.inbound import decode_modes
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, DestinationRule, Mode, PortKey, Ref
from xds.mesh.rollout.machine import Rollout, classification_delay
from xds.mesh.rollout.peers import PeerView, PortReport
from xds.mesh.rollout.replica_sync import ReplicaSync, RulesVersion
from xds.mesh.rollout.rules import installed_rules, without_effect
from xds.mesh.rollout.transition import ObservedState
from xds.protocol.session import Session
from xds.server import Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

PodName: TypeAlias = tuple[str, str]
"""Namespace and name of a pod."""

WORKER_DELAY = 0.2
"""Seconds from an ACK, which Envoy's main thread sends, until all worker threads use the configuration."""
RECONNECT_GRACE = 10.0
"""Grace period for a client that reconnects, in seconds. Envoy reconnects within five."""
RECOVERY_PERIOD = 6.0
"""Time after the start to wait for proxies of the previous control plane to reconnect, in seconds."""
SUBSCRIBE_TIMEOUT = 1.0
"""Time to wait for a reconnected proxy to subscribe to listeners, which reveals those it has, in seconds."""
JOIN_TIMEOUT = 10.0
"""Seconds after which the control plane starts without its peers. Each step then waits for its timeout."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks of the progress of proxies, during a transition."""
SKIPPED_CHECK_INTERVAL = 1.0
"""Seconds between two checks while only skipped proxies are left."""
MAX_STEPS = 8
"""Maximum number of steps at a time. Several steps are possible only if none has to wait for a proxy."""


class _ActiveGeneration:
    """The newest generation that all worker threads of a proxy use."""

    def __init__(self) -> None:
        self._active = -1
        self._pending: deque[tuple[int, float]] = deque()
        """ACKed generations that are not active yet, with the time when each becomes active."""

    def update(self, acked: int, now: float) -> int:
        """Record the newest ACKed generation, and return the newest active one."""
        if acked > (self._pending[-1][0] if self._pending else self._active):
            self._pending.append((acked, now + WORKER_DELAY))
        while self._pending and self._pending[0][1] <= now:
            self._active, _ = self._pending.popleft()
        return self._active


class _StreamProgress:
    """The progress of one stream, as a client and as a server."""

    def __init__(self, now: float) -> None:
        self.connected_at = now
        self.caught_up_at: float | None = None
        """For a client that reconnected: time when it first ACKed a complete configuration on this stream."""
        self.client = _ActiveGeneration()
        self.server = _ActiveGeneration()


class _Progress(NamedTuple):
    client: int
    """The active generation of clusters and endpoints."""
    server: int
    """The active generation of inbound listeners."""


@dataclass(slots=True)
class _DisconnectedProxy:
    """A proxy that has lost its stream. It keeps using its configuration."""

    progress: _Progress
    client_until: float
    """Time until which it counts as a client."""
    is_server: bool
    """Whether its inbound listeners are active. The rollout waits for a server until it reconnects or its pod
    is deleted."""
    caught_up_at: float
    """Time when it stopped using a configuration from an earlier stream.

    Infinity if it still used one; minus infinity if it never had one.
    """
    uid: str | None = None
    """UID of its pod; None until it is looked up."""


class RolloutDriver:
    """Take a mesh from one step of its rollouts to the next.

    `first_mesh`, `apply` and `advance` may run in a thread. No other method may.
    """

    def __init__(self, streams: Mapping[PodName, set[Subscriber]], timeout: float | None) -> None:
        """Create a driver without transitions.

        Args:
            streams: the streams of each connected pod; the caller updates the mapping.
            timeout: seconds to wait for a proxy. None: serve the desired state at once.
        """
        self.rollout = Rollout(timeout)
        self.sync: ReplicaSync | None = None
        """The exchange of reports with peers. None: there are no peers."""
        self._is_replicated = False
        """Whether there may be other replicas."""
        self._join_deadline = -inf
        self._rules_version = RulesVersion()
        self._placeholders: set[Ref] = set()
        """Default DestinationRules that are held back: the mesh has their previous version as a
        placeholder."""
        self._port_reports: Mapping[PortKey, PortReport] = {}
        self._must_check = False
        self._must_assume_mixed = False
        """Whether a newly connected client may still use configuration from a peer."""
        self._subscribers = streams
        self._streams: dict[Subscriber, _StreamProgress] = {}
        self._disconnected: dict[PodName, _DisconnectedProxy] = {}
        self._reported: set[PodName] = set()
        """Pods that have reported their listeners by subscribing to listeners."""
        self._recovered_modes: dict[Ref, Mapping[int, Mode]] = {}
        """Modes that were active when a server reconnected, until the next step reads them."""
        self._recovery_ends = inf
        self._may_reconnect: set[PodName] = set()
        """Pods whose sidecars may reconnect soon."""
        self._has_reconnects = False
        """Whether any proxy has connected with a configuration from an earlier stream."""
        self.checked_at = -inf
        """When the progress of proxies was last checked, in seconds of the event loop's clock."""

    # --- progress of proxies --------------------------------------------------------------------------------

    def connected(self, subscriber: Subscriber, now: float) -> None:
        """Record a new stream."""
        self._streams[subscriber] = _StreamProgress(now)

    def disconnected(self, subscriber: Subscriber, key: PodName, now: float) -> None:
        """Record that a stream has ended. Its proxy keeps its configuration, and reconnects."""
        session, is_last = subscriber.session, not self._subscribers.get(key)
        counts = self.rollout.timeout is not None and is_last
        if counts and session and (subscriber.snapshot or _has_earlier_configuration(session)):
            # With several replicas, the proxy most probably reconnects to another one.
            is_server = _listener_generation(session) >= 0 and not self.sync
            progress = self._progress(subscriber, now)
            self._disconnected[key] = _DisconnectedProxy(
                progress, now + RECONNECT_GRACE, is_server, self._caught_up_at(subscriber)
            )
            if self.sync:
                self._reported.discard(key)  # It may connect to another replica before it returns.
        if is_last and Ref("Pod", *key) in self._recovered_modes:
            # It reports them again when it reconnects. A step in a thread may have read them by now.
            self._recovered_modes.pop(Ref("Pod", *key), None)
            self._reported.discard(key)
        del self._streams[subscriber]

    def subscribed(self, subscriber: Subscriber, key: PodName, type_url: str) -> None:
        """Record a subscription to a type.

        With its first subscription to listeners, a proxy reports those that it already has.
        """
        session = subscriber.session
        if session and type_url == CLUSTER and key not in self._reported:
            had_clusters = bool(session.initial_versions(CLUSTER))
            self._has_reconnects |= had_clusters
            self._must_assume_mixed |= had_clusters and self.sync is not None
            if not had_clusters:
                self._may_reconnect.discard(key)  # It is new, so it has no earlier configuration.
        if type_url != LISTENER or not session or key in self._reported or self.rollout.timeout is None:
            return
        self._reported.add(key)
        self._may_reconnect.discard(key)
        if modes := decode_modes(session.initial_versions(LISTENER)):
            self.recover(Ref("Pod", *key), modes)

    def received(self, subscriber: Subscriber, now: float) -> None:
        """Record a request, which may be the ACK that completes a client's configuration."""
        session, stream = subscriber.session, self._streams[subscriber]
        if session is None or stream.caught_up_at is not None or not _has_earlier_configuration(session):
            return
        if _client_generation(session) >= 0:
            stream.caught_up_at = now

    def recover(self, pod: Ref, modes: Mapping[int, Mode]) -> None:
        """Record the modes, by port, that a server already had active when it connected."""
        self._recovered_modes[pod] = modes

    def should_hold(self, subscriber: Subscriber, key: PodName, now: float) -> bool:
        """Return whether a proxy has to wait until reconnecting proxies have reported their progress.

        A reconnected proxy can wait: it has a configuration. A new proxy waits only if other proxies are
        known to be reconnecting.
        """
        session = subscriber.session
        if session is None or self.rollout.timeout is None or subscriber.snapshot is not None:
            return False
        if not _has_earlier_configuration(session):
            return self._has_reconnects and self.is_recovering(now)
        if key not in self._reported and now < self._streams[subscriber].connected_at + SUBSCRIBE_TIMEOUT:
            return True
        return Ref("Pod", *key) in self._recovered_modes or self.is_recovering(now)

    def start_recovery(self, mesh: Mesh, now: float) -> None:
        """Start the recovery period: the first mesh is complete, and proxies are about to be served."""
        self._recovery_ends = now + RECOVERY_PERIOD
        self._may_reconnect = {
            (pod.namespace, pod.name) for pod in mesh.pods() if pod.has_sidecar and not pod.ended
        }

    def is_recovering(self, now: float) -> bool:
        """Return whether proxies of an earlier control plane may be reconnecting."""
        return bool(self._may_reconnect or self._recovered_modes) and now < self._recovery_ends < inf

    @property
    def is_active(self) -> bool:
        """Whether a transition is in progress or about to start."""
        return bool(
            self.rollout.transitions
            or self.rollout.rule_transitions
            or self._recovered_modes
            or self._must_assume_mixed
        )

    def next_check(self, now: float) -> float:
        """Return when to check the progress of proxies again; infinity to wait for an event."""
        if self._must_check:
            return min(now, self.checked_at + CHECK_INTERVAL)
        if self.is_active:
            return max(self.checked_at + CHECK_INTERVAL, now)
        return max(self.checked_at + SKIPPED_CHECK_INTERVAL, now) if self._has_skipped else inf

    @property
    def _has_skipped(self) -> bool:
        return bool(self.rollout.skipped_ports or self.rollout.skipped_rules)

    def observe(self, mesh: Mesh, now: float) -> ObservedState:
        """Return the progress of the proxies whose pods are in the mesh."""
        self.checked_at, self._must_check = now, False
        peers = self.sync.peer_view(now) if self.sync else PeerView()
        if not (self.is_active or self._has_skipped):
            # Without transitions it matters only which proxies there are.
            sessions = [*self._sessions(mesh, now)]
            return ObservedState(
                servers={Ref("Pod", *key): -1 for key, _ in sessions},
                clients={_name(key): -1 for key, _ in sessions if self._is_client(key, now)},
                reconnected=frozenset(
                    _name(key)
                    for key, subscriber in sessions
                    if self._may_use_earlier_configuration(mesh, key, subscriber, now)
                ),
                peers=peers,
            )
        pods = {pod for pod, _ in (*self.rollout.transitions, *self.rollout.skipped_ports)}
        servers: dict[Ref, int] = {}
        clients: dict[str, int] = {}
        rejected_listeners: dict[Ref, str] = {}
        rejected_clusters: dict[str, dict[str, str]] = {}
        reconnected: set[str] = set()
        for key, subscriber in self._sessions(mesh, now):
            session = subscriber.session if subscriber else None
            progress = self._progress(subscriber, now) if subscriber else self._disconnected[key].progress
            name, ref = _name(key), Ref("Pod", *key)
            if self._may_use_earlier_configuration(mesh, key, subscriber, now):
                reconnected.add(name)
            if self._is_client(key, now):
                clients[name] = min(progress.client, clients.get(name, progress.client))
            # Include all servers: the pending change may start a transition on any of them.
            if subscriber is None or self._may_be_server(subscriber, now):
                servers[ref] = min(progress.server, servers.get(ref, progress.server))
            if session is None:
                continue
            if ref in pods and (error := _listener_error(session, _inbound_listeners(session))):
                rejected_listeners[ref] = error
            for type_url in (CLUSTER, ENDPOINT):
                for cluster, rejection in session.rejected(type_url).items():
                    rejected_clusters.setdefault(name, {})[cluster] = rejection.message
        return ObservedState(
            servers=servers,
            rejected_listeners=rejected_listeners,
            clients=clients,
            reconnected=frozenset(reconnected),
            rejected_clusters=rejected_clusters,
            peers=peers,
        )

    def _sessions(self, mesh: Mesh, now: float) -> Iterator[tuple[PodName, Subscriber | None]]:
        """Yield the streams that the rollout waits for, and None for each proxy without a stream."""
        for key, subscribers in self._subscribers.items():
            for subscriber in subscribers if mesh.pod(*key) else ():
                # A new proxy that has not been served has nothing to ACK, so the rollout need not wait for
                # it.
                if subscriber.session and (
                    subscriber.snapshot or _has_earlier_configuration(subscriber.session)
                ):
                    self._disconnected.pop(key, None)
                    yield key, subscriber
        for key, proxy in tuple(self._disconnected.items()):
            pod = mesh.pod(*key)
            is_same = pod is not None and proxy.uid in {None, pod.meta.uid}
            if pod is None or not is_same or pod.ended or (now >= proxy.client_until and not proxy.is_server):
                del self._disconnected[key]
            else:
                proxy.uid = pod.meta.uid
                yield key, None

    def _is_client(self, key: PodName, now: float) -> bool:
        """Return whether a proxy may send requests."""
        return key not in self._disconnected or now < self._disconnected[key].client_until

    def _may_use_earlier_configuration(
        self, mesh: Mesh, key: PodName, subscriber: Subscriber | None, now: float
    ) -> bool:
        """Return whether a client may have pending connections that it opened under an earlier configuration.

        A connection is pending until the server's listener has detected its protocol.
        """
        caught_up_at = self._caught_up_at(subscriber) if subscriber else self._disconnected[key].caught_up_at
        return self._is_client(key, now) and now < caught_up_at + WORKER_DELAY + classification_delay(
            mesh.config
        )

    def _caught_up_at(self, subscriber: Subscriber) -> float:
        session, stream = subscriber.session, self._streams[subscriber]
        if session is None or not _has_earlier_configuration(session):
            return -inf
        if stream.caught_up_at is None:
            # A client that has the current configuration is sent nothing.
            return stream.connected_at if _client_generation(session) >= 0 else inf
        return stream.caught_up_at

    def _may_be_server(self, subscriber: Subscriber, now: float) -> bool:
        """Return whether the stream may be the one on which a sidecar gets its listeners."""
        session = subscriber.session
        has_subscribed = session is not None and session.is_subscribed(LISTENER)
        return has_subscribed or (
            not subscriber.stream.type_url
            and now < self._streams[subscriber].connected_at + SUBSCRIBE_TIMEOUT
        )

    def _progress(self, subscriber: Subscriber, now: float) -> _Progress:
        session, stream = subscriber.session, self._streams[subscriber]
        assert session  # noqa: S101 - callers check it
        return _Progress(
            stream.client.update(_client_generation(session), now),
            stream.server.update(_listener_generation(session), now),
        )

    # --- peers ----------------------------------------------------------------------------------------------

    def may_have_peers(self, now: float) -> bool:
        """Return whether sidecars may be connected to another replica, as far as is known."""
        if not self._is_replicated:
            return False
        peers = self.sync.peer_view(now) if self.sync else None
        return peers is None or peers.is_isolated or bool(peers.peers)

    def enable_sync(self, now: float) -> ReplicaSync | None:
        """Start coordinating with peers. Return None if the rollout timeout is disabled."""
        self._is_replicated = True
        if self.rollout.timeout is not None:
            self.sync, self._join_deadline = ReplicaSync(), now + JOIN_TIMEOUT
        return self.sync

    def starts_at(self, now: float) -> float:
        """Return when the first mesh may be built: once this replica and its peers know each other."""
        return now if self.sync is None or self.sync.is_synced else max(self._join_deadline, now)

    def peers_changed(self) -> None:
        """Check soon: a peer's report has arrived, or the API server has confirmed our own."""
        self._must_check = True

    def publish(self) -> None:
        """Publish this replica's report to its peers."""
        if self.sync:
            self.sync.publish(self._rules_version.version, self._port_reports)

    # --- steps ----------------------------------------------------------------------------------------------

    def first_mesh(self, change: Change, observed: ObservedState, now: float) -> Mesh:
        """Return the first mesh. It has no transitions, except those that are in progress on peers."""
        mesh = Mesh(change.applied, change.config)
        self._rules_version.update(change.applied, (), mesh.config)
        self.rollout.update_desired(mesh, (), now)
        return self.advance(mesh.with_served(self.rollout.served), observed, now)

    def apply(self, mesh: Mesh, change: Change, observed: ObservedState, now: float) -> Mesh:
        """Return the mesh to serve after a change."""
        if self.rollout.timeout is None:
            return mesh.apply(change)
        rules, rest = _split_rules(change)
        self._placeholders.difference_update(rule.ref for rule in rules.applied)
        installed = self._changed_installed_rules(mesh, change)
        placeholders = [rule for ref, (rule, _) in installed.items() if ref not in self._placeholders]
        self._placeholders |= installed.keys()
        after = mesh.apply(replace(rest, applied=(*rest.applied, *placeholders)))
        self._rules_version.update(rules.applied, rules.removed, after.config)
        for ref, (_, new) in installed.items():
            self.rollout.change_rule(after, ref, new, now)
        self._reported.difference_update(
            (ref.namespace, ref.name) for ref in change.removed if ref.kind == "Pod"
        )
        for rule in rules.applied:
            self.rollout.change_rule(
                after, rule.ref, rule if isinstance(rule, DestinationRule) else None, now
            )
        for ref in rules.removed:
            self.rollout.change_rule(after, ref, None, now)
        self.rollout.update_desired(after, change.removed, now)
        return self.advance(after, observed, now)

    def _changed_installed_rules(
        self, mesh: Mesh, change: Change
    ) -> Mapping[Ref, tuple[DestinationRule, DestinationRule | None]]:
        """Return the default DestinationRules that a change of settings replaces.

        Each comes with the version to serve for now, and the new version.
        """
        old, new = installed_rules(mesh.config), installed_rules(change.config or mesh.config)
        changed = [ref for ref in old.keys() | new.keys() if old.get(ref) != new.get(ref)]
        applied = {rule.ref for rule in change.applied}
        return {
            ref: (old.get(ref) or without_effect(new[ref]), new.get(ref))
            for ref in changed
            if ref in self._placeholders or not (ref in applied or _is_user_object(mesh, ref))
        }

    def _withdraw_rules(self, mesh: Mesh, now: float) -> Mesh:
        """Return a mesh without the rules that were served too early."""
        too_early = self.rollout.withdraw_rules(mesh, now)
        removed = tuple(
            ref for ref in too_early if ref not in self._placeholders and _is_user_object(mesh, ref)
        )
        installed = [ref for ref in too_early if not _is_user_object(mesh, ref)]
        self._placeholders.update(installed)
        rules = installed_rules(mesh.config)
        change = Change(applied=tuple(without_effect(rules[ref]) for ref in installed), removed=removed)
        return mesh.apply(change) if change != Change() else mesh

    def _without_placeholders(self, rules: Change) -> Change:
        """Return the change that puts released rules into effect.

        To serve a default rule, remove its placeholder.
        """
        restored = tuple(rule.ref for rule in rules.applied if rule.ref in self._placeholders)
        self._placeholders.difference_update(restored, rules.removed)
        applied = tuple(rule for rule in rules.applied if rule.ref not in restored)
        return Change(applied=applied, removed=(*rules.removed, *restored))

    def advance(self, mesh: Mesh, observed: ObservedState, now: float) -> Mesh:
        """Return the mesh to serve, given the progress of proxies: the same object if nothing changes."""
        # Servers that connected after the observation are not in it, and the rollout would not wait for them.
        recovered = [ref for ref in tuple(self._recovered_modes) if ref in observed.servers]
        for ref in recovered:
            # The stream may have ended in the meantime, in the event loop's thread.
            if modes := self._recovered_modes.pop(ref, None):
                self.rollout.recover(mesh, ref, modes, now)
        if recovered:
            mesh = self._withdraw_rules(mesh, now)
        if self._must_assume_mixed:
            self._must_assume_mixed = False
            self.rollout.assume_mixed_clients(now)
        for _ in range(MAX_STEPS):
            step = self.rollout.step(mesh, observed, now)
            if step is None:
                break
            if step.rules != Change():
                mesh = mesh.apply(self._without_placeholders(step.rules))
                self.rollout.update_desired(mesh, (), now)
            mesh = mesh.with_served(step.served)
        if self.sync:
            self._port_reports = self.rollout.port_reports()
        return mesh


def _is_user_object(mesh: Mesh, ref: Ref) -> bool:
    """Return whether a user created the object."""
    return ref in mesh.in_namespace(ref.namespace, with_defaults=False).facts


def _split_rules(change: Change) -> tuple[Change, Change]:
    """Split a change into its DestinationRules and the rest."""
    rules = Change(
        applied=tuple(fact for fact in change.applied if isinstance(fact, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind == "DestinationRule"),
    )
    rest = Change(
        applied=tuple(fact for fact in change.applied if not isinstance(fact, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind != "DestinationRule"),
        config=change.config,
    )
    return rules, rest


def _has_earlier_configuration(session: Session) -> bool:
    """Return whether a proxy connected with a configuration from an earlier stream."""
    return any(session.initial_versions(type_url) for type_url in (CLUSTER, ENDPOINT, LISTENER))


def _client_generation(session: Session) -> int:
    """Return the newest generation of clusters and endpoints that a client has answered; -1 for none."""
    return min(session.answered_generation(CLUSTER), session.answered_generation(ENDPOINT))


def _name(key: PodName) -> str:
    namespace, pod = key
    return f"{pod}.{namespace}"


def _inbound_listeners(session: Session) -> list[str]:
    """Return the names of the pod's inbound listeners. They have a tag that lists the modes they accept."""
    return session.tagged(LISTENER)


def _listener_generation(session: Session) -> int:
    """Return the generation if the pod's inbound listeners are ACKed and warm, else -1."""
    listeners = _inbound_listeners(session)
    return session.generation if listeners and session.has_acked(LISTENER, listeners) else -1


def _listener_error(session: Session, names: Iterable[str]) -> str:
    rejected = session.rejected(LISTENER)
    return next((rejected[name].message for name in names if name in rejected), "")
