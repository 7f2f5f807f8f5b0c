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
from xds.mesh.kube.ndjson import lines

EVERY = 60.0
"""Seconds after which all is compared, though nothing is known to have changed."""
REST = 0.5
"""Seconds between two comparisons: somebody who keeps changing it back costs a write in that time, no more."""
AGAIN = 5.0
"""Seconds after which what failed is tried again."""
_WATCH = 290
"""Seconds for which the API server is asked to tell changes; then it is asked again."""


class Watched(NamedTuple):
    """Where changes are."""

    path: str
    name: str = ""
    """Only of the objects with this name."""


class Keeping:
    """Compares; `run` does until it is cancelled. `compare` puts right what is not, and tells whether that worked."""

    def __init__(
        self,
        api: KubeApi,
        compare: Callable[[], Awaitable[bool]],
        watched: Sequence[Watched],
        *,
        leads: Callable[[], bool],
    ) -> None:
        self._api = api
        self._compare = compare
        self._watched = watched
        self._leads = leads
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Compare soon."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watched in self._watched:
                tasks.create_task(self._listen(watched))
            tasks.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            wait = EVERY
            if not self._leads():
                wait = REST
            elif not await self._compare():
                wait = AGAIN
            await asyncio.sleep(REST)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _listen(self, watched: Watched) -> None:
        """Have all compared whenever something changes. What changed is of no interest, nor whether something was missed."""
        only = {"fieldSelector": f"metadata.name={watched.name}"} if watched.name else {}
        while True:
            with suppress(KubeError):
                async with self._api.stream(
                    watched.path, idle=_WATCH + 30, watch=True, timeoutSeconds=_WATCH, **only
                ) as stream:
                    async for _ in lines(stream):
                        self._changed.set()
            await asyncio.sleep(AGAIN * random.uniform(0.5, 1))  # noqa: S311
            self._changed.set()
