"""Validation of a store's changes: resources that the validator refuses are held back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from xds.snapshot import Resource, ResourceKey
from xds.store.scopes import Change, Contents, Scope, Step
from xds.validation import Validator, find_refused

log = structlog.get_logger(__name__)

_MAX_NAMES = 10
"""Maximum number of resources in one error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A resource that is not served, because the validator refused it.

    Clients get the last good version that was set in the same scope. If there is none, they get the resource
    with its name that is set in a wider scope, except for what is refused before the first change is served:
    after a restart, clients may have another version of it, which they keep.
    """

    resource: Resource
    """Refused resource; see also its `sources`."""
    node: str
    """ID of the node that the resource is set for; empty for a group or for all nodes."""
    group: str
    """Group that the resource is set for; empty for a node or for all nodes."""
    reason: str
    """Why the validator refused it, such as Envoy's message."""

    def __str__(self) -> str:
        sources = f" (from {', '.join(self.resource.sources)})" if self.resource.sources else ""
        return f"{self.resource.description}{sources}: {self.reason}"


class ValidationError(Exception):
    """The validator refused resources. They are not served."""

    def __init__(self, held_back: Iterable[HeldBack]) -> None:
        self.held_back = tuple(held_back)
        """The refused resources."""
        names = "; ".join(map(str, self.held_back[:_MAX_NAMES]))
        more = len(self.held_back) - _MAX_NAMES
        super().__init__(f"refused {names}" + (f"; and {more:,} more" if more > 0 else ""))


def resources_of(steps: Iterable[Step]) -> list[Resource]:
    """Return the distinct resources in some steps."""
    return list(dict.fromkeys(resource for step in steps for resource in step.resources))


def held_back(steps: Iterable[Step], refused: Mapping[Resource, str]) -> list[HeldBack]:
    """Return the refused resources of some steps."""
    return [
        HeldBack(resource=resource, node=step.scope.node, group=step.scope.group, reason=refused[resource])
        for step in steps
        for resource in step.resources
        if resource in refused
    ]


def without(change: Change, refused: Mapping[Resource, str], served: Contents) -> Change:
    """Return a change with the served version instead of each refused resource, if there is one."""
    accepted = Change(change.label)
    for step in change.steps:
        resources = (
            served.get(step.scope, each.type_url, each.name) if each in refused else each
            for each in step.resources
        )
        accepted.steps.append(replace(step, resources=tuple(filter(None, resources))))
    return accepted


class ValidationQueue:
    """Changes that wait for validation, and the resources that are held back.

    Changes are validated together with those that arrive meanwhile, and are applied in order.

    Args:
        validator: Validator of the resources.
        apply: Applies a change, without the resources that are refused.
    """

    def __init__(self, validator: Validator, apply: Callable[[Change, Mapping[Resource, str]], None]) -> None:
        self.validator = validator
        self.held_back: dict[tuple[Scope, str, str], HeldBack] = {}
        """Resources that are held back, by scope, type and name."""
        self._from_start: set[tuple[Scope, str, str]] = set()
        """Resources that are held back since before the first change was served, by scope, type and name."""
        self.is_started = False
        """Whether a change was served."""
        self._apply = apply
        self._changes: list[Change] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, change: Change) -> None:
        """Queue a change."""
        self._changes.append(change)

    def start(self) -> None:
        """Validate the queued changes in the background. Does nothing if no event loop is running."""
        if self._changes and (self._task is None or self._task.done()):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._task = loop.create_task(self._run())

    async def wait(self) -> None:
        """Wait until all queued changes are applied."""
        while self._changes or (self._task and not self._task.done()):
            self.start()
            assert self._task  # noqa: S101 - `start` created it
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._changes:
            changes = tuple(self._changes)
            steps = (step for each in changes for step in each.steps)
            refused = await find_refused(self.validator, resources_of(steps))
            del self._changes[: len(changes)]
            for change in changes:
                self._hold_back(change, refused)
                try:
                    self._apply(change, refused)
                except ValueError as error:
                    # The change fits to what was set before, but not to what is served instead.
                    log.error("change not applied", problem=str(error))  # noqa: TRY400 - not a bug
            self.is_started = True
            await asyncio.sleep(0)

    def _hold_back(self, change: Change, refused: Mapping[Resource, str]) -> None:
        """Record which resources of a change are held back."""
        from_start = self._from_start.copy()
        for step in change.steps:
            self.forget(self.replaced([step]))
            for item in held_back([step], refused):
                key = step.scope, item.resource.type_url, item.resource.name
                self.held_back[key] = item
                if not self.is_started or key in from_start:
                    self._from_start.add(key)
                log.warning(
                    "resource held back, clients keep the version that they have",
                    type=item.resource.type_url.rpartition(".")[2],
                    name=item.resource.name,
                    sources=item.resource.sources,
                    problem=item.reason,
                )

    def replaced(self, steps: Iterable[Step]) -> list[HeldBack]:
        """Return the resources held back now that some steps replace or remove."""
        found: dict[tuple[Scope, str, str], HeldBack] = {}
        for step in steps:
            keys = [(step.scope, resource.type_url, resource.name) for resource in step.resources]
            keys += ((step.scope, type_url, name) for type_url, name in step.removed)
            if step.replaces:
                keys += (
                    (scope, type_url, name)
                    for scope, type_url, name in self.held_back
                    if scope == step.scope and step.type_url in {"", type_url}
                )
            found |= {key: self.held_back[key] for key in keys if key in self.held_back}
        return list(found.values())

    def without_good_version(self, served: Contents) -> dict[Scope, frozenset[ResourceKey]]:
        """Return the resources held back now of which no version is served, by scope."""
        found: dict[Scope, set[ResourceKey]] = {}
        for scope, type_url, name in self.held_back:
            if not served.get(scope, type_url, name):
                found.setdefault(scope, set()).add((type_url, name))
        return {scope: frozenset(keys) for scope, keys in found.items()}

    def refused_from_start(
        self, kept: Mapping[Scope, frozenset[ResourceKey]]
    ) -> dict[Scope, frozenset[ResourceKey]]:
        """Return which of some resources are held back since before the first change was served, by scope.

        After a restart, a client may have an earlier version of them. The resource of a wider scope must not
        replace it.
        """
        found = {
            scope: frozenset(key for key in keys if (scope, *key) in self._from_start)
            for scope, keys in kept.items()
        }
        return {scope: keys for scope, keys in found.items() if keys}

    def forget(self, items: Iterable[HeldBack]) -> None:
        """Forget resources, unless newer versions of them were refused since."""
        for item in items:
            key = Scope(item.node, item.group), item.resource.type_url, item.resource.name
            if self.held_back.get(key) is item:
                del self.held_back[key]
                self._from_start.discard(key)
