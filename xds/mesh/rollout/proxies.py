"""The progress of the proxies that are connected to this replica, as their ACKs show it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import NamedTuple

from xds.mesh.envoy.inbound import decode_modes
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import PodKey, Ref
from xds.mesh.rollout.observation import Generations, Report
from xds.mesh.rollout.planner import classification_delay
from xds.mesh.rollout.rollout import Rollout
from xds.protocol.session import Session
from xds.server import Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

WORKER_DELAY = 0.2
"""Seconds from an ACK, which Envoy's main thread sends, until all worker threads use the configuration."""
RECONNECT_GRACE = 10.0
"""Grace period for a client that reconnects, in seconds. Envoy reconnects within 5 s."""
RECOVERY_PERIOD = 6.0
"""Time after the start to wait for proxies of the previous process to reconnect, in seconds."""
SUBSCRIBE_TIMEOUT = 1.0
"""Time to wait for a reconnected proxy to subscribe to listeners, which reveals those it has, in seconds."""


class ProxyState(StrEnum):
    """What is known about a proxy."""

    UNKNOWN = "unknown"
    """It has not connected yet, and may have the configuration of an earlier process."""
    RETURNED = "returned"
    """It connected with an earlier configuration, and has not ACKed a complete one since."""
    CURRENT = "current"
    """It uses only what it was served on its current stream."""
    AWAY = "away"
    """Its last stream has ended. It keeps its configuration, and reconnects."""


class Progress(NamedTuple):
    """The generations that a proxy has active."""

    client: int
    """The active generation of clusters and endpoints; -1 if it is not known."""
    server: int
    """The active generation of inbound listeners; -1 if it is not known."""


_NO_PROGRESS = Progress(-1, -1)


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


class _Part(NamedTuple):
    """What one stream of a proxy, or a proxy that is away, contributes to the report."""

    progress: Progress
    """The active generations."""
    is_client: bool
    """Whether it counts as a client."""
    is_server: bool
    """Whether it counts as a server."""
    caught_up_at: float
    """Like `_Stream.caught_up_at`."""


class _Stream:
    """One stream of a proxy."""

    def __init__(self, subscriber: Subscriber, now: float, earlier: _Away | None) -> None:
        self.subscriber = subscriber
        self.connected_at = now
        self._earlier = earlier
        """What the proxy used when its previous stream ended; None if that is not known."""
        self._caught_up_at: float | None = None
        """When the client first ACKed a complete configuration on this stream."""
        self._client = _ActiveGeneration()
        self._server = _ActiveGeneration()

    @property
    def had_configuration(self) -> bool:
        """Whether the proxy connected with a configuration from an earlier stream."""
        session = self.subscriber.session
        return session is not None and any(
            session.initial_versions(type_url) for type_url in (CLUSTER, ENDPOINT, LISTENER)
        )

    @property
    def counts(self) -> bool:
        """Whether the rollout waits for the proxy. It does not wait for one without any configuration."""
        return self.subscriber.session is not None and (
            self.subscriber.snapshot is not None or self.had_configuration
        )

    @property
    def caught_up_at(self) -> float:
        """When the client ACKed what replaced its earlier configuration.

        Infinity if it has not ACKed that yet; -infinity if it had no earlier configuration.
        """
        session = self.subscriber.session
        if session is None or not self.had_configuration:
            return -inf
        if self._earlier and self._earlier.last.caught_up_at < inf:
            return self._earlier.last.caught_up_at  # It caught up on its previous stream.
        if self._caught_up_at is not None:
            return self._caught_up_at
        # A client that connected with the current configuration has nothing to ACK.
        return self.connected_at if _client_generation(session) >= 0 else inf

    def received(self, now: float) -> None:
        """Record a request, which may be the ACK that completes a client's configuration."""
        session = self.subscriber.session
        if session and self._caught_up_at is None and _client_generation(session) >= 0:
            self._caught_up_at = now

    def may_be_server(self, now: float) -> bool:
        """Return whether the proxy gets its listeners on this stream, or may subscribe to them soon."""
        session = self.subscriber.session
        has_subscribed = session is not None and session.is_subscribed(LISTENER)
        is_new = now < self.connected_at + SUBSCRIBE_TIMEOUT
        return has_subscribed or (not self.subscriber.stream.type_url and is_new)

    def progress(self, session: Session, now: float) -> Progress:
        """Return the active generations, from the protocol state of the stream."""
        # A new proxy has nothing older than its first configuration. A proxy that reconnects has at least
        # what it had when its previous stream ended.
        client = session.first_generation if not self.had_configuration else -1
        if self.had_configuration and self._earlier:
            client = self._earlier.last.progress.client
        return Progress(
            max(client, self._client.update(_client_generation(session), now)),
            self._server.update(_listener_generation(session), now),
        )


@dataclass(slots=True)
class _Away:
    """A proxy without a stream, which is expected to reconnect."""

    last: _Part
    """What it used when its last stream ended."""
    grace_ends: float
    """When it stops to count as a client, in seconds of the event loop's clock."""
    outlasts_grace: bool
    """Whether it counts as a server after `grace_ends`, too, until it reconnects or its pod is deleted."""
    uid: str | None = None
    """UID of its pod; None until it is looked up."""


@dataclass(slots=True)
class _Proxy:
    """A proxy with at least one stream, or one that is away."""

    streams: dict[Subscriber, _Stream] = field(default_factory=dict)
    """Its streams."""
    away: _Away | None = None
    """Its state since the last stream ended; None once another stream replaces it."""
    has_reported: bool = False
    """Whether it has subscribed to listeners, and thereby reported those that it had."""

    @property
    def state(self) -> ProxyState:
        """What is known about the proxy."""
        if self.streams:
            is_behind = any(stream.caught_up_at == inf for stream in self.streams.values())
            return ProxyState.RETURNED if is_behind else ProxyState.CURRENT
        return ProxyState.AWAY if self.away else ProxyState.UNKNOWN


class ProxyTracker:
    """Track the progress of proxies, and pass the modes that they report when they connect to the rollout."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        self.is_replicated = False
        """Whether proxies may connect to other replicas."""
        self._proxies: dict[PodKey, _Proxy] = {}
        self._unknown: set[PodKey] = set()
        """The pods whose sidecars are UNKNOWN, and may reconnect soon."""
        self._recovery_ends = inf
        """When the recovery period ends; infinity before it starts."""
        self._any_had_configuration = False
        """Whether any proxy has connected with a configuration from an earlier stream."""
        self._any_is_new = False
        """Whether any proxy has connected without one."""

    def state(self, key: PodKey) -> ProxyState:
        """Return what is known about a proxy."""
        proxy = self._proxies.get(key)
        return proxy.state if proxy else ProxyState.UNKNOWN

    # --- events of streams ----------------------------------------------------------------------------------

    def connected(self, subscriber: Subscriber, key: PodKey, now: float) -> None:
        """Record a new stream."""
        proxy = self._proxies.setdefault(key, _Proxy())
        # With several replicas, the proxy may have been connected to another one in the meantime.
        earlier = None if self.is_replicated else proxy.away
        proxy.streams[subscriber] = _Stream(subscriber, now, earlier)

    def subscribed(self, subscriber: Subscriber, key: PodKey, type_url: str) -> None:
        """Record a subscription to a type.

        With its first subscription to listeners, a proxy reports those that it already has.
        """
        session, proxy = subscriber.session, self._proxies[key]
        if session is None or proxy.has_reported or self._rollout.timeout is None:
            return
        if type_url == CLUSTER:
            if session.initial_versions(CLUSTER):
                self._any_had_configuration = True
            else:
                self._any_is_new = True
                self._unknown.discard(key)  # It has no earlier configuration.
        elif type_url == LISTENER:
            proxy.has_reported = True
            self._unknown.discard(key)
            self._rollout.recover(Ref("Pod", *key), decode_modes(session.initial_versions(LISTENER)))

    def received(self, subscriber: Subscriber, key: PodKey, now: float) -> None:
        """Record a request."""
        self._proxies[key].streams[subscriber].received(now)

    def disconnected(self, subscriber: Subscriber, key: PodKey, now: float) -> None:
        """Record that a stream has ended. Its proxy keeps its configuration, and reconnects."""
        proxy = self._proxies[key]
        stream = proxy.streams.pop(subscriber)
        if proxy.streams or self._rollout.timeout is None:
            self._forget_if_unused(key)
            return
        if stream.counts and (session := subscriber.session):
            # With several replicas, the proxy most probably reconnects to another one.
            outlasts_grace = session.is_subscribed(LISTENER) and not self.is_replicated
            last = _Part(
                stream.progress(session, now),
                is_client=True,
                is_server=True,
                caught_up_at=stream.caught_up_at,
            )
            proxy.away = _Away(last, now + RECONNECT_GRACE, outlasts_grace)
            if self.is_replicated:
                # It may get other listeners from another replica before it reconnects to this one.
                proxy.has_reported = False
        if self._rollout.forget_recovered(Ref("Pod", *key)):
            proxy.has_reported = False  # It reports its modes again when it reconnects.
        self._forget_if_unused(key)

    def pod_deleted(self, key: PodKey) -> None:
        """Forget what a deleted pod reported."""
        if proxy := self._proxies.get(key):
            proxy.has_reported = False
            self._forget_if_unused(key)

    def _forget_if_unused(self, key: PodKey) -> None:
        proxy = self._proxies[key]
        if not (proxy.streams or proxy.away):
            del self._proxies[key]

    # --- recovery -------------------------------------------------------------------------------------------

    def start_recovery(self, mesh: Mesh, now: float) -> None:
        """Start the recovery period: the first mesh is complete, and proxies are about to be served."""
        if self._rollout.timeout is None:
            return  # No proxy reports modes.
        self._recovery_ends = now + RECOVERY_PERIOD
        self._unknown = {
            key
            for pod in mesh.pods()
            if pod.has_sidecar and not pod.ended
            if self.state(key := pod.key) is ProxyState.UNKNOWN
        }

    def is_recovering(self, now: float) -> bool:
        """Return whether proxies of the previous process may still have to report, or the plan to follow."""
        is_in_period = now < self._recovery_ends < inf
        return is_in_period and (bool(self._unknown) or self._rollout.has_unplanned_mode())

    @property
    def _may_be_a_restart(self) -> bool:
        """Whether an earlier process may have served proxies."""
        return self._any_had_configuration or not self._any_is_new

    def must_defer(self, key: PodKey, now: float) -> bool:
        """Return whether to serve a proxy only after reconnecting proxies have reported their modes."""
        proxy = self._proxies.get(key)
        if proxy is None or self._rollout.timeout is None:
            return False
        return any(self._must_defer(proxy, stream, key, now) for stream in proxy.streams.values())

    def _must_defer(self, proxy: _Proxy, stream: _Stream, key: PodKey, now: float) -> bool:
        """Return whether to defer a stream.

        A proxy that reconnects can wait, because it has a configuration. A new proxy has none, so it waits
        only if other proxies have reconnected: then this process is not the first one.
        """
        subscriber = stream.subscriber
        if subscriber.session is None or subscriber.snapshot is not None:
            return False
        if not stream.had_configuration:
            return self._any_had_configuration and self.is_recovering(now)
        if not proxy.has_reported and now < stream.connected_at + SUBSCRIBE_TIMEOUT:
            return True
        return self._rollout.has_unplanned_mode(Ref("Pod", *key)) or self.is_recovering(now)

    # --- the report -----------------------------------------------------------------------------------------

    def collect_report(self, mesh: Mesh, now: float, *, is_alone: bool = False) -> Report:
        """Return the progress of the proxies with a pod in the mesh. Forget proxies that stay away."""
        if self._rollout.timeout is None:
            return Report(generation=mesh.served.generation)  # Nothing waits for proxies.
        is_detailed = self._rollout.is_in_progress or bool(self._rollout.skipped)
        servers: dict[Ref, int] = {}
        clients: dict[str, int] = {}
        rejected_listeners: dict[Ref, str] = {}
        rejected_clusters: dict[str, dict[str, str]] = {}
        # Proxies of the previous process that have not reconnected yet use what it served them.
        has_earlier_connections = self._may_be_a_restart and self.is_recovering(now)
        for namespace, pod in self._unknown if has_earlier_connections else ():
            if mesh.pod(namespace, pod):
                clients[f"{pod}.{namespace}"] = servers[Ref("Pod", namespace, pod)] = -1
        delay = WORKER_DELAY + classification_delay(mesh.config)
        for key, proxy in tuple(self._proxies.items()):
            self._update_away(mesh, key, proxy, now)
            if mesh.pod(*key) is None:
                continue
            namespace, pod = key
            name, ref = f"{pod}.{namespace}", Ref("Pod", *key)
            for progress, is_client, is_server, caught_up_at in _parts(proxy, now, is_detailed=is_detailed):
                if is_client:
                    clients[name] = min(progress.client, clients.get(name, progress.client))
                    # A connection is pending until the server's listener has detected its protocol.
                    has_earlier_connections |= now < caught_up_at + delay
                if is_server:
                    servers[ref] = min(progress.server, servers.get(ref, progress.server))
            for stream in proxy.streams.values() if is_detailed else ():
                if session := stream.subscriber.session:
                    if error := _listener_error(session):
                        rejected_listeners[ref] = error
                    if errors := _cluster_errors(session):
                        rejected_clusters.setdefault(name, {}).update(errors)
        return Report(
            generation=mesh.served.generation,
            is_alone=is_alone,
            servers=Generations(servers),
            clients=Generations(clients),
            rejected_listeners=rejected_listeners,
            rejected_clusters=rejected_clusters,
            has_earlier_connections=has_earlier_connections,
            asks=self._rollout.collect_asks(servers),
        )

    def _update_away(self, mesh: Mesh, key: PodKey, proxy: _Proxy, now: float) -> None:
        """Forget that a proxy is away if it has reconnected, its pod is gone, or its time has passed."""
        pod, away = mesh.pod(*key), proxy.away
        if any(stream.counts for stream in proxy.streams.values()):
            proxy.away = None
        elif away:
            is_same = pod is not None and away.uid in {None, pod.meta.uid}
            has_expired = now >= away.grace_ends and not away.outlasts_grace
            if pod is None or not is_same or pod.ended or has_expired:
                proxy.away = None
                self._forget_if_unused(key)
            else:
                away.uid = pod.meta.uid


def _parts(proxy: _Proxy, now: float, *, is_detailed: bool) -> Iterator[_Part]:
    """Yield what a proxy contributes to the report, by each of its streams and since it is away.

    Without transitions, it only matters which proxies are connected: their progress is not computed.
    """
    for stream in proxy.streams.values():
        if stream.counts and (session := stream.subscriber.session):
            progress = stream.progress(session, now) if is_detailed else _NO_PROGRESS
            is_server = stream.may_be_server(now)
            yield _Part(progress, is_client=True, is_server=is_server, caught_up_at=stream.caught_up_at)
    if away := proxy.away:
        yield away.last._replace(is_client=now < away.grace_ends)


def _client_generation(session: Session) -> int:
    """Return the newest generation of clusters and endpoints that a client ACKed or NACKed; -1 for none."""
    return min(session.answered_generation(CLUSTER), session.answered_generation(ENDPOINT))


def _listener_generation(session: Session) -> int:
    """Return the served generation if the pod's inbound listeners are ACKed and warm, else -1."""
    listeners = session.tagged(LISTENER)  # Only inbound listeners have a tag: the modes that they accept.
    return session.generation if listeners and session.has_acked(LISTENER, listeners) else -1


def _cluster_errors(session: Session) -> dict[str, str]:
    """Return the errors of the clusters and endpoints that the client rejected, by cluster name."""
    return {
        name: rejection.message
        for type_url in (CLUSTER, ENDPOINT)
        for name, rejection in session.rejected(type_url).items()
    }


def _listener_error(session: Session) -> str:
    """Return the error of an inbound listener that the server rejected; empty if it rejected none."""
    rejected = session.rejected(LISTENER)
    return next((rejected[name].message for name in session.tagged(LISTENER) if name in rejected), "")
