"""Example programs, and what they print."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples" / "library"
TIMEOUT = 60.0
"""Maximum time for the output of a program, in seconds. It takes far less."""


class Program:
    """A running example and its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output: list[str] = []

    async def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until a line matches a pattern."""
        assert self.process.stdout
        try:
            async with asyncio.timeout(TIMEOUT):
                while line := (await self.process.stdout.readline()).decode():
                    self.output.append(line)
                    if match := re.search(pattern, line):
                        return match
        except TimeoutError:
            pass
        raise AssertionError(f"no line of the output matches {pattern!r}:\n{''.join(self.output)}")


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
