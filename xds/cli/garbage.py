"""When `xds serve` collects cyclic garbage.

Facts, resources and the state of streams contain no cycles, so reference counts free them. Cyclic garbage, of
calls in gRPC and aiohttp and of exceptions with tracebacks, is young. A collection of young objects takes
10 to 30 ms. A collection of all objects would block the event loop for up to 0.3 s with 1,000 sidecars. So it
takes place only after the number of objects has tripled, in case a library leaves old garbage.

Only this program changes the collector: a library leaves it to the program that uses it.
"""

from __future__ import annotations

import asyncio
import gc
import sys

MAX_NEW_DURING_START = 500_000
"""Number of new objects after which they are examined while the mesh is read. Most of them stay in use."""
MAX_NEW = 20_000
"""Number of new objects after which they are examined while serving."""
MAX_YOUNG = 2
"""Number of such collections before one that also examines the objects that survived them."""
NEVER = 2**31 - 1
CHECK_INTERVAL = 60.0
"""Seconds between checks of the number of objects."""
GROWTH = 3
"""Factor by which the number of objects grows before all of them are examined."""


def defer() -> None:
    """Collect less often while the mesh is read."""
    gc.set_threshold(MAX_NEW_DURING_START, MAX_YOUNG, NEVER)


def freeze() -> None:
    """Exclude all current objects from collections, and collect young objects only."""
    gc.freeze()
    gc.set_threshold(MAX_NEW, MAX_YOUNG, NEVER)


async def collect_after_growth() -> None:
    """Collect all garbage whenever the number of objects has tripled. Runs until cancelled."""
    # Not the resident memory: responses that clients have not read are large, but not objects to examine.
    limit = GROWTH * sys.getallocatedblocks()
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        if sys.getallocatedblocks() >= limit:
            gc.collect()
            gc.freeze()
            limit = GROWTH * sys.getallocatedblocks()
