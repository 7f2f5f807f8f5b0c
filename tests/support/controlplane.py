"""`xds serve` as a child process, and `xds bootstrap`: the product from outside."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Self

from typer.testing import CliRunner, Result

from tests.support.clients import Client
from tests.support.loopback import free_port
from tests.support.processes import run
from tests.support.waiting import eventually
from xds.cli import app

XDS = str(Path(sys.executable).with_name("xds"))
"""The command as installed beside this Python."""


class ControlPlane:
    """Serves a folder of manifests in an `async with` block; a server that exits with an error fails it."""

    def __init__(self, manifests: Path, directory: Path, *options: str) -> None:
        self.manifests = manifests
        self.log = directory / "xds-serve.log"
        self.state = directory / "state"
        self.port = free_port()
        self._admin = f"127.0.0.1:{free_port()}"
        self._options = options

    @property
    def address(self) -> str:
        """Where it serves xDS."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        alive = self._process.returncode is None
        status = await self.stop()
        if kind is None:
            assert alive, f"xds serve ended by itself with status {status}\n{self.tail()}"
            assert status == 0, f"xds serve ended with status {status} on SIGTERM\n{self.tail()}"

    async def start(self) -> None:
        """Start it, with the state and addresses that it had before."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                XDS,
                "serve",
                f"--manifests={self.manifests}",
                f"--xds-address={self.address}",
                f"--admin-address={self._admin}",
                f"--state-dir={self.state}",
                *self._options,
                stdout=log,
                stderr=log,
            )
        try:
            await eventually(self._is_ready, timeout=60, what="xds serve is ready")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> int:
        """End it by SIGTERM, and return its exit status."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=60)
            except TimeoutError:
                self._process.kill()
        return await self._process.wait()

    async def bootstrap(self, pod: str, *options: str, address: str = "") -> dict[str, Any]:
        """Return what `xds bootstrap POD.NAMESPACE` prints; `address`: where that Envoy finds the server."""
        return await bootstrap(pod, self.manifests, address or self.address, *options)

    async def metrics(self) -> str:
        """Return what it tells at /metrics."""
        return (await Client().get(f"http://{self._admin}/metrics")).text

    def tail(self, lines: int = 30) -> str:
        """Return the end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _is_ready(self) -> bool:
        if self._process.returncode is not None:
            raise RuntimeError(f"xds serve ended with status {self._process.returncode}\n{self.tail()}")
        return (await Client().get(f"http://{self._admin}/ready")).ok


async def bootstrap(pod: str, manifests: Path, address: str, *options: str) -> dict[str, Any]:
    """Run `xds bootstrap`."""
    return json.loads(  # type: ignore[no-any-return]
        await xds("bootstrap", pod, f"--manifests={manifests}", f"--xds-address={address}", *options)
    )


async def xds(*arguments: str, may_be_no: bool = False) -> str:
    """Run an xds command in this process, and return its output. Exit status 1 ("no") may be allowed."""
    result = await xds_here(*arguments)
    if result.exit_code and not (may_be_no and result.exit_code == 1):
        raise RuntimeError(f"xds {' '.join(arguments)}: exit status {result.exit_code}\n{result.stderr}")
    return result.stdout


async def xds_here(*arguments: object) -> Result:
    """Run an xds command in this process, for a tenth of the CPU time. Meanwhile nothing else may print."""
    words = [str(argument) for argument in arguments]
    result = await asyncio.to_thread(CliRunner().invoke, app, words, prog_name="xds")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


async def run_xds(*arguments: object) -> tuple[int, str, str]:
    """Run an xds command as a process, and return its exit status, output and errors."""
    return await run(XDS, *arguments)
