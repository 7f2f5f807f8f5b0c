"""Metrics and status for a server of the library, without a mesh."""

from __future__ import annotations

import asyncio

import grpc.aio
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from tests.server.proxies import Client
from xds.cli import app
from xds.introspect import Introspection
from xds.introspect.proxies import ProxiesService
from xds.metrics.streams import StreamMetrics
from xds.protocol.session import Variant
from xds.server import XdsServer
from xds.snapshot import RUNTIME, Resource
from xds.store import Store


async def test_a_store_is_counted_and_asked():
    registry = CollectorRegistry()
    store = Store()
    store.set(Resource.of(RUNTIME, "layer", b""))
    server = XdsServer(
        store,
        "127.0.0.1:0",
        grace=0.2,
        observer=StreamMetrics(registry),
        added=[Introspection([ProxiesService()])],
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            client = Client(channel, Variant.DELTA, node="edge-1")
            await client.ask(RUNTIME, "layer")
            await client.get()
            assert registry.get_sample_value("xds_pushes_total", {"type": "rtds"}) == 1
            command = ["status", "--xds-address", f"127.0.0.1:{server.port}"]
            result = await asyncio.to_thread(CliRunner().invoke, app, command, prog_name="xds")
            assert result.exit_code == 1
            _, line = result.stdout.splitlines()
            assert line.split()[:4] == ["edge-1", "RTDS", "0/1", "waiting"]
            assert line.endswith(" for its answer")
    finally:
        await server.stop()
