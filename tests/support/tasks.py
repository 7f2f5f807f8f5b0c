"""Tasks that run during a part of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any


@asynccontextmanager
async def background(coroutine: Coroutine[Any, Any, object]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine as a task, which is cancelled at the end. Fail if it ended before, or raises then."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
        assert task.cancelled() or not task.done(), await task
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
