"""Unauthenticated callers of the gRPC ports cause only small, constant costs."""

from __future__ import annotations

import asyncio
import resource
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from typing import Self

import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2

from tests.hostile.harness import FETCH_CLUSTERS, MIB, Cost, Target, _descriptors, _fetch
from tests.support import http2_frames as http2
from xds.introspect import csds, reflection
from xds.mesh.identity.state_dir import roots
from xds.server.services import SERVICES

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
METHODS = [
    *(
        f"/{name}/{method}"
        for name, service in SERVICES.items()
        for method in (service.stream, service.delta, service.fetch)
        if method
    ),
    *(
        f"/{service.full_name}/{method.name}"
        for file in (health_pb2.DESCRIPTOR, channelz_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    ),
    f"/{reflection.V1}/ServerReflectionInfo",
    f"/{reflection.V1ALPHA}/ServerReflectionInfo",
    f"/{csds.SERVICE}/FetchClientStatus",
    f"/{csds.SERVICE}/StreamClientStatus",
    *(
        f"/xds.mesh.v1.{service}/{method}"
        for service in ("Proxies", "Rollouts")
        for method in ("List", "Watch")
    ),
    "/xds.mesh.v1.Policies/Explain",
    "/xds.mesh.v1.Reports/Create",
    "/no.such.Service/Method",
]
"""Methods served over TLS, and methods that are not."""

NEVER = 60.0
"""Timeout in seconds, several times the expected duration on a slow machine."""


@pytest.fixture(autouse=True)
def files():
    """Raise the limit of open files for one connection per attacker."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
async def target(tmp_path) -> AsyncIterator[Target]:
    async with Target(tmp_path) as target:
        yield target


class Attackers:
    """Connections from several addresses to the TLS port, which are closed at the end."""

    def __init__(self, target: Target) -> None:
        self.tls = http2.trust(roots(target.state))
        self.peers: list[http2.Peer] = []
        self._target = target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.close()

    async def connect(self, source: int = 2, *, tls: bool = True, preface: bytes | None = None) -> http2.Peer:
        """Connect from 127.0.0.`source`. Without TLS, send the preface only."""
        context: ssl.SSLContext | None = self.tls if tls else None
        peer = await http2.connect(
            ("127.0.0.1", self._target.tls_port),
            tls=context,
            source=f"127.0.0.{source}",
            preface=http2.OPENING if preface is None else preface,
        )
        self.peers.append(peer)
        return peer

    async def each(self, attack: Callable[[http2.Peer], Awaitable[None]], sources: range) -> None:
        """Connect from each of these addresses, and attack from all at the same time."""
        peers = [await self.connect(source) for source in sources]
        await asyncio.gather(*(attack(peer) for peer in peers))

    async def gone(self, but: int = 0) -> None:
        """Wait until at most `but` connections are open."""
        async with asyncio.timeout(NEVER):
            while sum(not peer.closed.is_set() for peer in self.peers) > but:
                await asyncio.sleep(0.05)


async def ended(peer: http2.Peer, streams: Collection[int]) -> None:
    """Wait until the server has ended these streams."""
    async with asyncio.timeout(NEVER):
        while not peer.closed.is_set() and not peer.ended.issuperset(streams):
            peer.received.clear()
            await peer.received.wait()


def assert_undisturbed(cost: Cost) -> None:
    """Check that the honest sidecar was served."""
    assert not cost.failures
    assert cost.served
    assert cost.slowest < 15


async def test_large_requests_for_health_are_not_read(target):
    async def attack(peer: http2.Peer) -> None:
        streams = []
        for _ in range(50):
            streams.append(peer.open(WATCH, http2.message(MIB)))
            await peer.writable.wait()
        await ended(peer, streams)

    async with target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, range(2, 22))
    assert_undisturbed(cost)
    assert cost.memory < 128 * MIB  # It was 540 MiB.
    assert cost.log_lines < 30


async def test_streams_of_unauthenticated_callers_end(target):
    async def attack(peer: http2.Peer) -> None:
        streams = [peer.open(method, http2.message(1000)) for method in METHODS]
        await ended(peer, streams)
        assert peer.ended.issuperset(streams)  # Each got its answer, and the connection goes on.

    async with target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, range(2, 6))
    assert_undisturbed(cost)
    assert cost.memory < 64 * MIB


@pytest.mark.parametrize("sources", [range(2, 3), range(2, 22)], ids=["one-address", "20-addresses"])
async def test_calls_that_are_cancelled_at_once_are_limited(target, sources):
    async def attack(peer: http2.Peer) -> None:
        for _ in range(100_000 // len(sources)):
            if peer.closed.is_set():
                return
            peer.cancel(peer.open(CHECK))
            await peer.writable.wait()
            await asyncio.sleep(0)
        await peer.closed.wait()

    async with asyncio.timeout(NEVER), target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, sources)
    assert_undisturbed(cost)
    assert cost.memory < 128 * MIB
    assert cost.log_lines < 30


async def test_calls_with_large_headers_are_limited(target):
    padding = [(f"x-{number}", "x" * 3500) for number in range(2)]

    async def attack(peer: http2.Peer) -> None:
        for _ in range(1_000):
            if peer.closed.is_set():
                return
            peer.open(ADS, extra=padding)
            await peer.writable.wait()
            await asyncio.sleep(0)
        await peer.closed.wait()

    async with asyncio.timeout(NEVER), target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, range(2, 22))
    assert_undisturbed(cost)
    assert cost.memory < 128 * MIB
    assert cost.log_lines < 60


BOMB = b"\x90" * 15_000
"""Headers of one byte each: `accept-encoding`, which is in HPACK's static table."""


@pytest.mark.parametrize("credential", ["", "token"])
async def test_calls_with_many_headers_are_limited(target, credential):
    """gRPC counts only large headers. Each call has 15,000 headers, which use 900 kB."""
    extra = [("authorization", f"Bearer {target.token(pod='web-1')}")] if credential else []
    block = http2.call_headers(ADS, extra) + BOMB

    async def attack(peer: http2.Peer) -> None:
        streams = range(1, 161, 2)  # 80 calls are 1.2 MB.
        for stream in streams:
            peer.send(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block))
        await ended(peer, streams)

    async with target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, range(2, 42))
    assert_undisturbed(cost)
    assert cost.memory < 200 * MIB  # It was 400 MiB, and the slowest request took 2.9 s.


FLOODS = {
    "ping": http2.frame(http2.PING, 0, 0, bytes(8)),
    "settings": http2.frame(http2.SETTINGS, 0, 0, struct.pack("!HI", 3, 100)),
    "window update": http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)),
    "unknown": http2.frame(77, 0, 0, bytes(100)),
}


async def test_floods_of_frames_end_the_connection(target):
    async def attack(peer: http2.Peer, flood: bytes) -> None:
        while not peer.closed.is_set():
            peer.send(flood * 100)
            await peer.writable.wait()
            await asyncio.sleep(0)

    async with target.watched() as cost, Attackers(target) as attackers:
        peers = [(await attackers.connect(source), flood) for source, flood in enumerate(FLOODS.values(), 2)]
        async with asyncio.timeout(NEVER):
            await asyncio.gather(*(attack(*peer) for peer in peers))
    assert_undisturbed(cost)
    assert cost.memory < 64 * MIB
    metrics = await target.metrics()
    assert 'xds_connections_ended_total{reason="too many bytes without proof"}' in metrics
    assert 'xds_connections_ended_total{reason="too many bytes without proof"} 0.0' not in metrics


async def test_idle_connections_end_and_honest_ones_continue(target):
    """Connections after TLS, after half a handshake, and without data: 1,000 in total.

    A quarter of them come from the address of the honest sidecar.
    """
    half = b"\x16\x03\x01\x02\x00\x01"
    before = _descriptors(target.pid)
    async with target.watched() as cost, Attackers(target) as attackers:
        for number in range(1000):
            tls, preface = ((True, http2.OPENING), (False, half), (False, b""))[number % 3]
            await attackers.connect(1 + number % 4, tls=tls, preface=preface)
        async with target.channel(target.token(pod="web-1")) as channel:
            await _fetch(channel, NEVER)
        await attackers.gone()
        async with asyncio.timeout(NEVER):
            while _descriptors(target.pid) > before + 50:
                await asyncio.sleep(0.05)
    assert_undisturbed(cost)
    assert cost.descriptors < 1_100
    assert cost.memory < 128 * MIB
    assert cost.log_lines < 30


async def test_calls_of_a_proven_caller_are_limited_too(target):
    bearer = [("authorization", f"Bearer {target.token(pod='web-1')}")]

    async def attack(peer: http2.Peer) -> None:
        for _ in range(71_000):
            if peer.closed.is_set():
                return
            peer.cancel(peer.open(FETCH_CLUSTERS, extra=bearer))
            await peer.writable.wait()
            await asyncio.sleep(0)

    async with asyncio.timeout(NEVER), target.watched() as cost, Attackers(target) as attackers:
        for _ in range(3):
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await attackers.each(attack, range(2, 3))
    assert_undisturbed(cost)
    assert cost.memory < 128 * MIB


async def test_refusals_are_logged_at_a_limited_rate(target):
    """Refusals from 200 addresses for two reasons each, and connections without TLS."""

    async def attack(peer: http2.Peer) -> None:
        await ended(peer, [peer.open(ADS, extra=[("authorization", f"Bearer {word}")]) for word in ("", "x")])

    async with target.watched() as cost, Attackers(target) as attackers:
        await attackers.each(attack, range(2, 202))
        for _ in range(200):
            await attackers.connect(tls=False, preface=b"GET / HTTP/1.1\r\n\r\n")
        await attackers.gone(but=200)
    assert_undisturbed(cost)
    assert cost.log_lines < 100  # There were 600.


async def test_the_limit_of_open_files_is_raised(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with Target(tmp_path) as target:
            assert resource.prlimit(target.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
