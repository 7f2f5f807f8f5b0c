"""A test's view of a cluster with nodes: its pods, their networks, processes and files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.kubernetes.environment.cluster import Cluster, KubectlError
from tests.kubernetes.environment.node import CGROUPS, DOMAIN, Node, NodeCluster
from tests.support.clients import Client
from tests.support.places import ProcessNamespace
from xds.mesh.kube.api import Json, KubeError


class Pod:
    """A pod, as it was when it was read, and its processes on this machine."""

    def __init__(self, content: Json) -> None:
        about = content["metadata"]
        self.object = content
        self.name, self.namespace, self.uid = about["name"], about["namespace"], about["uid"]
        self.address = str(content["status"].get("podIP", ""))

    def place(self) -> ProcessNamespace:
        """Return its network. Some container must run."""
        return ProcessNamespace(self.process())

    def process(self, container: str = "") -> int:
        """Return the first process of a container; of the first that runs, by default."""
        for folder in self.cgroups(container):
            for process in map(int, (folder / "cgroup.procs").read_text().split()):
                if _is_first(process):
                    return process
        raise AssertionError(f"no process of {self.name} {container}")

    def cgroups(self, container: str = "") -> list[Path]:
        """Return the cgroups of a container, one in each hierarchy; of the first that runs, by default."""
        statuses = [*self.object["status"].get("initContainerStatuses", ())]
        statuses += self.object["status"].get("containerStatuses", ())
        for status in statuses:
            if "running" in status["state"] and status["name"] == (container or status["name"]):
                identifier = status["containerID"].removeprefix("containerd://")
                # Those of other pods disappear meanwhile, which os.walk ignores.
                return [Path(at, identifier) for at, names, _ in os.walk(CGROUPS) if identifier in names]
        raise AssertionError(f"no container of {self.name} runs: {statuses}")

    def kill(self, container: str = "", number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the first process of a container."""
        os.kill(self.process(container), number)

    def file(self, container: str, path: str) -> Path:
        """Return a file of a container. Its absolute symbolic links, such as /var/run, are not followed."""
        return Path(f"/proc/{self.process(container)}/root", path.lstrip("/"))


def _is_first(process: int) -> bool:
    """Whether a process is the first one of its process namespace."""
    status = Path(f"/proc/{process}/status").read_text()
    [numbers] = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
    return numbers[-1] == "1"


class PodCluster(Cluster):
    """A test's view of a cluster with nodes."""

    def __init__(self, running: NodeCluster) -> None:
        super().__init__(running.control_plane)
        self.nodes = running.nodes

    @property
    def node(self) -> Node:
        """The first node."""
        return self.nodes[0]

    async def pod(self, namespace: str, name: str) -> Pod:
        """Read a pod."""
        return Pod(await self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}"))

    async def pods(self, namespace: str, app: str) -> list[Pod]:
        """Read the pods of an application that are not terminating."""
        try:
            listed = await self.api.get(f"/api/v1/namespaces/{namespace}/pods")
        except KubeError as error:
            if error.is_not_found:
                return []
            raise
        return [
            Pod(item)
            for item in listed["items"]
            for labels in [item["metadata"].get("labels", {})]
            if app in {labels.get("app"), labels.get("app.kubernetes.io/name")}
            and "deletionTimestamp" not in item["metadata"]
        ]

    async def client(self, pod: Pod) -> Client:
        """Return a client in a pod, which resolves the full names of the Services that there are now."""
        services = (await self.api.get("/api/v1/services"))["items"]
        addresses = {
            f"{item['metadata']['name']}.{item['metadata']['namespace']}.svc.{DOMAIN}": item["spec"][
                "clusterIP"
            ]
            for item in services
        }
        place = pod.place()
        return Client(place, lambda host, port: [(addresses[host], port)] if host in addresses else [])

    async def execute(self, pod: Pod, container: str, *command: str) -> tuple[int, str, str]:
        """Run a command as `kubectl exec` does; return its exit status, output and standard error."""
        try:
            output, error = await self.kubectl_with_warnings(
                "exec", pod.name, f"--namespace={pod.namespace}", f"--container={container}", "--", *command
            )
        except KubectlError as failed:
            return failed.status, failed.output, failed.error
        return 0, output, error
