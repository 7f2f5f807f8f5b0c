"""A mesh on loopback: every pod has its own 127.x.y.z, and sidecars in mode NONE follow `xds serve`.

A pod with a sidecar has two addresses: its own, where the sidecar listens, and its application's. Its clients
use the sidecar as an HTTP proxy. Clients in a pod without a sidecar resolve names themselves and take turns
with the endpoints.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support import http2, manifests
from tests.support.answers import Answer
from tests.support.apps import EchoApp
from tests.support.clients import Client, rotating
from tests.support.controlplane import ControlPlane
from tests.support.envoy import EnvoyProcess, drained, has_active
from tests.support.loopback import Loopback
from tests.support.manifests import Manifest, Manifests
from tests.support.places import HERE
from tests.support.processes import open_files
from tests.support.tcp import LineApp, TcpServer
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.envoy.features import ALL_FEATURES, Features
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

PROXY_PORT = 15002
RECONNECTED = 90.0
"""Seconds until a sidecar reconnects at the latest: Envoy backs off for up to 30 seconds, and may be slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPod:
    """A pod, and who asks from it."""

    name: str
    namespace: str
    address: str
    app_address: str
    """Where its application listens: another address if a sidecar has the pod's."""
    client: Client
    said: dict[str, Any] = field(default_factory=dict)
    """What its manifest says besides."""

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.namespace}"


class LocalMesh:
    """Pods, services and their manifests on loopback; `xds serve` follows them in an `async with` block."""

    def __init__(
        self,
        loopback: Loopback,
        directory: Path,
        *,
        sotw: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        self.manifests = Manifests(directory / "manifests")
        self.sidecars: dict[str, EnvoyProcess] = {}
        """Those that run, by POD.NAMESPACE."""
        self.sotw = sotw
        self.through: dict[str, int] = {}
        """By POD.NAMESPACE, ports at which sidecars reach the control plane that do not at its own."""
        self._loopback, self._directory = loopback, directory
        self.settings = settings
        """Settings of the mesh (`--set`)."""
        self.mesh_config: Path | None = None
        """File with the mesh's settings (`--mesh-config`)."""
        self.features: Callable[[str], Features] = lambda _: ALL_FEATURES
        """What the Envoy of a sidecar supports, by POD.NAMESPACE."""
        self._pods: list[LocalPod] = []
        self._services: list[Manifest] = []
        self._table: dict[tuple[str, int], Sequence[tuple[str, int]]] = {}
        self._exits = AsyncExitStack()
        options = [f"--set={setting}" for setting in settings]
        self.plane = ControlPlane(self.manifests.directory, directory, *options)

    async def __aenter__(self) -> Self:
        await self._exits.enter_async_context(self.plane)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exits.__aexit__(*error)

    # --- what there is --------------------------------------------------------------------------------------

    def pod(self, name: str, namespace: str, *, sidecar: bool = True, **said: Any) -> LocalPod:
        """Add a pod, with what `manifests.pod` may say of it. A sidecar starts with `start`."""
        address = self._loopback.address()
        app_address = self._loopback.address() if sidecar else address
        said = {"labels": {"app": name}, "account": name} | said
        if sidecar:
            said["annotations"] = {
                "sidecar.istio.io/interceptionMode": "NONE",
                "sidecar.xds/app-address": app_address,
            } | said.get("annotations", {})
            client = Client(proxy=f"http://{address}:{PROXY_PORT}")
        else:
            client = Client(resolve=rotating(self._table))
        pod = LocalPod(
            name=name,
            namespace=namespace,
            address=address,
            app_address=app_address,
            client=client,
            said=said,
        )
        self._pods.append(pod)
        self.write_pod(pod, sidecar=sidecar)
        self._publish()
        return pod

    def write_pod(self, pod: LocalPod, *, sidecar: bool, **said: Any) -> None:
        """Rewrite a pod's manifest, which may differ from reality about whether there is a sidecar."""
        written = manifests.pod(pod.name, pod.namespace, pod.address, sidecar=sidecar, **pod.said | said)
        self.apply(written)

    def service(
        self, name: str, namespace: str, ports: Mapping[str, tuple[int, int]], **said: Any
    ) -> Manifest:
        """Add a service that selects pods by label `app`; `ports`: name -> (port, target port)."""
        written = manifests.service(name, namespace, ports, **said)
        self._services.append(written)
        self.apply(written)
        self._publish()
        return written

    def apply(self, *objects: Manifest) -> None:
        """Create or replace objects, as `kubectl apply` does."""
        for found in objects:
            self.manifests.write(file_of(found), found)

    def delete(self, *objects: Manifest) -> None:
        """Delete objects."""
        for found in objects:
            self.manifests.remove(file_of(found))

    def _publish(self) -> None:
        """Have the services' names lead to the pods that they select."""
        self._table.clear()
        for service in self._services:
            spec, meta = service["spec"], service["metadata"]
            pods = [
                pod
                for pod in self._pods
                if pod.namespace == meta["namespace"] and covers(spec["selector"], pod.said["labels"])
            ]
            for port in spec["ports"]:
                where = [(pod.address, port["targetPort"]) for pod in pods]
                self._table[f"{meta['name']}.{meta['namespace']}", port["port"]] = where

    # --- what runs ------------------------------------------------------------------------------------------

    async def enter(self, *running: Any) -> None:
        """Have something run until the mesh ends."""
        for context in running:
            await self._exits.enter_async_context(context)

    async def serve(
        self,
        pod: LocalPod,
        *,
        http: Sequence[int] = (),
        lines: Sequence[int] = (),
        greets: Sequence[int] = (),
    ) -> None:
        """Run applications in a pod: echoes over HTTP, over lines, and over lines with a greeting."""
        name, at = pod.full_name, pod.app_address
        await self.enter(
            *(EchoApp(name, port, address=at) for port in http),
            *(LineApp(name, port, address=at) for port in lines),
            *(LineApp(name, port, address=at, greets=True) for port in greets),
        )

    async def start(self, *pods: LocalPod, **how: Any) -> None:
        """Start the sidecars of pods, and wait until every sidecar has what the manifests come to."""
        facts = self.facts()
        envoys = [self._envoy(pod, facts, **how) for pod in pods]
        await self.enter(*envoys)
        self.sidecars |= {pod.full_name: envoy for pod, envoy in zip(pods, envoys, strict=True)}
        await self.settled()

    def sidecar(self, pod: LocalPod) -> EnvoyProcess:
        """Return a pod's sidecar."""
        return self.sidecars[pod.full_name]

    async def settled(self, *pods: LocalPod, timeout: float = 60) -> None:
        """Wait until sidecars (all, if none are named) have in force what the manifests come to now."""
        facts = self.facts()
        names = [pod.full_name for pod in pods] or list(self.sidecars)
        await asyncio.gather(*(self._has(self.sidecars[name], name, facts, timeout) for name in names))

    async def _has(self, envoy: EnvoyProcess, name: str, facts: Mesh, timeout: float) -> None:
        pod_name, _, namespace = name.partition(".")
        pod = facts.pod(namespace, pod_name)
        assert pod, f"{name} has no manifest"
        await has_active(envoy, translate(facts, pod, features=self.features(name)), timeout)

    async def drained(self, timeout: float = 60) -> None:
        """Wait until no sidecar serves connections that it drains."""
        await drained(self.sidecars.values(), timeout)

    def facts(self) -> Mesh:
        """Read the manifests as they are now."""
        report = Folder(self.manifests.directory, SettingsLoader(self.mesh_config, self.settings)).load()
        problems = [str(problem) for problem in report.problems if not problem.notice]
        assert not problems, problems
        return Mesh(report.change.applied, report.change.config)

    def _envoy(self, pod: LocalPod, facts: Mesh, **how: Any) -> EnvoyProcess:
        known = facts.pod(pod.namespace, pod.name)
        assert known, pod
        # What `xds bootstrap` prints, without a process for each.
        port = self.through.get(pod.full_name, self.plane.port)
        begin = to_json_dict(bootstrap(known, "127.0.0.1", port, sotw=self.sotw))
        return EnvoyProcess(pod.full_name, begin, self._directory, **how)


def file_of(found: Manifest) -> str:
    """Return the name of the file that holds an object."""
    meta = found["metadata"]
    return "-".join([found["kind"], meta.get("namespace", ""), meta["name"]]).lower()


async def raw(pod: LocalPod, *requests: str) -> list[str]:
    """Send raw requests to a pod's proxy, each on its own connection; return the raw responses."""
    return await asyncio.gather(*(_raw(pod, request) for request in requests))


async def _raw(pod: LocalPod, request: str) -> str:
    reader, writer = await asyncio.open_connection(sock=await Client().connect(pod.address, PROXY_PORT))
    writer.write(f"{request}Connection: close\n\n".replace("\n", "\r\n").encode())
    try:
        async with asyncio.timeout(30):
            return (await reader.read()).decode()
    finally:
        writer.close()


async def http2_inside(pod: LocalPod, host: str, port: int) -> Answer:
    """Send one HTTP/2 request through a tunnel of a pod's proxy."""
    loop = asyncio.get_running_loop()
    made = await Client().connect(pod.address, PROXY_PORT)
    await loop.sock_sendall(made, f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    seen = b""
    while not seen.endswith(b"\r\n\r\n"):
        some = await loop.sock_recv(made, 1)
        assert some, f"closed after {seen!r}"
        seen += some
    assert b" 200 " in seen, seen
    return await http2.request(made, f"{host}:{port}", "/headers", {})


class Spy(TcpServer):
    """Somewhere that nobody may be led to: remembers who came."""

    def __init__(self, address: str) -> None:
        super().__init__(HERE.listener(address, 0))
        self.address = address
        self.came = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process listens."""
    held = open_files(pid)
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in held:
            address, port = local.split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found
