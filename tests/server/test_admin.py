"""The admin port."""

from __future__ import annotations

import aiohttp
import pytest

from xds.admin import AdminServer


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_the_process_is_healthy_at_once_and_ready_when_it_says_so():
    missing: str | None = "the manifests are being read"
    server = AdminServer(lambda: missing, "127.0.0.1", 0)
    await server.start()
    try:
        assert await get(server.port, "/healthz") == (200, "ok\n")
        assert await get(server.port, "/ready") == (503, "the manifests are being read\n")
        missing = None
        assert await get(server.port, "/ready") == (200, "ready\n")
        assert (await get(server.port, "/other"))[0] == 404
    finally:
        await server.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(server.port, "/healthz")
    await server.stop()


async def test_a_port_that_is_taken_is_an_error():
    first = AdminServer(lambda: None, "127.0.0.1", 0)
    await first.start()
    with pytest.raises(OSError, match="address already in use"):
        await AdminServer(lambda: None, "127.0.0.1", first.port).start()
    await first.stop()
