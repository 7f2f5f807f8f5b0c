"""Parse Kubernetes objects into facts and problems. Only this package knows YAML field names.

It performs no I/O. Callers read files or an API server, and pass plain values and a function that locates a
path in the document.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from xds.mesh.model.objects import Fact, Meta, Problem, Ref
from xds.mesh.parse import names
from xds.mesh.parse.fail_closed import FailClosed
from xds.mesh.parse.kinds import CALLER_KINDS, KINDS, UNENFORCED, Kind, Watch, is_kind, may_matter, plural_of
from xds.mesh.parse.meshconfig import merged, mesh_config, settings
from xds.mesh.parse.reading import Field, Flaw, Locate, Log, Path, dotted, nearest, shown

__all__ = [
    "CALLER_KINDS",
    "DEFAULT_NAMESPACE",
    "KINDS",
    "UNENFORCED",
    "FailClosed",
    "Flaw",
    "Kind",
    "Locate",
    "Parsed",
    "Path",
    "Watch",
    "dotted",
    "is_kind",
    "merged",
    "mesh_config",
    "nearest",
    "parse",
    "plural_of",
    "settings",
    "unreadable",
]

DEFAULT_NAMESPACE = "default"
"""Namespace of namespaced objects that do not specify one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """The result of parsing one object."""

    ref: Ref | None = None
    """Reference to the object; None if its name is not valid or its kind is ignored."""
    fact: Fact | None = None
    """The fact; None if the object is rejected or ignored."""
    origin: str = ""
    """Place of the object: `FILE:LINE`, or its name."""
    problems: tuple[Problem, ...] = ()
    """Problems of the object."""
    refused: bool = False
    """Whether the object is rejected as invalid. The caller should continue to use its last valid version."""
    replacement: FailClosed | None = None
    """Replacement for a rejected object without an earlier valid version; None to ignore the object."""
    unenforced: str = ""
    """Kind of the object if it is one of `UNENFORCED`, otherwise empty."""
    is_in_default: bool = False
    """Whether the object does not specify its namespace."""
    ignored: str = ""
    """Kind of the object if the caller knows that the kind is not read, otherwise empty."""
    ignored_name: str = ""
    """Name by which the caller ignores the kind, otherwise empty."""
    not_considered: str = ""
    """Kind of the object if the kind is not read and may create pods or call Services, otherwise empty."""

    def with_replacement(self) -> Parsed:
        """Return a copy with the replacement as its fact. The effect follows the first error and its hint."""
        if self.replacement is None:
            return self
        first = next(problem for problem in self.problems if not problem.notice)
        error = f"{first.what} ({first.hint})" if first.hint else first.what
        described = replace(first, what=f"{error}; until it is repaired, {self.replacement.effect}", hint="")
        problems = tuple(described if problem is first else problem for problem in self.problems)
        return replace(self, fact=self.replacement.fact, problems=problems)


_ADVISORY = (Watch.ADVISORY, Watch.UNENFORCED)
_BY_NAME = {kind.name: kind for kind in KINDS if kind.watch not in _ADVISORY}
"""Kinds whose names are checked. Other groups have kinds of the other names, and similar ones."""
_BY_TYPE = {
    (version, kind.name): kind for kind in KINDS if not kind.consequence for version in kind.api_versions
}

_UNENFORCED = {(kind.group, kind.name): kind for kind in UNENFORCED}

_IGNORED = frozenset(
    {
        *("Binding", "ConfigMap", "Event", "LimitRange", "Node", "PersistentVolume", "PersistentVolumeClaim"),
        *("PodTemplate", "ReplicationController", "ResourceQuota", "Secret"),
        *("Gateway", "ProxyConfig", "WorkloadGroup"),
    }
)
"""Other kinds in the API groups of `KINDS`. They are ignored, and their names are not spelling mistakes."""

_POD_OWNERS = (
    *("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"),
    "ReplicationController",
)
_IGNORED_HINTS = {
    **dict.fromkeys(_POD_OWNERS, "only Pods are read, not the objects that create them"),
    "Kustomization": "its changes are not applied to the files that it lists",
}
"""Consequences of ignoring an object, by kind."""
_META = (
    "name namespace labels annotations creationTimestamp deletionTimestamp deletionGracePeriodSeconds "
    "finalizers generateName generation managedFields ownerReferences resourceVersion selfLink uid "
    "clusterName"
)


_MAX_TIME_LENGTH = 64
"""Maximum length of a time that is parsed."""


def parse(
    document: object,
    locate: Locate,
    flaws: Sequence[Flaw] = (),
    *,
    served: bool = False,
    elsewhere: Collection[Path] = (),
    default_namespace: str = DEFAULT_NAMESPACE,
    ignored_kinds: Collection[str] = (),
) -> list[Parsed]:
    """Parse a document that contains one object or a List of objects.

    Args:
        document: the document as plain values.
        locate: function that returns the place of a path in the document.
        flaws: problems of the document's text, such as duplicate keys.
        served: whether the document comes from an API server. Unknown fields of built-in kinds are then
            accepted, because the API server may be newer than this program.
        elsewhere: paths of objects that the caller reads itself, such as Deployments. They are skipped.
        default_namespace: namespace of namespaced objects that do not specify one.
        ignored_kinds: names of kinds (`is_kind`). Their objects have no problem that says that the kind is
            not read or not enforced. All other problems, and the clients that the objects prove, stay.
    """
    source = _Source(
        served=served,
        elsewhere=elsewhere,
        default_namespace=default_namespace,
        ignored_kinds=ignored_kinds,
    )
    return list(_objects(Field(document, (), Log(locate)), flaws, source))


class _Source(NamedTuple):
    """The arguments of `parse` that concern all objects of a document."""

    served: bool
    elsewhere: Collection[Path]
    default_namespace: str
    ignored_kinds: Collection[str]


def _objects(root: Field, flaws: Sequence[Flaw], source: _Source, default_type: str = "") -> Iterator[Parsed]:
    path = root.path
    if path in source.elsewhere:
        return
    obj = Field(root.value, path, Log(root.log.locate, root=path)) if path else root
    log = obj.log
    if not isinstance(obj.value, Mapping):
        obj.refuse("is not a Kubernetes object", "write a mapping with apiVersion, kind and metadata")
        yield _result(obj, None)
        return
    version, name = obj["apiVersion"].text(), obj["kind"].text()
    if default_type and not version and not name:
        version, _, name = default_type.rpartition("/")
    kind = _BY_TYPE.get((version, name))
    if kind is None:
        if name.endswith("List"):
            yield from _list_items(obj, flaws, f"{version}/{name.removesuffix('List')}", source)
            return
        group = version.rpartition("/")[0]
        names_of_kind = (ignored for ignored in source.ignored_kinds if is_kind(ignored, group, name))
        ignored_name = next(names_of_kind, "")
        is_ignored = bool(ignored_name)
        ignored = name if is_ignored else ""
        if unenforced := _UNENFORCED.get((group, name)):
            result = _unenforced(obj, unenforced, source, is_ignored=is_ignored)
            yield replace(result, unenforced=unenforced.name, ignored=ignored, ignored_name=ignored_name)
            return
        _report_kind(obj, version, name, is_ignored=is_ignored)
        result = _result(obj, None)
        if is_ignored and not result.refused:
            result = replace(result, ignored=ignored, ignored_name=ignored_name)
        elif not result.refused and may_matter(group, name):
            # Another version of a kind that is read is named with its version.
            words = f"{name} of {version}" if name in CALLER_KINDS else name
            result = replace(result, not_considered=words)
        yield result
        return
    log.any_field = source.served and kind.built_in
    meta = _meta(obj, kind, source.default_namespace)
    for path, what in flaws:
        log.add(path, what)
    fact = kind.read(obj, meta) if meta and kind.read else None
    if meta and log.refused and kind.make_replacement:
        result = replace(_result(obj, meta.ref), replacement=kind.make_replacement(meta, fact, log))
    else:
        result = _result(obj, meta.ref if meta else None, None if log.refused else fact)
    if meta and kind.namespaced and not source.served:
        result = replace(result, is_in_default=not obj["metadata"]["namespace"].value)
    yield result


def _unenforced(obj: Field, kind: Kind, source: _Source, *, is_ignored: bool) -> Parsed:
    meta = obj["metadata"]
    namespace, name = (field.value for field in (meta["namespace"], meta["name"]))
    ref = None
    if isinstance(name, str) and isinstance(namespace, str | None):
        ref = Ref(kind.name, namespace or "", name)
    obj.log.subject = str(ref or kind.name)
    if not is_ignored:
        obj.warn(f"NOT enforced: {kind.consequence}")
    if ref is None or kind.read is None:
        return _result(obj, None)
    ref = ref._replace(namespace=ref.namespace or source.default_namespace)
    fact = kind.read(obj, Meta(ref=ref, origin=obj.log.locate(obj.path)))
    return _result(obj, ref if fact else None, fact)


def unreadable(kind: Kind, ref: Ref, problem: Problem) -> Parsed:
    """Return the result for a rejected object whose name is known, but whose content could not be read."""
    log = Log(lambda _: problem.where)
    log.refusals.append(())
    replacement = kind.make_replacement(Meta(ref=ref), None, log) if kind.make_replacement else None
    return Parsed(ref=ref, origin=problem.where, problems=(problem,), refused=True, replacement=replacement)


def _result(obj: Field, ref: Ref | None, fact: Fact | None = None) -> Parsed:
    return Parsed(
        ref=ref,
        fact=fact,
        origin=obj.log.locate(obj.path),
        problems=tuple(obj.log.problems),
        refused=obj.log.refused,
    )


def _list_items(obj: Field, flaws: Sequence[Flaw], item_type: str, source: _Source) -> Iterator[Parsed]:
    """Parse the items of a List. Items of a typed list, such as PodList, need not repeat their type."""
    obj.mapping("apiVersion kind metadata items")
    items_field = obj["items"]
    items = list(items_field.items())
    depth = len(items_field.path)
    item_flaws: dict[str | int, list[Flaw]] = {}
    for path, what in flaws:
        if len(path) > depth and path[:depth] == items_field.path:
            item_flaws.setdefault(path[depth], []).append((path, what))
        else:
            obj.log.add(path, what)
    if obj.log.problems:
        yield _result(obj, None)
    for item in items:
        default_type = "" if item_type.endswith("/") else item_type
        yield from _objects(item, item_flaws.get(item.path[depth], ()), source, default_type)


def _report_kind(obj: Field, version: str, name: str, *, is_ignored: bool) -> None:
    """Add a notice about an object of a kind that is not read, or an error about a misspelled kind.

    `is_ignored` omits the notice.
    """
    for field in (obj["apiVersion"], obj["kind"]):
        field.required()
    if obj.log.refused:
        return
    group = version.rpartition("/")[0]
    namesake = _BY_NAME.get(name)
    if namesake and (group == namesake.group or nearest(version, namesake.api_versions)):
        versions = " or ".join(namesake.api_versions)
        obj["apiVersion"].refuse(f"{version} has no kind {name}", f"write apiVersion: {versions}")
        return
    group_kinds = [kind.name for kind in _BY_NAME.values() if kind.group == group]
    if name not in _IGNORED and not namesake and (hint := nearest(name, group_kinds)):
        obj["kind"].refuse(f"{name} does not exist in {version}", hint)
        return
    if is_ignored:
        return
    object_name = obj["metadata"]["name"].value
    obj["kind"].notice(
        f"{name} {object_name} is ignored" if isinstance(object_name, str) else f"{name} is ignored",
        _IGNORED_HINTS.get(name, ""),
    )


def _meta(obj: Field, kind: Kind, default_namespace: str) -> Meta | None:
    """Parse metadata; return None if the object's name or namespace is not valid.

    The name is parsed first, because later problems contain it.
    """
    meta = obj["metadata"].required().mapping()
    namespace = meta["namespace"].name(names.label) if kind.namespaced else ""
    name = meta["name"].name(kind.check_name)
    if name and not obj.log.refused:
        ref = Ref(kind.name, namespace or (default_namespace if kind.namespaced else ""), name)
        obj.log.subject = str(ref)
    elif meta and not name:
        hint = "generateName has no effect in a file" if meta["generateName"] else ""
        meta["name"].refuse("is required", hint)
    meta.mapping(_META)
    if not kind.namespaced and meta["namespace"].value:
        meta["namespace"].notice(f"is ignored: a {kind.name} is cluster-scoped")
    labels = names.labels(meta["labels"])
    annotations = meta["annotations"].texts()
    created = _time(meta["creationTimestamp"])
    uid = meta["uid"].text()
    version = meta["resourceVersion"].value
    if not obj.log.subject:
        return None
    where = obj.log.locate(obj.path)
    origin = "" if where == obj.log.subject else where
    return Meta(
        ref=ref,
        labels=labels,
        annotations=annotations,
        created=created,
        uid=uid,
        origin=origin,
        version=version if isinstance(version, str) else "",
    )


def _time(field: Field) -> datetime | None:
    text = field.text()
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text[:_MAX_TIME_LENGTH])
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # reported below
    field.refuse(f"{shown(text)} is not a time such as 2020-01-31T12:00:00Z")
    return None
