"""The real grpcurl."""

from __future__ import annotations

import json
import sys
from asyncio.subprocess import STDOUT
from pathlib import Path
from typing import Any

from tests.support.processes import run

GRPCURL = Path(sys.executable).with_name("grpcurl")


async def grpcurl(target: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run grpcurl, and return its exit status and output."""
    options = ("-plaintext", "-max-time", "30", *(("-d", "@") if stdin else ()))
    status, output, _ = await run(GRPCURL, *options, target, *arguments, stdin=stdin, stderr=STDOUT)
    return status, output


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
