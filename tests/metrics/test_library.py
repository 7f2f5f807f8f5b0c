"""Metrics and status for a server of the library, without a mesh."""

from __future__ import annotations

import asyncio
import re
import time

import grpc.aio
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from tests.server.proxies import Client
from xds.cli import app
from xds.introspect import Introspection
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.protocol.session import Variant
from xds.server import XdsServer
from xds.server.metrics import StreamMetrics
from xds.snapshot import RUNTIME, Resource
from xds.store import Acked, Store


async def test_store_has_metrics_and_status():
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
            _, line, *_ = result.stdout.splitlines()
            assert line.split()[:2] == ["edge-1", "-"]
            assert re.search(r"RTDS waiting \d+s for an ACK$", line)
    finally:
        await server.stop()


def test_scrape_selects_counters_by_name():
    registry = CollectorRegistry()
    StreamMetrics(registry)
    selected = generate_latest(registry.restricted_registry(["xds_pushes_total"])).decode()
    assert 'xds_pushes_total{type="cds"} 0.0' in selected
    assert "xds_nacks_total" not in selected


async def test_time_from_change_to_ack_is_measured():
    """The time runs from the call to the ACK. An initial response is not a change."""
    registry = CollectorRegistry()
    store = Store()
    store.set(Resource.of(RUNTIME, "layer", b""))
    events = store.events()

    def measured() -> dict[str, float | None]:
        return {
            what: registry.get_sample_value(f"xds_change_to_ack_seconds_{what}", {"type": "rtds"})
            for what in ("count", "sum")
        }

    async with (
        XdsServer(store, "127.0.0.1:0", grace=0.2, observer=StreamMetrics(registry)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        client = Client(channel, Variant.DELTA, node="edge-1")
        await client.ask(RUNTIME, "layer")
        for changed in (False, True):
            before = time.monotonic()
            if changed:
                store.set(Resource.of(RUNTIME, "layer", b"\n\x05layer"))
            await client.ask(RUNTIME, nonce=(await client.get()).nonce)
            while not isinstance((await anext(events))[1], Acked):
                pass
            await asyncio.sleep(0)  # The observer runs in the same turn as the store.
            if not changed:
                assert measured() == {"count": 0, "sum": 0}
    assert measured()["count"] == 1
    assert 0 < measured()["sum"] < time.monotonic() - before
