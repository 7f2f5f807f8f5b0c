"""Validation of snapshots before they are published: resources that Envoy refuses are held back.

The snapshots of many pods are validated together. Meanwhile, newer snapshots replace older ones that wait, so
each pod has at most one snapshot that is validated and one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import NamedTuple, TypeAlias

import structlog

from xds.checkpoint import Checkpoint
from xds.mesh.model.objects import Problem
from xds.mesh.rollout.proxies import PodName
from xds.server.stream import now as clock
from xds.snapshot import SECRET, Resource, ResourceSet, Snapshot
from xds.validation import EnvoyValidator, Refusals, Validator, find_refused

log = structlog.get_logger(__name__)

Deliver: TypeAlias = Callable[[PodName, Snapshot, float | None, bool], None]
"""Publishes a pod's snapshot to its streams: pod, snapshot, time of the oldest change, with private key."""

RETRY_DELAY = 30.0
"""Seconds after which resources that were served while Envoy was unavailable are validated again."""
MAX_SETS = 4096
"""Maximum number of resource sets that are remembered as valid."""


class _Pending(NamedTuple):
    """A snapshot that waits for validation."""

    snapshot: Snapshot
    changed_at: float | None
    """Time of the oldest change in it."""
    with_key: bool
    """Whether it contains the private key."""


class SnapshotValidator:
    """Validates the snapshots of pods, and delivers them with the last good version of refused resources.

    Secrets are not validated, because private keys do not leave the process. Their renewal waits only for the
    first snapshot of a pod.

    Args:
        validator: validates resources.
        deliver: publishes a snapshot.
        is_served: returns whether a pod is in the mesh and has streams.
        is_delta: returns whether all streams of a pod use the delta variant.
        schedule: has a snapshot of a pod submitted again.
    """

    def __init__(
        self,
        validator: Validator,
        deliver: Deliver,
        is_served: Callable[[PodName], bool],
        is_delta: Callable[[PodName], bool],
        schedule: Callable[[PodName], None],
    ) -> None:
        self._validator, self._deliver, self._is_served = validator, deliver, is_served
        self._is_delta, self._schedule = is_delta, schedule
        self.envoy = validator if isinstance(validator, EnvoyValidator) else None
        """The validator, if it is Envoy."""
        self._waiting: dict[PodName, _Pending] = {}
        self._running: dict[PodName, _Pending] = {}
        """Snapshots that are being validated."""
        self._wake = asyncio.Event()
        self._last: dict[PodName, Snapshot] = {}
        """Last snapshot that was delivered to each pod, without secrets."""
        self._valid: set[tuple[str, str]] = set()
        """Type and version of root sets without refused resources."""
        self._held_back: dict[PodName, Mapping[Resource, str]] = {}
        """Resources that are held back from each pod, with the reasons."""
        self._unjudged: frozenset[Resource] = frozenset()
        """Some of the resources that were served because Envoy was unavailable; empty if there is none."""
        self._retry_at = inf
        """When to validate them again, in seconds of the event loop's clock."""
        self._logged: set[Resource] = set()
        """Resources that are held back and were logged."""

    def problem_of(self, key: PodName) -> str:
        """Return which resources are held back from a pod; empty if none is."""
        held = self._held_back.get(key, {})
        return "; ".join(_message(each, reason) for each, reason in held.items())

    def held_back_from(self, key: PodName) -> Mapping[Resource, str]:
        """Return the resources that are held back from a pod, with messages."""
        held = self._held_back.get(key)
        return {each: f"held back, {_message(each, reason)}" for each, reason in held.items()} if held else {}

    def is_pending(self, key: PodName) -> bool:
        """Return whether a snapshot of a pod waits for validation or is being validated."""
        return key in self._waiting or key in self._running

    @property
    def problems(self) -> list[Problem]:
        """Whether Envoy is unavailable, and the resources that are held back, by object."""
        found: dict[tuple[str, str], list[Resource]] = {}
        for resource, reason in self._all_held_back().items():
            source = resource.sources[0] if resource.sources else resource.description
            found.setdefault((source, reason), []).append(resource)
        refused = [_problem(source, reason, resources) for (source, reason), resources in found.items()]
        return [*self._unavailable(), *refused]

    def _unavailable(self) -> Iterator[Problem]:
        """Yield why Envoy gave no result when it was last run."""
        if self.envoy and self.envoy.unavailable:
            is_blocked = self.envoy.if_unavailable == "block"
            effect = "all changes are held back" if is_blocked else "changes are served without validation"
            hint = "make Envoy available to the control plane, or pass --validate off"
            yield Problem(where="validation", what=f"{effect}: {self.envoy.unavailable}", hint=hint)

    @property
    def held_back(self) -> int:
        """Number of distinct resources that are held back."""
        return len(self._all_held_back())

    @property
    def oldest_change(self) -> float:
        """Time of the oldest change that is not delivered to all pods; infinity if there is none."""
        pending = (*self._waiting.values(), *self._running.values())
        return min((each.changed_at for each in pending if each.changed_at is not None), default=inf)

    def _all_held_back(self) -> dict[Resource, str]:
        return {resource: reason for held in self._held_back.values() for resource, reason in held.items()}

    def submit(self, key: PodName, snapshot: Snapshot, changed_at: float | None, *, with_key: bool) -> None:
        """Have a pod's snapshot validated and delivered.

        Until then, deliver the previous one with the new secrets, also to streams that have just connected.
        """
        if last := self._last.get(key):
            types = {**last.types, SECRET: snapshot.of(SECRET)}
            self._deliver(key, replace(last, types=types), None, with_key)
        waiting = self._waiting.get(key)
        if waiting and waiting.changed_at is not None:
            changed_at = waiting.changed_at
        self._waiting[key] = _Pending(snapshot, changed_at, with_key)
        self._wake.set()

    def disconnected(self, key: PodName, *, is_replicated: bool) -> None:
        """Forget what waits for a pod without streams.

        With several replicas, forget its last snapshot, too: when it returns, it may have a newer one.
        """
        self._waiting.pop(key, None)
        self._running.pop(key, None)
        self._held_back.pop(key, None)
        if is_replicated:
            self._last.pop(key, None)

    def forget(self, key: PodName) -> None:
        """Forget a pod that was deleted."""
        self.disconnected(key, is_replicated=True)

    async def run(self) -> None:
        """Validate snapshots until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._retry_at if self._unjudged else None):
                    await self._wake.wait()
            self._wake.clear()
            if self._unjudged and clock() >= self._retry_at:
                await self._retry()
            self._running, self._waiting = self._waiting, {}
            await self._validate()
            self._log()

    async def _retry(self) -> None:
        """Have all snapshots validated again if Envoy is available now."""
        refused = await find_refused(self._validator, list(self._unjudged))
        if self._is_unavailable(refused):
            self._retry_at = clock() + RETRY_DELAY
            return
        self._unjudged = frozenset()
        for key in filter(self._is_served, self._last):
            self._schedule(key)

    def _is_unavailable(self, refused: Refusals) -> bool:
        """Return whether resources were not judged because the validator was unavailable."""
        # A resource that crashes Envoy is never judged.
        return bool(refused.unjudged) and (self.envoy is None or bool(self.envoy.unavailable))

    async def _validate(self) -> None:
        """Validate the running batch, and deliver it without the pods that are forgotten meanwhile."""
        checkpoint = Checkpoint()
        resources: dict[Resource, None] = {}
        roots: dict[tuple[str, str], ResourceSet] = {}
        for pending in tuple(self._running.values()):
            for type_url, resource_set in _validated(pending.snapshot):
                root, key = resource_set.root, (type_url, resource_set.root.version)
                if key not in self._valid and key not in roots:
                    roots[key] = root
                    resources.update(dict.fromkeys(root.values()))
                resources.update((resource_set[name], None) for name in resource_set.layered_names())
            await checkpoint()
        refused = await find_refused(self._validator, list(resources))
        if not self._unjudged and self._is_unavailable(refused):
            self._unjudged, self._retry_at = refused.unjudged, clock() + RETRY_DELAY
        if len(self._valid) + len(roots) > MAX_SETS:
            self._valid.clear()
        doubtful = [*refused, *refused.unjudged]
        self._valid.update(
            key for key, root in roots.items() if not any(_is_in(root, each) for each in doubtful)
        )
        substitutes: dict[Hashable, ResourceSet] = {}
        while self._running:
            pod = next(iter(self._running))
            pending = self._running.pop(pod)
            if self._is_served(pod):
                self._publish(pod, pending, refused, substitutes)
            await checkpoint()

    def _publish(
        self,
        pod: PodName,
        pending: _Pending,
        refused: Mapping[Resource, str],
        substitutes: dict[Hashable, ResourceSet],
    ) -> None:
        """Deliver a snapshot with the last good version of each refused resource.

        If no good version is known, as after a restart, the sidecar keeps the version that it may have. A
        sidecar with the state-of-the-world variant would delete that, so it gets the refused version, and
        rejects it. That version stays in its snapshots until one passes.
        """
        snapshot, last = pending.snapshot, self._last.get(pod)
        # A newer snapshot that waits may have a renewed certificate.
        newest = self._waiting.get(pod, pending)
        snapshot = replace(snapshot, types={**snapshot.types, SECRET: newest.snapshot.of(SECRET)})
        held = {
            resource: reason
            for resource, reason in refused.items()
            if _is_in(snapshot.of(resource.type_url), resource)
        }
        if held:
            self._held_back[pod] = held
        else:
            self._held_back.pop(pod, None)
        if last or not held or self._is_delta(pod):
            snapshot = _with_last_good(snapshot, held, last or Snapshot(), substitutes)
        self._last[pod] = replace(snapshot, types=dict(_validated(snapshot)))
        self._deliver(pod, snapshot, pending.changed_at, newest.with_key)

    def _log(self) -> None:
        held = self._all_held_back()
        for resource, reason in held.items():
            if resource not in self._logged:
                log.warning(
                    "resource refused by Envoy, proxies keep the version that they have",
                    type=resource.type_url.rpartition(".")[2],
                    name=resource.name,
                    sources=resource.sources,
                    problem=reason,
                )
        self._logged = set(held)


def _message(resource: Resource, reason: str) -> str:
    return f"Envoy refuses {resource.description}: {reason}"


def _validated(snapshot: Snapshot) -> Iterator[tuple[str, ResourceSet]]:
    return ((type_url, of) for type_url, of in snapshot.types.items() if type_url != SECRET)


def _is_in(resources: ResourceSet, resource: Resource) -> bool:
    return resources.get(resource.name) == resource


def _with_last_good(
    snapshot: Snapshot,
    held: Iterable[Resource],
    last: Snapshot,
    substitutes: dict[Hashable, ResourceSet],
) -> Snapshot:
    """Return a snapshot with the last version of some resources, or without those that have none."""
    types = dict(snapshot.types)
    for type_url in {resource.type_url for resource in held}:
        names = frozenset(resource.name for resource in held if resource.type_url == type_url)
        types[type_url] = _substitute(types[type_url], last.of(type_url), names, substitutes)
    unknown = ((each.type_url, each.name) for each in held if each.name not in last.of(each.type_url))
    return replace(snapshot, types=types, kept=frozenset(unknown))


def _substitute(
    resources: ResourceSet,
    last: ResourceSet,
    names: frozenset[str],
    substitutes: dict[Hashable, ResourceSet],
) -> ResourceSet:
    """Return a set with the last version of some resources, or without those that have none.

    Pods that share the root of `resources` share that of the result.
    """
    known = tuple(last[name] for name in sorted(names) if name in last)
    key = resources.version, names, known
    if key not in substitutes:
        base, own = resources, []
        if unknown := names - {resource.name for resource in known}:
            base = resources.root
            own = [resources[name] for name in resources.layered_names() if name not in names]
            if any(name in base for name in unknown):
                root_key = base.version, unknown
                if root_key not in substitutes:
                    substitutes[root_key] = base.updated(removed=unknown)
                base = substitutes[root_key]
        substitutes[key] = ResourceSet((*own, *known), base=base)
    return substitutes[key]


def _problem(source: str, reason: str, resources: list[Resource]) -> Problem:
    """Return the problem of an object.

    Args:
        source: the object and where it was read: `KIND NAMESPACE/NAME (FILE:LINE)`.
        reason: Envoy's message.
        resources: the refused resources.
    """
    subject, _, origin = source.removesuffix(")").partition(" (")
    more = f" and {len(resources) - 1} more" if len(resources) > 1 else ""
    what = f"Envoy refuses {resources[0].description}{more}: {reason}"
    hint = f"fix {subject}; sidecars keep the version that they have"
    return Problem(where=origin or subject, what=what, hint=hint, subject=subject)
