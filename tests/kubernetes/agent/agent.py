"""The node: runs every unassigned pod, routes Services to ready endpoints, and forwards ports."""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

from tests.kubernetes.agent.dns import Resolver
from tests.kubernetes.agent.egress import Egress
from tests.kubernetes.agent.pods import Pod, Surroundings
from tests.kubernetes.agent.services import API_SERVER, Services
from tests.kubernetes.agent.watching import Key, Watched
from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import Cluster
from tests.support import rules
from tests.support.clients import Client
from tests.support.node import GATEWAY, Node
from tests.support.places import HERE
from tests.support.tcp import Relay
from tests.support.waiting import eventually
from xds.demo.processes import Processes, Running
from xds.mesh.kube.api import Json, KubeError

_API_SERVER_HERE = 6443
_KUBELET = 10250
_DNS = 53
_RETRY = 0.2


class Agent:
    """Runs the pods of a cluster in an `async with` block, and stops them at its end."""

    def __init__(self, cluster: Cluster, folder: Path, *, egress: Path | None = None) -> None:
        """Keep volumes, logs and other files in `folder`, which exists and is not shared.

        `egress`: the socket where the API server asks for connections to pods.
        """
        self.cluster = cluster
        self._api = api = cluster.api
        self.folder, self._egress = folder, egress
        self._networks = folder / "kubelet/networks"
        self.kubelet: Running | None = None
        """The process that forwards ports, if its program is available."""
        self._pods: dict[Key, Pod] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._seen: set[str] = set()
        self._binding: set[str] = set()
        self._failures: list[BaseException] = []
        self._services_changed = asyncio.Event()
        self._resolver = Resolver()
        self._watched = Watched(api, "/api/v1/pods", self._pod_changed)
        self._services = Watched(api, "/api/v1/services", self._service_changed)
        self._slices = Watched(api, "/apis/discovery.k8s.io/v1/endpointslices", self._service_changed)
        self._config_maps = Watched(api, "/api/v1/configmaps", self._config_map_changed)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.node = stack.enter_context(Node())
            self.name = self.node.run_id
            await self._listen(stack)
            await self._start_kubelet(stack)
            await self._register(stack)
            followed = (self._services, self._slices, self._config_maps, self._watched)
            self._tasks = [asyncio.create_task(collection.run()) for collection in followed]
            self._tasks.append(asyncio.create_task(self._publish()))
            stack.push_async_callback(self._stop)
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()
        if self._failures:
            raise BaseExceptionGroup("what the node agent could not do", self._failures)

    def pod(self, namespace: str, name: str) -> Pod:
        """Return a pod that runs on this node."""
        return self._pods[Key(namespace, name)]

    def pods(self, namespace: str, app: str) -> list[Pod]:
        """Return the pods of an application that run on this node and are not terminating."""
        return [
            pod
            for key, pod in sorted(self._pods.items())
            if key.namespace == namespace
            and app in {pod.label("app"), pod.label("app.kubernetes.io/name")}
            and "deletionTimestamp" not in pod.object["metadata"]
        ]

    def client(self, pod: Pod) -> Client:
        """Return a client in a pod, which resolves the fully qualified names of the cluster's DNS."""

        def resolve(host: str, port: int) -> list[tuple[str, int]]:
            return [(address, port) for address in self._resolver.records.get(host, ())]

        assert pod.place
        return Client(pod.place, resolve)

    def logs(self, lines: int = 30) -> str:
        """Return the end of each container's log."""
        return "\n".join(
            f"--- {path.relative_to(self.folder)}\n"
            + "".join(path.read_text(errors="replace").splitlines(keepends=True)[-lines:])
            for path in sorted(self.folder.glob("*/*.log"))
        )

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Listen on the node: DNS and the API server for pods, and a proxy to pods for the API server."""
        with self.node.place.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("0.0.0.0", _DNS))
        made.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self._resolver, sock=made
        )
        stack.callback(transport.close)
        relay = Relay(self.node.place.listener("0.0.0.0", _API_SERVER_HERE), self._to_api_server)
        await stack.enter_async_context(relay)
        if self._egress:
            await stack.enter_async_context(Egress(self._egress, self.node.place))

    async def _to_api_server(self) -> socket.socket:
        at = urlsplit(self._api.server)
        made = HERE.tcp_socket()
        try:
            await asyncio.get_running_loop().sock_connect(made, (at.hostname, at.port))
        except BaseException:
            made.close()
            raise
        return made

    async def _start_kubelet(self, stack: AsyncExitStack) -> None:
        self._networks.mkdir(parents=True)
        if program := binaries.find().get("kubelet"):
            certificates = self.cluster.control_plane.certificates
            certificate, key = certificates.server([self.name], [GATEWAY])
            command = self.node.place.command(
                str(program),
                f"--listen=:{_KUBELET}",
                f"--networks={self._networks}",
                f"--tls-cert-file={certificate}",
                f"--tls-private-key-file={key}",
                f"--client-ca-file={certificates.root}",
            )
            processes = stack.enter_context(Processes(self._networks.parent))
            self.kubelet = processes.start("kubelet", "/usr/bin/env", *command)
            await eventually(self._has_kubelet, timeout=30, what="the kubelet listens")

    async def _has_kubelet(self) -> bool:
        with suppress(OSError):
            (await Client(self.node.place).connect("127.0.0.1", _KUBELET)).close()
            return True
        return False

    async def _register(self, stack: AsyncExitStack) -> None:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        await self._api.create("/api/v1/nodes", body)
        stack.push_async_callback(self._leave)
        status = {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": GATEWAY}],
        }
        await self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})

        async def service() -> Any:
            path = f"/api/v1/namespaces/{API_SERVER.namespace}/services/{API_SERVER.name}"
            try:
                return (await self._api.get(path))["spec"]["clusterIP"]
            except KubeError as error:
                if error.is_not_found:
                    return None
                raise

        address = await eventually(service, timeout=60, what="the Service `kubernetes`")
        variables = {"KUBERNETES_SERVICE_HOST": address, "KUBERNETES_SERVICE_PORT": "443"}
        self._around = Surroundings(self._api, self.node, self.folder, self._networks, variables)

    async def _leave(self) -> None:
        try:
            await self._api.delete(f"/api/v1/nodes/{self.name}")
        except KubeError as error:
            if error.status:  # otherwise the API server is stopped
                raise

    async def _stop(self) -> None:
        await _cancelled([*self._tasks, *self._lives])

    def _pod_changed(self, key: Key) -> None:
        pod, known = self._watched.objects.get(key), self._pods.get(key)
        if known and (pod is None or pod["metadata"]["uid"] != known.uid):
            known.update(None)
            known = None
        if pod is None:
            return
        uid = pod["metadata"]["uid"]
        if known:
            if _shown(known.object) != _shown(pod):
                self._start(known.refresh())
            known.update(pod)
        elif "nodeName" not in pod["spec"]:
            if uid not in self._binding and "deletionTimestamp" not in pod["metadata"]:
                self._binding.add(uid)
                self._start(self._bind(key, pod))
        elif pod["spec"]["nodeName"] == self.name and uid not in self._seen:
            self._seen.add(uid)
            self._start(self._run(key, pod))

    async def _bind(self, key: Key, pod: Json) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key.name, "uid": pod["metadata"]["uid"]},
            "target": target,
        }
        path = f"/api/v1/namespaces/{key.namespace}/pods/{key.name}/binding"
        while True:
            try:
                await self._api.create(path, body)
            except KubeError as error:
                if error.status:  # the pod was deleted, or runs on another node
                    return
                await asyncio.sleep(_RETRY)
            else:
                return

    async def _run(self, key: Key, pod: Json) -> None:
        while before := self._pods.get(key):
            await before.gone.wait()
        self._pods[key] = made = Pod(self._around, pod)
        made.update(pod)
        try:
            await made.run()
        finally:
            del self._pods[key]
            made.gone.set()

    def _start(self, life: Any) -> None:
        task = asyncio.create_task(life)
        self._lives.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._lives.discard(task)
        if not task.cancelled() and (error := task.exception()):
            traceback.print_exception(error, file=sys.stderr)
            self._failures.append(error)

    def _service_changed(self, _: Key) -> None:
        self._services_changed.set()

    def _config_map_changed(self, key: Key) -> None:
        for of, pod in self._pods.items():
            if of.namespace == key.namespace:
                self._start(pod.refresh())

    async def _publish(self) -> NoReturn:
        """Update DNS names and virtual addresses from Services."""
        here = (GATEWAY, _API_SERVER_HERE)
        while True:
            await self._services_changed.wait()
            self._services_changed.clear()
            services = Services(self._services.objects, self._slices.objects.values(), here)
            self._resolver.records = services.records()
            pods = [pod.address for pod in self._pods.values() if pod.address]
            self.node.place.run("iptables-restore", stdin=rules.node(pods, services.virtual()))


def _shown(pod: Json) -> Json:
    """Return the changeable parts of a pod that its files may contain."""
    return {name: pod["metadata"].get(name) for name in ("labels", "annotations")}


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
