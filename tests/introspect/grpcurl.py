"""The real grpcurl."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

GRPCURL = Path(sys.executable).with_name("grpcurl")


async def grpcurl(target: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run grpcurl, and return its exit status and output."""
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        *("-plaintext", "-max-time", "30"),
        *(("-d", "@") if stdin else ()),
        target,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(stdin.encode())
    return process.returncode or 0, output.decode()


async def call(target: str, method: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Call a method, which must succeed, and return the responses."""
    status, output = await grpcurl(target, method, stdin="\n".join(map(json.dumps, requests)) or "{}")
    assert status == 0, output
    return read(output)


def read(output: str) -> list[dict[str, Any]]:
    """Parse a sequence of JSON objects."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while rest := output[at:].lstrip():
        value, length = decoder.raw_decode(rest)
        at = len(output) - len(rest) + length
        found.append(value)
    return found
