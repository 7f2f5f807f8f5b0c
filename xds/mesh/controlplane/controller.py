"""One task that keeps every connected proxy supplied: changes in, new mesh, new snapshots, sessions woken.

Changes that arrive close merge_changes are taken merge_changes. Proxies are served one after the other, and whoever waits longest is
next; the event loop gets its turn every few milliseconds. A run that newer facts overtake is dropped, but no proxy's
twice in a row: under changes without end, everybody still gets something.
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
from xds.mesh.controlplane.authorization import NO_KEY, client_of, look_again, without_key
from xds.mesh.controlplane.stats import Certificates, Work
from xds.mesh.envoy.names import NodeId
from xds.mesh.envoy.translate import steps
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority
from xds.mesh.identity.chain import bundle, to_pem
from xds.mesh.identity.claims import Caller, denial_reason
from xds.mesh.identity.secrets import Issuer, trusted_roots
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Pod, merge_changes
from xds.mesh.rollout.driver import EVERY, PodName, Rolling
from xds.mesh.rollout.log import RolloutLog
from xds.mesh.rollout.replica_sync import Exchange
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.status import State
from xds.protocol.wire import Node
from xds.server import Refused, StreamInfo, Subscriber
from xds.server.proxies import Address, host_of
from xds.snapshot import SECRET, Resource, Snapshot

log = structlog.get_logger(__name__)

QUIET = 0.01
"""Seconds without a change after which those that came are taken."""
PATIENCE = 0.05
"""Seconds after which they are taken, though more may be coming."""
SLICE = 0.005
"""Seconds of work after which the event loop gets its turn."""
ROLL_ANYWAY = 0.5
"""Seconds after which rollouts go on, though proxies are still being served."""
AGAIN = 1.0
"""Seconds after which a renewal that failed is tried again."""
ROLLOUT_TIMEOUT = 30.0
"""Seconds that a proxy is waited for when a mode changes."""
CLOCK_CHECK = 60.0
"""Seconds after which renewals are looked at again, should the clock have been set or the machine have slept."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Hub:
    """What is known, and who is connected; tells each proxy what it should have.

    A stream whose caller is known (`xds.mesh.identity.auth`) may speak only for what it proved, and ends when that is so no longer. One
    in plaintext may speak for any pod, and gets a private key only if `serve_keys`, and not by REST.
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
        self.mesh = Mesh()
        self.ready = asyncio.Event()
        """Set once the first facts are in the mesh."""
        self.work = Work()
        extra_roots = self._also_trust = tuple(extra_roots)
        self._authority = authority
        self._roots = trusted_roots(authority, extra_roots)
        self._issuer = Issuer(authority, extra_roots=extra_roots, lifetime=lifetime)
        self._serve_keys = serve_keys
        self._now = now
        self._streams: dict[PodName, set[Subscriber]] = {}
        self.rolling = Rolling(self._streams, rollout_timeout)
        """How far changes of mode are; `rollout_timeout` is how long a proxy is waited for, None: not at all."""
        self.sidecars = SidecarTracker(lambda: self.mesh, self._streams)
        """Which sidecars should be connected, and are not."""
        self.at_rest = asyncio.Lock()
        """Held while a thread works on the mesh and the rollouts, and by who asks them more than a field."""
        self._due: dict[PodName, float | None] = {}
        """Whose snapshot is to be made, in order, and since when a change waits for that."""
        self._log = RolloutLog()
        self._held: set[PodName] = set()
        """Whose proxies have a configuration and wait for a newer one until it is known how far others are."""
        self._dropped: set[PodName] = set()
        """Whose last run was dropped."""
        self._failure = ""
        """The last error that was told with its traceback."""
        self._failures: dict[PodName, str] = {}
        """Why there is no newer configuration for whom."""
        self._pending: list[Change] = []
        self._first = self._last = self._turn = 0.0
        self._wake = asyncio.Event()

    # --- what sources tell -------------------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Take note of a change; it is in force a moment later."""
        self._last = asyncio.get_running_loop().time()
        if not self._pending:
            self._first = self._last
        self._pending.append(change)
        self.work.changes += 1
        self._wake.set()

    @property
    def trust(self) -> tuple[Authority, bytes]:
        """Who issues now, and the roots that are trusted, in PEM form."""
        return self._authority, bundle((to_pem(self._authority.roots), *self._also_trust))

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes] = ()) -> None:
        """Trust these roots from now on, and give out this authority's certificates; a moment later, everybody has them."""
        extra_roots = self._also_trust = tuple(extra_roots)
        self._authority = authority
        self._roots = trusted_roots(authority, extra_roots)
        self._issuer.rotate(authority, extra_roots)
        for key in self._streams:
            if self.mesh.pod(*key):
                self._want(key)
        self._wake.set()

    # --- what streams tell (server.Proxies) --------------------------------------------------------------------------

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Let a sidecar in, if its pod is the caller's. One whose pod is not known waits for it."""
        try:
            name = NodeId.parse(node.id)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        key = (name.namespace, name.pod)
        caller: Caller | None = stream.caller
        if caller and (reason := denial_reason(caller, *key, self.mesh.pod(*key))):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
        subscriber = Subscriber(node, stream)
        subscriber.client = client_of(caller, key, is_known=self.mesh.pod(*key) is not None)
        if not (self._may_have_key(subscriber) or stream.keyless or key in self._streams):
            log.warning("proxy gets no certificate", proxy=node.id, secret=CERTIFICATE, reason=NO_KEY)
        self._streams.setdefault(key, set()).add(subscriber)
        self.rolling.connected(subscriber, _clock())
        self.sidecars.connected(key)
        if self.mesh.pod(*key):
            self._want(key)
            self._wake.set()
        else:
            log.warning(
                "proxy waits: its pod is not known", proxy=node.id, pod=f"{name.namespace}/{name.pod}"
            )
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended."""
        key = _pod_name(subscriber)
        streams = self._streams[key]
        streams.discard(subscriber)
        self.rolling.disconnected(subscriber, key, _clock())
        if not streams:
            del self._streams[key]
            self.sidecars.disconnected(key, _clock())
            self._failures.pop(key, None)
            self._due.pop(key, None)
            self._dropped.discard(key)
            self._held.discard(key)

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Take note of what a proxy took; what it rejected is in the server's log.

        Refused: it asks for a private key on a stream for secrets alone, and must not have it.
        """
        if isinstance(event, Subscribed):
            wanted = event.type_url == subscriber.stream.type_url == SECRET and CERTIFICATE in event.names
            if wanted and not self._may_have_key(subscriber):
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, NO_KEY)
            self.rolling.asked(subscriber, _pod_name(subscriber), event.type_url)
        if isinstance(event, Acked):
            log.debug(
                "taken by proxy",
                proxy=subscriber.node.id,
                type=event.type_url.rpartition(".")[2],
                version=event.version,
                seconds=round(event.waited, 3),
            )

    # --- what may be asked -------------------------------------------------------------------------------------------

    def missing(self, subscriber: Subscriber) -> str:
        """Say why a sidecar gets no configuration, or no newer one; empty if it does."""
        key = _pod_name(subscriber)
        return self._failures.get(key, "") if self.mesh.pod(*key) else "its pod is not known"

    def absences(self) -> Absences:
        """Return the pods that should have a connected sidecar and do not."""
        return Absences(self.sidecars.absent, self.rolling.may_be_elsewhere(_clock()))

    def hosts(self, key: PodName) -> Iterator[Address]:
        """Yield the addresses that a pod's streams come from."""
        for subscriber in self._streams.get(key, ()):
            if host := host_of(subscriber.stream.peer):
                yield host

    def distrusting(self) -> list[str]:
        """Return the proxies (node ids) that use the roots and have not taken those that hold now."""
        return sorted(
            {each.node.id for streams in self._streams.values() for each in streams if self._lags(each)}
        )

    def _lags(self, subscriber: Subscriber) -> bool:
        found = subscriber.session.look(SECRET, ROOTS) if subscriber.session else None
        return found is not None and not (
            found.state is State.SYNCED and found.version == self._roots.version
        )

    def certificates(self) -> Certificates:
        """Tell which certificates there are."""
        expiries = self._issuer.expiries()
        first = min(expiries, default=None)
        return Certificates(self._issuer.issued, len(expiries), first, self._authority.expires)

    # --- other replicas ----------------------------------------------------------------------------------------------

    def share(self) -> Exchange | None:
        """Begin to reckon with other replicas: nobody is served before it is known what is on its way with them.

        None: there is nothing to share, for nobody is waited for here.
        """
        return self.rolling.share(_clock())

    def hear(self) -> None:
        """Take note that others have said something, or know by now what we said."""
        self.rolling.hear()
        self._wake.set()

    # --- the task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            if self._is_time():
                await self._apply()
            elif self.ready.is_set() and self._is_time_to_roll():
                await self._roll()
            elif self._due:
                await self._serve(next(iter(self._due)))
                await self._breathe()
            else:
                await self._rest()

    def _is_time(self) -> bool:
        """Whether pending changes are to be taken now."""
        now = asyncio.get_running_loop().time()
        return (
            bool(self._pending)
            and now >= self.rolling.begins_at(now)
            and (now >= self._last + QUIET or now >= self._first + PATIENCE)
        )

    async def _apply(self) -> None:
        change, self._pending = merge_changes(self._pending), []
        changed_at, old = self._first, self.mesh
        began = time.perf_counter()
        try:
            # In a thread, for its cost follows the change, and the first one is everything.
            now = _clock()
            async with self.at_rest:
                known = self.rolling.known(old, now)
                if self.ready.is_set():
                    self.mesh = await asyncio.to_thread(self.rolling.apply, old, change, known, now)
                else:
                    self.mesh = await asyncio.to_thread(self.rolling.first, change, known, now)
            self.rolling.tell()
        except Exception as error:  # noqa: BLE001 - told in full
            log.error("a change could not be applied and is left out", stack=_traceback(error))  # noqa: TRY400
            return
        finally:
            self.work.applied += 1
            self.work.apply_seconds += time.perf_counter() - began
        for ref in change.removed:
            if isinstance(gone := old.get(ref), Pod):
                self._issuer.forget(gone)
                self.sidecars.forget((ref.namespace, ref.name))
        for key, streams in self._streams.items():
            pod, was = self.mesh.pod(*key), old.pod(*key)
            if pod is not was:
                for subscriber in streams:
                    if pod:
                        subscriber.charge(client_of(subscriber.stream.caller, key, is_known=True))
                    look_again(subscriber, key, was, pod)
            if pod:
                self._want(key, changed_at)
        if not self.ready.is_set():
            self.rolling.began(self.mesh, _clock())
            self.ready.set()

    def _is_time_to_roll(self) -> bool:
        """Whether to look how far proxies are: once everybody has what they should, or it has been a while."""
        now = _clock()
        due = self.rolling.due(now)
        return now >= (due + ROLL_ANYWAY if self._due else due)

    async def _roll(self) -> None:
        """Take the next step of what is on its way, if proxies are as far."""
        now, before = _clock(), self.mesh
        try:
            async with self.at_rest:
                known = self.rolling.known(before, now)
                self.mesh = await asyncio.to_thread(self.rolling.advance, before, known, now)
            self.rolling.tell()
            self._log.tell(self.mesh, self.rolling.rollout, _clock())
        except Exception as error:  # noqa: BLE001 - told in full, or was before
            said = f"{type(error).__name__}: {error}"
            if said != self._failure:
                log.error("changes of mode cannot go on", problem=said, stack=_traceback(error))  # noqa: TRY400
            self._failure = said
        if self.mesh is not before:
            for key in self._streams:
                if self.mesh.pod(*key):
                    self._want(key)

    def _want(self, key: PodName, changed_at: float | None = None) -> None:
        """Have a pod's snapshot made."""
        before = self._due.get(key)
        self._due[key] = changed_at if before is None else before

    async def _serve(self, key: PodName) -> None:
        """Make a pod's snapshot, and give it to its streams."""
        changed_at = self._due.pop(key)
        self._held.discard(key)
        pod = self.mesh.pod(*key)
        if pod is None:
            return
        now = _clock()
        if any(self.rolling.holds(each, key, now) for each in self._streams.get(key, ())):
            self._held.add(key)
            return
        with_key = any(self._may_have_key(each) for each in self._streams.get(key, ()))
        try:
            secrets = self._secrets(pod, with_key=with_key)
            snapshot = await self._translate(pod, secrets, droppable=key not in self._dropped)
        except Exception as error:  # noqa: BLE001 - told in full, or was before
            # What is wrong for one is often wrong for all; the traceback is worth telling once.
            said, before = f"{type(error).__name__}: {error}", self._failure
            self._failure = said
            self._failures[key] = f"no configuration could be made: {said}"
            self.work.failed += 1
            log.error(  # noqa: TRY400
                "no configuration could be made; what the proxy has stays",
                pod="/".join(key),
                problem=said,
                **({"stack": _traceback(error)} if said != before else {}),
            )
            return
        if snapshot is None:
            self._dropped.add(key)
            self._want(key, changed_at)
            self.work.overtaken += 1
            return
        self.work.made += 1
        self._failures.pop(key, None)
        self._dropped.discard(key)
        while self.mesh.failures:
            ref, failure = self.mesh.failures.popitem()
            log.error(
                "a service could not be translated and stays as it was",
                service=str(ref),
                stack=_traceback(failure),
            )
        keyless: Snapshot | None = None
        for subscriber in self._streams.get(key, ()):
            if not self._may_have_key(subscriber):
                found = keyless = keyless or without_key(snapshot)
            elif with_key:
                found = snapshot
            else:
                continue  # It came meanwhile, is the first that may have a key, and is served next.
            had = subscriber.snapshot
            if had is None or had != found or had.edition != found.edition:
                subscriber.publish(found, changed_at)

    def _may_have_key(self, subscriber: Subscriber) -> bool:
        stream = subscriber.stream
        return stream.caller is not None or (self._serve_keys and not stream.keyless)

    async def _translate(
        self, pod: Pod, secrets: tuple[Resource, ...], *, droppable: bool
    ) -> Snapshot | None:
        """Run a translation, giving the loop back now and then; None if newer facts overtook it."""
        run = steps(self.mesh, pod, secrets)
        while True:
            began = time.perf_counter()
            try:
                next(run)
            except StopIteration as done:
                snapshot: Snapshot = done.value
                return snapshot
            finally:
                self.work.translate_seconds += time.perf_counter() - began
            if await self._breathe() and droppable and self._is_time():
                return None

    def _secrets(self, pod: Pod, *, with_key: bool) -> tuple[Resource, ...]:
        if self.mesh.config.sds_socket:
            return ()  # They have other certificates, and other roots.
        if not with_key:
            return (self._roots,)
        return self._issuer.secrets_for(pod, self.mesh.config.trust_domain, self._now())

    async def _breathe(self) -> bool:
        """Give the event loop its turn if it is time; tell whether it was."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._turn + SLICE:
            return False
        await asyncio.sleep(0)
        self._turn = loop.time()
        return True

    async def _rest(self) -> None:
        """Wait for something to do: somebody who wakes us, a change that has become due, a renewal."""
        loop = asyncio.get_running_loop()
        if self._pending:
            taken = min(self._last + QUIET, self._first + PATIENCE)
            seconds = max(taken, self.rolling.begins_at(loop.time())) - loop.time()
        else:
            soonest = min((at for at, _ in self._renewals()), default=None)
            left = (soonest - self._now()).total_seconds() if soonest else CLOCK_CHECK
            seconds = min(max(left, AGAIN), CLOCK_CHECK)
        rolls = self.rolling.due(loop.time()) - loop.time() if self.ready.is_set() else inf
        seconds = min(seconds, rolls, EVERY if self._held else inf)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._turn = loop.time()
        for key in tuple(self._held):
            if not any(self.rolling.holds(each, key, self._turn) for each in self._streams.get(key, ())):
                self._want(key)
        for at, key in self._renewals():
            if at <= self._now():
                self._want(key)

    def _renewals(self) -> Iterator[tuple[datetime, PodName]]:
        """Yield when which connected pod needs a new certificate."""
        for key in self._streams:
            pod = self.mesh.pod(*key)
            if pod and (at := self._issuer.renew_at(pod)):
                yield at, key


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _traceback(error: Exception) -> str:
    """Return it for the log, as text: who formats tracebacks may show local variables, and there may be keys there."""
    return "".join(traceback.format_exception(error))


def _pod_name(subscriber: Subscriber) -> PodName:
    name = NodeId.parse(subscriber.node.id)
    return name.namespace, name.pod
