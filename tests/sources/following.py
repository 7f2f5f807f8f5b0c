"""Run a reflector or a whole source, and record its output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Self

from tests.support.waiting import eventually
from xds.mesh.kube.api import KubeApi
from xds.mesh.kube.reflector import Reflector
from xds.mesh.kube.resource import KubeResource, WatchOptions
from xds.mesh.model.objects import Change, Fact, MeshConfig, Problem, Ref
from xds.mesh.sources.kubernetes import Kubernetes
from xds.mesh.sources.report import SourceUpdate

PATIENCE = 30.0
"""Time limit for expected changes on a busy machine, in seconds."""
QUICK = WatchOptions(
    min_delay=0.01,
    max_delay=0.2,
    max_retry_after=0.1,
    idle_timeout=30.0,
    watch_timeout=60.0,
    list_timeout=30.0,
)
CONFIG_MAPS = KubeResource(kind="ConfigMap", plural="configmaps")


class Following:
    """A reflector in an `async with` block. It keeps the data of each ConfigMap."""

    def __init__(
        self,
        api: KubeApi,
        resource: KubeResource = CONFIG_MAPS,
        options: WatchOptions = QUICK,
        keep: Any = None,
    ) -> None:
        self.lists = self.watches = 0
        """Number of requests to the server."""
        self.changes: list[dict[str, Any]] = []
        """Reported changes: name -> kept value, None if the object was deleted."""
        self._count(api)
        self.reflector: Reflector[Any] = Reflector(
            api, resource, keep or (lambda obj, _: obj.get("data") or {}), self._take, options
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.reflector.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def names(self) -> set[str]:
        return {name for _, name in self.reflector.objects}

    async def until(self, check: Callable[[], Any]) -> None:
        await eventually(check, timeout=PATIENCE, what=f"with {self.reflector.failure}: {self.names}")
        assert not self._task.done()

    def _take(self) -> None:
        if taken := self.reflector.take():
            self.changes.append({name: after for (_, name), (_, after) in taken.items()})

    def _count(self, api: KubeApi) -> None:
        call, stream = api.call, api.stream

        async def counted(method: str, path: str, *args: Any, **kwargs: Any) -> Any:
            self.lists += method == "GET" and path == self.reflector.resource.path(
                self.reflector._api_version
            )
            return await call(method, path, *args, **kwargs)

        def streamed(*args: Any, **kwargs: Any) -> Any:
            self.watches += 1
            return stream(*args, **kwargs)

        api.call, api.stream = counted, streamed  # type: ignore[method-assign]


class Followed:
    """A source in an `async with` block, and everything it has reported."""

    def __init__(self, source: Kubernetes) -> None:
        self.source = source
        self.facts: dict[Ref, Fact] = {}
        self.config: MeshConfig | None = None
        self.problems: list[Problem] = []
        self.reports: list[SourceUpdate] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        async for report in self.source.watch():
            self.reports.append(report)
            assert report.complete or report.change == Change()
            self.facts |= {fact.ref: fact for fact in report.change.applied}
            for ref in report.change.removed:
                del self.facts[ref]
            self.config = report.change.config or self.config
            self.problems += report.problems
            for problem in report.solved:
                self.problems.remove(problem)

    @property
    def complete(self) -> bool:
        return any(report.complete for report in self.reports)

    def of(self, namespace: str) -> dict[Ref, Fact]:
        """Return the facts of a namespace."""
        return {ref: fact for ref, fact in self.facts.items() if ref.namespace == namespace}

    def messages(self, *, notices: bool = False) -> list[str]:
        """Return the problems that are not solved."""
        return [str(problem) for problem in self.problems if notices or not problem.notice]

    async def until(self, check: Callable[[], Any]) -> Any:
        def checked() -> Any:
            if self._task.done():
                self._task.result()
            return check()

        return await eventually(checked, timeout=PATIENCE)


def refs(facts: Iterable[Ref]) -> set[str]:
    return {str(ref) for ref in facts}
