"""Failures on the transport: limits, malformed requests, internal errors, lost connections and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.protocol.stream import world
from tests.server.proxies import DELTA_REQUEST, REQUEST, Client, OneForAll, served
from xds.protocol.limits import RequestError
from xds.protocol.session import Session, Variant
from xds.server import ADS, OPTIONS, DiscoveryService, Refused, XdsServer, discovery
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, Resource, ResourceSet, Snapshot

MIB = 1 << 20
EDS = "/envoy.service.endpoint.v3.EndpointDiscoveryService"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
NARROW = (("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0))


@pytest.fixture
async def server(proxies) -> AsyncIterator[XdsServer]:
    server = XdsServer(proxies, "127.0.0.1:0", grace=0.5)
    await server.start()
    yield server
    await server.stop()


def sized(type_url: str, count: int, size: int) -> Snapshot:
    resources = (Resource.of(type_url, f"r{number}", bytes(size), version="1") for number in range(count))
    return Snapshot({type_url: ResourceSet(resources)})


async def good(proxies: OneForAll, channel: grpc.aio.Channel, node: str = "node") -> Client:
    """Open a working stream on the same connection."""
    client = Client(channel, node=node)
    await client.ask(CLUSTER)
    await client.get()
    return client


async def goes_on(proxies: OneForAll, client: Client) -> None:
    proxies.publish(world(CDS="a=other"))
    assert b"a=other" in (await asyncio.wait_for(client.get(), 30)).SerializeToString()


# --- message sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5 * MIB, 7 * MIB])
async def test_r57_large_requests_are_accepted(proxies, channel, variant, size):
    proxies.publish(world(EDS="x=1"))
    names = [f"{number:0>1000}" for number in range(size // 1000)]
    client = Client(channel, variant)
    await client.ask(ENDPOINT, *names, "x")
    assert b"x=1" in (await client.get()).SerializeToString()


async def test_r57_request_beyond_the_limit_ends_its_stream_only(proxies, channel, variant):
    other = await good(proxies, channel)
    client = Client(channel, variant)
    await client.ask(ENDPOINT, "x" * (9 * MIB))
    assert (await asyncio.wait_for(client.end(), 30))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    await goes_on(proxies, other)
    assert len(proxies.subscribers) == 1


async def test_r58_large_responses_are_split(proxies, channel, variant):
    proxies.publish(sized(ENDPOINT, 1000, 10_000))
    client = Client(channel, variant)
    await client.ask(ENDPOINT, *(f"r{number}" for number in range(1000)))
    responses = []
    while sum(len(response.resources) for response in responses) < 1000:
        responses.append(await client.get())
    assert len({response.nonce for response in responses}) == len(responses) == 4
    assert max(response.ByteSize() for response in responses) < 3 * MIB


async def test_r58_large_sotw_response_is_warned_of_once(proxies, server):
    proxies.publish(sized(CLUSTER, 500, 10_000))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=UNLIMITED) as channel:
        with capture_logs() as logs:
            client = Client(channel)
            await client.ask(CLUSTER)
            response = await client.get()
            proxies.publish(sized(CLUSTER, 501, 10_000))
            await client.get()
    assert len(response.resources) == 500
    (line,) = (line for line in logs if line["log_level"] == "warning")
    assert line["event"] == "response may be too large for the proxy"
    assert line["type"] == "Cluster"
    assert (line["bytes"], line["limit"]) == (response.ByteSize(), 4 * MIB)
    assert "delta" in line["hint"]


# --- malformed requests -------------------------------------------------------------------------------------

NODE = {"id": "proxy"}


@pytest.mark.parametrize(
    ("method", "request_", "problem"),
    [
        (f"/{ADS}/StreamAggregatedResources", b"\xff\xff", "not a protobuf message"),
        (f"/{ADS}/DeltaAggregatedResources", b"\xff\xff", "not a protobuf message"),
        (f"{EDS}/StreamEndpoints", b"\x0a\xff", "not a protobuf message"),
        (f"/{ADS}/StreamAggregatedResources", REQUEST(type_url=CLUSTER), "node.id"),
        (f"/{ADS}/DeltaAggregatedResources", DELTA_REQUEST(type_url=CLUSTER, node={}), "node.id"),
        (f"{EDS}/DeltaEndpoints", DELTA_REQUEST(), "node.id"),
        (f"/{ADS}/StreamAggregatedResources", REQUEST(node=NODE), "type_url"),
        (f"/{ADS}/DeltaAggregatedResources", DELTA_REQUEST(node=NODE), "type_url"),
        (f"{EDS}/StreamEndpoints", REQUEST(node=NODE, type_url=CLUSTER), "ClusterLoadAssignment only"),
        (f"{EDS}/DeltaEndpoints", DELTA_REQUEST(node=NODE, type_url=CLUSTER), "ClusterLoadAssignment only"),
    ],
)
async def test_r60_malformed_request_ends_its_stream_only(proxies, channel, method, request_, problem):
    other = await good(proxies, channel)
    bad = Client(channel, method=method)
    await bad.call.write(request_ if isinstance(request_, bytes) else request_.SerializeToString())
    code, details = await bad.end()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert problem in details
    assert len(proxies.streams) == 1
    await goes_on(proxies, other)


# --- internal errors ----------------------------------------------------------------------------------------


class Failing:
    """An Observer that fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __getattr__(self, name: str):
        def observe(*_: object) -> None:
            if name == self._where:
                raise ZeroDivisionError(name)

        return observe


def fail(*_: object) -> None:
    raise ZeroDivisionError


async def ends_with_internal(proxies: OneForAll, channel: grpc.aio.Channel, variant: Variant) -> None:
    with capture_logs() as logs:
        client = Client(channel, variant)
        await client.ask(CLUSTER)
        code, details = await asyncio.wait_for(client.end(), 30)
    assert (code, details) == (grpc.StatusCode.INTERNAL, "internal error; see the server's log")
    (line,) = (line for line in logs if line["log_level"] == "error")
    assert "ZeroDivisionError" in line["stack"]
    assert "exc_info" not in line
    assert proxies.subscribers == []


@pytest.mark.parametrize("what", ["connect", "observe"])
async def test_error_in_proxies_ends_the_stream(proxies, server, channel, variant, what, monkeypatch):
    other = await good(proxies, channel)
    subscribers, proxies.subscribers = proxies.subscribers, []
    with monkeypatch.context() as patch:
        patch.setattr(proxies, what, fail)
        await ends_with_internal(proxies, channel, variant)
    assert len(server.discovery.streams) == 1
    proxies.subscribers = subscribers
    await goes_on(proxies, other)


async def test_error_in_disconnect_is_reported(proxies, server, channel, monkeypatch):
    monkeypatch.setattr(proxies, "disconnect", fail)
    client = await good(proxies, channel)
    with capture_logs() as logs:
        await client.call.done_writing()
        assert (await client.end())[0] == grpc.StatusCode.INTERNAL
    (line,) = (line for line in logs if line["log_level"] == "error")
    assert "ZeroDivisionError" in line["stack"]
    assert not server.discovery.streams


@pytest.mark.parametrize("where", ["opened", "sent", "received"])
async def test_error_in_the_observer_ends_the_stream(proxies, variant, where):
    server = XdsServer(proxies, "127.0.0.1:0", observer=Failing(where))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await ends_with_internal(proxies, channel, variant)
    assert not server.discovery.streams
    await server.stop()


@pytest.mark.parametrize("what", ["serve", "next", "receive"])
async def test_error_in_the_session_ends_the_stream(proxies, channel, variant, what, monkeypatch):
    monkeypatch.setattr(Session, what, fail)
    await ends_with_internal(proxies, channel, variant)


@pytest.mark.parametrize("error", [RequestError("no"), ZeroDivisionError()], ids=["theirs", "ours"])
async def test_failed_stream_ends_if_its_client_does_not_read(proxies, server, monkeypatch, error):
    receive = Session.receive

    def fail_later(session: Session, message: bytes, now: float):
        if session.node:
            raise error
        return receive(session, message, now)

    monkeypatch.setattr(Session, "receive", fail_later)
    proxies.publish(sized(CLUSTER, 1, 20 * MIB))
    options = (*NARROW, ("grpc.max_receive_message_length", -1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        client = Client(channel)
        await client.ask(CLUSTER)
        async with asyncio.timeout(30):
            while not any(stream._is_writing for stream in server.discovery.streams):
                await asyncio.sleep(0.001)
            await client.ask(CLUSTER)
            await proxies.left.get()
        assert not server.discovery.streams


async def test_client_lost_during_a_write_is_no_error(proxies, server, caplog):
    proxies.publish(sized(CLUSTER, 1, 20 * MIB))
    with capture_logs() as logs:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NARROW) as channel:
            await Client(channel).ask(CLUSTER)
            while not any(stream._is_writing for stream in server.discovery.streams):
                await asyncio.sleep(0.001)
        await asyncio.wait_for(proxies.left.get(), 30)
        await server.stop()
    levels = {line["event"]: line["log_level"] for line in logs}
    assert levels.pop("response may be too large for the proxy") == "warning"
    assert levels["proxy disconnected"] == "info"
    assert set(levels.values()) == {"info"}
    assert caplog.records == []


# --- ends of connections and streams ------------------------------------------------------------------------


async def test_r59_stream_before_readiness_is_unavailable(proxies, channel, variant):
    proxies.refusal = Refused(grpc.StatusCode.UNAVAILABLE, "not ready")
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    assert await client.end() == (grpc.StatusCode.UNAVAILABLE, "not ready")


async def test_r55_connection_ends_at_its_maximum_age(proxies, variant):
    grace = (("grpc.max_connection_age_grace_ms", 100),)
    server = XdsServer(proxies, "127.0.0.1:0", max_connection_age=0.3, options=grace)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for _ in range(2):
            client = await served(channel, variant)
            assert await client.end() == (grpc.StatusCode.UNAVAILABLE, "max connection age")
            await proxies.left.get()
    await server.stop()


async def test_r55_maximum_age_of_connections_varies(proxies):
    age = 4.0
    server = XdsServer(
        proxies,
        "127.0.0.1:0",
        max_connection_age=age,
        options=(("grpc.max_connection_age_grace_ms", 50),),
        grace=0.2,
    )
    await server.start()

    async def lives(node: str) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=UNLIMITED) as channel:
            await (await good(proxies, channel, node)).end()
        return loop.time() - began

    ages = await asyncio.gather(*(lives(f"node{number}") for number in range(20)))
    # A busy machine makes the intervals longer, and nothing makes them shorter.
    assert 0.85 * age < min(ages) < 3 * age
    assert max(ages) - min(ages) > age / 50
    await server.stop()


async def test_r55_shutdown_ends_streams_one_after_the_other(proxies, monkeypatch):
    monkeypatch.setattr(discovery, "_MAX_DRAIN_INTERVAL", 0.05)
    left = []
    disconnect = proxies.disconnect

    def note(subscriber: object) -> None:
        disconnect(subscriber)
        left.append(asyncio.get_running_loop().time())

    proxies.disconnect = note
    server = XdsServer(proxies, "127.0.0.1:0", grace=60)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        clients = [await good(proxies, channel, f"node{number}") for number in range(20)]
        await server.stop()
        assert [await client.end() for client in clients] == [
            (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        ] * 20
    assert len(left) == 20
    # It takes 0.95 s, and nothing delays the first stream as much as a whole busy second would.
    assert 0.15 < left[-1] - left[0] < 30


async def test_r56_streams_of_a_connection_are_limited(proxies):
    options = (("grpc.max_concurrent_streams", 300),)
    async with (
        XdsServer(proxies, "127.0.0.1:0", options=options) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        clients = [Client(channel, node=f"node{number}") for number in range(300)]
        for client in clients:
            await client.ask(CLUSTER)
        for client in clients:
            assert (await client.get()).type_url == CLUSTER


async def test_discovery_service_can_be_drained(proxies):
    service = DiscoveryService(proxies)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(service.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = await good(proxies, channel)
        await service.drain(grace=5)
        assert not service.streams
        assert (await client.end())[0] == grpc.StatusCode.UNAVAILABLE
        method = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
            await channel.unary_unary(method)(REQUEST(node=NODE).SerializeToString())
    await server.stop(None)


async def test_interceptors_see_all_calls_and_health_can_be_left_out(proxies):
    calls = []

    class Recorder(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            calls.append(details.method)
            return await continuation(details)

    async with (
        XdsServer(proxies, "127.0.0.1:0", interceptors=[Recorder()], health=False) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        client = Client(channel, Variant.DELTA)
        await client.ask(CLUSTER)
        await client.get()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        client.call.cancel()
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [method.rpartition("/")[2] for method in calls] == ["DeltaAggregatedResources", "Check"]


async def test_options_override_the_defaults(proxies):
    server = XdsServer(proxies, "127.0.0.1:0", options=(("grpc.max_receive_message_length", 1000),))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        await client.ask(LISTENER, "x" * 1000)
        assert (await client.end())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop()
