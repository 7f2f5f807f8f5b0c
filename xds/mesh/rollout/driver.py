"""Connect the rollout state machine to the streams and to the mesh.

The driver passes the progress of proxies to `Rollout.step`, and applies each step to the mesh. It keeps no
state about resources: each session knows the newest generation that its proxy has ACKed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, TypeAlias

from xds.mesh.envoy.inbound import decode_modes
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, DestinationRule, Mode, PortKey, Ref
from xds.mesh.rollout.machine import Rollout, classification_delay
from xds.mesh.rollout.peers import PeerView, PortReport
from xds.mesh.rollout.replica_sync import ReplicaSync, RulesVersion
from xds.mesh.rollout.rules import default_rules, placeholder_for
from xds.mesh.rollout.transition import ObservedState
from xds.protocol.session import Session
from xds.server import Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

PodName: TypeAlias = tuple[str, str]
"""Namespace and name of a pod."""

WORKER_DELAY = 0.2
"""Time from an ACK until all of Envoy's worker threads use the configuration, in seconds.

Envoy's main thread sends the ACK.
"""
RECONNECT_GRACE = 10.0
"""Grace period for a client that reconnects, in seconds. Envoy reconnects within five."""
RECOVERY_PERIOD = 6.0
"""Time to wait after startup for proxies of the previous control plane to reconnect, in seconds."""
SUBSCRIBE_TIMEOUT = 1.0
"""Time to wait for a reconnected proxy to subscribe to listeners, in seconds.

The subscription contains the versions of the listeners that the proxy has.
"""
JOIN_TIMEOUT = 10.0
"""Time to wait for peers at startup, in seconds. Without them, each step waits for the rollout timeout."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks of the progress of proxies, during a transition."""
SKIPPED_CHECK_INTERVAL = 1.0
"""Seconds between two checks while no transition is in progress, but a skipped proxy has not caught up."""
MAX_STEPS = 8
"""Maximum number of steps in one call of `advance`. All but the last are steps that need no ACK."""


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
    """The progress of a proxy on one stream, as a client and as a server."""

    def __init__(self, now: float) -> None:
        self.connected_at = now
        self.caught_up_at: float | None = None
        """For a client that reconnected: time by which it had ACKed or NACKed all clusters and endpoints."""
        self.client = _ActiveGeneration()
        self.server = _ActiveGeneration()


class _Progress(NamedTuple):
    client: int
    """The active generation of clusters and endpoints."""
    server: int
    """The active generation of inbound listeners."""


@dataclass(slots=True)
class _DisconnectedProxy:
    """A proxy that has lost its last stream. It keeps using its configuration."""

    progress: _Progress
    client_until: float
    """Time until which it counts as a client."""
    is_server: bool
    """Whether the rollout waits for it as a server, until it reconnects or its pod is deleted."""
    caught_up_at: float
    """Time when it stopped using a configuration from an earlier stream.

    Infinity if it had not stopped; minus infinity if it had no such configuration.
    """
    uid: str | None = None
    """UID of its pod; None until it is looked up."""


class RolloutDriver:
    """Apply changes and rollout steps to the mesh.

    `first_mesh`, `apply` and `advance` may run in a thread. All other methods must run on the event loop.
    """

    def __init__(self, streams: Mapping[PodName, set[Subscriber]], timeout: float | None) -> None:
        """Create a driver without transitions.

        Args:
            streams: the streams of each connected pod; the caller updates the mapping.
            timeout: seconds to wait for a proxy. None: serve the desired state immediately.
        """
        self.rollout = Rollout(timeout)
        self.sync: ReplicaSync | None = None
        """The exchange of reports with peers. None: there are no peers."""
        self._is_replicated = False
        """Whether there may be other replicas."""
        self._join_deadline = -inf
        self._rules_version = RulesVersion()
        self._placeholders: set[Ref] = set()
        """Default DestinationRules that are held. The mesh has a placeholder instead of each."""
        self._port_reports: Mapping[PortKey, PortReport] = {}
        self._must_check = False
        self._must_assume_mixed = False
        """Whether a newly connected client may still use configuration from a peer."""
        self._subscribers = streams
        self._streams: dict[Subscriber, _StreamProgress] = {}
        self._disconnected: dict[PodName, _DisconnectedProxy] = {}
        self._known_listeners: set[PodName] = set()
        """Pods whose listeners at connection time are known, because they have subscribed to listeners."""
        self._recovered_modes: dict[Ref, Mapping[int, Mode]] = {}
        """Modes that servers had active when they reconnected, until `advance` processes them."""
        self._recovery_ends = inf
        self._may_reconnect: set[PodName] = set()
        """Pods whose sidecars may reconnect during the recovery period."""
        self._has_reconnects = False
        """Whether any proxy has connected with a configuration from an earlier stream."""
        self.checked_at = -inf
        """When the progress of proxies was last checked, in seconds of the event loop's clock."""

    # --- progress of proxies --------------------------------------------------------------------------------

    def connected(self, subscriber: Subscriber, now: float) -> None:
        """Record a new stream."""
        self._streams[subscriber] = _StreamProgress(now)

    def disconnected(self, subscriber: Subscriber, key: PodName, now: float) -> None:
        """Record that a stream has ended. The proxy keeps its configuration, and will reconnect."""
        session, is_last = subscriber.session, not self._subscribers.get(key)
        is_tracked = self.rollout.timeout is not None and is_last
        if is_tracked and session and (subscriber.snapshot or _has_earlier_configuration(session)):
            # With several replicas, the proxy may reconnect to another one: do not wait for it as a server.
            is_server = _listener_generation(session) >= 0 and not self.sync
            progress = self._progress(subscriber, now)
            self._disconnected[key] = _DisconnectedProxy(
                progress, now + RECONNECT_GRACE, is_server, self._caught_up_at(subscriber)
            )
            if self.sync:
                self._known_listeners.discard(key)  # Another replica may change them before it returns.
        if is_last and Ref("Pod", *key) in self._recovered_modes:
            # The proxy reports them again when it reconnects. `advance`, in a thread, may have removed them.
            self._recovered_modes.pop(Ref("Pod", *key), None)
            self._known_listeners.discard(key)
        del self._streams[subscriber]

    def subscribed(self, subscriber: Subscriber, key: PodName, type_url: str) -> None:
        """Record a subscription to a type.

        The first subscription to listeners contains the versions of the listeners that the proxy has.
        """
        session = subscriber.session
        if session and type_url == CLUSTER and key not in self._known_listeners:
            had_clusters = bool(session.initial_versions(CLUSTER))
            self._has_reconnects |= had_clusters
            self._must_assume_mixed |= had_clusters and self.sync is not None
            if not had_clusters:
                self._may_reconnect.discard(key)  # The proxy is new: it has no earlier configuration.
        if type_url != LISTENER or not session or key in self._known_listeners:
            return
        if self.rollout.timeout is None:
            return
        self._known_listeners.add(key)
        self._may_reconnect.discard(key)
        if modes := decode_modes(session.initial_versions(LISTENER)):
            self.recover(Ref("Pod", *key), modes)

    def received(self, subscriber: Subscriber, now: float) -> None:
        """Record a request. It may be the ACK with which a reconnected client catches up."""
        session, stream = subscriber.session, self._streams[subscriber]
        if session is None or stream.caught_up_at is not None or not _has_earlier_configuration(session):
            return
        if _client_generation(session) >= 0:
            stream.caught_up_at = now

    def recover(self, pod: Ref, modes: Mapping[int, Mode]) -> None:
        """Record the modes, by port, that a server already had active when it connected."""
        self._recovered_modes[pod] = modes

    def must_defer(self, subscriber: Subscriber, key: PodName, now: float) -> bool:
        """Return whether a proxy's first snapshot must wait until reconnecting proxies report their state.

        A reconnected proxy can wait, because it has a configuration. A new proxy waits only if another proxy
        has already reconnected.
        """
        session = subscriber.session
        if session is None or self.rollout.timeout is None or subscriber.snapshot is not None:
            return False
        if not _has_earlier_configuration(session):
            return self._has_reconnects and self.is_recovering(now)
        subscribe_deadline = self._streams[subscriber].connected_at + SUBSCRIBE_TIMEOUT
        if key not in self._known_listeners and now < subscribe_deadline:
            return True
        return Ref("Pod", *key) in self._recovered_modes or self.is_recovering(now)

    def start_recovery(self, mesh: Mesh, now: float) -> None:
        """Start the recovery period. Call it once the first mesh is complete, before proxies are served."""
        self._recovery_ends = now + RECOVERY_PERIOD
        self._may_reconnect = {
            (pod.namespace, pod.name) for pod in mesh.pods() if pod.has_sidecar and not pod.ended
        }

    def is_recovering(self, now: float) -> bool:
        """Return whether proxies of an earlier control plane may still be reconnecting."""
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
        """Return when to check the progress of proxies next; infinity if only an event requires a check."""
        if self._must_check:
            return min(now, self.checked_at + CHECK_INTERVAL)
        if self.is_active:
            return max(self.checked_at + CHECK_INTERVAL, now)
        return max(self.checked_at + SKIPPED_CHECK_INTERVAL, now) if self._has_skipped else inf

    @property
    def _has_skipped(self) -> bool:
        return bool(self.rollout.skipped_ports or self.rollout.skipped_rules)

    def collect_progress(self, mesh: Mesh, now: float) -> ObservedState:
        """Return the progress of the proxies whose pods are in the mesh, and the reports of peers."""
        self.checked_at, self._must_check = now, False
        peers = self.sync.peer_view(now) if self.sync else PeerView()
        if not (self.is_active or self._has_skipped):
            # Generations matter only during a transition. A new one needs the set of proxies to wait for.
            proxies = [*self._tracked_proxies(mesh, now)]
            return ObservedState(
                servers={Ref("Pod", *key): -1 for key, _ in proxies},
                clients={_name(key): -1 for key, _ in proxies if self._is_client(key, now)},
                reconnected=frozenset(
                    _name(key)
                    for key, subscriber in proxies
                    if self._may_have_earlier_connections(mesh, key, subscriber, now)
                ),
                peers=peers,
            )
        pods_in_transition = {pod for pod, _ in (*self.rollout.transitions, *self.rollout.skipped_ports)}
        servers: dict[Ref, int] = {}
        clients: dict[str, int] = {}
        rejected_listeners: dict[Ref, str] = {}
        rejected_clusters: dict[str, dict[str, str]] = {}
        reconnected: set[str] = set()
        for key, subscriber in self._tracked_proxies(mesh, now):
            session = subscriber.session if subscriber else None
            progress = self._progress(subscriber, now) if subscriber else self._disconnected[key].progress
            name, ref = _name(key), Ref("Pod", *key)
            if self._may_have_earlier_connections(mesh, key, subscriber, now):
                reconnected.add(name)
            if self._is_client(key, now):
                clients[name] = min(progress.client, clients.get(name, progress.client))
            # Include servers without a transition: the pending change may start one.
            if subscriber is None or self._may_be_server(subscriber, now):
                servers[ref] = min(progress.server, servers.get(ref, progress.server))
            if session is None:
                continue
            if ref in pods_in_transition and (error := _inbound_listener_error(session)):
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

    def _tracked_proxies(self, mesh: Mesh, now: float) -> Iterator[tuple[PodName, Subscriber | None]]:
        """Yield each stream that the rollout waits for, and None for each disconnected proxy."""
        for key, subscribers in self._subscribers.items():
            for subscriber in subscribers if mesh.pod(*key) else ():
                # Do not wait for a new proxy without a snapshot: it has no configuration.
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
        """Return whether the rollout waits for a proxy as a client."""
        return key not in self._disconnected or now < self._disconnected[key].client_until

    def _may_have_earlier_connections(
        self, mesh: Mesh, key: PodName, subscriber: Subscriber | None, now: float
    ) -> bool:
        """Return whether a client may have pending connections from a configuration of an earlier stream.

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
            # A client that already has the current configuration is sent nothing, and so sends no ACK.
            return stream.connected_at if _client_generation(session) >= 0 else inf
        return stream.caught_up_at

    def _may_be_server(self, subscriber: Subscriber, now: float) -> bool:
        """Return whether a sidecar may receive its listeners on a stream."""
        session = subscriber.session
        has_subscribed = session is not None and session.is_subscribed(LISTENER)
        return has_subscribed or (
            not subscriber.stream.type_url
            and now < self._streams[subscriber].connected_at + SUBSCRIBE_TIMEOUT
        )

    def _progress(self, subscriber: Subscriber, now: float) -> _Progress:
        session, stream = subscriber.session, self._streams[subscriber]
        assert session  # noqa: S101 - checked by callers
        return _Progress(
            stream.client.update(_client_generation(session), now),
            stream.server.update(_listener_generation(session), now),
        )

    # --- peers ----------------------------------------------------------------------------------------------

    def may_have_peers(self, now: float) -> bool:
        """Return whether sidecars may be connected to another replica."""
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

    def earliest_apply(self, now: float) -> float:
        """Return when changes may be applied: once this replica has synced with its peers, or timed out."""
        return now if self.sync is None or self.sync.is_synced else max(self._join_deadline, now)

    def peers_changed(self) -> None:
        """Make a check due: a peer's report arrived, or this replica's report was read back."""
        self._must_check = True

    def publish_report(self) -> None:
        """Publish this replica's report to its peers."""
        if self.sync:
            self.sync.publish(self._rules_version.version, self._port_reports)

    # --- changes to the mesh --------------------------------------------------------------------------------

    def first_mesh(self, change: Change, observed: ObservedState, now: float) -> Mesh:
        """Return the first mesh. Its only transitions are those in progress on peers."""
        mesh = Mesh(change.applied, change.config)
        self._rules_version.update(change.applied, (), mesh.config)
        self.rollout.update_desired(mesh, (), now)
        return self.advance(mesh.with_served(self.rollout.served), observed, now)

    def apply(self, mesh: Mesh, change: Change, observed: ObservedState, now: float) -> Mesh:
        """Return the mesh to serve after a change."""
        if self.rollout.timeout is None:
            return mesh.apply(change)
        # Hold all DestinationRules: the rollout decides when to serve them.
        rule_change, other_change = _split_rules(change)
        self._placeholders.difference_update(rule.ref for rule in rule_change.applied)
        changed_defaults = self._changed_default_rules(mesh, change)
        placeholders = [
            placeholder for ref, (placeholder, _) in changed_defaults.items() if ref not in self._placeholders
        ]
        self._placeholders |= changed_defaults.keys()
        new_mesh = mesh.apply(replace(other_change, applied=(*other_change.applied, *placeholders)))
        self._rules_version.update(rule_change.applied, rule_change.removed, new_mesh.config)
        for ref, (_, new) in changed_defaults.items():
            self.rollout.change_rule(new_mesh, ref, new, now)
        self._known_listeners.difference_update(
            (ref.namespace, ref.name) for ref in change.removed if ref.kind == "Pod"
        )
        for rule in rule_change.applied:
            self.rollout.change_rule(
                new_mesh, rule.ref, rule if isinstance(rule, DestinationRule) else None, now
            )
        for ref in rule_change.removed:
            self.rollout.change_rule(new_mesh, ref, None, now)
        self.rollout.update_desired(new_mesh, change.removed, now)
        return self.advance(new_mesh, observed, now)

    def _changed_default_rules(
        self, mesh: Mesh, change: Change
    ) -> Mapping[Ref, tuple[DestinationRule, DestinationRule | None]]:
        """Return the default DestinationRules that a change of settings adds, replaces or removes.

        Each has a placeholder to serve while the rule is held, and the new version (None: removed).
        """
        old, new = default_rules(mesh.config), default_rules(change.config or mesh.config)
        changed = [ref for ref in old.keys() | new.keys() if old.get(ref) != new.get(ref)]
        applied = {fact.ref for fact in change.applied}
        return {
            ref: (old.get(ref) or placeholder_for(new[ref]), new.get(ref))
            for ref in changed
            if ref in self._placeholders or not (ref in applied or _is_user_object(mesh, ref))
        }

    def _withdraw_rules(self, mesh: Mesh, now: float) -> Mesh:
        """Return a mesh without the DestinationRules that are served too early."""
        too_early = self.rollout.withdraw_rules(mesh, now)
        removed = tuple(
            ref for ref in too_early if ref not in self._placeholders and _is_user_object(mesh, ref)
        )
        default_refs = [ref for ref in too_early if not _is_user_object(mesh, ref)]
        self._placeholders.update(default_refs)
        defaults = default_rules(mesh.config)
        change = Change(
            applied=tuple(placeholder_for(defaults[ref]) for ref in default_refs), removed=removed
        )
        return mesh.apply(change) if change != Change() else mesh

    def _without_placeholders(self, released: Change) -> Change:
        """Return the change that puts released DestinationRules into effect.

        A default rule takes effect when its placeholder is removed.
        """
        restored = tuple(rule.ref for rule in released.applied if rule.ref in self._placeholders)
        self._placeholders.difference_update(restored, released.removed)
        applied = tuple(rule for rule in released.applied if rule.ref not in restored)
        return Change(applied=applied, removed=(*released.removed, *restored))

    def advance(self, mesh: Mesh, observed: ObservedState, now: float) -> Mesh:
        """Return the mesh to serve, given the progress of proxies; `mesh` itself if nothing changes."""
        # Leave servers that connected after the progress was collected: the rollout would not wait for them.
        recovered = [ref for ref in tuple(self._recovered_modes) if ref in observed.servers]
        for ref in recovered:
            # `disconnected` may have removed the modes in the meantime, on the event loop.
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
    """Return whether the object is in the input, and not a default."""
    return ref in mesh.in_namespace(ref.namespace, with_defaults=False).facts


def _split_rules(change: Change) -> tuple[Change, Change]:
    """Split a change into its DestinationRules and everything else."""
    rule_change = Change(
        applied=tuple(fact for fact in change.applied if isinstance(fact, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind == "DestinationRule"),
    )
    other_change = Change(
        applied=tuple(fact for fact in change.applied if not isinstance(fact, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind != "DestinationRule"),
        config=change.config,
    )
    return rule_change, other_change


def _has_earlier_configuration(session: Session) -> bool:
    """Return whether a proxy had a configuration from an earlier stream when it connected."""
    return any(session.initial_versions(type_url) for type_url in (CLUSTER, ENDPOINT, LISTENER))


def _client_generation(session: Session) -> int:
    """Return the newest generation whose clusters and endpoints a client has ACKed or NACKed; -1 for none."""
    return min(session.answered_generation(CLUSTER), session.answered_generation(ENDPOINT))


def _name(key: PodName) -> str:
    namespace, pod = key
    return f"{pod}.{namespace}"


def _inbound_listeners(session: Session) -> list[str]:
    """Return the names of the pod's inbound listeners. Only these have a tag, which lists their modes."""
    return session.tagged(LISTENER)


def _listener_generation(session: Session) -> int:
    """Return the current generation if the inbound listeners and their references are ACKed, else -1."""
    listeners = _inbound_listeners(session)
    return session.generation if listeners and session.has_acked(LISTENER, listeners) else -1


def _inbound_listener_error(session: Session) -> str:
    rejected = session.rejected(LISTENER)
    return next((rejected[name].message for name in _inbound_listeners(session) if name in rejected), "")
