"""What is set, for whom, and what a node gets of it.

A node gets what is set for everybody, over that what is set for its group, and over that what is set for itself: of
two resources of one type and name, the narrower one. What is the same for many is the same objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, overload
from weakref import WeakValueDictionary

import betterproto2
from google.protobuf.message import Message

from xds.protocol.subscription import WILDCARD
from xds.resources import check_type, resource
from xds.snapshot import EMPTY, Resource, ResourceKey, ResourceSet, Snapshot

ResourceLike: TypeAlias = Resource | betterproto2.Message | Message
"""A resource, or a message to make one of."""


@dataclass(frozen=True, slots=True)
class Scope:
    """For whom something is: a node, by its id; a group; or everybody."""

    node: str = ""
    group: str = ""

    @classmethod
    def of(cls, node: object, group: object) -> Scope:
        """Check what a caller said. TypeError, ValueError: it is no scope."""
        if not isinstance(node, str) or not isinstance(group, str):
            raise TypeError(f"node= and group= are names, not {node!r} and {group!r}")
        if node and group:
            raise ValueError(
                f"either node={node!r} or group={group!r}: a node gets what is for its group anyway"
            )
        return cls(node, group)


ALL_NODES = Scope()


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of a change: away with some, or all, then here are others."""

    scope: Scope
    resources: tuple[Resource, ...] = ()
    removed: tuple[ResourceKey, ...] = ()
    replaces: bool = False
    type_url: str = ""
    """What is replaced; empty: every type."""


class Change:
    """Changes that are made together, in the order in which they are said. They reach every node in one snapshot.

    RuntimeError, from every method: the block of `store.change()` has ended, and nothing would come of it.
    """

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.closed = False
        """Whether it is too late to add anything."""

    def set(self, *resources: ResourceLike, node: str = "", group: str = "") -> None:
        """Set resources for everybody, or for one node or group; each takes the place of one of its type and name.

        ValueError: two of a type and name in one call, a type or a name that can be no resource's, or a message that
        `resource` refuses; nothing of the call counts.
        """
        self._add(_Step(Scope.of(node, group), _to_resources(resources)))

    @overload
    def remove(self, type_url: str, /, *names: str, node: str = "", group: str = "") -> None: ...

    @overload
    def remove(self, *resources: ResourceLike, node: str = "", group: str = "") -> None: ...

    def remove(self, *what: str | ResourceLike, node: str = "", group: str = "") -> None:
        """Take away what is set in exactly this scope: a type URL and names, or resources with these names.

        What a wider scope has of the name is what counts again then. What is not there need not be removed.

        ValueError: a type URL without names, or nothing at all; all of a type are removed by `replace`.
        """
        self._add(_Step(Scope.of(node, group), removed=_to_keys(what)))

    def replace(
        self, resources: Iterable[ResourceLike], *, node: str = "", group: str = "", type_url: str = ""
    ) -> None:
        """Set these and nothing else in a scope; with `type_url`, nothing else of that type."""
        if isinstance(resources, Resource | betterproto2.Message | Message | str | bytes) or not isinstance(
            resources, Iterable
        ):
            raise TypeError(f"replace takes a list of resources, not one {type(resources).__name__}")
        made = _to_resources(resources)
        if type_url:
            check_type(type_url)
            for other in made:
                if other.type_url != type_url:
                    raise ValueError(f"{_describe(other)} is not of the type that is replaced, {type_url}")
        self._add(_Step(Scope.of(node, group), made, replaces=True, type_url=type_url))

    def _add(self, step: _Step) -> None:
        if self.closed:
            raise RuntimeError(
                "this change has ended with its block, and nothing more comes of it: open another with store.change()"
            )
        self.steps.append(step)


class ScopeView:
    """What the nodes of one scope get, kept as long as somebody gets it."""

    __slots__ = ("__weakref__", "_below", "scope", "snapshot")

    def __init__(self, scope: Scope, below: ScopeView | None = None) -> None:
        self.scope = scope
        self.snapshot = Snapshot()
        self._below = below
        """What is set for wider scopes."""

    def update(self, own: dict[str, ResourceSet], types: Iterable[str]) -> None:
        """Look again at some types, given what is set in the scope itself."""
        if self._below is None:
            self.snapshot = Snapshot(dict(own))
        elif not own:
            self.snapshot = self._below.snapshot
        else:
            below = self._below.snapshot
            kept = {type_url: self.snapshot.types.get(type_url) for type_url in below.types}
            self.snapshot = Snapshot(
                {
                    type_url: before
                    if before is not None and type_url not in types
                    else _layered(own.get(type_url), below.of(type_url))
                    for type_url, before in kept.items()
                }
            )

    def inherits(self, changed: dict[Scope, set[str]]) -> set[str]:
        """Return the types that a change to some scopes may change here."""
        above = changed.get(self.scope, set())
        return above | self._below.inherits(changed) if self._below else above


def _layered(own: ResourceSet | None, below: ResourceSet) -> ResourceSet:
    return ResourceSet(own.values(), base=below) if own else below


class Contents:
    """All that is set, by scope, and the views of those who are there to get it."""

    def __init__(self) -> None:
        self.initialized = False
        """Whether anything was ever said, be it that there is nothing."""
        self._sets: dict[Scope, dict[str, ResourceSet]] = {ALL_NODES: {}}
        """What is set in each scope itself. Everybody's has every type that there ever was: who has some is to lose them."""
        self._everybody = ScopeView(ALL_NODES)
        self._groups: WeakValueDictionary[str, ScopeView] = WeakValueDictionary()
        self._nodes: WeakValueDictionary[tuple[str, str], ScopeView] = WeakValueDictionary()
        self._known: WeakValueDictionary[tuple[str, str, str], Resource] = WeakValueDictionary()
        """So that what is equal is there once, though it be set for many nodes one by one."""

    def view(self, node: str, group: str) -> ScopeView:
        """Return what a node of a group gets."""
        below = self._everybody
        if group:
            below = self._groups.get(group) or self._new(Scope(group=group), below)
            self._groups[group] = below
        view = self._nodes.get((group, node)) or self._new(Scope(node=node), below)
        self._nodes[group, node] = view
        return view

    def _new(self, scope: Scope, below: ScopeView) -> ScopeView:
        view = ScopeView(scope, below)
        view.update(self._sets.get(scope, {}), below.snapshot.types)
        return view

    def apply(self, change: Change) -> None:
        """Make a change, and update the views of those whom it is for."""
        self.initialized = True
        changed: dict[Scope, set[str]] = {}
        for (scope, type_url), names in self._resolve_steps(change).items():
            if self._update_scope(scope, type_url, names):
                changed.setdefault(scope, set()).add(type_url)
                if type_url not in self._sets[ALL_NODES]:
                    self._sets[ALL_NODES][type_url] = EMPTY
                    changed.setdefault(ALL_NODES, set()).add(type_url)
        for view in (self._everybody, *self._groups.values(), *self._nodes.values()):
            if types := view.inherits(changed):
                view.update(self._sets.get(view.scope, {}), types)

    def _resolve_steps(self, change: Change) -> dict[tuple[Scope, str], dict[str, Resource | None]]:
        """Return what each name is in the end, None for what is gone."""
        found: dict[tuple[Scope, str], dict[str, Resource | None]] = {}
        for step in change.steps:
            if step.replaces:
                there = {type_url for scope, type_url in found if scope == step.scope}
                for type_url in (
                    (step.type_url,) if step.type_url else there | {*self._sets.get(step.scope, ())}
                ):
                    names = found.setdefault((step.scope, type_url), {})
                    names.update(dict.fromkeys((*self._own_set(step.scope, type_url), *names)))
            for type_url, name in step.removed:
                found.setdefault((step.scope, type_url), {})[name] = None
            for each in step.resources:
                found.setdefault((step.scope, each.type_url), {})[each.name] = each
        return found

    def _own_set(self, scope: Scope, type_url: str) -> ResourceSet:
        return self._sets.get(scope, {}).get(type_url, EMPTY)

    def _update_scope(self, scope: Scope, type_url: str, names: dict[str, Resource | None]) -> bool:
        """Take what names are now, and tell whether that is anything new."""
        before = self._own_set(scope, type_url)
        fresh = [
            self._deduplicate(each)
            for each in names.values()
            if each and not _is_identical(before.get(each.name), each)
        ]
        gone = [name for name, each in names.items() if each is None and name in before]
        if not fresh and not gone:
            return False
        sets = self._sets.setdefault(scope, {})
        sets[type_url] = before.updated(fresh, gone)
        if scope != ALL_NODES:
            if not sets[type_url]:
                del sets[type_url]
            if not sets:
                del self._sets[scope]
        return True

    def _deduplicate(self, one: Resource) -> Resource:
        known = self._known.setdefault((one.type_url, one.name, one.version), one)
        return known if _is_identical(known, one) else one


def _is_identical(one: Resource | None, other: Resource) -> bool:
    """Whether two resources are the same in all that there is to them, also in what makes no other resource."""
    return one == other and (one.refs, one.sources) == (other.refs, other.sources)


def _to_resources(resources: Iterable[ResourceLike]) -> tuple[Resource, ...]:
    """Make resources of messages, each of its own type and name."""
    found: dict[ResourceKey, Resource] = {}
    for made in map(_to_resource, resources):
        if (made.type_url, made.name) in found:
            raise ValueError(f"{_describe(made)} twice in one call")
        found[made.type_url, made.name] = made
    return tuple(found.values())


def _to_keys(what: tuple[Any, ...]) -> tuple[ResourceKey, ...]:
    """Return types and names, said as such or by resources."""
    if what and isinstance(what[0], str):
        type_url, *names = what
        check_type(type_url)
        if not names:
            raise ValueError(
                f"no names to remove after {type_url}; to remove all of the type, replace([], type_url=...)"
            )
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"after a type URL come names, not {type(name).__name__}")
            _check_name(type_url, name)
        return tuple((type_url, name) for name in names)
    if not what:
        raise ValueError(
            "nothing to remove: say which; to remove all of a type, replace([], type_url=...), or all, replace([])"
        )
    return tuple((each.type_url, each.name) for each in map(_to_resource, what))


def _check_name(type_url: str, name: str) -> None:
    """Raise ValueError for a name that no resource can have."""
    kind = type_url.rpartition(".")[2]
    if not name:
        raise ValueError(f"{kind} without a name: clients ask for resources by name; give it one")
    if name == WILDCARD:
        raise ValueError(
            f"{kind} {name}: in requests this name means all resources of a type; give it another"
        )


def _to_resource(what: ResourceLike) -> Resource:
    made = what if isinstance(what, Resource) else resource(what)
    check_type(made.type_url)
    _check_name(made.type_url, made.name)
    return made


def _describe(one: Resource) -> str:
    return f"{one.type_url.rpartition('.')[2]} {one.name}"
