"""Waiting for changes of files below folders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import watchfiles

from xds.mesh.sources.scan import RESCAN_INTERVAL, SETTLE_TIME, is_settled, walk

MAX_SETTLING = 5.0
"""Maximum seconds that the first load waits for writes to end."""


async def wait_until_settled(roots: Sequence[Path]) -> None:
    """Wait until no file is being written, for MAX_SETTLING seconds at most.

    A file that is being written may contain the policy that makes the mesh STRICT.
    """
    for _ in range(round(MAX_SETTLING / SETTLE_TIME)):
        now = time.time()
        entries = await asyncio.to_thread(lambda: list(walk(roots)))
        if all(isinstance(status, OSError) or is_settled(status, now) for _, status in entries):
            return
        await asyncio.sleep(SETTLE_TIME)


async def change_events(roots: Sequence[Path]) -> AsyncIterator[None]:
    """Yield after each change event of the folders, and every RESCAN_INTERVAL seconds without one."""
    try:
        async for _ in watchfiles.awatch(
            *roots,
            watch_filter=None,
            debounce=200,
            step=20,
            rust_timeout=round(RESCAN_INTERVAL * 1000),
            yield_on_timeout=True,
        ):
            yield
    except (OSError, RuntimeError):
        # The inotify limit is reached: poll instead.
        pass
    while True:
        await asyncio.sleep(RESCAN_INTERVAL)
        yield
