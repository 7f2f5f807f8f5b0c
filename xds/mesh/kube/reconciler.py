"""Keeps something in a cluster as it should be, whoever changes it.

What is there is compared with what should be: whenever something of it changes, and now and then. So it does not matter what
happened, or in what order. The replica that leads writes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ndjson import read_lines

RESYNC_INTERVAL = 60.0
"""Seconds after which all is compared, though nothing is known to have changed."""
MIN_INTERVAL = 0.5
"""Seconds between two comparisons: somebody who keeps changing it back costs a write in that time, no more."""
RETRY_DELAY = 5.0
"""Seconds after which what failed is tried again."""
_WATCH_TIMEOUT = 290
"""Seconds for which the API server is asked to tell changes; then it is asked again."""


class WatchTarget(NamedTuple):
    """Where changes are."""

    path: str
    name: str = ""
    """Only of the objects with this name."""


class Reconciler:
    """Compares; `run` does until it is cancelled. `reconcile` puts right what is not, and tells whether that worked."""

    def __init__(
        self,
        api: KubeApi,
        reconcile: Callable[[], Awaitable[bool]],
        targets: Sequence[WatchTarget],
        *,
        leads: Callable[[], bool],
    ) -> None:
        self._api = api
        self._reconcile = reconcile
        self._targets = targets
        self._leads = leads
        self._changed = asyncio.Event()

    def trigger(self) -> None:
        """Compare soon."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for targets in self._targets:
                tasks.create_task(self._watch(targets))
            tasks.create_task(self._reconcile_loop())

    async def _reconcile_loop(self) -> None:
        while True:
            self._changed.clear()
            wait = RESYNC_INTERVAL
            if not self._leads():
                wait = MIN_INTERVAL
            elif not await self._reconcile():
                wait = RETRY_DELAY
            await asyncio.sleep(MIN_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _watch(self, targets: WatchTarget) -> None:
        """Have all compared whenever something changes. What changed is of no interest, nor whether something was missed."""
        only = {"fieldSelector": f"metadata.name={targets.name}"} if targets.name else {}
        while True:
            with suppress(KubeError):
                async with self._api.stream(
                    targets.path, idle=_WATCH_TIMEOUT + 30, watch=True, timeoutSeconds=_WATCH_TIMEOUT, **only
                ) as stream:
                    async for _ in read_lines(stream):
                        self._changed.set()
            await asyncio.sleep(RETRY_DELAY * random.uniform(0.5, 1))  # noqa: S311
            self._changed.set()
