"""Tasks that run during a part of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def background(coroutine: Coroutine[Any, Any, object]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine as a task, which is cancelled at the end. Fail if the coroutine ended before."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
        assert task.cancelled() or not task.done(), await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
