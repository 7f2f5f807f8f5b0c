"""Checkpoints of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from xds.snapshot import EMPTY, ResourceSet, difference
from xds.store.scopes import Change, Scope, Step

_NO_TYPES: Mapping[str, ResourceSet] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All resources of a store at one time. It shares the resources with the store."""

    store: object = field(repr=False, compare=False)
    """Store that the checkpoint is of."""
    sets: Mapping[Scope, Mapping[str, ResourceSet]] = field(repr=False)
    """Resources that were set in each scope, by type."""


def changes_between(before: Checkpoint, after: Checkpoint) -> list[Change]:
    """Return the changes that turn one checkpoint into another: one or more, each with a label of `after`.

    Their cost is that of the differences.
    """
    changes: dict[str, Change] = {}
    for scope in {**before.sets, **after.sets}:
        old, new = before.sets.get(scope, _NO_TYPES), after.sets.get(scope, _NO_TYPES)
        for type_url in {**old, **new}:
            old_set, new_set = old.get(type_url, EMPTY), new.get(type_url, EMPTY)
            names = difference(old_set, new_set)
            resources = tuple(new_set[name] for name in names if name in new_set)
            removed = tuple((type_url, name) for name in names if name not in new_set)
            if names:
                change = changes.setdefault(new_set.label, Change(new_set.label))
                change.steps.append(Step(scope, resources, removed))
    return list(changes.values()) or [Change()]
