"""Programs that tests start."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
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


def open_files(pid: int) -> set[str]:
    """Return what the file descriptors of a process lead to. It may close some of them meanwhile."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


async def run(*argv: object, stdin: str = "", timeout: float = 250, **options: Any) -> tuple[int, str, str]:
    """Run a program to its end. Return its exit status, output and errors."""
    options = {"stdin": PIPE, "stderr": PIPE} | options
    async with started(*argv, **options) as process, asyncio.timeout(timeout):
        output, errors = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, output.decode(), (errors or b"").decode()
