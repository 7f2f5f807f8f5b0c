"""The example programs as processes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples" / "library"
LONG = 60.0
"""Seconds within which a program says what it should: far more than it takes."""


class Program:
    """A running example, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def says(self, pattern: str) -> re.Match[str]:
        """Read on until a line has this in it."""
        assert self.process.stdout
        try:
            async with asyncio.timeout(LONG):
                while line := (await self.process.stdout.readline()).decode():
                    self.said.append(line)
                    if match := re.search(pattern, line):
                        return match
        except TimeoutError:
            pass
        raise AssertionError(f"it never said {pattern!r} but:\n{''.join(self.said)}")


@asynccontextmanager
async def running(name: str, *arguments: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith("GRPC_")},
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
