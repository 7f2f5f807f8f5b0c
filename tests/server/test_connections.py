"""Limits of unproven connections, of health watches, and of connections in total."""

from __future__ import annotations

import asyncio
import resource
import struct
import sys

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.protocol.stream import world
from tests.server.proxies import Client
from tests.support import http2_frames as http2
from xds.server import Refused, XdsServer, connections, discovery, listening
from xds.server.proxies import peer_address
from xds.server.token_bucket import TokenBucket
from xds.snapshot import CLUSTER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of connections need Linux")

WATCH = "/grpc.health.v1.Health/Watch"
OWN = "/mine/Ask"
LATE = 30


async def refuse(_: object) -> None:
    raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no")


async def connected(server: XdsServer) -> http2.Peer:
    return await http2.connect(("127.0.0.1", server.port))


async def ask(peer: http2.Peer, path: str, body: bytes = b"") -> None:
    """Make a call, and wait for its end."""
    stream = peer.open(path, body)
    async with asyncio.timeout(LATE):
        while stream not in peer.ended:
            peer.received.clear()
            await peer.received.wait()


async def test_token_bucket_empties_and_refills():
    budget = TokenBucket(2, 10)
    assert [budget.take(5.0) for _ in range(3)] == [True, True, False]
    assert not budget.take(5.05)
    assert budget.take(5.11)
    assert not budget.take(5.11)
    assert [budget.take(100.0) for _ in range(3)] == [True, True, False]


def flood(peer: http2.Peer) -> None:
    """Send 20 kB that open no call."""
    for _ in range(20):
        peer.send(http2.frame(77, 0, 0, bytes(1000)))


async def test_unproven_connection_that_sends_too_much_is_ended(proxies, monkeypatch):
    monkeypatch.setattr(connections, "MAX_UNPROVEN_BYTES", 10_000)
    async with XdsServer(proxies, "127.0.0.1:0") as server:
        proven, lost, idle = [await connected(server) for _ in range(3)]
        await ask(proven, "/grpc.health.v1.Health/Check", http2.message(0))
        await ask(lost, "/no.such/Method")
        flood(proven)
        flood(lost)
        async with asyncio.timeout(LATE):
            await lost.closed.wait()
        await ask(proven, "/grpc.health.v1.Health/Check", http2.message(0))
        assert not idle.closed.is_set()
        assert server.discovery.connections.ended["too many bytes without proof"] == 1
        for peer in (proven, idle):
            peer.close()


@pytest.mark.parametrize("kind", ["coroutine", "generator", "thread"])
async def test_calls_of_added_services_count_as_proof(proxies, monkeypatch, kind):
    monkeypatch.setattr(connections, "MAX_UNPROVEN_BYTES", 10_000)

    async def coroutine(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return request

    async def generator(request: bytes, _: grpc.aio.ServicerContext):
        yield request

    def thread(request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    behaviours = {
        "coroutine": grpc.unary_unary_rpc_method_handler(coroutine),
        "generator": grpc.unary_stream_rpc_method_handler(generator),
        "thread": grpc.unary_unary_rpc_method_handler(thread),
    }
    mine = grpc.method_handlers_generic_handler("mine", {"Ask": behaviours[kind]})

    def add(server: grpc.aio.Server, _: object) -> None:
        server.add_generic_rpc_handlers((mine,))

    async with XdsServer(proxies, "127.0.0.1:0", added=[add], authenticate=refuse) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            if kind == "generator":
                assert [response async for response in channel.unary_stream(OWN)(b"x")] == [b"x"]
            else:
                assert await channel.unary_unary(OWN)(b"x") == b"x"
        known, lost = await connected(server), await connected(server)
        await ask(known, OWN, http2.message(1))
        flood(known)
        flood(lost)
        async with asyncio.timeout(LATE):
            await lost.closed.wait()
        await ask(known, OWN, http2.message(1))
        known.close()


async def test_connections_are_limited_in_total(proxies):
    options = (("grpc.max_allowed_incoming_connections", 3),)
    async with XdsServer(proxies, "127.0.0.1:0", options=options) as server:
        peers = [await connected(server) for _ in range(6)]
        async with asyncio.timeout(LATE):
            while sum(peer.closed.is_set() for peer in peers) < 3:
                await asyncio.sleep(0.02)
        for peer in peers:
            peer.close()


@pytest.mark.parametrize(
    ("files", "connections_"),
    [(1024, 512), (4096, 3072), (1_000_000, 30_000), (resource.RLIM_INFINITY, 30_000)],
)
def test_connection_limit_reserves_open_files(monkeypatch, files, connections_):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert listening.max_connections() == connections_


async def test_health_watcher_that_does_not_read_cannot_delay_stop(proxies):
    proxies.publish(world(CDS="a=1"))
    server = XdsServer(proxies, "127.0.0.1:0", grace=0.2)
    await server.start()
    no_window = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, struct.pack("!HI", 4, 0))
    peer = await http2.connect(("127.0.0.1", server.port), preface=no_window)
    peer.open(WATCH, http2.message(0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        await client.ask(CLUSTER)
        await client.get()
        async with asyncio.timeout(LATE):
            await server.stop()
    peer.close()


async def test_health_watches_are_limited(proxies, monkeypatch):
    monkeypatch.setattr(listening, "MAX_WATCHES", 2)
    async with (
        XdsServer(proxies, "127.0.0.1:0", grace=0.1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="longer than 1000 characters"):
            await stub.Watch(health_pb2.HealthCheckRequest(service="x" * 1001)).read()
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError, match="2 watches are open"):
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        watches[0].cancel()
        async with asyncio.timeout(LATE):
            while server._health._watches == 2:
                await asyncio.sleep(0.02)
        await stub.Watch(health_pb2.HealthCheckRequest()).read()


async def test_calls_without_a_request_are_limited(proxies, server, channel, monkeypatch):
    proxies.publish(world(CDS="a=1"))
    monkeypatch.setattr(discovery, "MAX_PENDING_CALLS", 2)
    silent = [Client(channel) for _ in range(2)]
    async with asyncio.timeout(LATE):
        while len(server.discovery._pending) < 2:
            await asyncio.sleep(0.02)
        code, details = await Client(channel).end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "2 calls without a request are open, the maximum: try again later"
        for client in silent:
            await client.ask(CLUSTER)
            await client.get()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4321", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4321", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:4321", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4321", "fe80::1"),
        ("unix:/run/xds.sock", "None"),
        ("", "None"),
    ],
)
def test_peer_address(peer: str, address: str):
    assert str(peer_address(peer)) == address
