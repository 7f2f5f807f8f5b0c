"""Publish the problems of objects, in `status.conditions` if the kind has a status, otherwise as Events.

There are two conditions, and each exists only while it is False. `Accepted: False` means that the object is
rejected; its last valid version stays in use or, without one, the object fails closed. `Enforced: False`
means that other objects override the object or that nothing in the mesh matches it. The actual conditions are
compared with the desired ones, so any replica can take over. Objects without problems are written only to
remove these conditions. Conditions of other controllers are preserved.

Required cluster permissions: list policies, meshpolicies, peerauthentications, authorizationpolicies and
destinationrules; patch their `/status`; create events; and, for Events of other objects, list pods,
services, serviceaccounts, namespaces and endpointslices. In its own namespace: list the configmap with the
mesh's settings.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

import structlog

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Problem, Ref, printable
from xds.mesh.parse import KINDS, Watch
from xds.mesh.policy.conflicts import overridden

log = structlog.get_logger(__name__)

FIELD_MANAGER = "xds-status"
ACCEPTED, ENFORCED = "Accepted", "Enforced"

RESYNC_INTERVAL = 60.0
"""Seconds between two full comparisons without a change."""
POLL_INTERVAL = 2.0
"""Seconds between two checks for changes."""
RETRY_DELAY = 10.0
"""Seconds before a failed update is retried."""
WRITE_INTERVAL = 0.05
"""Minimum seconds between two writes."""
_IDLE_FACTOR = 20
"""Ratio of idle time to computing time, which limits the CPU usage in a large mesh."""
_MAX_MESSAGE_LENGTH = 1000
"""Maximum characters of a message, as for an Event."""
_MAX_NAMES = 3
"""Maximum number of objects that a message names."""

_STATUS_KINDS = {kind.name: (kind.group, kind.plural) for kind in KINDS if kind.has_status}
_EVENT_KINDS = {
    kind.name: (kind.api_versions[-1], kind.plural)
    for kind in KINDS
    if kind.watch is Watch.REQUIRED and not kind.has_status
} | {"ConfigMap": ("v1", "configmaps")}
_NO_PROBLEMS: Mapping[Ref, tuple[Problem, ...]] = {}
_OBJECT_NAME = re.compile(r"([A-Za-z]+) (?:([^/ ]+)/)?([^/ ]+)")


class FalseCondition(NamedTuple):
    """Reason and message of a condition that is False."""

    reason: str
    """Reason in CamelCase."""
    message: str
    """Message for users."""


DesiredConditions: TypeAlias = Mapping[Ref, Mapping[str, FalseCondition]]
"""Desired conditions, by object and condition type."""


class ConditionPublisher:
    """Keeps conditions and Events up to date. Only the leader writes."""

    def __init__(
        self,
        api: KubeApi,
        problems: Callable[[], Collection[Problem]],
        mesh: Callable[[], Mesh],
        without_effect: Callable[[], Mapping[Ref, tuple[Problem, ...]]] = dict,
        *,
        leads: Callable[[], bool],
    ) -> None:
        """Create a publisher.

        Args:
            api: the API server.
            problems: returns the current problems, each with the object (`KIND NAMESPACE/NAME`) in `where`.
            mesh: returns the current mesh.
            without_effect: returns the objects without effect, with their problems. Notices are ignored.
            leads: returns whether this replica is the leader.
        """
        self._api = api
        self._problems, self._mesh, self._leads = problems, mesh, leads
        self._without_effect = without_effect
        self._reported: set[tuple[Ref, FalseCondition]] = set()
        """Conditions for which Events were created, with their objects."""
        self._log_problem = OnceLogger(log, "cannot publish conditions")

    async def run(self) -> None:
        """Run until cancelled."""
        seen: tuple[Mesh, tuple[Problem, ...], Mapping[Ref, tuple[Problem, ...]]] | None = None
        desired: DesiredConditions = {}
        due, compute_time = 0.0, 0.0
        while True:
            await asyncio.sleep(max(POLL_INTERVAL, _IDLE_FACTOR * compute_time))
            if not self._leads():
                seen = None
                continue
            inputs = (self._mesh(), tuple(self._problems()), self._without_effect())
            if seen is None or inputs[0] is not seen[0] or inputs[1:] != seen[1:]:
                started = time.perf_counter()
                try:
                    conditions = await asyncio.to_thread(desired_conditions, *inputs)
                except Exception as error:  # noqa: BLE001 - conditions must not stop the control plane
                    self._log_problem(f"{type(error).__name__}: {error}")
                    continue
                compute_time = time.perf_counter() - started
                if seen is None or conditions != desired:
                    due = 0.0
                seen, desired = inputs, conditions
            if time.monotonic() >= due:
                due = time.monotonic() + (RESYNC_INTERVAL if await self.reconcile(desired) else RETRY_DELAY)

    async def reconcile(self, desired: DesiredConditions) -> bool:
        """Update all outdated conditions. Return whether all updates succeeded."""
        try:
            remaining = dict(desired)
            for kind, (group, plural) in _STATUS_KINDS.items():
                version, has_status = await self._served_version(group, plural)
                if has_status:
                    for obj in await self._api.list_all(f"/apis/{group}/{version}/{plural}"):
                        ref = _ref(kind, obj)
                        await self._patch_status(
                            ref, f"{group}/{version}", plural, obj, remaining.pop(ref, {})
                        )
                elif version:
                    for ref in [ref for ref in remaining if ref.kind == kind]:
                        await self._create_events(ref, f"{group}/{version}", plural, remaining.pop(ref))
            for ref, conditions in remaining.items():
                if ref.kind in _EVENT_KINDS:
                    await self._create_events(ref, *_EVENT_KINDS[ref.kind], conditions)
        except KubeError as error:
            self._log_problem(str(error))
            return False
        # A problem that was solved and returns gets a new Event.
        self._reported = {
            (ref, condition)
            for ref, condition in self._reported
            if condition in desired.get(ref, {}).values()
        }
        self._log_problem("")
        return True

    # --- conditions ---

    async def _patch_status(
        self, ref: Ref, api_version: str, plural: str, obj: Json, desired: Mapping[str, FalseCondition]
    ) -> None:
        meta = obj["metadata"]
        status = obj.get("status")
        value = status.get("conditions") if isinstance(status, dict) else None
        current = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
        conditions = _merge_conditions(current, desired, int(meta.get("generation") or 0))
        if conditions == current or not self._leads():
            return
        collection = f"namespaces/{meta['namespace']}/{plural}" if meta.get("namespace") else plural
        # The resourceVersion prevents overwriting conditions that another controller has just written.
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"]},
            "status": {"conditions": conditions},
        }
        try:
            path = f"/apis/{api_version}/{collection}/{meta['name']}/status"
            await self._api.patch(path, patch, fieldManager=FIELD_MANAGER)
        except KubeError as error:
            if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:  # the CRD has another schema for status
                await self._create_events(ref, api_version, plural, desired)
            elif error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
        await asyncio.sleep(WRITE_INTERVAL)

    async def _served_version(self, group: str, plural: str) -> tuple[str, bool]:
        """Return the preferred version of a kind (empty if it is not served), and whether it has a status."""
        try:
            version = str((await self._api.get(f"/apis/{group}"))["preferredVersion"]["version"])
            resources = (await self._api.get(f"/apis/{group}/{version}"))["resources"]
            names = {resource["name"] for resource in resources}
        except KubeError as error:
            if error.is_not_found:
                return "", False
            raise
        return (version if plural in names else ""), f"{plural}/status" in names

    # --- events ---

    async def _create_events(
        self, ref: Ref, api_version: str, plural: str, conditions: Mapping[str, FalseCondition]
    ) -> None:
        """Create an Event for each condition that has none yet."""
        new = [condition for condition in conditions.values() if (ref, condition) not in self._reported]
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        scope = f"namespaces/{ref.namespace}/" if ref.namespace else ""
        if new:
            query = {"fieldSelector": f"metadata.name={ref.name}"}
            for obj in await self._api.list_all(f"{root}/{scope}{plural}", **query):
                for condition in new if self._leads() else ():
                    await self._create_event(ref, api_version, obj["metadata"]["uid"], condition)
                    self._reported.add((ref, condition))

    async def _create_event(self, ref: Ref, api_version: str, uid: str, condition: FalseCondition) -> None:
        # The name is deterministic, so that replicas do not create duplicates.
        digest = hashlib.sha256("\0".join((uid, *ref, *condition)).encode()).hexdigest()[:16]
        namespace = ref.namespace or "default"
        now = _timestamp()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{ref.name[:200]}.{digest}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": api_version,
                "kind": ref.kind,
                "name": ref.name,
                "namespace": ref.namespace,
                "uid": uid,
            },
            "type": "Warning",
            "reason": condition.reason,
            "message": condition.message,
            "source": {"component": "xds"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(f"/api/v1/namespaces/{namespace}/events", event)
        except KubeError as error:
            if error.reason != "AlreadyExists" and not error.is_namespace_terminating:
                raise
        await asyncio.sleep(WRITE_INTERVAL)


def desired_conditions(
    mesh: Mesh, problems: Iterable[Problem], without_effect: Mapping[Ref, tuple[Problem, ...]] = _NO_PROBLEMS
) -> DesiredConditions:
    """Return the desired conditions of all objects. Thread-safe: only the facts of the mesh are used."""
    rejected: dict[Ref, list[str]] = {}
    for problem in problems:
        match = None if problem.notice else _OBJECT_NAME.fullmatch(problem.where)
        if match:
            rejected.setdefault(Ref(match[1], match[2] or "", match[3]), []).append(_text(problem))
    desired: dict[Ref, dict[str, FalseCondition]] = {}
    for ref, texts in rejected.items():
        desired[ref] = {ACCEPTED: FalseCondition("Refused", _truncate("; ".join(texts)))}
    for ref, override in overridden(mesh.with_own_caches()).items():
        by = join_names(map(str, override.by), _MAX_NAMES)
        message = f"overridden in part ({override.what}) by {by}" if override.what else f"overridden by {by}"
        desired.setdefault(ref, {})[ENFORCED] = FalseCondition("Overridden", _truncate(message))
    for ref, object_problems in without_effect.items():
        texts = [_text(problem) for problem in object_problems if not problem.notice]
        if texts:
            before = desired.setdefault(ref, {}).get(ENFORCED)
            message = "; ".join((*([before.message] if before else ()), *texts))
            desired[ref][ENFORCED] = FalseCondition(
                before.reason if before else "NoEffect", _truncate(message)
            )
    return desired


def _text(problem: Problem) -> str:
    return problem.what + (f" ({problem.hint})" if problem.hint else "")


def _merge_conditions(
    current: list[Json], desired: Mapping[str, FalseCondition], generation: int
) -> list[Json]:
    """Return the current conditions with the desired ones set, and our obsolete ones removed."""
    merged = [
        entry
        for entry in current
        if entry.get("type") not in {ACCEPTED, ENFORCED} or entry["type"] in desired
    ]
    for condition_type, condition in desired.items():
        old = next((entry for entry in merged if entry.get("type") == condition_type), None)
        was_false = old is not None and old.get("status") == "False"
        new = {
            "type": condition_type,
            "status": "False",
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": old.get("lastTransitionTime") if old and was_false else _timestamp(),
        }
        merged = [new if entry is old else entry for entry in merged] if old else [*merged, new]
    return merged


def _ref(kind: str, obj: Json) -> Ref:
    meta = obj["metadata"]
    return Ref(kind, str(meta.get("namespace") or ""), str(meta["name"]))


def _truncate(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MAX_MESSAGE_LENGTH else f"{text[: _MAX_MESSAGE_LENGTH - 3]}..."


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
