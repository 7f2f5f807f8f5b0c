"""A gRPC client that makes a call for each line of input, and prints its result as a line.

    caller.py sync|aio TARGET

    {"answer": {...}}   or   {"code": "UNAVAILABLE", "details": "..."}

It is a separate process because gRPC reads its xDS bootstrap once. Its xDS client is gRPC's C code, without
any code of this project.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import grpc.aio
from grpc.experimental import insecure_channel_credentials

METHOD = "/peers.Backend/Describe"
TIMEOUT = 30
CREDENTIALS = grpc.xds_channel_credentials(insecure_channel_credentials())


def failure(error: grpc.RpcError) -> dict[str, Any]:
    """Say how a call failed."""
    return {"code": error.code().name, "details": error.details()}


def say(outcome: dict[str, Any]) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()


def calls(target: str) -> None:
    """Make calls on a synchronous channel."""
    with grpc.secure_channel(target, CREDENTIALS) as channel:
        describe = channel.unary_unary(METHOD)
        for _ in sys.stdin:
            try:
                say({"answer": json.loads(describe(b"", timeout=TIMEOUT))})
            except grpc.RpcError as error:
                say(failure(error))


async def calls_aio(target: str) -> None:
    """Make calls on a channel of grpc.aio."""
    loop = asyncio.get_running_loop()
    async with grpc.aio.secure_channel(target, CREDENTIALS) as channel:
        describe = channel.unary_unary(METHOD)
        while await loop.run_in_executor(None, sys.stdin.readline):
            try:
                say({"answer": json.loads(await describe(b"", timeout=TIMEOUT))})
            except grpc.RpcError as error:
                say(failure(error))


if __name__ == "__main__":
    kind, where = sys.argv[1:]
    if kind == "sync":
        calls(where)
    else:
        asyncio.run(calls_aio(where))
