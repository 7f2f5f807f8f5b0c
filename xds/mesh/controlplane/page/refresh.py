"""Results about the mesh that take long to compute: kept up to date within a share of the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Generic, TypeAlias, TypeVar

import structlog

from xds.mesh.model.mesh import Mesh

log = structlog.get_logger(__name__)

MAX_LOAD = 0.2
"""Maximum share of the time in which a result is computed. In a large mesh, it takes seconds."""

V = TypeVar("V")

Compute: TypeAlias = Callable[[Mesh], AsyncIterator[V]]
"""Yields results for a mesh, each more complete than the one before."""


class Refresher(Generic[V]):
    """The latest result of a computation. It is computed only while clients ask for it."""

    def __init__(self, mesh: Callable[[], Mesh], compute: Compute[V]) -> None:
        self._mesh, self._compute = mesh, compute
        self._started_for: Mesh | None = None
        self._value_for: Mesh | None = None
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self.value: V | None = None
        """The latest result, which may be for an earlier mesh; None if there is none."""
        self.version = 0
        """Number of results so far."""

    @property
    def is_current(self) -> bool:
        """Whether the latest result is for the current mesh. It may be incomplete."""
        return _is_same(self._value_for, self._mesh())

    def trigger(self) -> None:
        """Start to compute the result for the current mesh, unless it exists or another one is computed."""
        if self._task is None and not _is_same(self._started_for, self._mesh()):
            self._task = asyncio.create_task(self._run())

    async def get(self) -> V | None:
        """Return the latest result; None if it could not be computed. Only the first call waits for one."""
        self.trigger()
        await self._first.wait()
        return self.value

    async def stop(self) -> None:
        """Stop computing."""
        if task := self._task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        mesh, loop = self._mesh(), asyncio.get_running_loop()
        self._started_for = mesh
        resumed_at = loop.time()
        try:
            async for value in self._compute(mesh):
                self._publish(value, mesh)
                await asyncio.sleep((loop.time() - resumed_at) * (1 / MAX_LOAD - 1))
                resumed_at = loop.time()
        except Exception as error:  # noqa: BLE001 - serving proxies does not depend on it
            problem = f"{type(error).__name__}: {error}"
            log.error("failed to compute a view of the page", problem=problem)  # noqa: TRY400
            self._publish(None, mesh)
        self._task = None

    def _publish(self, value: V | None, mesh: Mesh) -> None:
        self.value, self._value_for = value, mesh
        self.version += 1
        self._first.set()


class SharedResult(Generic[V]):
    """A result that all clients wait for together. It is computed again when its state has changed.

    Args:
        state: Returns the state that the result depends on.
        compute: Computes the result.
    """

    def __init__(self, state: Callable[[], Hashable], compute: Callable[[], Awaitable[V]]) -> None:
        self._state, self._compute = state, compute
        self._value_state: Hashable = None
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self.value: V | None = None
        """The latest result; None if there is none."""

    async def get(self) -> V | None:
        """Return a result that is at least as new as the call."""
        for _ in range(2):  # The running computation may have started before the last change.
            if self._value_state == self._state():
                break
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())
            await asyncio.shield(self._task)  # A client that disconnects does not start another one.
        return self.value

    async def stop(self) -> None:
        """Stop computing."""
        if task := self._task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._not_before - loop.time())
        started_at, state = loop.time(), self._state()
        self.value = await self._compute()
        self._value_state = state
        self._not_before = loop.time() + (loop.time() - started_at) * (1 / MAX_LOAD - 1)


def _is_same(mesh: Mesh | None, current: Mesh) -> bool:
    return mesh is not None and mesh.has_facts_of(current)
