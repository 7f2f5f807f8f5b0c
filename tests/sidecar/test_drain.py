"""A pod's shutdown interrupts no request."""

from __future__ import annotations

import asyncio
import socket

import pytest
import pytest_asyncio

from tests.sidecar.pods import ProxyMesh, ProxyProcess, command
from tests.support.clients import ask
from tests.support.cluster import Cluster
from tests.support.processes import run
from tests.support.tcp import TcpServer
from tests.support.waiting import eventually
from xds.mesh.sidecar.draining import MIN_DRAIN_SECONDS, in_flight

LONGER = MIN_DRAIN_SECONDS + 3
"""Longer than the shortest drain, in seconds."""


class Slow(TcpServer):
    """Answers a request once it may."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener)
        self.may_answer = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await self.may_answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow")


@pytest_asyncio.fixture
async def mesh(tmp_path):
    with Cluster() as cluster:
        async with ProxyMesh(cluster, tmp_path) as mesh:
            mesh.pod("web", "ns")
            mesh.pod("outsider", "outside", sidecar=False)
            mesh.service("web", "ns", {"http-web": (80, 8080), "http-slow": (81, 8081)})
            await mesh.serve(mesh["web.ns"], http=(8080,))
            await mesh.serve(mesh["outsider.outside"], lines=(9000,))
            await mesh.start()
            yield mesh


@pytest.fixture
def sidecar(mesh) -> ProxyProcess:
    process = mesh.sidecar(mesh["web.ns"])
    assert isinstance(process, ProxyProcess)
    return process


@pytest.fixture
def client(mesh):
    return mesh["outsider.outside"].client


@pytest.fixture
def url(mesh) -> str:
    return f"http://{mesh['web.ns'].address}:8080"


@pytest_asyncio.fixture
async def slow(mesh):
    async with Slow(mesh["web.ns"].place.listener("0.0.0.0", 8081)) as app:
        yield app


async def drained(mesh, sidecar: ProxyProcess, seconds: int) -> tuple[int, str, str]:
    """Run the preStop hook."""
    variables = sidecar.environment | {"XDS_DRAIN_SECONDS": str(seconds)}
    return await run(*mesh["web.ns"].place.command(*command(variables, "--drain")), cwd="/")


def slow_url(mesh) -> str:
    return f"http://{mesh['web.ns'].address}:8081/"


async def until_in_flight(sidecar: ProxyProcess) -> None:
    async def is_so() -> bool:
        return in_flight(await sidecar.admin.stats("active$")) > 0

    await eventually(is_so, what="something is in flight")


@pytest.mark.netns
@pytest.mark.envoy
class TestDrain:
    async def test_drain_waits_for_requests_and_closes_connections(self, mesh, sidecar, client, url, slow):
        async with client.session(keep_alive=True) as busy, client.session(keep_alive=True) as idle:
            for session in (busy, idle):
                assert "connection" not in (await ask(session, url)).headers
            asked = asyncio.create_task(client.get(slow_url(mesh), timeout=300))
            await until_in_flight(sidecar)
            hook = asyncio.create_task(drained(mesh, sidecar, 100))

            async def is_closing() -> bool:
                return (await ask(busy, url)).headers.get("connection") == "close"

            await eventually(is_closing, what="a client has to close its connection")
            assert (await client.get(url)).ok, "new connections are still served"
            await asyncio.wait([hook], timeout=LONGER)
            assert not hook.done()
            slow.may_answer.set()
            answer = await asked
            assert await hook == (0, "", "")
            assert await sidecar.terminate() == 0

        assert (answer.code, answer.text) == ("200", "slow")

    async def test_without_drain_requests_are_cut(self, mesh, sidecar, client, slow):
        asked = asyncio.create_task(client.get(slow_url(mesh), timeout=300))
        await until_in_flight(sidecar)

        assert await sidecar.terminate() == 0
        assert (await asked).code == "000"

    async def test_drain_waits_a_limited_time_for_outbound_connections(self, mesh, sidecar):
        other = mesh["outsider.outside"].address
        async with mesh["web.ns"].client.tcp(other, 9000) as conversation:
            assert await conversation.ask("before") == "outsider.outside: before"

            status, out, err = await drained(mesh, sidecar, 7)

            assert (status, out) == (0, "")
            assert err == "xds: 1 connections or requests are still in flight after 7 s\n"
            assert await conversation.ask("after") == "outsider.outside: after"
        # The application can still open connections.
        async with mesh["web.ns"].client.tcp(other, 9000) as conversation:
            assert await conversation.ask("more") == "outsider.outside: more"


def test_in_flight_counts_connections_and_requests():
    stats = {
        "listener.0.0.0.0_15006.downstream_cx_active": 5,
        "listener.0.0.0.0_15006.worker_0.downstream_cx_active": 5,
        "listener.0.0.0.0_15001.downstream_cx_active": 2,
        "listener.admin.downstream_cx_active": 1,
        "listener.admin.main_thread.downstream_cx_active": 1,
        "http.inbound_0.0.0.0_8080.downstream_cx_active": 4,
        "http.inbound_0.0.0.0_8080.downstream_rq_active": 1,
        "http.outbound_80.downstream_cx_active": 1,
        "http.admin.downstream_cx_active": 1,
        "http.admin.downstream_rq_active": 1,
        "http.metrics.downstream_rq_active": 1,
        "cluster.x.upstream_cx_active": 9,
    }
    tcp_connections, requests = 2, 1

    assert in_flight(stats) == tcp_connections + requests
    assert in_flight({}) == 0
