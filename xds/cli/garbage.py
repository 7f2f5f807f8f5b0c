"""When `xds serve` collects cyclic garbage.

Facts, resources and the state of streams contain no cycles, so reference counts free them. Cyclic garbage, of
calls in gRPC and aiohttp and of exceptions with tracebacks, is young. A collection of young objects takes
about 10 ms. A collection of all objects would block the event loop for up to 0.3 s with 1,000 sidecars. So it
takes place only after the memory of the process has doubled, in case a library leaves old garbage.

Only this program changes the collector: a library leaves it to the program that uses it.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

MAX_NEW_DURING_START = 200_000
"""Number of new objects after which they are examined while the mesh is read. Most of them stay in use."""
MAX_NEW = 5_000
"""Number of new objects after which they are examined while serving."""
MAX_YOUNG = 5
"""Number of such collections before one that also examines the objects that survived them."""
NEVER = 2**31 - 1
CHECK_INTERVAL = 60.0
"""Seconds between checks of the memory."""
GROWTH = 2.0
"""Growth of the memory, as a factor, after which all objects are collected."""


def defer() -> None:
    """Collect less often while the mesh is read."""
    gc.set_threshold(MAX_NEW_DURING_START, MAX_YOUNG, NEVER)


def freeze() -> None:
    """Exclude all current objects from collections, and collect young objects only."""
    gc.freeze()
    gc.set_threshold(MAX_NEW, MAX_YOUNG, NEVER)


async def collect_after_growth() -> None:
    """Collect all objects whenever the memory has doubled. Runs until cancelled."""
    limit = GROWTH * _resident_pages()
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        if _resident_pages() >= limit:
            gc.collect()
            gc.freeze()
            limit = GROWTH * _resident_pages()


def _resident_pages() -> int:
    """Return the number of resident pages; 0 if it is unknown, so that each check collects."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return 0
