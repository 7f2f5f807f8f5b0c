"""The controller applies changes to the mesh and publishes a new snapshot to each affected proxy.

A single task does this. Changes that arrive close together are batched. Proxies are served one at a time, in
the order in which they became due, and the task yields to the event loop every few milliseconds. A
translation that newer changes supersede is abandoned, but never twice in a row for the same proxy, so that
proxies are served even under constant change.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf

import grpc
import structlog

from xds.mesh.controlplane.absence import Absences, SidecarTracker
from xds.mesh.controlplane.authorization import NO_KEY, budget_key, recheck_caller, without_private_key
from xds.mesh.controlplane.stats import CertificateStats, Stats
from xds.mesh.envoy.names import NodeId
from xds.mesh.envoy.translate import steps
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority
from xds.mesh.identity.chain import bundle, to_pem
from xds.mesh.identity.claims import Caller, denial_reason
from xds.mesh.identity.secrets import Issuer, trusted_roots
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Pod, merge_changes
from xds.mesh.rollout.driver import CHECK_INTERVAL, PodName, RolloutDriver
from xds.mesh.rollout.log import RolloutLog
from xds.mesh.rollout.replica_sync import ReplicaSync
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.status import State
from xds.protocol.wire import Node
from xds.server import Refused, StreamInfo, Subscriber
from xds.snapshot import SECRET, Resource, Snapshot

log = structlog.get_logger(__name__)

DEBOUNCE = 0.01
"""Quiet period before pending changes are applied, in seconds."""
MAX_DEBOUNCE = 0.05
"""Seconds after which pending changes are applied, even if more keep arriving."""
TIME_SLICE = 0.005
"""Seconds of work after which the task yields to the event loop."""
MAX_ROLLOUT_DELAY = 0.5
"""Seconds after which rollouts advance, even if translations are still queued."""
RETRY_DELAY = 1.0
"""Seconds after which a failed renewal is retried."""
ROLLOUT_TIMEOUT = 30.0
"""Seconds to wait for a proxy during a rollout."""
CLOCK_CHECK_INTERVAL = 60.0
"""Seconds after which renewals are checked again, in case the clock was set or the machine was suspended."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Track the mesh and the connected proxies, and publish the current snapshot to each proxy.

    A stream with an authenticated caller (`xds.mesh.identity.auth`) may act only for the pod that the caller
    authenticated as, and is closed once that no longer holds. A plaintext stream may act for any pod. It gets
    a private key only if `serve_keys` is set, and never over REST.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        extra_roots: Iterable[bytes] = (),
        serve_keys: bool = True,
        lifetime: timedelta = LEAF_LIFETIME,
        rollout_timeout: float | None = ROLLOUT_TIMEOUT,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Create a controller; `run` starts it.

        Args:
            authority: the CA that issues certificates.
            extra_roots: further trusted root certificates, in PEM form.
            serve_keys: whether plaintext streams get private keys.
            lifetime: the lifetime of certificates.
            rollout_timeout: seconds to wait for a proxy during a rollout. None: serve the desired state at
            once.
            now: returns the current time.
        """
        self.mesh = Mesh()
        """The mesh that is served."""
        self.ready = asyncio.Event()
        """Set once the first change is applied."""
        self.stats = Stats()
        """Counters for metrics."""
        extra_roots = self._also_trust = tuple(extra_roots)
        self._authority = authority
        self._roots = trusted_roots(authority, extra_roots)
        self._issuer = Issuer(authority, extra_roots=extra_roots, lifetime=lifetime)
        self._serve_keys = serve_keys
        self._now = now
        self._streams: dict[PodName, set[Subscriber]] = {}
        self.rollouts = RolloutDriver(self._streams, rollout_timeout)
        """Drives the mode changes that are in progress."""
        self.sidecars = SidecarTracker(lambda: self.mesh, self._streams)
        """Tracks the sidecars that should be connected and are not."""
        self.mesh_lock = asyncio.Lock()
        """Held while a thread changes the mesh and the rollouts. Hold it to read both consistently."""
        self._due: dict[PodName, float | None] = {}
        """Queue of pods to translate, each with the time of its oldest unserved change."""
        self._log = RolloutLog()
        self._held: set[PodName] = set()
        """Pods that are not served until reconnecting proxies have reported their state."""
        self._superseded: set[PodName] = set()
        """The pods whose last translation was abandoned."""
        self._last_error = ""
        """The last error that was logged with its traceback."""
        self._errors: dict[PodName, str] = {}
        """Why a pod has no newer configuration."""
        self._pending: list[Change] = []
        self._first_change_at = self._last_change_at = self._slice_started_at = 0.0
        self._wake = asyncio.Event()

    # --- for sources ----------------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Queue a change. It is applied a moment later."""
        self._last_change_at = asyncio.get_running_loop().time()
        if not self._pending:
            self._first_change_at = self._last_change_at
        self._pending.append(change)
        self.stats.changes += 1
        self._wake.set()

    @property
    def trust(self) -> tuple[Authority, bytes]:
        """The CA that issues certificates now, and all trusted roots in PEM form."""
        return self._authority, bundle((to_pem(self._authority.roots), *self._also_trust))

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes] = ()) -> None:
        """Issue all certificates from a new authority, and trust its root and `extra_roots` from now on."""
        extra_roots = self._also_trust = tuple(extra_roots)
        self._authority = authority
        self._roots = trusted_roots(authority, extra_roots)
        self._issuer.rotate(authority, extra_roots)
        for key in self._streams:
            if self.mesh.pod(*key):
                self._schedule(key)
        self._wake.set()

    # --- for streams (server.Proxies) -----------------------------------------------------------------------

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Admit a sidecar if the caller may act for its pod. If the pod is unknown, the sidecar waits."""
        try:
            name = NodeId.parse(node.id)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        key = (name.namespace, name.pod)
        caller: Caller | None = stream.caller
        if caller and (reason := denial_reason(caller, *key, self.mesh.pod(*key))):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
        subscriber = Subscriber(node, stream)
        subscriber.client = budget_key(caller, key, is_known=self.mesh.pod(*key) is not None)
        if not (self._may_have_key(subscriber) or stream.keyless or key in self._streams):
            log.warning("proxy gets no certificate", proxy=node.id, secret=CERTIFICATE, reason=NO_KEY)
        self._streams.setdefault(key, set()).add(subscriber)
        self.rollouts.connected(subscriber, _clock())
        self.sidecars.connected(key)
        if self.mesh.pod(*key):
            self._schedule(key)
            self._wake.set()
        else:
            log.warning("proxy waits for its pod", proxy=node.id, pod=f"{name.namespace}/{name.pod}")
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended."""
        key = _pod_name(subscriber)
        streams = self._streams[key]
        streams.discard(subscriber)
        self.rollouts.disconnected(subscriber, key, _clock())
        if not streams:
            del self._streams[key]
            self.sidecars.disconnected(key, _clock())
            self._errors.pop(key, None)
            self._due.pop(key, None)
            self._superseded.discard(key)
            self._held.discard(key)

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Record a subscription or an ACK. The server logs NACKs.

        Raises:
            Refused: on an SDS stream, the proxy requests a private key that it is not allowed to receive.
        """
        if isinstance(event, Subscribed):
            wants_key = event.type_url == subscriber.stream.type_url == SECRET and CERTIFICATE in event.names
            if wants_key and not self._may_have_key(subscriber):
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, NO_KEY)
            self.rollouts.subscribed(subscriber, _pod_name(subscriber), event.type_url)
        self.rollouts.received(subscriber, _clock())
        if isinstance(event, Acked):
            log.debug(
                "proxy acked",
                proxy=subscriber.node.id,
                type=event.type_url.rpartition(".")[2],
                version=event.version,
                seconds=round(event.waited, 3),
            )

    # --- status ---------------------------------------------------------------------------------------------

    def problem_of(self, subscriber: Subscriber) -> str:
        """Return why a sidecar gets no new configuration; an empty string if it gets one."""
        key = _pod_name(subscriber)
        return self._errors.get(key, "") if self.mesh.pod(*key) else "its pod is not known"

    def absences(self) -> Absences:
        """Return the pods that should have a connected sidecar and do not."""
        return Absences(self.sidecars.absent, self.rollouts.may_have_peers(_clock()))

    def proxies_with_old_roots(self) -> list[str]:
        """Return the node IDs of proxies that use root certificates and have not ACKed the current ones."""
        return sorted(
            {
                subscriber.node.id
                for streams in self._streams.values()
                for subscriber in streams
                if self._has_old_roots(subscriber)
            }
        )

    def _has_old_roots(self, subscriber: Subscriber) -> bool:
        status = subscriber.session.resource_status(SECRET, ROOTS) if subscriber.session else None
        return status is not None and not (
            status.state is State.SYNCED and status.version == self._roots.version
        )

    def certificates(self) -> CertificateStats:
        """Return certificate statistics."""
        expiries = self._issuer.expiries()
        first = min(expiries, default=None)
        return CertificateStats(self._issuer.issued, len(expiries), first, self._authority.expires)

    # --- replicas -------------------------------------------------------------------------------------------

    def enable_sync(self) -> ReplicaSync | None:
        """Start coordinating with other replicas. No proxy is served before their transitions are known.

        Return None if there is nothing to coordinate, because the rollout timeout is disabled.
        """
        return self.rollouts.enable_sync(_clock())

    def peers_changed(self) -> None:
        """Check rollouts soon: a peer's report has arrived, or the API server has confirmed our own."""
        self.rollouts.peers_changed()
        self._wake.set()

    # --- the task -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            if self._must_apply():
                await self._apply()
            elif self.ready.is_set() and self._must_advance_rollouts():
                await self._advance_rollouts()
            elif self._due:
                await self._serve(next(iter(self._due)))
                await self._yield_to_loop()
            else:
                await self._rest()

    def _must_apply(self) -> bool:
        """Return whether pending changes have to be applied now."""
        now = asyncio.get_running_loop().time()
        return (
            bool(self._pending)
            and now >= self.rollouts.starts_at(now)
            and (now >= self._last_change_at + DEBOUNCE or now >= self._first_change_at + MAX_DEBOUNCE)
        )

    async def _apply(self) -> None:
        change, self._pending = merge_changes(self._pending), []
        changed_at, old = self._first_change_at, self.mesh
        started_at = time.perf_counter()
        try:
            # In a thread: the cost grows with the change, and the first change is the whole input.
            now = _clock()
            async with self.mesh_lock:
                observed = self.rollouts.observe(old, now)
                if self.ready.is_set():
                    self.mesh = await asyncio.to_thread(self.rollouts.apply, old, change, observed, now)
                else:
                    self.mesh = await asyncio.to_thread(self.rollouts.first_mesh, change, observed, now)
            self.rollouts.publish()
        except Exception as error:  # noqa: BLE001 - logged in full
            log.error("failed to apply change, skipped", stack=_traceback(error))  # noqa: TRY400
            return
        finally:
            self.stats.batches += 1
            self.stats.apply_seconds += time.perf_counter() - started_at
        for ref in change.removed:
            if isinstance(removed := old.get(ref), Pod):
                self._issuer.forget(removed)
                self.sidecars.forget((ref.namespace, ref.name))
        for key, streams in self._streams.items():
            pod, previous = self.mesh.pod(*key), old.pod(*key)
            if pod is not previous:
                for subscriber in streams:
                    if pod:
                        subscriber.charge(budget_key(subscriber.stream.caller, key, is_known=True))
                    recheck_caller(subscriber, key, previous, pod)
            if pod:
                self._schedule(key, changed_at)
        if not self.ready.is_set():
            self.rollouts.start_recovery(self.mesh, _clock())
            self.ready.set()

    def _must_advance_rollouts(self) -> bool:
        """Return True once all queued proxies are served, or MAX_ROLLOUT_DELAY has passed."""
        now = _clock()
        due_at = self.rollouts.next_check(now)
        return now >= (due_at + MAX_ROLLOUT_DELAY if self._due else due_at)

    async def _advance_rollouts(self) -> None:
        """Take the next step of the rollouts if proxies have made progress."""
        now, old = _clock(), self.mesh
        try:
            async with self.mesh_lock:
                observed = self.rollouts.observe(old, now)
                self.mesh = await asyncio.to_thread(self.rollouts.advance, old, observed, now)
            self.rollouts.publish()
            self._log.update(self.mesh, self.rollouts.rollout, _clock())
        except Exception as error:  # noqa: BLE001 - logged in full, unless it repeats
            description = f"{type(error).__name__}: {error}"
            if description != self._last_error:
                log.error("rollout step failed", problem=description, stack=_traceback(error))  # noqa: TRY400
            self._last_error = description
        if self.mesh is not old:
            for key in self._streams:
                if self.mesh.pod(*key):
                    self._schedule(key)

    def _schedule(self, key: PodName, changed_at: float | None = None) -> None:
        """Queue a pod for translation."""
        oldest = self._due.get(key)
        self._due[key] = changed_at if oldest is None else oldest

    async def _serve(self, key: PodName) -> None:
        """Translate a pod, and publish the snapshot to its streams."""
        changed_at = self._due.pop(key)
        self._held.discard(key)
        pod = self.mesh.pod(*key)
        if pod is None:
            return
        now = _clock()
        if any(self.rollouts.should_hold(subscriber, key, now) for subscriber in self._streams.get(key, ())):
            self._held.add(key)
            return
        with_key = any(self._may_have_key(subscriber) for subscriber in self._streams.get(key, ()))
        try:
            secrets = self._secrets(pod, with_key=with_key)
            snapshot = await self._translate(pod, secrets, may_abandon=key not in self._superseded)
        except Exception as error:  # noqa: BLE001 - logged in full, unless it repeats
            # An error often affects many pods: log the traceback once.
            description, previous = f"{type(error).__name__}: {error}", self._last_error
            self._last_error = description
            self._errors[key] = f"translation failed: {description}"
            self.stats.failed += 1
            log.error(  # noqa: TRY400
                "translation failed, proxy keeps its configuration",
                pod="/".join(key),
                problem=description,
                **({"stack": _traceback(error)} if description != previous else {}),
            )
            return
        if snapshot is None:
            self._superseded.add(key)
            self._schedule(key, changed_at)
            self.stats.superseded += 1
            return
        self.stats.translated += 1
        self._errors.pop(key, None)
        self._superseded.discard(key)
        while self.mesh.failures:
            ref, failure = self.mesh.failures.popitem()
            log.error(
                "service translation failed, clients keep its previous configuration",
                service=str(ref),
                stack=_traceback(failure),
            )
        keyless: Snapshot | None = None
        for subscriber in self._streams.get(key, ()):
            if not self._may_have_key(subscriber):
                new = keyless = keyless or without_private_key(snapshot)
            elif with_key:
                new = snapshot
            else:
                continue  # A stream that may have the key has connected since, and is served next.
            current = subscriber.snapshot
            if current is None or current != new or current.generation != new.generation:
                subscriber.publish(new, changed_at)

    def _may_have_key(self, subscriber: Subscriber) -> bool:
        stream = subscriber.stream
        return stream.caller is not None or (self._serve_keys and not stream.keyless)

    async def _translate(
        self, pod: Pod, secrets: tuple[Resource, ...], *, may_abandon: bool
    ) -> Snapshot | None:
        """Translate a pod in time slices. Return None if newer changes superseded it."""
        translation = steps(self.mesh, pod, secrets)
        while True:
            started_at = time.perf_counter()
            try:
                next(translation)
            except StopIteration as done:
                snapshot: Snapshot = done.value
                return snapshot
            finally:
                self.stats.translate_seconds += time.perf_counter() - started_at
            if await self._yield_to_loop() and may_abandon and self._must_apply():
                return None

    def _secrets(self, pod: Pod, *, with_key: bool) -> tuple[Resource, ...]:
        if self.mesh.config.sds_socket:
            return ()  # Sidecars get certificates and roots from that socket.
        if not with_key:
            return (self._roots,)
        return self._issuer.secrets_for(pod, self.mesh.config.trust_domain, self._now())

    async def _yield_to_loop(self) -> bool:
        """Yield to the event loop if the time slice is used up. Return whether it was."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._slice_started_at + TIME_SLICE:
            return False
        await asyncio.sleep(0)
        self._slice_started_at = loop.time()
        return True

    async def _rest(self) -> None:
        """Wait for an event, the end of a debounce, or the next rollout check or renewal."""
        loop = asyncio.get_running_loop()
        if self._pending:
            due_at = min(self._last_change_at + DEBOUNCE, self._first_change_at + MAX_DEBOUNCE)
            seconds = max(due_at, self.rollouts.starts_at(loop.time())) - loop.time()
        else:
            soonest = min((renew_at for renew_at, _ in self._renewals()), default=None)
            left = (soonest - self._now()).total_seconds() if soonest else CLOCK_CHECK_INTERVAL
            seconds = min(max(left, RETRY_DELAY), CLOCK_CHECK_INTERVAL)
        until_check = self.rollouts.next_check(loop.time()) - loop.time() if self.ready.is_set() else inf
        seconds = min(seconds, until_check, CHECK_INTERVAL if self._held else inf)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        now = self._slice_started_at = loop.time()
        for key in tuple(self._held):
            if not any(
                self.rollouts.should_hold(subscriber, key, now) for subscriber in self._streams.get(key, ())
            ):
                self._schedule(key)
        for renew_at, key in self._renewals():
            if renew_at <= self._now():
                self._schedule(key)

    def _renewals(self) -> Iterator[tuple[datetime, PodName]]:
        """Yield the renewal time of each connected pod's certificate."""
        for key in self._streams:
            pod = self.mesh.pod(*key)
            if pod and (renew_at := self._issuer.renew_at(pod)):
                yield renew_at, key


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _traceback(error: Exception) -> str:
    """Return the traceback as text.

    Log processors that format tracebacks themselves may print local variables and so leak private keys.
    """
    return "".join(traceback.format_exception(error))


def _pod_name(subscriber: Subscriber) -> PodName:
    name = NodeId.parse(subscriber.node.id)
    return name.namespace, name.pod
