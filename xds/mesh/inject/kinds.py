"""Find pod templates in Kubernetes objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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


def find_templates(document: Any, path: Path = (), default_type: str = "") -> Iterator[Template]:
    """Yield the pod template of an object, or those of the items of a List.

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
            yield from find_templates(item, (*path, "items", index), item_type)
        return
    template_path = _TEMPLATE_PATHS.get((version.rpartition("/")[0], kind))
    if template_path is None:
        return
    meta = document.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    value: Any = document
    for step in template_path:
        value = value.get(step) if isinstance(value, Mapping) else None
    yield Template(
        path=(*path, *template_path),
        value=value,
        namespace=str(meta.get("namespace") or ""),
        kind=kind,
        name=str(meta.get("name") or meta.get("generateName") or ""),
        manifest=document,
        root=path,
    )
