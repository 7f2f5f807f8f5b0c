"""The processes of a mesh without proxies: callers, servers, and a control plane that can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.peers.meshless import SERVER_LISTENER, SERVICE

DEADLINE = 60
UNAVAILABLE = "UNAVAILABLE"
_ROOT = Path(__file__).parents[2]
_PAUSE = 0.002
"""Seconds between calls: when gRPC has done what it was told, only calls show."""


def servers(port: int) -> list[dict[str, Any]]:
    """Return a bootstrap's list of xDS servers, with one."""
    return [
        {
            "server_uri": f"127.0.0.1:{port}",
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
    ]


def bootstrap(
    xds_port: int, node: str, certificates: dict[str, Any] | None = None, **more: Any
) -> dict[str, str]:
    """Return the environment of a process that gRPC configures by way of xDS."""
    config: dict[str, Any] = {
        "xds_servers": servers(xds_port),
        "node": {"id": node},
        "server_listener_resource_name_template": SERVER_LISTENER,
        **more,
    }
    if certificates:
        config["certificate_providers"] = {"default": {"plugin_name": "file_watcher", "config": certificates}}
    return {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(config)}


async def start(script: str, *args: str | int, **environment: str) -> Process:
    """Start a script that is beside this one."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        Path(__file__).with_name(script),
        *map(str, args),
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(_ROOT), *sys.path))} | environment,
        stdin=PIPE,
        stdout=PIPE,
    )


async def end(process: Process) -> None:
    """Have a process end because its input does, or kill it."""
    if process.returncode is None:
        assert process.stdin
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), DEADLINE)
        except TimeoutError:
            process.kill()
            await process.communicate()
            raise


async def kill(process: Process) -> None:
    """Kill a process at once, if it is not dead yet."""
    if process.returncode is None:
        process.kill()
        await process.communicate()


async def backend(name: str) -> tuple[grpc.aio.Server, int]:
    """Start a server of the service that answers with a name; return it and its port."""

    async def describe(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return json.dumps({"name": name}).encode()

    server = grpc.aio.server()
    methods = {"Describe": grpc.unary_unary_rpc_method_handler(describe)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("peers.Backend", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


class Caller:
    """A client of the service, in a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def start(
        cls,
        kind: str,
        xds_port: int,
        certificates: dict[str, Any] | None = None,
        *,
        target: str = "",
        **more: Any,
    ) -> Caller:
        """Start one: `sync` or `aio`. `more` is for its bootstrap."""
        environment = bootstrap(xds_port, "caller", certificates, **more)
        return cls(await start("caller.py", kind, target or f"xds:///{SERVICE}", **environment))

    async def call(self) -> dict[str, Any]:
        """Make a call and say what came of it: an answer, or a code and details."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        async with asyncio.timeout(DEADLINE):
            outcome: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return outcome

    async def answer(self) -> Any:
        """Make a call that must succeed, and return the name of who answered."""
        outcome = await self.call()
        assert "answer" in outcome, outcome
        return outcome["answer"]["name"]

    async def moves(self, before: str, after: str) -> None:
        """Make calls, all of which must succeed, until somebody else answers, and then only they."""
        async with asyncio.timeout(DEADLINE):
            while (name := await self.answer()) != after:
                assert name == before
                await asyncio.sleep(_PAUSE)
        assert {await self.answer() for _ in range(10)} == {after}

    async def fails(self, *, after: str = "") -> str:
        """Make calls until none finds a server, and return the error; until then only `after` may answer."""
        async with asyncio.timeout(DEADLINE):
            while "answer" in (outcome := await self.call()):
                assert outcome["answer"]["name"] == after
                await asyncio.sleep(_PAUSE)
        assert outcome["code"] == UNAVAILABLE
        return str(outcome["details"])

    async def heals(self, name: str) -> dict[str, Any]:
        """Make calls until one succeeds, and return the answer. Earlier calls may find no server."""
        async with asyncio.timeout(DEADLINE):
            while "answer" not in (outcome := await self.call()):
                assert outcome["code"] == UNAVAILABLE
                await asyncio.sleep(_PAUSE)
        answer: dict[str, Any] = outcome["answer"]
        assert answer["name"] == name
        return answer
