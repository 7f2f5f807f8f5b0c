"""Waiting for something that will become true, without guessing how long it takes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import aiohttp

NOT_YET = (AssertionError, OSError, aiohttp.ClientError)
"""What a check may raise while its time has not come."""


async def eventually(
    check: Callable[[], Any],
    *,
    timeout: float = 30.0,
    every: float = 0.02,
    what: str = "",
) -> Any:
    """Ask `check` until it answers with something true, and return that; fail with its last word after `timeout`.

    A check says "not yet" by a false answer, a failed assertion, or a connection that fails.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            answer = check()
            value = await answer if inspect.isawaitable(answer) else answer
        except NOT_YET as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if value:
                return value
            last = repr(value)
        if time.monotonic() > deadline:
            name = what or getattr(check, "__qualname__", repr(check))
            raise AssertionError(f"not within {timeout} s: {name}; last seen: {last}")
        await asyncio.sleep(every)
