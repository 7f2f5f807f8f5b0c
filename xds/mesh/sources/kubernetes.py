"""Source of objects from a Kubernetes API server.

The source yields no objects before it has listed every required kind and has usable settings. It also waits
for required kinds that RBAC denies or that the server does not serve, because they may contain policies
(ADR 0017). It does not wait for kinds that affect only predictions. After that, it yields each change. While
the server is unreachable or sends errors, the last known objects are used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.reflector import FailureCause, Key, Reflector, WatchFailure
from xds.mesh.kube.resource import KubeResource, WatchOptions
from xds.mesh.model.objects import Change, Fact, MeshConfig, Problem, Ref, printable
from xds.mesh.parse import KINDS, Kind, Parsed, Watch, parse, unreadable
from xds.mesh.sources.report import (
    ReadObject,
    SourceUpdate,
    problems_not_in,
    rejection_of,
    with_served_version,
)
from xds.mesh.sources.settings import SettingsLoader

CONFIG_MAP = "xds"
"""Default name of the ConfigMap with the mesh's settings."""
ROOT_NAMESPACE = "istio-system"
"""Default namespace of the ConfigMap outside a pod. In a pod, the pod's namespace is used."""

_NOISE = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
)
"""Annotations that are dropped because they are large or change often, and have no effect here."""
_LINE = re.compile(r":(\d+)$")
_NO_CONFIGURATION = "sidecars get no configuration until this is fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """The fact and the problems of an object."""

    fact: Fact | None = None
    """The fact in use; None if the object has none."""
    problems: tuple[Problem, ...] = ()
    """Problems of the object's current version."""
    is_replacement: bool = False
    """Whether the fact replaces a rejected object. It is then not a version to fall back to."""
    version: str = field(default="", compare=False)
    """resourceVersion of the object as it was last read."""
    fact_version: str = field(default="", compare=False)
    """resourceVersion of the version that the fact was made from."""
    rejected: bool = False
    """Whether the object as it was last read is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigState:
    """The settings and the problems of the ConfigMap with the mesh's settings."""

    config: MeshConfig | None
    """The settings; None if they are invalid, so that the last valid settings stay in use."""
    problems: tuple[Problem, ...] = ()
    """Problems of the ConfigMap's current version."""


_AnyReflector: TypeAlias = Reflector[ObjectState] | Reflector[ConfigState]


class Kubernetes:
    """All facts of a cluster, and the settings of its mesh.

    `assignments` (`--set`) override the ConfigMap. Call either `watch` or `load`, and only once.
    """

    what = "kubernetes"
    """Name of the source in logs."""
    has_versions = True
    """Whether its objects have a resourceVersion."""

    def __init__(
        self,
        api: KubeApi,
        *,
        assignments: Sequence[str] = (),
        namespace: str = "",
        config_map: str = CONFIG_MAP,
        options: WatchOptions = WatchOptions(),  # noqa: B008 - immutable
    ) -> None:
        self._api = api
        self.namespace = namespace or (api.namespace if api.in_cluster else ROOT_NAMESPACE)
        """Namespace of the control plane and its ConfigMap."""
        self._settings = SettingsLoader(None, assignments, MeshConfig(root_namespace=self.namespace))
        self.config_map = Ref("ConfigMap", self.namespace, config_map)
        """ConfigMap with the mesh's settings."""
        self._default = self._read_config("")
        self._changed = asyncio.Event()
        self._kinds, self._advisory, self._unenforced = (
            [
                Reflector(api, _resource(kind), partial(_read_object, kind), self._changed.set, options)
                for kind in KINDS
                if kind.watch in watches
            ]
            for watches in ((Watch.REQUIRED, Watch.SERVED), (Watch.ADVISORY,), (Watch.UNENFORCED,))
        )
        config_maps = KubeResource(
            kind="ConfigMap", plural="configmaps", namespace=self.namespace, name=config_map
        )
        self._config_maps = Reflector(api, config_maps, self._read_config_map, self._changed.set, options)
        self._config: MeshConfig | None = None
        self._config_problems: tuple[Problem, ...] = ()
        self._object_problems: dict[tuple[str, Key], tuple[Problem, ...]] = {}
        self._watch_problem_list: tuple[Problem, ...] = ()
        self._outage: Problem | None = None

    @property
    def rejected(self) -> list[str]:
        """Names of the objects that are invalid as they were last read."""
        return [
            str(Ref(reflector.resource.kind, *key))
            for reflector in self._kinds
            for key, state in reflector.objects.items()
            if state.rejected
        ]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Current problems."""
        object_problems = [problem for problems in self._object_problems.values() for problem in problems]
        return (*self._watch_problem_list, *self._config_problems, *object_problems)

    def read_object(self, ref: Ref) -> ReadObject | None:
        """Return an object as it was last read; None if it does not exist."""
        reflector = next((each for each in self._kinds if each.resource.kind == ref.kind), None)
        state = reflector.objects.get(ref.key) if reflector else None
        if state is None:
            return None
        rejection = rejection_of(state.problems) if state.rejected else None
        return ReadObject(state.fact, state.version, rejection)

    def is_current(self, since: float) -> bool:  # noqa: ARG002
        """Return True: the API server reports changes, and how far they were read is not known."""
        return True

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed and the settings are usable."""
        return all(reflector.complete for reflector in self._reflectors) and self._config is not None

    @property
    def has_config_map(self) -> bool:
        """Whether the ConfigMap exists. Without it, the defaults apply."""
        return bool(self._config_maps.objects)

    @property
    def unenforced(self) -> Mapping[str, int]:
        """Number of objects of each kind that is not enforced."""
        return {
            reflector.resource.kind: len(reflector.objects)
            for reflector in self._unenforced
            if reflector.objects
        }

    def pending_reason(self) -> str:
        """Return why the source is not complete and what to do about it; empty if it is complete."""
        missing = [reflector for reflector in self._reflectors if not reflector.complete]
        if missing and (reason := self._outage_reason()):
            titles = ", ".join(reflector.resource.title for reflector in missing)
            return f"waiting for {titles}: the API server at {self._api.server} cannot be reached: {reason}"
        lines = [
            _describe(_access_problem(reflector, reflector.failure))
            for reflector in missing
            if reflector.failure
        ]
        if not missing and self._config is None:
            lines = [_describe(problem) for problem in self._config_problems if not problem.notice]
        if pending := [reflector.resource.title for reflector in missing if not reflector.failure]:
            lines.append(", ".join(pending))
        return "\n".join(f"waiting for {line}" for line in lines)

    def staleness(self) -> str:
        """Return which changes are not received, since when and why; empty if all are received."""
        seconds = self.stale_seconds()
        since = f"{datetime.now(UTC) - timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ} ({seconds:.0f} s)"
        if reason := self._outage_reason():
            what = f"the API server at {self._api.server} has been unreachable since {since}"
            return f"{what}; the last known state stays in use: {reason}"
        if stale := [reflector.resource.title for reflector, _ in self._stale()]:
            return f"{', '.join(stale)} have been unreadable since {since}; the last known state stays in use"
        return ""

    def stale_seconds(self) -> float:
        """Return the time since the oldest current failure, in seconds; 0 without a failure."""
        now = asyncio.get_running_loop().time()
        return max((now - failure.since for _, failure in self._stale()), default=0.0)

    def _stale(self) -> Iterator[tuple[_AnyReflector, WatchFailure]]:
        """Yield the reflectors that have a failure."""
        yield from self._failures(*FailureCause)

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield everything once, then each change."""
        reflectors = (*self._reflectors, *self._advisory, *self._unenforced)
        tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
        try:
            was_complete = False
            while True:
                await self._wait(tasks)
                all_listed = all(reflector.complete for reflector in self._reflectors)
                update = self._make_update() if all_listed else self._problems_update()
                became_complete = update.complete and not was_complete
                was_complete = update.complete
                if became_complete or not update.empty:
                    yield update
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def load(self) -> SourceUpdate:
        """List everything once, without watching. The update is incomplete if a kind cannot be listed.

        A kind that the server does not serve has no objects. Raises KubeError with status 0 if the server
        cannot be reached.
        """
        reflectors = (*self._reflectors, *self._advisory, *self._unenforced)
        await asyncio.gather(*(reflector.list_once() for reflector in reflectors))
        if all(reflector.complete for reflector in self._reflectors):
            return self._make_update()
        if reason := self._outage_reason():
            raise KubeError(0, f"the API server at {self._api.server} cannot be reached: {reason}")
        problems = (_list_problem(reflector.resource, failure) for reflector, failure in self._stale())
        return SourceUpdate(problems=tuple(problems), complete=False)

    async def _wait(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait until a reflector has changes. Raise the error of a reflector that has failed unexpectedly."""
        change = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait([change, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        self._changed.clear()
        for task in tasks:
            if task.done():
                task.result()

    @property
    def _reflectors(self) -> tuple[_AnyReflector, ...]:
        """Reflectors that must be complete before objects are yielded."""
        return (*self._kinds, self._config_maps)

    # --- parsing of the ConfigMap ---

    def _read_config_map(self, obj: Json, _: ConfigState | None) -> ConfigState:
        data = obj.get("data")
        text = data.get("mesh") if isinstance(data, dict) else None
        if not isinstance(text, str):
            problem = Problem(
                where=str(self.config_map),
                what='has no key "mesh"; the defaults apply',
                hint='add the key "mesh" with an Istio MeshConfig as YAML',
                notice=True,
            )
            return replace(self._default, problems=(*self._default.problems, problem))
        return self._read_config(text)

    def _read_config(self, text: str) -> ConfigState:
        config, problems = self._settings.read(text, str(self.config_map))
        usable = all(problem.notice for problem in problems)
        return ConfigState(
            config=config if usable else None, problems=tuple(_without_line(problem) for problem in problems)
        )

    # --- updates ---

    def _problems_update(self) -> SourceUpdate:
        new, solved = self._watch_problems()
        return SourceUpdate(problems=new, solved=solved, complete=False)

    def _make_update(self) -> SourceUpdate:
        """Return the changes since the last update. Until settings are valid, return only problems."""
        new, solved = (list(problems) for problems in self._watch_problems())
        current_config, config_problems = self._current_settings()
        new += problems_not_in(config_problems, self._config_problems)
        solved += problems_not_in(self._config_problems, config_problems)
        self._config_problems = config_problems
        config = current_config or self._config
        if config is None:
            return SourceUpdate(problems=tuple(new), solved=tuple(solved), complete=False)
        applied: list[Fact] = []
        removed: list[Ref] = []
        for reflector in (*self._kinds, *self._advisory, *self._unenforced):
            for key, (before, after) in reflector.take().items():
                old_fact, fact = (state.fact if state else None for state in (before, after))
                if fact and fact != old_fact:
                    applied.append(fact)
                elif old_fact and not fact:
                    removed.append(old_fact.ref)
                old_problems, problems = (state.problems if state else () for state in (before, after))
                if problems or old_problems:
                    new += problems_not_in(problems, old_problems)
                    solved += problems_not_in(old_problems, problems)
                    self._record_problems((reflector.resource.kind, key), problems)
        change = Change(
            applied=tuple(applied),
            removed=tuple(removed),
            config=config if config != self._config else None,
        )
        self._config = config
        return SourceUpdate(change, tuple(new), tuple(solved))

    def _record_problems(self, kind_and_key: tuple[str, Key], problems: tuple[Problem, ...]) -> None:
        if problems:
            self._object_problems[kind_and_key] = problems
        else:
            self._object_problems.pop(kind_and_key, None)

    def _current_settings(self) -> tuple[MeshConfig | None, tuple[Problem, ...]]:
        """Return the current settings, or None if they are invalid, and their problems."""
        self._config_maps.take()
        state = next(iter(self._config_maps.objects.values()), None)
        if state:
            return state.config, state.problems
        missing = Problem(where=str(self.config_map), what="does not exist; the defaults apply", notice=True)
        return self._default.config, (*self._default.problems, missing)

    # --- failures of watches ---

    def _failures(self, *causes: FailureCause) -> Iterator[tuple[_AnyReflector, WatchFailure]]:
        for reflector in self._reflectors:
            if reflector.failure and reflector.failure.cause in causes:
                yield reflector, reflector.failure

    def _outage_reason(self) -> str:
        """Return why the server cannot be reached; empty if it can."""
        messages = (failure.message for _, failure in self._failures(FailureCause.UNREACHABLE))
        return next(messages, "").removeprefix(f"the API server at {self._api.server} cannot be reached: ")

    def _watch_problems(self) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
        """Update the problems of the watches. Return the new and the solved problems."""
        problems = [
            _access_problem(reflector, failure)
            for reflector, failure in self._failures(
                FailureCause.FORBIDDEN, FailureCause.NOT_SERVED, FailureCause.UNSUPPORTED
            )
        ]
        reason = self._outage_reason()
        unknown = {FailureCause.FORBIDDEN, FailureCause.UNSUPPORTED}
        for reflectors, causes, consequence in (
            (self._unenforced, unknown, "they are not enforced, and cannot be reported"),
            (
                self._advisory,
                unknown if reason else unknown | {FailureCause.UNREACHABLE},
                "plans do not consider the clients that they prove",
            ),
        ):
            problems += [
                _optional_problem(reflector.resource, reflector.failure, consequence)
                for reflector in reflectors
                if reflector.failure and reflector.failure.cause in causes
            ]
        # All watches fail at the same time: report the failure once, with the first message.
        problem = Problem(where=self._api.server, what=f"the API server cannot be reached: {reason}")
        self._outage = (self._outage or problem) if reason else None
        if self._outage:
            problems.insert(0, self._outage)
        known, self._watch_problem_list = self._watch_problem_list, tuple(problems)
        return problems_not_in(problems, known), problems_not_in(known, problems)


def _resource(kind: Kind) -> KubeResource:
    return KubeResource(
        kind=kind.name,
        plural=kind.plural,
        versions=kind.versions,
        group=kind.group,
        custom=not kind.built_in or kind.watch is Watch.ADVISORY,
        optional=kind.watch is not Watch.REQUIRED,
        used=kind.used,
    )


def kube_resource(kind: str, namespace: str = "") -> KubeResource:
    """Return the resource type of a watched kind, in one namespace."""
    return replace(_resource(next(each for each in KINDS if each.name == kind)), namespace=namespace)


def _read_object(kind: Kind, obj: Json, before: ObjectState | None) -> ObjectState:
    """Parse an object. If it is invalid, use its last valid version."""
    meta = obj["metadata"]
    uid = str(meta.get("uid") or "")
    ref = Ref(kind.name, str(meta.get("namespace") or "") if kind.namespaced else "", str(meta["name"]))
    name = str(ref)
    if isinstance(meta.get("annotations"), dict):
        meta["annotations"] = {
            annotation: value for annotation, value in meta["annotations"].items() if annotation not in _NOISE
        }
    try:
        [parsed] = parse(obj, lambda _: name, served=True)
    except Exception as error:  # noqa: BLE001 - one object must not affect the others
        what = f"cannot be read: {type(error).__name__}: {error}"
        parsed = unreadable(kind, ref, Problem(where=name, what=what, hint="please report this"))
    return _object_state(parsed, before, uid, str(meta.get("resourceVersion") or ""))


def _object_state(parsed: Parsed, before: ObjectState | None, uid: str, version: str) -> ObjectState:
    """Return the new state of an object.

    If the object is rejected, its last valid version is used. Without one, the object fails closed.
    """
    if not parsed.refused:
        return ObjectState(fact=parsed.fact, problems=parsed.problems, version=version, fact_version=version)
    # An object with the same name and another UID is not an earlier version.
    if before and before.fact and not before.is_replacement and before.fact.meta.uid == uid:
        problems = with_served_version(parsed.problems, before.fact_version)
        return replace(before, problems=problems, version=version, rejected=True)
    replaced = parsed.with_replacement()
    return ObjectState(
        fact=replaced.fact,
        problems=replaced.problems,
        is_replacement=True,
        version=version,
        rejected=True,
    )


def _without_line(problem: Problem) -> Problem:
    """Move the line number from `where` to `what`, so that `where` names only the ConfigMap."""
    line = _LINE.search(problem.where)
    if not line:
        return problem
    what = f'{problem.what}, on line {line[1]} of the key "mesh"'
    return replace(problem, where=_LINE.sub("", problem.where), what=what)


def _access_problem(reflector: Reflector[Any], failure: WatchFailure) -> Problem:
    """Return a problem that explains why a kind cannot be read, the effect, and the fix."""
    effect = "the last known state stays in use" if reflector.complete else _NO_CONFIGURATION
    why, hint = "cannot be watched", "run xds install-crds"
    if failure.is_denied:
        why, hint = "access is denied", reflector.resource.grant()
    what = f"{why}, so {effect}: {failure.message}"
    return Problem(where=reflector.resource.title, what=what, hint=hint)


def _list_problem(resource: KubeResource, failure: WatchFailure) -> Problem:
    """Return a problem that explains why a kind cannot be listed, and names a missing permission."""
    hint = resource.grant("list", role="a ClusterRole") if failure.is_denied else ""
    return Problem(where=resource.title, what=f"cannot be listed: {failure.message}", hint=hint)


def _optional_problem(resource: KubeResource, failure: WatchFailure, consequence: str) -> Problem:
    """Return a problem that explains why an optional kind cannot be read, and what that means."""
    is_unsupported = failure.cause is FailureCause.UNSUPPORTED
    if is_unsupported:
        why, hint = failure.message, "upgrade xds, or serve a supported version too"
    elif failure.is_denied:
        why, hint = "access is denied", resource.grant()
    else:
        why, hint = "cannot be listed", ""
    what = f"{why}: objects of kind {resource.kind} are not known, so {consequence}"
    return Problem(where=resource.title, what=what, hint=hint, notice=not is_unsupported)


def _describe(problem: Problem) -> str:
    return printable(f"{problem.where}: {problem.what}; {problem.hint}".removesuffix("; "))
