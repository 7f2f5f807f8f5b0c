"""Level-triggered reconciliation of objects in a cluster.

The actual state is compared with the desired state after every change and at a regular interval, so missed
events and their order do not matter. Only the leader writes.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ndjson import read_lines

RESYNC_INTERVAL = 60.0
"""Seconds between two runs without a change."""
MIN_INTERVAL = 0.5
"""Minimum seconds between two runs, which limits writes if another controller keeps reverting them."""
RETRY_DELAY = 5.0
"""Seconds before a failed run or watch is retried."""
_WATCH_TIMEOUT = 290
"""Lifetime of a watch, in seconds. An expired watch is reopened."""


class WatchTarget(NamedTuple):
    """A collection whose changes trigger a run."""

    path: str
    """URL path of the collection."""
    name: str = ""
    """Name of the objects to watch; empty for all."""


class Reconciler(ABC):
    """Calls `reconcile` after changes and periodically."""

    def __init__(self, api: KubeApi, *targets: WatchTarget, leads: Callable[[], bool]) -> None:
        self._api = api
        self._targets = targets
        self._leads = leads
        self._changed = asyncio.Event()

    @abstractmethod
    async def reconcile(self) -> bool:
        """Write what differs from the desired state. Return whether this succeeded."""

    def trigger(self) -> None:
        """Reconcile soon."""
        self._changed.set()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for target in self._targets:
                tasks.create_task(self._watch(target))
            tasks.create_task(self._reconcile_loop())

    async def _reconcile_loop(self) -> None:
        while True:
            self._changed.clear()
            wait = RESYNC_INTERVAL
            if not self._leads():
                wait = MIN_INTERVAL
            elif not await self.reconcile():
                wait = RETRY_DELAY
            await asyncio.sleep(MIN_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _watch(self, target: WatchTarget) -> None:
        """Trigger a run after every change. The content of events is ignored, so missed events do no harm."""
        selector = {"fieldSelector": f"metadata.name={target.name}"} if target.name else {}
        while True:
            with suppress(KubeError):
                async with self._api.stream(
                    target.path,
                    idle=_WATCH_TIMEOUT + 30,
                    watch=True,
                    timeoutSeconds=_WATCH_TIMEOUT,
                    **selector,
                ) as stream:
                    async for _ in read_lines(stream):
                        self._changed.set()
            await asyncio.sleep(RETRY_DELAY * random.uniform(0.5, 1))  # noqa: S311
            self._changed.set()
