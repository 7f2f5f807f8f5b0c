"""Waiting for something that will become true, without guessing how long it takes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

NOT_YET = (AssertionError, OSError, aiohttp.ClientError)
"""What a check may raise while its time has not come."""


async def eventually(
    check: Callable[[], Any],
    *,
    timeout: float = 60.0,
    every: float = 0.02,
    what: str = "",
) -> Any:
    """Call `check` until it returns something true, and return it; fail with its last result after `timeout`.

    A false result, a failed assertion or a failed connection means "not yet".
    """
    start = time.monotonic()
    while True:
        last: object
        began = time.monotonic()
        try:
            answer = check()
            value = await answer if inspect.isawaitable(answer) else answer
        except NOT_YET as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if value:
                return value
            last = repr(value)
        if time.monotonic() > start + timeout:
            name = what or getattr(check, "__qualname__", repr(check))
            raise AssertionError(f"not within {timeout} s: {name}; last seen: {last}")
        await asyncio.sleep(pause(start, began, every))


def pause(start: float, began: float, least: float = 0.02) -> float:
    """Return the seconds to sleep before a check is called again: at least `least`.

    The wait has lasted since `start`, and the last call since `began`. The pause is as long as that call, and
    up to 20 times as long if that delays the end by at most a tenth. So calls of programs, and of the admin
    interface of Envoy, leave CPU to what they wait for.
    """
    now = time.monotonic()
    took = now - began
    return max(least, took, min(20 * took, (now - start) / 10))


async def process_ended(pid: int) -> None:
    """Wait until a process has ended. A killed process may run for another moment, and is then a zombie."""
    status = Path(f"/proc/{pid}/stat")

    def has_ended() -> bool:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    await eventually(has_ended, what=f"process {pid} has ended")
