"""The life cycle of a pod on the node: network namespace, volumes, containers, status and termination."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.agent.containers import GRACE, Container, now
from tests.kubernetes.agent.fields import NotYetError, environment
from tests.kubernetes.agent.images import launched
from tests.kubernetes.agent.services import DOMAIN
from tests.kubernetes.agent.volumes import Volumes
from tests.support.node import GATEWAY, Node, etc
from tests.support.places import Namespace
from xds.mesh.kube.api import Json, KubeApi, KubeError

_RETRY = 0.3


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Objects that all pods of a node share."""

    api: KubeApi
    node: Node
    folder: Path
    networks: Path
    """Folder with a link to the network namespace of each pod, for port-forwards."""
    environment: dict[str, str]
    """Variables of every container: the address of the API server."""


class Pod:
    """A pod bound to the node. `run` runs it; `update` passes it changes of its object."""

    def __init__(self, around: Surroundings, pod: Json) -> None:
        about = pod["metadata"]
        self.uid: str = about["uid"]
        self.object = pod
        self.name = f"{about['namespace']}.{about['name']}"
        self.place: Namespace | None = None
        self.address = ""
        self.gone = asyncio.Event()
        """Set when it has been removed from the node."""
        self._around = around
        self._path = f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}"
        self._folder = around.folder / self.name
        self._folder.mkdir()
        self._volumes = Volumes(around.api, pod, self._folder / "volumes")
        self._changed = asyncio.Event()
        self._deleted = asyncio.Event()
        self._killed = asyncio.Event()
        self._all_done = asyncio.Event()
        """Set when all containers except sidecars have completed."""
        self._init = [self._container(spec, "init-") for spec in pod["spec"].get("initContainers", ())]
        self.containers = [self._container(spec) for spec in pod["spec"]["containers"]]
        self._phase = "Pending"
        self._since = {"ContainersReady": ("False", now()), "Ready": ("False", now())}

    def label(self, name: str) -> str:
        """Return a label, or an empty string."""
        return str(self.object["metadata"].get("labels", {}).get(name, ""))

    def file(self, volume: str, path: str) -> Path:
        """Return a file of a volume."""
        return self._folder / "volumes" / volume / path

    def update(self, pod: Json | None) -> None:
        """Use a new version of the object; None if the pod was deleted."""
        if pod is None:
            self._killed.set()
            self._deleted.set()
            return
        self.object = self._volumes.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()

    async def refresh(self) -> None:
        """Rewrite its volumes after a change of their sources."""
        with suppress(NotYetError, KubeError):
            await self._volumes.write()

    async def execute(self, container: str, *command: str) -> tuple[int, str, str]:
        """Run a command as kubelet's exec does; return its exit status, output and standard error."""
        process = await asyncio.create_subprocess_exec(
            str(self._folder / f"{container}.exec"),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), error.decode()

    async def run(self) -> None:
        """Run until the pod is deleted, even if it completes earlier."""
        self.place, (self.address,) = self._around.node.add()
        network = self._around.networks / self.name
        network.symlink_to(self.place.file)
        try:
            living = asyncio.create_task(self._live())
            reporting = asyncio.create_task(self._report())
            deleted = asyncio.create_task(self._deleted.wait())
            try:
                await asyncio.wait([living, deleted], return_when=asyncio.FIRST_COMPLETED)
                if living.done():
                    living.result()
                await deleted
                await self._end(living)
            finally:
                for task in (living, reporting, deleted):
                    task.cancel()
                await asyncio.wait([living, reporting, deleted])
        finally:
            network.unlink()
            place, self.place = self.place, None
            self._around.node.remove(place)
        await self._forget()

    async def _live(self) -> None:
        assert self.place
        namespace = self.object["metadata"]["namespace"]
        search = f"{namespace}.{DOMAIN} {DOMAIN} {DOMAIN.partition('.')[2]}"
        etc(self.place, "resolv.conf").write_text(
            f"nameserver {GATEWAY}\nsearch {search}\noptions ndots:5 timeout:2\n"
        )
        # As in containers, applications may use any port.
        self.place.sysctl("net.ipv4.ip_unprivileged_port_start", "0")
        self._changed.set()
        await self._write_volumes()
        async with asyncio.TaskGroup() as group:
            where = self.address, self._around.node.place
            keeping = group.create_task(self._volumes.keep())
            sidecars = []
            for container in self._init:
                if container.is_sidecar:
                    sidecars.append(container)
                    group.create_task(container.run("Always", *where))
                    await container.began.wait()
                else:
                    await container.run("OnFailure", *where)
            self._phase = "Running"
            policy = self.object["spec"]["restartPolicy"]
            await asyncio.wait(
                [group.create_task(container.run(policy, *where)) for container in self.containers]
            )
            self._all_done.set()
            for container in sidecars:
                container.stop(signal.SIGTERM)
            keeping.cancel()
        if not self._deleted.is_set():
            self._phase = (
                "Failed" if any(container.exit_status for container in self.containers) else "Succeeded"
            )
            self._changed.set()

    async def _end(self, living: asyncio.Task[None]) -> None:
        """Stop all containers, and kill those that do not exit in time."""
        grace = self.object["metadata"].get("deletionGracePeriodSeconds", GRACE)
        ending = [asyncio.create_task(self._end_one(container)) for container in self._everything()]
        killed = asyncio.create_task(self._killed.wait())
        await asyncio.wait([living, killed], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for task in (killed, *ending):
            task.cancel()
        await asyncio.wait([killed, *ending])
        for container in self._everything():
            container.stop(signal.SIGKILL)
        await asyncio.wait([living])

    async def _end_one(self, container: Container) -> None:
        await container.before_stop()
        if container.is_sidecar:
            await self._all_done.wait()
        container.stop(signal.SIGTERM)

    async def _forget(self) -> None:
        """Tell the API server that the pod has terminated."""
        while not self._killed.is_set():
            body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
            try:
                await self._around.api.call("DELETE", self._path, body)
            except KubeError as error:
                if error.is_not_found or error.status == 409:
                    return
                await asyncio.sleep(_RETRY)
            else:
                return

    async def _report(self) -> None:
        """Keep the pod's status in the API server up to date."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._around.api.patch(f"{self._path}/status", {"status": self._status()})
            except KubeError as error:
                if error.is_not_found:
                    return
                self._changed.set()
                await asyncio.sleep(_RETRY)

    def _status(self) -> Json:
        running = self._phase == "Running"
        lasting = [*self.containers, *(item for item in self._init if item.is_sidecar)]
        ready = running and all(container.ready for container in lasting)
        for kind in self._since:
            status = str(ready)
            if self._since[kind][0] != status:
                self._since[kind] = status, now()
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": since}
            for kind, (status, since) in {
                **self._since,
                "Initialized": (str(running), now()),
                "PodScheduled": ("True", self.object["metadata"]["creationTimestamp"]),
            }.items()
        ]
        return {
            "phase": self._phase,
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "hostIP": GATEWAY,
            "hostIPs": [{"ip": GATEWAY}],
            "startTime": self.object["metadata"]["creationTimestamp"],
            "conditions": conditions,
            "containerStatuses": [container.status() for container in self.containers],
            "initContainerStatuses": [container.status() for container in self._init],
        }

    async def _write_volumes(self) -> None:
        while True:
            try:
                await self._volumes.write()
            except (NotYetError, KubeError):
                await asyncio.sleep(_RETRY)
            else:
                return

    def _container(self, spec: Json, prefix: str = "") -> Container:
        async def command() -> list[str]:
            assert self.place
            while True:
                try:
                    given = await environment(self._around.api, self._as_told(), spec)
                except (NotYetError, KubeError):
                    await asyncio.sleep(_RETRY)
                else:
                    break
            variables = {**self._around.environment, **given}
            file = self._folder / f"{prefix}{spec['name']}.json"
            mounts = list(self._volumes.mounts(spec))
            return launched(self.object, spec, variables, mounts, self.place, file)

        return Container(spec, command, self._folder / f"{prefix}{spec['name']}.log", self._changed.set)

    def _as_told(self) -> Json:
        """Return the pod with its addresses, which containers may refer to before they are reported."""
        return {**self.object, "status": {"podIP": self.address, "podIPs": self.address, "hostIP": GATEWAY}}

    def _everything(self) -> Iterator[Container]:
        yield from self._init
        yield from self.containers
