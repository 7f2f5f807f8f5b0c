"""Find pod templates in Kubernetes objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xds.mesh.parse import KINDS, is_kind
from xds.mesh.parse.reading import Path

_TEMPLATE = ("spec", "template")
_TEMPLATE_PATHS: dict[tuple[str, str], Path] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): _TEMPLATE,
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("extensions", "Deployment"): _TEMPLATE,
    ("extensions", "DaemonSet"): _TEMPLATE,
    ("extensions", "ReplicaSet"): _TEMPLATE,
    ("batch", "Job"): _TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
"""Path of the pod template by API group and kind, for all versions."""


_KNOWN = frozenset((kind.group, kind.name) for kind in KINDS)
"""Groups and kinds that are read as something else than a workload."""
_SECURITY = frozenset((kind.group, kind.name) for kind in KINDS if kind.is_unenforced_security)
_ALWAYS_READ = (*_TEMPLATE_PATHS, *((kind.group, kind.name) for kind in KINDS if not kind.consequence))


def why_not_ignored(name: str) -> str:
    """Return why objects of a kind must not be ignored; empty if they may be.

    Args:
        name: name of the kind, as for `is_kind`.
    """
    for group, kind in (*_SECURITY, *_ALWAYS_READ):
        if is_kind(name, group, kind):
            if (group, kind) in _SECURITY:
                return f"{kind} is security that is not enforced, so its objects are always reported"
            return f"{kind} is always read: without its objects, an answer could be wrong"
    return ""


KNATIVE_SERVICE = "Service"
"""Kind of a Knative Service, the only Service with a pod template."""


class Template(NamedTuple):
    """A pod template in a document."""

    path: Path
    """Path in the document."""
    value: Any
    """The template, with `metadata` and `spec`."""
    namespace: str
    """Namespace of the object; empty if unset."""
    kind: str
    """Kind of the object."""
    name: str
    """`metadata.name` or `metadata.generateName` of the object; empty if it has neither."""
    manifest: Mapping[str, Any]
    """The object that contains the template."""
    root: Path
    """Path of the object in the document."""

    @property
    def subject(self) -> str:
        """KIND NAME of the object, for messages."""
        return f"{self.kind} {self.name}".rstrip()


def find_templates(document: Any) -> Iterator[Template]:
    """Yield the pod template of an object, or those of the items of a List."""
    for obj in _objects(document):
        template_path = obj.template_path
        if template_path is None:
            continue
        meta = obj.manifest.get("metadata")
        meta = meta if isinstance(meta, Mapping) else {}
        value: Any = obj.manifest
        for step in template_path:
            value = value.get(step) if isinstance(value, Mapping) else None
        yield Template(
            path=(*obj.root, *template_path),
            value=value,
            namespace=str(meta.get("namespace") or ""),
            kind=obj.kind,
            name=str(meta.get("name") or meta.get("generateName") or ""),
            manifest=obj.manifest,
            root=obj.root,
        )


def find_namespaces(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the labels of each Namespace."""
    for obj in _objects(document):
        if (obj.group, obj.kind) == ("", "Namespace"):
            meta = obj.manifest.get("metadata")
            labels = meta.get("labels") if isinstance(meta, Mapping) else None
            if isinstance(meta, Mapping) and isinstance(labels, Mapping):
                yield str(meta.get("name")), labels


def find_targets(document: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yield the kind of each custom resource that runs a workload, and the kind, namespace and name of that.

    The workload's own number of replicas has no effect, as for the `workloadRef` of a Rollout.
    """
    for obj in _objects(document):
        spec, meta = (obj.manifest.get(name) for name in ("spec", "metadata"))
        if "." not in obj.group or not isinstance(spec, Mapping) or not isinstance(meta, Mapping):
            continue
        for target in (spec.get("workloadRef"), spec.get("scaleTargetRef")):
            if isinstance(target, Mapping):
                kind = target.get("kind") or "Deployment"
                yield obj.kind, str(kind), str(meta.get("namespace") or ""), str(target.get("name"))


class _Object(NamedTuple):
    """An object in a document."""

    group: str
    kind: str
    manifest: Mapping[str, Any]
    root: Path

    @property
    def template_path(self) -> Path | None:
        """Path of the object's pod template; None if it has none."""
        path = _TEMPLATE_PATHS.get((self.group, self.kind))
        is_known = (self.group, self.kind) in _KNOWN
        return _TEMPLATE if path is None and not is_known and _has_template(self.manifest) else path


def _objects(document: Any, path: Path = (), default_type: str = "") -> Iterator[_Object]:
    """Yield an object, or the items of a List.

    `default_type` is the VERSION/KIND of an object that has neither, such as an item of a DeploymentList.
    """
    if not isinstance(document, Mapping):
        return
    version, kind = document.get("apiVersion"), document.get("kind")
    if default_type and version is None and kind is None:
        version, _, kind = default_type.rpartition("/")
    if not isinstance(version, str) or not isinstance(kind, str):
        return
    if kind.endswith("List"):
        items = document.get("items")
        for index, item in enumerate(items if isinstance(items, list) else ()):
            item_type = f"{version}/{kind.removesuffix('List')}" if kind != "List" else ""
            yield from _objects(item, (*path, "items", index), item_type)
        return
    yield _Object(version.rpartition("/")[0], kind, document, path)


def _has_template(document: Mapping[str, Any]) -> bool:
    """Whether an object of another kind has a pod template where a Deployment has it, as a Rollout does."""
    value: Any = document
    for step in (*_TEMPLATE, "spec", "containers"):
        value = value.get(step) if isinstance(value, Mapping) else None
    return isinstance(value, list) and all(isinstance(container, Mapping) for container in value)
