"""Resources by scope, and the view of them that each node receives.

A node receives the resources that are set for all nodes, for its group and for itself. Of two resources with
the same type and name, the one with the narrower scope is served. Nodes share the objects that they have in
common.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, overload
from weakref import WeakValueDictionary

import betterproto2
from google.protobuf.message import Message

from xds.protocol.subscription import WILDCARD
from xds.resources import ProtobufMessage, check_type
from xds.resources import resource as make_resource
from xds.snapshot import EMPTY, Resource, ResourceKey, ResourceSet, Snapshot
from xds.store.versions import ChosenVersions

ResourceLike: TypeAlias = Resource | betterproto2.Message | ProtobufMessage
"""A resource, or a message that `xds.resources.resource` makes one from."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The nodes that a resource is for: one node, a group of nodes, or all nodes."""

    node: str = ""
    """ID of the node; empty for a group or for all nodes."""
    group: str = ""
    """Name of the group; empty for a node or for all nodes."""

    @classmethod
    def of(cls, node: object, group: object) -> Scope:
        """Make a scope from a caller's arguments.

        Raises:
            TypeError: `node` or `group` is not a str.
            ValueError: Both are set.
        """
        if not isinstance(node, str) or not isinstance(group, str):
            raise TypeError(f"node= and group= must be str, not {node!r} and {group!r}")
        if node and group:
            raise ValueError(
                f"pass node={node!r} or group={group!r}, not both: a node also receives its group's resources"
            )
        return cls(node, group)

    @property
    def kind(self) -> str:
        """`node`, `group` or `all`. A node receives the resources of at most one scope of each kind."""
        return "node" if self.node else "group" if self.group else "all"

    def includes(self, node: str, group: str) -> bool:
        """Whether a node of a group is in the scope."""
        return self.node in {"", node} and self.group in {"", group}


ALL_NODES = Scope()


@dataclass(frozen=True, slots=True)
class Step:
    """One method call on a `Change`: remove some or all resources of a scope, then set others."""

    scope: Scope
    resources: tuple[Resource, ...] = ()
    removed: tuple[ResourceKey, ...] = ()
    replaces: bool = False
    """Whether the step removes all resources of the scope, or of `type_url` in the scope."""
    type_url: str = ""
    """Type that the step replaces; empty for all types."""


class Change:
    """Changes to a store that each node receives in one snapshot. `Store.change` makes a `Change`.

    Calls are applied in order. After the block of `Store.change` has ended, each method raises RuntimeError.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        """Words for the versions of the types that it changes."""
        self.steps: list[Step] = []
        """Calls to apply, in order."""
        self.closed = False
        """Whether the block has ended. No more calls can then be added."""

    def set(self, *resources: ResourceLike, node: str = "", group: str = "") -> None:
        """Set resources for all nodes, or for one node or group.

        A resource replaces one with the same type and name in the same scope.

        Args:
            resources: Resources, or messages that `xds.resources.resource` accepts.
            node: ID of the node to set them for.
            group: Group of nodes to set them for.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: Two resources have the same type and name, a type or name is invalid, both `node` and
                `group` are set, or the version of a resource was used for another content. None of the
                resources is then set.
        """
        self._add(Step(Scope.of(node, group), _to_resources(resources)))

    @overload
    def remove(self, type_url: str, /, *names: str, node: str = "", group: str = "") -> None: ...

    @overload
    def remove(self, *resources: ResourceLike, node: str = "", group: str = "") -> None: ...

    def remove(self, *targets: str | ResourceLike, node: str = "", group: str = "") -> None:
        """Remove resources from exactly this scope.

        If a wider scope has a resource with the same type and name, nodes then receive that resource.
        Resources that are not set are ignored. To remove all resources of a type, call `replace` with an
        empty list.

        Args:
            targets: A type URL and names, or resources with the types and names to remove.
            node: ID of the node to remove them from.
            group: Group of nodes to remove them from.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `targets` is empty, a type URL has no names, or both `node` and `group` are set.
        """
        self._add(Step(Scope.of(node, group), removed=_to_keys(targets)))

    def replace(
        self, resources: Iterable[ResourceLike], *, node: str = "", group: str = "", type_url: str = ""
    ) -> None:
        """Set resources and remove all others of the scope, or all others of one type in the scope.

        Args:
            resources: Resources, or messages that `xds.resources.resource` accepts.
            node: ID of the node to set them for.
            group: Group of nodes to set them for.
            type_url: Type to replace. The default is to replace all types.

        Raises:
            TypeError: An argument has the wrong type, for example a single resource instead of a list.
            ValueError: As in `set`, or a resource is not of type `type_url`.
        """
        if isinstance(resources, Resource | betterproto2.Message | Message | str | bytes) or not isinstance(
            resources, Iterable
        ):
            raise TypeError(f"replace takes a list of resources, not one {type(resources).__name__}")
        replacements = _to_resources(resources)
        if type_url:
            check_type(type_url)
            for replacement in replacements:
                if replacement.type_url != type_url:
                    raise ValueError(f"{replacement.description} is not of the replaced type, {type_url}")
        self._add(Step(Scope.of(node, group), replacements, replaces=True, type_url=type_url))

    def _add(self, step: Step) -> None:
        if self.closed:
            raise RuntimeError("the block of this change has ended: start another with store.change()")
        self.steps.append(step)


class ScopeView:
    """The resources that the nodes of one scope receive. A view exists as long as a client uses it."""

    __slots__ = ("__weakref__", "_parent", "scope", "snapshot")

    def __init__(self, scope: Scope, parent: ScopeView | None = None) -> None:
        self.scope = scope
        self.snapshot = Snapshot()
        """Snapshot for the nodes of the scope."""
        self._parent = parent
        """View of the next wider scope."""

    def update(self, scope_sets: dict[str, ResourceSet], types: Iterable[str]) -> None:
        """Rebuild some types of the snapshot.

        Args:
            scope_sets: Resources that are set in exactly this scope, by type.
            types: Types to rebuild.
        """
        if self._parent is None:
            self.snapshot = Snapshot(dict(scope_sets))
        elif not scope_sets:
            self.snapshot = self._parent.snapshot
        else:
            inherited = self._parent.snapshot
            current = {type_url: self.snapshot.types.get(type_url) for type_url in inherited.types}
            self.snapshot = Snapshot(
                {
                    type_url: resources
                    if resources is not None and type_url not in types
                    else _layered(scope_sets.get(type_url), inherited.of(type_url))
                    for type_url, resources in current.items()
                }
            )

    def affected_types(self, changed: dict[Scope, set[str]]) -> set[str]:
        """Return the types of this view that may differ after changes to scopes."""
        types = changed.get(self.scope, set())
        return types | self._parent.affected_types(changed) if self._parent else types


def _layered(layer: ResourceSet | None, inherited: ResourceSet) -> ResourceSet:
    if not layer:
        return inherited
    labels = dict.fromkeys(label for label in (inherited.label, layer.label) if label)
    return ResourceSet(layer.values(), base=inherited, label="+".join(labels))


class Contents:
    """All resources of a store by scope, and the views of the connected nodes."""

    def __init__(self) -> None:
        self.initialized = False
        """Whether a change was applied. Before the first change, clients receive no response."""
        self._sets: dict[Scope, dict[str, ResourceSet]] = {ALL_NODES: {}}
        """Resources that are set in each scope, by type.

        `ALL_NODES` keeps types that have become empty, so that clients delete their resources.
        """
        self._all_nodes = ScopeView(ALL_NODES)
        self._groups: WeakValueDictionary[str, ScopeView] = WeakValueDictionary()
        self._nodes: WeakValueDictionary[tuple[str, str], ScopeView] = WeakValueDictionary()
        self._shared: WeakValueDictionary[tuple[str, str, str], Resource] = WeakValueDictionary()
        """One object for each distinct resource, even if a program sets it for many nodes separately."""
        self._versions = ChosenVersions()

    def view(self, node: str, group: str) -> ScopeView:
        """Return the view of a node in a group."""
        parent = self._all_nodes
        if group:
            parent = self._groups.get(group) or self._new_view(Scope(group=group), parent)
            self._groups[group] = parent
        view = self._nodes.get((group, node)) or self._new_view(Scope(node=node), parent)
        self._nodes[group, node] = view
        return view

    def _new_view(self, scope: Scope, parent: ScopeView) -> ScopeView:
        view = ScopeView(scope, parent)
        self._update_view(view, parent.snapshot.types)
        return view

    def _update_view(self, view: ScopeView, types: Iterable[str]) -> None:
        view.update(self._sets.get(view.scope, {}), types)

    @property
    def _views(self) -> Iterator[ScopeView]:
        """Yield all views, wider scopes first."""
        yield from (self._all_nodes, *self._groups.values(), *self._nodes.values())

    def apply(self, change: Change) -> None:
        """Apply a change, and update the views that it affects.

        Raises:
            ValueError: The version of a resource was used for another content. Clients that have that would
                not be sent the resource.
        """
        steps = self._resolve_steps(change)
        self._versions.add(
            (scope, resource)
            for (scope, type_url), names in steps.items()
            for resource in names.values()
            if resource and self.get(scope, type_url, resource.name) != resource
        )
        self.initialized = True
        changed: dict[Scope, set[str]] = {}
        for (scope, type_url), names in steps.items():
            if self._update_scope(scope, type_url, names, change.label):
                changed.setdefault(scope, set()).add(type_url)
                if type_url not in self._sets[ALL_NODES]:
                    self._sets[ALL_NODES][type_url] = EMPTY
                    changed.setdefault(ALL_NODES, set()).add(type_url)
        for view in self._views:
            if types := view.affected_types(changed):
                self._update_view(view, types)

    def get(self, scope: Scope, type_url: str, name: str) -> Resource | None:
        """Return the resource that is set in exactly this scope; None if there is none."""
        return self._scope_set(scope, type_url).get(name)

    def sets(self) -> dict[Scope, dict[str, ResourceSet]]:
        """Return the resources that are set in each scope, by type."""
        return {scope: dict(types) for scope, types in self._sets.items()}

    def _resolve_steps(self, change: Change) -> dict[tuple[Scope, str], dict[str, Resource | None]]:
        """Return the result of a change, by scope, type and name; None for removed resources."""
        result: dict[tuple[Scope, str], dict[str, Resource | None]] = {}
        for step in change.steps:
            if step.replaces:
                changed_types = {type_url for scope, type_url in result if scope == step.scope}
                all_types = changed_types.union(self._sets.get(step.scope, ()))
                for type_url in (step.type_url,) if step.type_url else all_types:
                    names = result.setdefault((step.scope, type_url), {})
                    names.update(dict.fromkeys((*self._scope_set(step.scope, type_url), *names)))
            for type_url, name in step.removed:
                result.setdefault((step.scope, type_url), {})[name] = None
            for resource in step.resources:
                result.setdefault((step.scope, resource.type_url), {})[resource.name] = resource
        return result

    def _scope_set(self, scope: Scope, type_url: str) -> ResourceSet:
        return self._sets.get(scope, {}).get(type_url, EMPTY)

    def _update_scope(
        self, scope: Scope, type_url: str, names: dict[str, Resource | None], label: str
    ) -> bool:
        """Set and remove resources of one type in a scope. Return whether this changed anything."""
        current = self._scope_set(scope, type_url)
        added = [
            self._deduplicate(resource)
            for resource in names.values()
            if resource and not _is_identical(current.get(resource.name), resource)
        ]
        removed = [name for name, resource in names.items() if resource is None and name in current]
        if not added and not removed:
            return False
        sets = self._sets.setdefault(scope, {})
        sets[type_url] = current.updated(added, removed, label=label)
        if scope != ALL_NODES:
            if not sets[type_url]:
                del sets[type_url]
            if not sets:
                del self._sets[scope]
        return True

    def _deduplicate(self, resource: Resource) -> Resource:
        shared = self._shared.setdefault((resource.type_url, resource.name, resource.version), resource)
        return shared if _is_identical(shared, resource) else resource


def _is_identical(first: Resource | None, second: Resource) -> bool:
    """Whether two resources are equal, including the fields that `==` ignores."""
    return first == second and (first.refs, first.sources) == (second.refs, second.sources)


def _to_resources(items: Iterable[ResourceLike]) -> tuple[Resource, ...]:
    """Make resources from messages. Raise ValueError for two resources with the same type and name."""
    resources: dict[ResourceKey, Resource] = {}
    for resource in map(_to_resource, items):
        if (resource.type_url, resource.name) in resources:
            raise ValueError(f"{resource.description} twice in one call")
        resources[resource.type_url, resource.name] = resource
    return tuple(resources.values())


def _to_keys(targets: tuple[Any, ...]) -> tuple[ResourceKey, ...]:
    """Return the types and names of resources, or of a type URL followed by names."""
    if targets and isinstance(targets[0], str):
        type_url, *names = targets
        check_type(type_url)
        if not names:
            raise ValueError(
                f"no names to remove after {type_url}; to remove a whole type, call replace([], type_url=...)"
            )
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"a type URL must be followed by names, not {type(name).__name__}")
            _check_name(type_url, name)
        return tuple((type_url, name) for name in names)
    if not targets:
        raise ValueError(
            "nothing to remove: pass a type URL and names, or resources;"
            " to remove a whole type, call replace([], type_url=...), or for all types, replace([])"
        )
    return tuple((resource.type_url, resource.name) for resource in map(_to_resource, targets))


def _check_name(type_url: str, name: str) -> None:
    """Raise ValueError for a name that no resource can have."""
    kind = type_url.rpartition(".")[2]
    if not name:
        raise ValueError(f"{kind} without a name: clients request resources by name")
    if name == WILDCARD:
        raise ValueError(f"{kind} {name}: this name is reserved, because it requests all resources of a type")


def _to_resource(item: ResourceLike) -> Resource:
    resource = item if isinstance(item, Resource) else make_resource(item)
    check_type(resource.type_url)
    _check_name(resource.type_url, resource.name)
    return resource
