"""A small mesh under load, while something that clients and servers share changes: roots, names or TLS.

The control plane runs in the test's own process. A dam can hold back what it sends to the clients' sidecars.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tests.identity.companies import Company
from tests.support.envoy import run_options
from tests.support.load import Load
from tests.support.local import LocalMesh, LocalPod
from tests.support.loopback import Loopback
from tests.support.manifests import Manifest
from tests.support.places import HERE
from tests.support.tcp import TcpServer
from tests.support.waiting import eventually
from xds.mesh.controlplane.controller import Controller
from xds.mesh.envoy.features import ALL_FEATURES, Features
from xds.mesh.identity import chain
from xds.mesh.identity.rotation import Authorities
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader
from xds.server import XdsServer

PORT = 8080
KEPT, FRESH = "http://kept:80/headers", "http://fresh:80/headers"
"""Two services with the same servers: one keeps connections, the other makes one for each request."""
PATIENCE = 60.0
PATIENT = run_options(drain_seconds=30)
"""Of sidecars: connections drain for longer than any request takes on a slow machine."""


class Dam(TcpServer):
    """A TCP proxy that can hold back data from the control plane."""

    def __init__(self, port: int) -> None:
        super().__init__(HERE.listener("127.0.0.1", 0))
        self._onward = port
        self.open = asyncio.Event()
        self.open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._onward)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, held: bool) -> None:
            while data := await source.read(65536):
                if held:
                    await self.open.wait()
                sink.write(data)
                await sink.drain()

        try:
            await asyncio.gather(pump(reader, back, held=False), pump(there, writer, held=True))
        finally:
            back.close()


class Plane:
    """The control plane in the test's own process, with a `Dam` before it for some proxies."""

    def __init__(
        self,
        manifests: Path,
        authorities: Authorities,
        mesh_config: Path,
        settings: Sequence[str],
        **options: Any,
    ) -> None:
        self.controller = Controller(authorities.authority, extra_roots=authorities.extra_roots, **options)
        self.port = 0
        self._folder = Folder(manifests, SettingsLoader(mesh_config, settings))
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self.controller.run()), asyncio.create_task(self._follow())]
        async with asyncio.timeout(PATIENCE):
            await self.controller.ready.wait()
        self.port = await self.listen()
        self.dam = await self._exits.enter_async_context(Dam(self.port))
        return self

    async def listen(self) -> int:
        """Start the server; return its port."""
        server = await self._exits.enter_async_context(XdsServer(self.controller.connections, "127.0.0.1:0"))
        return server.port

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        async for report in self._folder.watch():
            self.controller.change(report.change)

    def take(self, authorities: Authorities) -> None:
        self.controller.rotate(authorities.authority, authorities.extra_roots)


def new_connections(host: str) -> Manifest:
    """Return a DestinationRule with one request per connection."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": host, "namespace": "ns"},
        "spec": {
            "host": host,
            "trafficPolicy": {"connectionPool": {"http": {"maxRequestsPerConnection": 1}}},
        },
    }


class World:
    """Two clients and two servers, one of each by SotW and one by delta xDS, and four kinds of load."""

    def __init__(self, mesh: LocalMesh, plane: Plane, stack: AsyncExitStack) -> None:
        self.mesh, self.plane, self._stack = mesh, plane, stack
        self.clients = [mesh.pod(f"client-{variant}", "ns") for variant in ("sotw", "delta")]
        self.servers = [
            mesh.pod(f"web-{variant}", "ns", labels={"app": "web"}) for variant in ("sotw", "delta")
        ]
        self.loads: list[Load] = []

    @property
    def sidecars(self) -> list[LocalPod]:
        return [*self.clients, *self.servers]

    async def start(self) -> None:
        for server in self.servers:
            await self.mesh.serve(server, http=(PORT,))
        for name in ("kept", "fresh"):
            self.mesh.service(name, "ns", {"http": (80, PORT)}, selector={"app": "web"})
        self.mesh.apply(new_connections("fresh"))
        straight = self.plane.port
        for sotw, client, server in zip((True, False), self.clients, self.servers, strict=True):
            self.mesh.sotw = sotw
            self.plane.port = straight
            await self.mesh.start(server, options=PATIENT)
            self.plane.port = self.plane.dam.port
            await self.mesh.start(client, options=PATIENT)
        for client in self.clients:
            for url in (KEPT, FRESH):
                load = Load(client=client.client, url=url, connections=2, seconds=280, pause=0.03)
                self.loads.append(await self._stack.enter_async_context(load))
        await self.more()

    async def change(self, settings: Manifest) -> None:
        """Change the mesh's settings (`--mesh-config`), first for the servers' sidecars.

        Return once the clients' sidecars have them as well. In between, requests run with both.
        """
        self.plane.dam.open.clear()
        self.write_settings(settings)
        await self.servers_first()

    def write_settings(self, settings: Manifest) -> None:
        path = self.mesh.mesh_config
        assert path
        new = path.with_suffix(".new")
        new.write_text(json.dumps(settings))
        new.replace(path)

    async def servers_first(self) -> None:
        """Wait until the servers' sidecars have the current settings, then let the clients' have them."""
        await self.mesh.settled(*self.servers, timeout=PATIENCE)
        await self.more()
        self.plane.dam.open.set()
        await self.mesh.settled(timeout=PATIENCE)
        await self.more()

    async def more(self, count: int = 20) -> None:
        """Wait for further requests of each kind."""
        await asyncio.gather(*(load.more(count, timeout=PATIENCE) for load in self.loads))

    async def shown(self) -> dict[str, set[str]]:
        """Return the serial numbers of each sidecar's current certificates."""
        serials = {}
        for pod in self.sidecars:
            certs = (await self.mesh.sidecar(pod).admin.json("/certs"))["certificates"]
            serials[pod.name] = {
                cert["serial_number"] for entry in certs for cert in entry.get("cert_chain", ())
            }
        return serials

    async def until_trusted(self, *roots: bytes) -> None:
        """Wait until each sidecar trusts exactly these roots."""
        wanted = {cert for root in roots for cert in chain.read(root)}
        for pod in self.sidecars:

            async def trusts(pod: LocalPod = pod) -> bool:
                secret = await self._secret(pod, "ROOTCA")
                trusted = secret["validation_context"]["trusted_ca"]["inline_bytes"]
                return set(chain.read(b64decode(trusted))) == wanted

            await eventually(trusts, timeout=PATIENCE, what=f"{pod.name} trusts exactly these roots")

    async def until_issued_by(self, ca: Company, before: dict[str, set[str]]) -> None:
        """Wait until each sidecar has a new certificate, issued by this CA."""

        async def are_new() -> bool:
            return all(serials.isdisjoint(before[name]) for name, serials in (await self.shown()).items())

        await eventually(are_new, timeout=PATIENCE, what="all sidecars have a new certificate")
        for pod in self.sidecars:
            secret = await self._secret(pod, "default")
            leaf, *above = chain.read(
                b64decode(secret["tls_certificate"]["certificate_chain"]["inline_bytes"])
            )
            leaf.verify_directly_issued_by(ca.certificate)
            assert above == [ca.certificate]

    async def _secret(self, pod: LocalPod, name: str) -> dict[str, Any]:
        (dump,) = await self.mesh.sidecar(pod).admin.config("SecretsConfigDump")
        (secret,) = [entry["secret"] for entry in dump["dynamic_active_secrets"] if entry["name"] == name]
        return secret

    def failed(self) -> int:
        return sum(len(load.failures) for load in self.loads)

    async def stop(self) -> None:
        for load in self.loads:
            await load.stop()

    async def check(self) -> int:
        """Stop the load, and check that no request failed and all used mutual TLS. Return their number."""
        await self.stop()
        for load in self.loads:
            load.check()
            assert all(sent.answer.identity for sent in load.sent)
        return sum(len(load.sent) for load in self.loads)


@asynccontextmanager
async def running(
    loopback: Loopback,
    directory: Path,
    authorities: Authorities,
    settings: Sequence[str] = (),
    features: Callable[[str], Features] = lambda _: ALL_FEATURES,
    *,
    of: tuple[type[LocalMesh], type[Plane]] = (LocalMesh, Plane),
    **options: Any,
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        mesh = of[0](loopback, directory, settings=settings)
        mesh.features = features
        mesh.mesh_config = directory / "mesh.yaml"
        mesh.mesh_config.write_text("{}")
        plane = of[1](directory / "manifests", authorities, mesh.mesh_config, settings, **options)
        mesh.plane = plane
        await stack.enter_async_context(mesh)
        world = World(mesh, plane, stack)
        await world.start()
        yield world
        with suppress(Exception):
            await world.stop()
