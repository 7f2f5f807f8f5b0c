"""`xds serve` as a process that reads from an API server."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp

from tests.sources.fake_apiserver import FakeApiServer
from tests.support.loopback import free_port
from tests.support.waiting import eventually

TIMEOUT = 60.0
ANY_PORT = ("--xds-tls-address=127.0.0.1:0", "--xds-mtls-address=127.0.0.1:0")


class Serve:
    """A running `xds serve`."""

    def __init__(self, folder: Path, *options: object, kubeconfig: Path | None = None) -> None:
        self.log = folder / f"log-{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self._options = [*map(str, options), f"--admin-address={self.admin}", "--xds-address=127.0.0.1:0"]
        self._env = {"PATH": "/usr/bin", "HOME": str(folder)} | (
            {"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}
        )

    async def __aenter__(self) -> Self:
        with self.log.open("w") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "xds", "serve", *self._options), stdout=log, stderr=log, env=self._env
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.admin}{path}") as response:
            return response.status, await response.text()

    async def wait_ready(self, status: int, *words: str) -> str:
        async def check() -> str:
            assert self.process.returncode is None, self.log.read_text()
            code, text = await self.get("/ready")
            assert code == status, (code, text)
            assert all(word in text for word in words), text
            return text

        return str(await eventually(check, timeout=TIMEOUT, what=self.log.read_text()))

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    def logged(self, *words: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if all(word in line for word in words)]


@asynccontextmanager
async def serving(server: FakeApiServer, folder: Path, *options: object) -> AsyncIterator[Serve]:
    async with Serve(
        folder, "--kubernetes", "--kubeconfig", server.kubeconfig(), *ANY_PORT, *options
    ) as serve:
        yield serve
