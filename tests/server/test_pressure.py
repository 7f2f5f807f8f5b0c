"""The server under load: clients that do not read, connect at once, reconnect, or hang."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import tracemalloc
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import structlog

from tests.protocol.stream import world
from tests.server.proxies import Client, OneForAll
from tests.support.processes import started
from tests.support.waiting import eventually
from xds.cli import garbage
from xds.protocol.session import Variant
from xds.server import OPTIONS, XdsServer, discovery
from xds.snapshot import CLUSTER, Resource, ResourceSet, Snapshot

STORM = 3_000
CONNECTS = 3_000
WARM_UP = 1_000
MIB = 1 << 20
NARROW = (("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0))
"""Bytes after which a client that does not consume its data blocks the server by flow control."""
KEEPALIVE = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
PATIENT = (("grpc.server_handshake_timeout_ms", 300_000), ("grpc.max_connection_idle_ms", 300_000))
OWN = (("grpc.use_local_subchannel_pool", 1),)
"""Channel options for a connection that is not shared."""


@pytest.fixture(autouse=True)
def quiet() -> AsyncIterator[None]:
    """Silence the log, as writing thousands of lines would dominate the measurement."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.fixture
async def server(proxies, monkeypatch) -> AsyncIterator[XdsServer]:
    """A server whose timeouts do not end the handshakes and first requests of thousands on a busy machine."""
    monkeypatch.setattr(discovery, "FIRST_REQUEST_TIMEOUT", 300.0)
    server = XdsServer(proxies, "127.0.0.1:0", grace=20, options=PATIENT)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def files() -> AsyncIterator[None]:
    """Raise the limit of open files for one connection per client."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < STORM + 500:
        pytest.skip(f"needs {STORM + 500} open files; the hard limit (ulimit -Hn) is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def crowd(server: XdsServer, what: str, many: int) -> AbstractAsyncContextManager[Process]:
    return started(sys.executable, "-m", "tests.server.crowd", server.port, what, many, stderr=None)


async def said(process: Process, within: float = 300.0) -> int:
    return int(await asyncio.wait_for(process.stdout.readline(), within))


async def everybody_left(proxies: OneForAll) -> None:
    async with asyncio.timeout(120):
        while proxies.subscribers:
            await proxies.left.get()
    while not proxies.left.empty():
        proxies.left.get_nowait()


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def large(version: int) -> Snapshot:
    body = version.to_bytes(4, "big") + bytes(MIB)
    return Snapshot({CLUSTER: ResourceSet([Resource.of(CLUSTER, "a", body, version=str(version))])})


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("files")
async def test_burst_of_streams_is_served_and_gets_the_next_change(proxies, server):
    async with crowd(server, "hold", STORM) as process:
        assert await said(process) == STORM
        assert len(proxies.subscribers) == len(server.discovery.streams) == STORM
        for version in (2, 3):
            proxies.publish(world(CDS=f"a={version}"))
            assert await said(process) == STORM
    await everybody_left(proxies)
    assert not server.discovery.streams


@pytest.mark.timeout(400)
async def test_r61_thousands_of_connects_leak_nothing(proxies, server):
    def left_behind() -> tuple[int, int]:
        return len(asyncio.all_tasks()), len(tuple(Path("/proc/self/fd").iterdir()))

    async def churn(many: int) -> None:
        async with crowd(server, "churn", many) as process:
            assert await said(process) == many
        await everybody_left(proxies)
        assert not server.discovery.streams
        gc.collect()

    await churn(WARM_UP)
    before = left_behind()
    growths: list[int] = []
    # How many streams are open at a time depends on the machine, and so does the peak. A leak never stops.
    while not growths or (growths[-1] >= 8 * MIB and len(growths) < 4):
        memory = resident()
        await churn(CONNECTS)
        # Threads of gRPC close the last sockets, after the first churn as well.
        await eventually(lambda: all(now <= then for now, then in zip(left_behind(), before, strict=True)))
        growths.append(resident() - memory)
    assert growths[-1] < 8 * MIB, growths


@pytest.mark.timeout(400)
async def test_ended_streams_leave_no_old_garbage(proxies, server):
    """Reference counts and collections of young objects free what a stream used: see `xds.cli.garbage`."""

    async def churn(many: int) -> int:
        async with crowd(server, "churn", many) as process:
            assert await said(process) == many
        await everybody_left(proxies)
        proxies.streams.clear()
        gc.collect(1)
        return len(gc.get_objects())

    thresholds = gc.get_threshold()
    await churn(200)
    gc.collect()
    garbage.freeze()
    try:
        before = await churn(200)
        after = await churn(1000)
        # gRPC leaves up to three small objects for each stream. A stream itself has more than fifty.
        assert after < before + 5 * 1000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


async def test_r52_client_that_does_not_read_has_constant_cost(proxies, server):
    proxies.observe = lambda *_: None  # or what was ACKed would be kept
    proxies.publish(large(0))
    address = f"127.0.0.1:{server.port}"
    async with (
        grpc.aio.insecure_channel(address, options=NARROW) as narrow,
        grpc.aio.insecure_channel(address, options=OWN) as channel,
    ):
        stalled, other = Client(narrow, Variant.DELTA), Client(channel, Variant.DELTA)
        for client in (stalled, other):
            await client.ask(CLUSTER)
        nonce = (await other.get()).nonce

        async def change(versions: range) -> None:
            nonlocal nonce
            for version in versions:
                await other.ask(CLUSTER, nonce=nonce)
                proxies.publish(large(version))
                response = await asyncio.wait_for(other.get(), 60)
                assert response.resources[0].version == str(version)
                nonce = response.nonce

        await change(range(1, 11))
        gc.collect()
        memory = resident()
        tracemalloc.start()
        await change(range(11, 311))
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 8 * MIB
        assert resident() < memory + 64 * MIB
        seen = []
        while "310" not in seen:
            seen.append((await stalled.get()).resources[0].version)
        assert len(seen) < 10


async def test_r54_client_that_hangs_is_disconnected(proxies):
    server = XdsServer(
        proxies,
        "127.0.0.1:0",
        options=tuple((name, 2000) for name, _ in OPTIONS if name in KEEPALIVE),
    )
    await server.start()
    try:
        async with crowd(server, "hold", 1) as process:
            assert await said(process) == 1
            process.send_signal(signal.SIGSTOP)
            await asyncio.wait_for(proxies.left.get(), 30)
            assert not server.discovery.streams
    finally:
        await server.stop()


async def test_client_that_never_reads_ends_with_its_connection(proxies):
    server = XdsServer(
        proxies,
        "127.0.0.1:0",
        max_connection_age=1.5,
        options=(("grpc.max_connection_age_grace_ms", 200),),
    )
    await server.start()
    proxies.publish(large(0))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NARROW) as channel:
            client = Client(channel)
            await client.ask(CLUSTER)
            await asyncio.wait_for(proxies.left.get(), 30)
            assert not server.discovery.streams
    finally:
        await server.stop()


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("files")
async def test_r55_shutdown_sends_a_status_to_every_stream(proxies, server):
    many = 1_000
    async with crowd(server, "stay", many) as process:
        assert await said(process) == many
        await server.stop()
        assert await said(process) == many
    assert proxies.subscribers == []
