"""`xds serve --kubernetes` as a process, its sidecar, and a cable between it and the API server."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import grpc.aio

from tests.support.loopback import free_port
from tests.support.places import HERE
from tests.support.tcp import TcpServer
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.snapshot import CLUSTER, ENDPOINT, SECRET, Resource
from xds.testing import EnvoyClient, Response, Variant

PATIENCE = 60.0
"""Time limit for a change on a busy machine, in seconds."""

_REQUEST = message_class("envoy.service.discovery.v3.DiscoveryRequest")
_RESPONSE = message_class("envoy.service.discovery.v3.DiscoveryResponse")
_ASSIGNMENT = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")
_MATCH = "envoy.transport_socket_match"
"""Key of the endpoint metadata that selects mutual TLS."""
_SECRET = message_class("envoy.extensions.transport_sockets.tls.v3.Secret")
_SECRETS = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"


class Serving:
    """`xds serve --kubernetes` in an `async with` block."""

    def __init__(
        self, kubeconfig: Path, folder: Path, *options: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = folder / "xds-serve.log"
        self._xds, self.tls, self._admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self._command = [
            *(sys.executable, "-m", "xds", "serve", "--kubernetes", f"--kubeconfig={kubeconfig}"),
            *(f"--xds-address={self._xds}", f"--admin-address={self._admin}"),
            *(f"--xds-tls-address={self.tls}", "--xds-mtls-address=127.0.0.1:0", *options),
        ]
        self._env = {**os.environ, **(env or {})}

    async def __aenter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, env=self._env
            )
        self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    @property
    def address(self) -> str:
        """Address of plaintext xDS."""
        return self._xds

    async def ready(self) -> tuple[int, str]:
        """Return the status and the text of /ready; status 0 without an answer."""
        assert self._process.returncode is None, f"xds serve ended\n{self.log.read_text()}"
        try:
            async with self._http.get(f"http://{self._admin}/ready") as response:
                return response.status, (await response.text()).strip()
        except aiohttp.ClientError as error:
            return 0, str(error)

    async def until_waiting(self) -> None:
        """Wait until /ready reports that start-up waits for something."""

        async def asked() -> bool:
            status, body = await self.ready()
            return status == 503 and "waiting for" in body

        await eventually(asked, timeout=PATIENCE, what="/ready says what it waits for")

    async def metrics(self) -> str:
        """Return the text of /metrics."""
        async with self._http.get(f"http://{self._admin}/metrics") as response:
            return await response.text()

    async def until_ready(self, text: str = "ready") -> str:
        """Wait until /ready answers 200 with a first line that this pattern matches as a whole; return it.

        What follows are warnings.
        """

        async def asked() -> str:
            status, body = await self.ready()
            assert status == 200, f"{status}: {body}\n{self.log.read_text()}"
            first = body.partition("\n")[0]
            assert re.fullmatch(text, first), f"{body}\n{self.log.read_text()}"
            return first

        return str(await eventually(asked, timeout=PATIENCE, what=f"/ready says {text!r}"))

    @property
    def xds(self) -> str:
        """Address of the plaintext xDS listener."""
        return self._xds

    async def stop(self, number: int) -> None:
        """Send a signal, and wait until it has ended."""
        self._process.send_signal(number)
        await self._process.wait()

    def freeze(self) -> None:
        """Suspend it (SIGSTOP). Its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue it (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    async def certificate(self, pod: str, namespace: str, address: str, root: str, token: str) -> Any:
        """Request a pod's certificate over TLS, with its token; return the Secret."""
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(root.encode()), grpc.access_token_call_credentials(token)
        )
        name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
        request = _REQUEST(type_url=SECRET, resource_names=["default"])
        request.node.id = f"sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"
        async with grpc.aio.secure_channel(self.tls, credentials, [name]) as channel:
            answer = await channel.unary_unary(_SECRETS)(
                request.SerializeToString(), timeout=PATIENCE, wait_for_ready=True
            )
        [secret] = _RESPONSE.FromString(answer).resources
        return _SECRET.FromString(secret.value)

    def sidecar(self, pod: str, namespace: str, address: str) -> Sidecar:
        """Return the sidecar of a pod. Enter it to connect."""
        return Sidecar(self._xds, f"sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local")


class Sidecar(EnvoyClient):
    """A sidecar with a connection of its own. It waits for a control plane that does not listen yet."""

    def __init__(self, address: str, node: str) -> None:
        options = {
            "grpc.use_local_subchannel_pool": 1,
            "grpc.max_receive_message_length": -1,
            "grpc.initial_reconnect_backoff_ms": 50,
            "grpc.max_reconnect_backoff_ms": 50,
        }
        self._own = grpc.aio.insecure_channel(address, list(options.items()))
        super().__init__(self._own, node=node, variant=Variant.SOTW, timeout=PATIENCE)

    async def __aenter__(self) -> Self:
        await self._own.channel_ready()
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        await self._own.close()

    @property
    def cluster_names(self) -> list[set[str]]:
        """Names in each response with clusters."""
        return [{each.name for each in resources} for resources in self._received(CLUSTER)]

    def seen(self, cluster: str) -> list[dict[str, bool]]:
        """Return each received assignment: the endpoints' addresses, and whether they get mutual TLS."""
        return [
            modes(each.body)
            for resources in self._received(ENDPOINT)
            for each in resources
            if each.name == cluster
        ]

    async def until(self, cluster: str, addresses: set[str], *, mtls: bool = True) -> None:
        """Wait until a cluster has exactly these endpoints, and all of them or none get mutual TLS."""
        wanted = dict.fromkeys(addresses, mtls)
        await self.wait_for(lambda: self.seen(cluster)[-1:] == [wanted], f"{cluster} has {wanted}")

    def _received(self, type_url: str) -> list[tuple[Resource, ...]]:
        return [
            message.resources
            for message in self.conversation.messages
            if isinstance(message, Response) and message.type_url == type_url
        ]


def modes(assignment: bytes) -> dict[str, bool]:
    """Return the addresses of an assignment's endpoints, and whether they get mutual TLS."""
    return {
        endpoint.endpoint.address.socket_address.address: _MATCH in endpoint.metadata.filter_metadata
        for locality in _ASSIGNMENT.FromString(assignment).endpoints
        for endpoint in locality.lb_endpoints
    }


class Cable(TcpServer):
    """A TCP proxy to the API server in an `async with` block, which can cut connections."""

    def __init__(self, target: str, port: int) -> None:
        super().__init__(HERE.listener("127.0.0.1", 0))
        self._target = target, port
        self._left = math.inf
        self.cuts = 0
        """Number of cuts."""

    @property
    def server(self) -> str:
        """URL of the API server through this proxy."""
        return f"https://127.0.0.1:{self.port}"

    def cut_after(self, count: int) -> None:
        """Forward so many bytes from the API server, and then break all connections once."""
        self._left = count

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._pass(reader, onward_writer), self._pass(onward_reader, writer, answers=True)
            )
        finally:
            onward_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with suppress(OSError):
            while some := await reader.read(65536):
                if answers and len(some) > self._left:
                    writer.write(some[: int(self._left)])
                    self._cut()
                    return
                self._left -= len(some) if answers else 0
                writer.write(some)
                await writer.drain()
            writer.write_eof()

    def _cut(self) -> None:
        self._left = math.inf
        self.cuts += 1
        for task in list(self._serving):
            task.cancel()
