"""Differences between two snapshots: by resource, by field, and as text. Secrets are redacted.

for change in diff(before, after):
    print(change)                 # a unified diff of the JSON form
    print(change.fields)          # (FieldChange(path="load_assignment.endpoints[0]...", ...), ...)
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from xds.codec import to_dict
from xds.introspect.redaction import redact
from xds.protocol.types import short_name
from xds.snapshot import Resource, ResourceSet, Snapshot, difference

_Compared: TypeAlias = Snapshot | ResourceSet | Resource


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field that differs."""

    path: str
    """Path of the field in the JSON form, such as `endpoints[0].lb_endpoints[2].metadata`."""
    before: Any
    """Previous value in JSON; None if the field was not set."""
    after: Any
    """Next value in JSON; None if the field is not set."""

    def __str__(self) -> str:
        return f"{self.path}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


@dataclass(frozen=True, slots=True)
class ResourceDiff:
    """A resource that differs. `str` returns a unified diff."""

    type_url: str
    """Type URL of the resource."""
    name: str
    """Name of the resource."""
    before: Any
    """Previous content in JSON; None if the resource did not exist."""
    after: Any
    """Next content in JSON; None if the resource does not exist."""

    @property
    def change(self) -> str:
        """`added`, `removed` or `changed`."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        """Fields that differ. It is empty if only redacted secrets differ."""
        return tuple(_field_changes("", self.before, self.after))

    def text(self, before: str = "before", after: str = "after") -> str:
        """Return a unified diff of the JSON form.

        Args:
            before: Label of the previous content.
            after: Label of the next content.
        """
        title = f"{short_name(self.type_url)} {self.name}"
        if self.before == self.after:
            return f"{title}: only redacted secrets differ"
        sides = _lines(self.before), _lines(self.after)
        labels = f"{title} ({before})", f"{title} ({after})"
        return "\n".join(difflib.unified_diff(*sides, *labels, lineterm=""))

    def __str__(self) -> str:
        return self.text()


def diff(before: Snapshot, after: Snapshot) -> tuple[ResourceDiff, ...]:
    """Return the resources that differ between two snapshots, sorted by type and name."""
    keys = sorted(
        (type_url, name)
        for type_url in {*before.types, *after.types}
        for name in difference(before.of(type_url), after.of(type_url))
    )
    return tuple(
        ResourceDiff(*key, *(_content(snapshot.of(key[0]).get(key[1])) for snapshot in (before, after)))
        for key in keys
    )


def explain_difference(before: _Compared, after: _Compared) -> list[str]:
    """Return lines that explain why two values are not equal: one for each field or resource."""
    lines = []
    for change in diff(_snapshot(before), _snapshot(after)):
        title = f"{short_name(change.type_url)} {change.name}"
        if change.change != "changed":
            lines.append(f"{title}: only in the {'right' if change.change == 'added' else 'left'} one")
        else:
            lines += [f"{title}: {field}" for field in change.fields] or [str(change)]
    return lines or [f"no resource differs, but {before!r}", f"is not {after!r}"]


def _snapshot(value: _Compared) -> Snapshot:
    if isinstance(value, Snapshot):
        return value
    resources = [value] if isinstance(value, Resource) else [*value.values()]
    return Snapshot({resources[0].type_url: ResourceSet(resources)} if resources else {})


def _content(resource: Resource | None) -> Any:
    """Return the JSON form of a resource without its secrets; its size if its type is unknown."""
    if resource is None:
        return None
    redacted = redact(resource.type_url, resource.body)
    if redacted is None:
        return {"version": resource.version, "bytes": len(resource.body)}
    return to_dict(resource.type_url, redacted)


def _lines(value: Any) -> list[str]:
    """Return a JSON value as lines; no lines for None, and one for each string of a list."""
    if value is None:
        return []
    if isinstance(value, list):
        return [str(item) for item in value]
    return json.dumps(value, indent=2, sort_keys=True).splitlines()


def _field_changes(path: str, before: Any, after: Any) -> Iterator[FieldChange]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _field_changes(f"{path}.{key}" if path else key, before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            sides = (side[index] if index < len(side) else None for side in (before, after))
            yield from _field_changes(f"{path}[{index}]", *sides)
    else:
        yield FieldChange(path, before, after)
