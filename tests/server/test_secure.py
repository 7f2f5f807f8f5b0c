"""TLS next to plaintext, authentication, and refused streams, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.protocol.stream import world
from tests.server.proxies import REQUEST, Client, OneForAll
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.protocol.session import Variant
from xds.server import Refused, XdsServer, admission, is_encrypted
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

NOW = datetime.now(UTC)
CA = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
HEALTH = "/grpc.health.v1.Health/Check"
FETCH = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"


class Door:
    """Authenticates callers by a name in the metadata; plaintext callers have none."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, context: grpc.aio.ServicerContext) -> str | None:
        self.asked.set()
        await self.open.wait()
        if not is_encrypted(context):
            return None
        name = dict(context.invocation_metadata()).get("name")
        if name is None:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "say your name")
        return str(name)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def server(proxies, door) -> AsyncIterator[XdsServer]:
    leaf = CA.issue_server(["localhost"], NOW)
    credentials = grpc.ssl_server_credentials([(leaf.key.to_pem(), leaf.chain)])
    secure = [("127.0.0.1:0", credentials)]
    async with XdsServer(proxies, "127.0.0.1:0", grace=0.2, secure=secure, authenticate=door) as server:
        yield server


@asynccontextmanager
async def over_tls(server: XdsServer, name: str = "") -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(CA.root_pem)
    if name:
        named = grpc.metadata_call_credentials(lambda _, give: give((("name", name),), None))
        credentials = grpc.composite_channel_credentials(credentials, named)
    async with grpc.aio.secure_channel(f"localhost:{server.secure_ports[0]}", credentials) as channel:
        yield channel


def fetch(channel: grpc.aio.Channel):
    request = REQUEST()
    request.node.id = "x"
    return channel.unary_unary(FETCH)(request.SerializeToString())


@pytest.mark.parametrize("variant", Variant)
async def test_stream_has_its_authenticated_caller(proxies, server, variant):
    async with over_tls(server, "anne") as channel:
        client = Client(channel, variant)
        await client.ask(CLUSTER)
        assert (await client.get()).type_url == CLUSTER
        assert [stream.caller for stream in proxies.streams] == ["anne"]


async def test_plaintext_serves_streams_without_a_caller(proxies, server, channel):
    client = Client(channel)
    await client.ask(CLUSTER)
    await client.get()
    assert [stream.caller for stream in proxies.streams] == [None]


async def test_unauthenticated_call_fails_before_its_request_is_read(proxies, server):
    async with over_tls(server) as channel:
        client = Client(channel)
        assert await client.end() == (grpc.StatusCode.UNAUTHENTICATED, "say your name")
        with pytest.raises(grpc.aio.AioRpcError, match="say your name"):
            await fetch(channel)
    assert not proxies.streams
    assert server.discovery.failed == {grpc.StatusCode.UNAUTHENTICATED: 2}


async def test_fetch_has_its_authenticated_caller(proxies, server):
    async with over_tls(server, "anne") as channel:
        await fetch(channel)
    assert [stream.caller for stream in proxies.streams] == ["anne"]


async def test_health_answers_all_callers(server):
    async with over_tls(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_unauthenticated_call_without_a_request_fails(server):
    """A request of an unauthenticated caller, up to 32 MiB, must not be in memory."""
    async with over_tls(server) as channel:
        call = channel.stream_unary(FETCH)()
        assert (await call.code(), await call.details()) == (grpc.StatusCode.UNAUTHENTICATED, "say your name")


async def test_fetch_without_a_request_fails_or_times_out(server, channel, monkeypatch):
    for method in (FETCH, HEALTH):
        call = channel.stream_unary(method)()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    monkeypatch.setattr(admission, "FIRST_REQUEST_TIMEOUT", 0.1)
    assert await channel.stream_unary(HEALTH)().code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_health_over_tls_ignores_the_request(server):
    async with over_tls(server) as channel:
        answer = await channel.stream_unary(HEALTH)()
        assert (
            answer
            == health_pb2.HealthCheckResponse(
                status=health_pb2.HealthCheckResponse.SERVING
            ).SerializeToString()
        )
        with pytest.raises(grpc.aio.AioRpcError, match="use Check or Watch"):
            await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())


async def test_pending_authentication_does_not_delay_shutdown(server, door):
    door.open.clear()
    async with over_tls(server, "anne") as channel:
        client = Client(channel)
        await door.asked.wait()
        await server.stop()
        assert (await client.end())[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("variant", Variant)
async def test_refused_stream_ends_with_the_reason(proxies, server, channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.get()
    [subscriber] = proxies.subscribers
    subscriber.refuse(grpc.StatusCode.PERMISSION_DENIED, "your pod is gone")
    subscriber.refuse(grpc.StatusCode.UNAVAILABLE, "another reason")
    proxies.publish(world(CDS="a=2"))
    assert await client.end() == (grpc.StatusCode.PERMISSION_DENIED, "your pod is gone")
    await proxies.left.get()


async def test_refused_stream_ends_if_its_client_does_not_read(proxies, server, channel):
    client = Client(channel)
    body = bytes(16 * 1024 * 1024)
    proxies.publish(Snapshot({CLUSTER: ResourceSet([Resource.of(CLUSTER, "large", body)])}))
    await client.ask(CLUSTER)
    while not [stream for stream in server.discovery.streams if stream._is_writing]:
        await asyncio.sleep(0.01)
    proxies.subscribers[0].refuse(grpc.StatusCode.PERMISSION_DENIED, "your pod is gone")
    async with asyncio.timeout(30):
        await proxies.left.get()
    assert server.discovery.failed == {grpc.StatusCode.PERMISSION_DENIED: 1}


async def test_refused_fetch_ends_with_the_reason(proxies, server, channel):
    proxies.snapshot = None
    call = fetch(channel)
    while not proxies.subscribers:
        await asyncio.sleep(0)
    proxies.subscribers[0].refuse(grpc.StatusCode.PERMISSION_DENIED, "your pod is gone")
    with pytest.raises(grpc.aio.AioRpcError, match="your pod is gone"):
        await call


class Picky(OneForAll):
    """A `Proxies` that refuses subscriptions to assignments."""

    def observe(self, subscriber, event):
        if event.type_url == ENDPOINT:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "not these")


@pytest.mark.parametrize("variant", Variant)
async def test_forbidden_subscription_ends_the_stream(variant):
    proxies = Picky(world(CDS="a=1"))
    async with (
        XdsServer(proxies, "127.0.0.1:0", grace=0.2) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        client = Client(channel, variant)
        await client.ask(CLUSTER)
        await client.get()
        await client.ask(ENDPOINT, "a")
        assert await client.end() == (grpc.StatusCode.PERMISSION_DENIED, "not these")
        at_once = Client(channel, variant)
        await at_once.ask(ENDPOINT, "a")
        assert await at_once.end() == (grpc.StatusCode.PERMISSION_DENIED, "not these")
    assert not proxies.subscribers
