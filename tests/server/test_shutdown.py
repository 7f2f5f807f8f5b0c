"""Shutdown of servers, and streams without a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from tests.protocol.stream import world
from tests.server.proxies import Client, served
from xds.server import XdsServer, discovery
from xds.snapshot import CLUSTER


@pytest.fixture
async def server(proxies) -> AsyncIterator[XdsServer]:
    server = XdsServer(proxies, "127.0.0.1:0", grace=60)
    await server.start()
    yield server
    await server.stop()


async def silent(server: XdsServer, channel: grpc.aio.Channel) -> Client:
    """Open a stream whose client sends nothing."""
    client = Client(channel)
    async with asyncio.timeout(30):
        await client.call.wait_for_connection()
        while not server.discovery._pending:
            await asyncio.sleep(0.001)
    return client


async def test_stream_without_a_request_times_out(proxies, server, channel, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REQUEST_TIMEOUT", 0.05)
    with capture_logs() as logs:
        code, details = await asyncio.wait_for(Client(channel).end(), 30)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert details == "no request arrived within 0.05 s; send one when the stream opens"
    assert [line["event"] for line in logs] == ["call timed out without a request"]
    assert server.discovery.failed[grpc.StatusCode.DEADLINE_EXCEEDED] == 1
    assert not server.discovery._pending
    assert proxies.streams == []


async def test_stream_with_a_request_in_time_continues(proxies, server, channel, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REQUEST_TIMEOUT", 0.2)
    client = await served(channel)
    await asyncio.sleep(0.4)
    proxies.publish(world(CDS="a=2"))
    assert b"a=2" in (await asyncio.wait_for(client.get(), 30)).SerializeToString()
    assert not server.discovery._pending


@pytest.mark.parametrize("how", ["stop", "drain"])
async def test_stream_without_a_request_does_not_delay_shutdown(server, channel, how):
    client = await silent(server, channel)
    async with asyncio.timeout(20):  # a third of the grace
        if how == "stop":
            server.discovery.stop()
        else:
            await server.discovery.drain(grace=60)
        assert await client.end() == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        await server.stop()


async def test_server_starts_only_once(proxies, server):
    with pytest.raises(RuntimeError, match="already started"):
        await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        await client.ask(CLUSTER)
        await client.get()
    await server.stop()
    with pytest.raises(RuntimeError, match="create a new XdsServer"):
        await server.start()


async def test_server_may_retry_a_failed_start(proxies, server):
    other = XdsServer(proxies, f"127.0.0.1:{server.port}")
    await other.stop()
    with pytest.raises(RuntimeError, match=r"cannot listen on .*: "):
        await other.start()
    await server.stop()
    async with other, grpc.aio.insecure_channel(f"127.0.0.1:{other.port}") as channel:
        client = Client(channel)
        await client.ask(CLUSTER)
        await client.get()
