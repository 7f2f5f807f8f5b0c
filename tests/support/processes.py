"""Programs that tests start."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def started(*argv: object, **options: Any) -> AsyncIterator[Process]:
    """Start a program with a pipe for its output. It is killed at the end, if it still runs."""
    options = {"stdout": PIPE} | options
    process = await asyncio.create_subprocess_exec(*map(str, argv), **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(*argv: object, stdin: str = "", timeout: float = 250, **options: Any) -> tuple[int, str, str]:
    """Run a program to its end. Return its exit status, output and errors."""
    options = {"stdin": PIPE, "stderr": PIPE} | options
    async with started(*argv, **options) as process, asyncio.timeout(timeout):
        output, errors = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, output.decode(), (errors or b"").decode()
