"""Publish the current snapshot to each connected proxy.

Proxies are served one at a time, in the order in which they became due, and the event loop runs other tasks
every few milliseconds. Newer changes cancel a translation, but not twice in a row for one proxy, so all
proxies are served even under constant change.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from math import inf

import structlog

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.authorization import without_private_key
from xds.mesh.controlplane.stats import Stats
from xds.mesh.envoy.features import Features
from xds.mesh.envoy.translate import steps as translation_steps
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, PodKey
from xds.server import Subscriber
from xds.snapshot import ResourceSet, Snapshot

log = structlog.get_logger(__name__)


class Publisher:
    """A queue of pods to serve. The latest mesh wins."""

    def __init__(self, wake: asyncio.Event, stats: Stats) -> None:
        """Create an empty queue.

        Args:
            wake: set whenever a pod is queued.
            stats: counts translations.
        """
        self._wake, self._stats = wake, stats
        self._due: OrderedDict[PodKey, float | None] = OrderedDict()
        """Pods to translate, with the time of the oldest unpublished change; None without one."""
        self.deferred: set[PodKey] = set()
        """Pods whose first snapshot waits for reconnecting proxies to report their state."""
        self._superseded: set[PodKey] = set()
        """Pods whose last translation was cancelled by newer changes."""
        self._errors: dict[PodKey, str] = {}
        """Why the last translation of a pod failed."""
        self._last_error = ""
        """The last error that was logged with its traceback."""
        self.checkpoint = Checkpoint()
        """Yields to the event loop between translations."""
        self._translating: PodKey | None = None
        """The pod whose translation is in progress."""
        self._translated_change: float | None = None
        """Time of the oldest change in that translation; None without one."""

    @property
    def oldest_change(self) -> float:
        """Time of the oldest change that is not published to all pods; infinity if there is none."""
        waiting = (*self._due.values(), self._translated_change)
        return min((at for at in waiting if at is not None), default=inf)

    @property
    def next(self) -> PodKey | None:
        """The pod to serve next."""
        return next(iter(self._due), None)

    def schedule(self, key: PodKey, changed_at: float | None = None) -> None:
        """Queue a pod. If it is queued already, keep the time of its oldest change."""
        oldest = self._due.get(key)
        self._due[key] = changed_at if oldest is None else oldest
        self.deferred.discard(key)
        self._wake.set()

    def defer(self, key: PodKey) -> None:
        """Take a pod from the queue, until it is scheduled again."""
        self._due.pop(key, None)
        self.deferred.add(key)

    def forget(self, key: PodKey) -> None:
        """Forget a pod without streams."""
        self._due.pop(key, None)
        self._errors.pop(key, None)
        self._superseded.discard(key)
        self.deferred.discard(key)

    def is_pending(self, key: PodKey) -> bool:
        """Return whether a snapshot of the current mesh is still to be published to a pod."""
        return key in self._due or key in self.deferred or key == self._translating

    def error_of(self, key: PodKey) -> str:
        """Return why the last translation of a pod failed; empty if it did not."""
        return self._errors.get(key, "")

    async def translate(
        self,
        mesh: Mesh,
        pod: Pod,
        secrets: Callable[[], ResourceSet],
        features: Features,
        is_outdated: Callable[[], bool],
    ) -> tuple[Snapshot, float | None] | None:
        """Take a pod from the queue and translate it.

        Return the snapshot, and when the oldest change in it arrived. Return None if newer changes superseded
        the translation, or if it failed.

        Args:
            mesh: the mesh to translate.
            pod: the pod.
            secrets: returns the secrets of its sidecar.
            features: the features of its Envoy.
            is_outdated: returns whether newer changes have to be applied first.
        """
        key = pod.key
        changed_at, may_cancel = self._due.pop(key, None), key not in self._superseded
        self._translating, self._translated_change = key, changed_at
        try:
            translation = translation_steps(mesh, pod, secrets(), features)
            while (snapshot := self._advance(translation)) is None:
                if await self.checkpoint() and may_cancel and is_outdated():
                    break
        except Exception as error:  # noqa: BLE001 - logged in full, unless it repeats
            self._failed(key, error)
            return None
        finally:
            self._translating = self._translated_change = None
        if snapshot is None:
            self._superseded.add(key)
            self.schedule(key, changed_at)
            self._stats.superseded += 1
            return None
        self._stats.translated += 1
        self._errors.pop(key, None)
        self._superseded.discard(key)
        _log_failures(mesh)
        return snapshot, changed_at

    def _advance(self, translation: Generator[None, None, Snapshot]) -> Snapshot | None:
        """Take the next step of a translation. Return the snapshot after the last one."""
        started_at = time.perf_counter()
        try:
            next(translation)
        except StopIteration as done:
            snapshot: Snapshot = done.value
            return snapshot
        finally:
            self._stats.translate_seconds += time.perf_counter() - started_at
        return None

    def _failed(self, key: PodKey, error: Exception) -> None:
        # An error often affects many pods: log the traceback once.
        description, last_error = f"{type(error).__name__}: {error}", self._last_error
        self._last_error = description
        self._errors[key] = f"translation failed: {description}"
        self._stats.failed += 1
        log.error(
            "translation failed, proxy keeps its configuration",
            pod="/".join(key),
            problem=description,
            **({"stack": traceback_of(error)} if description != last_error else {}),
        )


def _log_failures(mesh: Mesh) -> None:
    while mesh.failures:
        ref, failure = mesh.failures.popitem()
        log.error(
            "service translation failed, clients keep its previous configuration",
            service=str(ref),
            stack=traceback_of(failure),
        )


def publish(
    snapshot: Snapshot,
    changed_at: float | None,
    streams: Iterable[Subscriber],
    may_receive_key: Callable[[Subscriber], bool],
    *,
    with_key: bool,
) -> None:
    """Publish a pod's snapshot to its streams, without the private key where a stream may not have it."""
    keyless: Snapshot | None = None
    for subscriber in streams:
        if not may_receive_key(subscriber):
            new_snapshot = keyless = keyless or without_private_key(snapshot)
        elif with_key:
            new_snapshot = snapshot
        else:
            # This stream connected after the translation started: it gets a key from the next one.
            continue
        current = subscriber.snapshot
        if current is None or current.generation != new_snapshot.generation or current != new_snapshot:
            subscriber.publish(new_snapshot, changed_at)


def traceback_of(error: Exception) -> str:
    """Return the traceback as text.

    A log processor that formats tracebacks may print local variables, and so leak private keys.
    """
    return "".join(traceback.format_exception(error))
