"""A webhook that runs, a client like the API server, and what it asks."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp

from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.inject.webhook import WebhookServer

NAME = "xds.istio-system.svc"
NOW = datetime.now(UTC)
STRICT = {"mtls": {"mode": "STRICT"}}


def authority() -> Authority:
    return Authority.create(PrivateKey.generate(), "cluster.local", NOW)


class Call:
    """A client like the API server: it trusts a caBundle, and verifies the Service's name."""

    def __init__(self, port: int, ca: Authority) -> None:
        self.url = f"https://127.0.0.1:{port}/inject"
        self.ca = ca

    async def __call__(
        self, body: bytes | dict[str, Any], url: str = "", method: str = "POST"
    ) -> tuple[int, Any]:
        tls = ssl.create_default_context(cadata=self.ca.certificate_pem.decode())
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, url or self.url, data=io.BytesIO(data), ssl=tls, server_hostname=NAME
            ) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text


@asynccontextmanager
async def running(server: WebhookServer) -> AsyncIterator[WebhookServer]:
    task = asyncio.create_task(server.run())
    waiting = asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=30)
        assert server.port
        yield server
    finally:
        task.cancel()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await task


def policy(spec: Any = STRICT, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop", "uid": "1", **metadata},
        "spec": spec,
    }


def request(operation: str, new: Any = None, old: Any = None, **fields: Any) -> dict[str, Any]:
    return {"uid": "705ab4f5", "operation": operation, "object": new, "oldObject": old, **fields}
