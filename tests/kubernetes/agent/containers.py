"""A container: its process with restarts, its probes, and its status."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tests.kubernetes.agent.probes import Probe
from tests.support.places import Namespace
from xds.mesh.kube.api import Json

GRACE = 30
"""Default termination grace period, in seconds."""
_BACK_OFF = 1.0
"""Delay of the second and later restarts, in seconds. Kubelet starts with 10."""


def now() -> str:
    """Return the current time in the format of Kubernetes."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Container:
    """A container of a pod. It calls `changed` whenever its status changes."""

    def __init__(
        self,
        spec: Json,
        command: Callable[[], Awaitable[list[str]]],
        log: Path,
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.log = log
        self._command, self._changed = command, changed
        self._process: asyncio.subprocess.Process | None = None
        self._probes: dict[str, Probe] = {}
        self._state: Json = {"waiting": {"reason": "ContainerCreating"}}
        self._last: Json = {}
        self._stopping = False
        self.restarts = 0
        self.started = False
        self.ready = False
        self.began = asyncio.Event()
        """Set after its first start, including the startup probe."""
        self.exit_status: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while the process runs."""
        running = self._process and self._process.returncode is None
        return self._process.pid if self._process and running else None

    def status(self) -> Json:
        """Return its containerStatus."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "containerID": f"xds-tests://{self.name}",
            "state": self._state,
            "lastState": self._last,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }

    async def run(
        self, policy: Literal["Always", "OnFailure", "Never"], address: str, node: Namespace
    ) -> None:
        """Run it until it ends and its policy allows no restart, or until `stop` is called."""
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        while not self._stopping:
            self._probes = {
                kind: Probe(self.spec[kind], self.spec, address, node) for kind in kinds if kind in self.spec
            }
            status = await self._once()
            if policy == "Never" or (policy == "OnFailure" and status == 0):
                return
            if self._stopping:
                return
            if self.restarts:
                self._state = {"waiting": {"reason": "CrashLoopBackOff"}}
                self._changed()
                await asyncio.sleep(_BACK_OFF)
            self.restarts += 1

    def stop(self, number: signal.Signals) -> None:
        """Signal it to exit, and do not restart it."""
        self._stopping = True
        self.kill(number)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send its processes a signal, unless they have ended."""
        if pid := self.pid:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    @property
    def is_sidecar(self) -> bool:
        """Whether it is a restartable init container."""
        return self.spec.get("restartPolicy") == "Always"

    async def before_stop(self) -> None:
        """Run its preStop hook."""
        match self.spec.get("lifecycle", {}).get("preStop"):
            case {"exec": {"command": command}} if self.pid:
                with self.log.open("ab") as log:
                    process = await asyncio.create_subprocess_exec(
                        *await self._command(), *command, stdout=log, stderr=log, env={}
                    )
                try:
                    await process.wait()
                except asyncio.CancelledError:
                    process.kill()
                    await process.wait()
                    raise
            case {"sleep": {"seconds": seconds}}:
                await asyncio.sleep(seconds)

    async def _once(self) -> int:
        command = await self._command()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={},
                start_new_session=True,
            )
        began = now()
        self._state = {"running": {"startedAt": began}}
        self.started = "startupProbe" not in self._probes
        self.ready = self.started and "readinessProbe" not in self._probes
        self._tell()
        probing = asyncio.create_task(self._probe())
        try:
            status = await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            await self._process.wait()
            raise
        finally:
            probing.cancel()
            await asyncio.wait([probing])
        if not probing.cancelled():
            probing.result()
        self.ready = self.started = False
        self.exit_status = status
        ended = {"exitCode": status if status >= 0 else 128 - status, "startedAt": began, "finishedAt": now()}
        self._state = {"terminated": {**ended, "reason": "Error" if status else "Completed"}}
        self._last = self._state
        self._changed()
        return status

    def _tell(self) -> None:
        if self.started:
            self.began.set()
        self._changed()

    async def _probe(self) -> None:
        if startup := self._probes.get("startupProbe"):
            await startup.delay()
            while not await startup.ask():
                if startup.failed:
                    self.kill()
                    return
                await startup.period()
            self.started = True
            self.ready = "readinessProbe" not in self._probes
            self._tell()
        async with asyncio.TaskGroup() as group:
            if readiness := self._probes.get("readinessProbe"):
                group.create_task(self._watch_readiness(readiness))
            if liveness := self._probes.get("livenessProbe"):
                group.create_task(self._watch_liveness(liveness))

    async def _watch_readiness(self, probe: Probe) -> None:
        await probe.delay()
        while True:
            ready = await probe.ask()
            if ready != self.ready:
                self.ready = ready
                self._changed()
            await probe.period()

    async def _watch_liveness(self, probe: Probe) -> None:
        await probe.delay()
        while True:
            await probe.ask()
            if probe.failed:
                self.kill(signal.SIGTERM)
                await asyncio.sleep(GRACE)
                self.kill()
                return
            await probe.period()
