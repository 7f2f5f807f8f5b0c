"""Probes, sent from the node's address as kubelet does."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.clients import Client
from tests.support.places import HERE, Namespace
from tests.support.tcp import Relay
from xds.mesh.kube.api import Json

_SOONER = 0.2
"""Seconds between probes until the first success. Kubelet waits a whole period, too long for tests."""


class Probe:
    """A probe of a container, whose pod has `address`."""

    def __init__(self, asked: Json, container: Json, address: str, node: Namespace) -> None:
        self._asked, self._container, self._address = asked, container, address
        self._client = Client(node)
        self._timeout = float(asked.get("timeoutSeconds", 1))
        self._period = float(asked.get("periodSeconds", 10))
        self._failures = 0
        self._failed_at = -math.inf
        self.succeeded = False
        """Whether it has succeeded, and not failed since as often as its threshold."""

    async def ask(self) -> bool:
        """Probe once, and return whether the container passes."""
        if await self._answered():
            self._failures = 0
            self.succeeded = True
        elif (now := time.monotonic()) - self._failed_at >= self._period:
            # Several failures within a period count once.
            self._failed_at = now
            self._failures += 1
            self.succeeded = self.succeeded and not self.failed
        return self.succeeded

    @property
    def failed(self) -> bool:
        """Whether it failed as often as its threshold."""
        return self._failures >= int(self._asked.get("failureThreshold", 3))

    async def delay(self) -> None:
        """Wait before the first probe."""
        await asyncio.sleep(self._asked.get("initialDelaySeconds", 0))

    async def period(self) -> None:
        """Wait for the next probe."""
        await asyncio.sleep(self._period if self.succeeded else min(self._period, _SOONER))

    async def _answered(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                match self._asked:
                    case {"httpGet": how}:
                        return await self._http(how)
                    case {"tcpSocket": how}:
                        (await self._connect(how["port"])).close()
                        return True
                    case {"grpc": how}:
                        return await self._grpc(how)
        except (OSError, TimeoutError, aiohttp.ClientError, grpc.RpcError):
            return False
        raise NotImplementedError(f"the test's node agent knows no probe {self._asked}")

    async def _http(self, how: Json) -> bool:
        host = how.get("host", self._address)
        scheme, path = how.get("scheme", "HTTP").lower(), how.get("path", "/")
        url = f"{scheme}://{host}:{self._port(how['port'])}/{path.removeprefix('/')}"
        headers = {"user-agent": "kube-probe/1", "connection": "close"}
        headers |= {header["name"]: header["value"] for header in how.get("httpHeaders", ())}
        async with (
            self._client.session() as session,
            session.get(url, headers=headers, ssl=scheme != "https", allow_redirects=False) as response,
        ):
            return 200 <= response.status < 400

    async def _grpc(self, how: Json) -> bool:
        # gRPC creates its own sockets, so it connects through a relay in the node's namespace.
        relay = Relay(HERE.listener("127.0.0.1", 0), lambda: self._connect(how["port"]))
        async with relay, grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel:
            request = health_pb2.HealthCheckRequest(service=how.get("service") or "")
            answer = await health_pb2_grpc.HealthStub(channel).Check(request)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _connect(self, port: int | str) -> Any:
        return await self._client.connect(self._address, self._port(port))

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        named = {item.get("name"): item["containerPort"] for item in self._container.get("ports", ())}
        return int(named.get(port) or port)
