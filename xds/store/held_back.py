"""Validation of a store's changes: resources that the validator refuses are held back."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import structlog

from xds.snapshot import Resource
from xds.store.scopes import Change, Contents, Scope, Step
from xds.validation import Validator

log = structlog.get_logger(__name__)

_MAX_NAMES = 10
"""Maximum number of resources in one error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A resource that is not served, because the validator refused it.

    Clients keep the last good version that was set in the same scope. If there is none, they do not get the
    resource.
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
        kind = self.resource.type_url.rpartition(".")[2]
        return f"{kind} {self.resource.name}{sources}: {self.reason}"


class ValidationError(Exception):
    """The validator refused resources. They are not served."""

    def __init__(self, held_back: Iterable[HeldBack]) -> None:
        self.held_back = tuple(held_back)
        """The refused resources."""
        names = "; ".join(map(str, self.held_back[:_MAX_NAMES]))
        more = len(self.held_back) - _MAX_NAMES
        super().__init__(f"refused {names}" + (f"; and {more:,} more" if more > 0 else ""))


async def find_refused(validator: Validator, steps: Iterable[Step]) -> dict[Resource, str]:
    """Return the resources in some steps that must not be served, each with the reason."""
    resources = list(dict.fromkeys(resource for step in steps for resource in step.resources))
    try:
        return dict(await validator.validate(resources))
    except Exception as error:  # noqa: BLE001 - a validator of the program
        # A log processor that formats tracebacks may print local variables, and so private keys.
        log.error("validator failed", stack=traceback.format_exc())  # noqa: TRY400
        reason = f"the validator failed: {type(error).__name__}: {error}"
        return dict.fromkeys(resources, reason)


def held_back(steps: Iterable[Step], refused: dict[Resource, str]) -> list[HeldBack]:
    """Return the refused resources of some steps."""
    return [
        HeldBack(resource=resource, node=step.scope.node, group=step.scope.group, reason=refused[resource])
        for step in steps
        for resource in step.resources
        if resource in refused
    ]


class ValidationQueue:
    """Changes that wait for validation, and the resources that are held back.

    Changes are validated together with those that arrive meanwhile, and are applied in order.

    Args:
        validator: Validator of the resources.
        served: Returns the contents that clients receive.
        apply: Applies a change, without the resources that are held back.
    """

    def __init__(
        self, validator: Validator, served: Callable[[], Contents], apply: Callable[[Change], None]
    ) -> None:
        self.validator = validator
        self.held_back: dict[tuple[Scope, str, str], HeldBack] = {}
        """Resources that are held back, by scope, type and name."""
        self._served, self._apply = served, apply
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
            refused = await find_refused(self.validator, (step for each in changes for step in each.steps))
            del self._changes[: len(changes)]
            for change in changes:
                try:
                    self._apply(self._without(change, refused))
                except ValueError as error:
                    # The change fits to what was set before, but not to what is served instead.
                    log.error("change not applied", problem=str(error))  # noqa: TRY400 - not a bug
            await asyncio.sleep(0)

    def _without(self, change: Change, refused: dict[Resource, str]) -> Change:
        """Return a change with the served version instead of each refused resource, if there is one."""
        served, accepted = self._served(), Change()
        for step in change.steps:
            self._forget(step)
            for item in held_back([step], refused):
                self.held_back[step.scope, item.resource.type_url, item.resource.name] = item
                log.warning(
                    "resource held back, clients keep its last good version",
                    type=item.resource.type_url.rpartition(".")[2],
                    name=item.resource.name,
                    sources=item.resource.sources,
                    problem=item.reason,
                )
            resources = (
                served.get(step.scope, each.type_url, each.name) if each in refused else each
                for each in step.resources
            )
            accepted.steps.append(replace(step, resources=tuple(filter(None, resources))))
        return accepted

    def forget(self, change: Change) -> None:
        """Forget resources that a change replaces or removes."""
        for step in change.steps:
            self._forget(step)

    def _forget(self, step: Step) -> None:
        """Forget resources that a step replaces or removes."""
        for resource in step.resources:
            self.held_back.pop((step.scope, resource.type_url, resource.name), None)
        for type_url, name in step.removed:
            self.held_back.pop((step.scope, type_url, name), None)
        if step.replaces:
            for scope, type_url, name in tuple(self.held_back):
                if scope == step.scope and step.type_url in {"", type_url}:
                    del self.held_back[scope, type_url, name]
