"""The controller applies changes to the mesh, and has the current snapshot published to each affected proxy.

One task does both, so the mesh never changes during a step. It batches changes that arrive close together,
advances rollouts, and then serves one proxy at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf

import structlog

from xds.mesh.controlplane.absence import Absences
from xds.mesh.controlplane.batcher import Batch, ChangeBatcher
from xds.mesh.controlplane.certificates import Certificates
from xds.mesh.controlplane.connections import Connections, pod_name
from xds.mesh.controlplane.publisher import Publisher, publish, traceback_of
from xds.mesh.controlplane.rollout_log import RolloutLog
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.controlplane.stats import Stats
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Pod, PodKey
from xds.mesh.rollout.driver import CHECK_INTERVAL, RolloutDriver
from xds.mesh.rollout.sync import ReplicaSync
from xds.protocol.status import State
from xds.server import Subscriber
from xds.server.stream import now as clock
from xds.snapshot import SECRET

log = structlog.get_logger(__name__)

MAX_ROLLOUT_DELAY = 0.5
"""Seconds after which rollouts advance, even if translations are still queued."""
ROLLOUT_TIMEOUT = 30.0
"""Seconds to wait for a proxy during a rollout."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Apply changes to the mesh, and keep connected proxies up to date."""

    def __init__(
        self,
        authority: Authority,
        *,
        extra_roots: Iterable[bytes] = (),
        serve_keys: bool = True,
        lifetime: timedelta = LEAF_LIFETIME,
        rollout_timeout: float | None = ROLLOUT_TIMEOUT,
        now: Callable[[], datetime] = _utc_now,
        external: ExternalIssuer | None = None,
    ) -> None:
        """Create a controller; `run` starts it.

        Args:
            authority: the CA that issues certificates.
            extra_roots: further trusted root certificates, in PEM form.
            serve_keys: whether plaintext streams get private keys.
            lifetime: the lifetime of certificates.
            rollout_timeout: seconds to wait for a proxy during a rollout; None not to wait.
            now: returns the current time.
            external: signs certificates instead of the CA; None without one.
        """
        self.mesh = Mesh()
        """The current mesh, including the served modes."""
        self.mesh_lock = asyncio.Lock()
        """Lock on the mesh and the rollouts. Acquire it to read both consistently."""
        self.ready = asyncio.Event()
        """Set once the first change is applied."""
        self.observe_since = time.time()
        """Unix time at which the mesh's settings enabled observation, in seconds."""
        self.stats = Stats()
        """Counters for metrics."""
        self.on_applied: Callable[[Batch, float], None] | None = None
        """Called with each batch of changes that was applied, and when that began."""
        self._wake, self.batcher = asyncio.Event(), ChangeBatcher()
        """Changes to apply."""
        self.rollouts = RolloutDriver(rollout_timeout)
        """Driver of the rollouts that are in progress."""
        self.certificates = Certificates(authority, extra_roots, lifetime, now, external)
        """Issuer of the sidecars' certificates."""
        self.publisher = Publisher(self._wake, self.stats)
        """Queue of pods to serve."""
        self.connections = Connections(
            lambda: self.mesh,
            self.rollouts.proxies,
            self.publisher,
            self.publisher.forget,
            serve_keys=serve_keys,
        )
        """Registry of streams, for the servers."""

    # --- for sources ----------------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Queue a change, to be applied after the debounce."""
        self.batcher.add(change, clock())
        self.stats.changes += 1
        self._wake.set()

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes] = ()) -> None:
        """Issue all certificates from a new CA. Trust its roots and `extra_roots`."""
        self.certificates.rotate(authority, extra_roots)
        self._schedule_all(None)

    # --- status ---------------------------------------------------------------------------------------------

    def problem_of(self, subscriber: Subscriber) -> str:
        """Return why a proxy's configuration is not up to date; empty if there is no problem."""
        key = pod_name(subscriber)
        if not self.mesh.pod(*key):
            return "its pod is not known"
        features, with_key = self.connections.needs(key)
        if features.pod_certificate and self.certificates.signer_expiry:
            return "its kubelet keeps a certificate of the mesh CA, not of the signer: restart the pod"
        gets_key = with_key and not features.has_key and not self.mesh.config.sds_socket
        return (self.certificates.key_problem if gets_key else "") or self.publisher.error_of(key)

    def certificate_expiry(self, subscriber: Subscriber) -> datetime | None:
        """Return when the certificate expires that a proxy is served; None if it is served none."""
        pod, snapshot = self.mesh.pod(*pod_name(subscriber)), subscriber.snapshot
        is_served = self.connections.needs(pod_name(subscriber)).features.has_key or (
            snapshot is not None and CERTIFICATE in snapshot.of(SECRET)
        )
        return self.certificates.expires_at(pod) if pod and is_served else None

    def absences(self) -> Absences:
        """Return the pods without a connected sidecar that should have one."""
        return Absences(self.connections.sidecars.absent, self.rollouts.may_have_peers(clock()))

    def proxies_with_old_roots(self) -> list[str]:
        """Return the node IDs of proxies that have not ACKed the current root certificates.

        Proxies that do not subscribe to root certificates are not included.
        """
        version = self.certificates.roots.version
        subscribers = [stream for streams in self.connections.streams.values() for stream in streams]
        return sorted({each.node.id for each in subscribers if _has_old_roots(each, version)})

    # --- replicas -------------------------------------------------------------------------------------------

    def enable_sync(self, sync: ReplicaSync) -> bool:
        """Start sharing rollouts with other replicas. No proxy is served before their plan is known.

        Return False if rollouts are disabled (no rollout timeout), because there is nothing to share.
        """
        return self.rollouts.enable_sync(sync, clock())

    def peers_changed(self) -> None:
        """Schedule a rollout check: a report or plan of another replica arrived, or our plan was stored."""
        self.rollouts.peers_changed()
        self._wake.set()

    # --- the task -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply changes, advance rollouts, publish snapshots and renew certificates, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run())
            tasks.create_task(
                self.certificates.run(
                    lambda: (pod for _, pod in self.connections.pods()),
                    lambda pod: self.publisher.schedule(pod.key),
                )
            )

    async def _run(self) -> None:
        rollout_log = RolloutLog()
        while True:
            self._wake.clear()
            if self._must_apply():
                await self._apply(self.batcher.take())
            elif self.ready.is_set() and self._must_advance_rollouts():
                await self._advance_rollouts(rollout_log)
            elif self.publisher.next:
                await self._serve_queued()
            else:
                await self._wait_for_work()

    def _must_apply(self) -> bool:
        """Return whether to apply pending changes now: the debounce has ended, and peers are known."""
        now = clock()
        return now >= self.batcher.due_at and now >= self.rollouts.earliest_apply(now)

    async def _apply(self, batch: Batch) -> None:
        """Apply changes to the mesh, and queue all connected proxies whose pod is known."""
        old_mesh, started_at = self.mesh, clock()
        await self._apply_change(batch.change)
        if self.mesh.config.observe and not old_mesh.config.observe:
            self.observe_since = time.time()
        self.stats.batches += 1
        self.stats.apply_seconds += clock() - started_at
        for ref in batch.change.removed:
            if isinstance(removed_pod := old_mesh.get(ref), Pod) and self.mesh.get(ref) is not removed_pod:
                key = ref.key
                self.certificates.forget(removed_pod)
                self.connections.sidecars.forget(key)
                self.connections.deleted_pods.add(removed_pod, time.time())
                self.rollouts.proxies.pod_deleted(key)
        self.connections.mesh_changed(old_mesh)
        self._schedule_all(batch.changed_at)
        self.batcher.applied(clock())
        if self.on_applied:
            self.on_applied(batch, started_at)
        if not self.ready.is_set() and self.mesh is not old_mesh:
            self.rollouts.proxies.start_recovery(self.mesh, clock())
            self.ready.set()

    async def _apply_change(self, change: Change) -> None:
        """Apply a change. If that fails, apply its objects one by one, and skip those that fail."""
        try:
            async with self.mesh_lock:
                now = clock()
                observed = self.rollouts.collect_progress(self.mesh, now)
                # In a thread: the cost grows with the change, and the first change is the whole input.
                self.mesh = await asyncio.to_thread(self.rollouts.apply, self.mesh, change, observed, now)
            self.rollouts.publish_report()
        except Exception as error:  # noqa: BLE001 - logged in full
            if len(parts := list(_parts(change))) > 1:
                for part in parts:
                    await self._apply_change(part)
                return
            objects = [str(ref) for ref in (*(fact.ref for fact in change.applied), *change.removed)]
            log.error("failed to apply change, skipped", objects=objects, stack=traceback_of(error))  # noqa: TRY400

    def _must_advance_rollouts(self) -> bool:
        """Return whether a rollout check is due. Queued translations delay it by MAX_ROLLOUT_DELAY."""
        now = clock()
        due_at = self.rollouts.next_check(now)
        return now >= (due_at + MAX_ROLLOUT_DELAY if self.publisher.next else due_at)

    async def _advance_rollouts(self, rollout_log: RolloutLog) -> None:
        """Advance rollouts as far as proxies have progressed. Queue all proxies if the mesh changes."""
        now, old_mesh = clock(), self.mesh
        try:
            async with self.mesh_lock:
                observed = self.rollouts.collect_progress(old_mesh, now)
                self.mesh = await asyncio.to_thread(self.rollouts.advance, old_mesh, observed, now)
            self.rollouts.publish_report()
            rollout_log.update(self.mesh, self.rollouts, clock())
        except Exception as error:  # noqa: BLE001 - logged in full, unless it repeats
            rollout_log.failed(f"{type(error).__name__}: {error}", traceback_of(error))
        if self.mesh is not old_mesh:
            self._schedule_all(None)

    def _schedule_all(self, changed_at: float | None) -> None:
        """Queue all connected pods."""
        for key, _ in self.connections.pods():
            self.publisher.schedule(key, changed_at)

    async def _serve_queued(self) -> None:
        """Serve queued pods until the time slice is used up. Then, more urgent work may be due."""
        while key := self.publisher.next:
            await self._serve(key)
            if await self.publisher.checkpoint() or self._must_apply():
                return

    async def _serve(self, key: PodKey) -> None:
        """Translate a queued pod, and publish the snapshot to its streams."""
        pod, connections = self.mesh.pod(*key), self.connections
        if pod is None:
            self.publisher.forget(key)
            return
        if self.rollouts.proxies.must_defer(key, clock()):
            self.publisher.defer(key)
            return
        needs = connections.needs(key)
        features, with_key = needs
        translated = await self.publisher.translate(
            self.mesh,
            pod,
            lambda: self.certificates.secrets_for(pod, self.mesh.config, features, with_key=with_key),
            features,
            self._must_apply,
        )
        if not translated or key not in connections.streams:
            return
        if connections.needs(key) != needs:  # Streams have connected or ended meanwhile.
            self.publisher.schedule(key, translated[1])
        else:
            publish(*translated, connections.streams[key], connections.may_receive_key, with_key=with_key)

    async def _wait_for_work(self) -> None:
        """Wait for an event, the end of a debounce, or the next rollout check."""
        now = clock()
        due_at = max(self.batcher.due_at, self.rollouts.earliest_apply(now))
        if self.ready.is_set():
            due_at = min(due_at, self.rollouts.next_check(now))
        if self.publisher.deferred:
            due_at = min(due_at, now + CHECK_INTERVAL)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due_at if due_at < inf else None):
                await self._wake.wait()
        self.publisher.checkpoint.start_slice()
        for key in tuple(self.publisher.deferred):
            if not self.rollouts.proxies.must_defer(key, clock()):
                self.publisher.schedule(key)


def _parts(change: Change) -> Iterator[Change]:
    """Yield the settings and each object of a change as a change of its own."""
    if change.config:
        yield Change(config=change.config)
    # In this order, a policy that replaces another one applies before the other one is removed.
    yield from (Change(applied=(fact,)) for fact in change.applied)
    yield from (Change(removed=(ref,)) for ref in change.removed)


def _has_old_roots(subscriber: Subscriber, version: str) -> bool:
    status = subscriber.session.resource_status(SECRET, ROOTS) if subscriber.session else None
    return status is not None and not (status.state is State.SYNCED and status.version == version)
