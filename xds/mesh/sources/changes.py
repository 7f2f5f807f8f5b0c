"""Waiting for changes of files below folders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import watchfiles

from xds.mesh.sources.scan import RESCAN_INTERVAL, SETTLE_TIME, Walk, is_settled

MAX_SETTLING = 5.0
"""Maximum seconds that the first load waits for writes to end."""


async def wait_until_settled(roots: Sequence[str]) -> None:
    """Wait until no file is being written, for MAX_SETTLING seconds at most.

    A file that is being written may contain the policy that makes the mesh STRICT.
    """
    for _ in range(round(MAX_SETTLING / SETTLE_TIME)):
        now = time.time()
        entries = await asyncio.to_thread(lambda: list(Walk(roots)))
        if all(isinstance(status, OSError) or is_settled(status, now) for _, status in entries):
            return
        await asyncio.sleep(SETTLE_TIME)


async def change_events(roots: Sequence[str]) -> AsyncIterator[Mapping[str, bool]]:
    """Yield the paths with events, and nothing after each RESCAN_INTERVAL without events.

    The value of a path is whether its only event is that the name appeared. If another file had that name, it
    was replaced by a complete file.
    """
    full_paths = {str(Path.cwd() / root): root for root in roots}
    try:
        async for events in watchfiles.awatch(
            *full_paths,
            watch_filter=None,
            debounce=50,
            step=10,
            rust_timeout=round(RESCAN_INTERVAL * 1000),
            yield_on_timeout=True,
        ):
            changes: dict[str, bool] = {}
            for kind, path in events:
                for full_path, root in full_paths.items():
                    if path == full_path or path.startswith(full_path.rstrip("/") + "/"):
                        path = (root + path[len(full_path) :]).removeprefix("./")  # noqa: PLW2901
                        break
                changes[path] = kind is watchfiles.Change.added and path not in changes
            yield changes
    except (OSError, RuntimeError):
        # The inotify limit is reached: poll instead.
        pass
    while True:
        await asyncio.sleep(RESCAN_INTERVAL)
        yield {}
