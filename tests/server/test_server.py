"""The discovery services on a real socket."""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.protocol.stream import world
from tests.server.proxies import Client
from tests.support.waiting import eventually
from xds.protocol.events import Acked, Nacked
from xds.protocol.session import Session, Variant
from xds.server import ADS, OPTIONS, DiscoveryService, Refused, XdsServer
from xds.snapshot import CLUSTER, LISTENER, Resource, ResourceSet, Snapshot


async def test_client_gets_its_resources_and_every_change(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    first = await client.get()
    assert first.control_plane.identifier == "xds-test"
    await client.ask(CLUSTER, nonce=first.nonce)
    acked = await proxies.events.get()
    assert isinstance(acked, Acked)
    assert (acked.nonce, acked.names) == (first.nonce, ("a",))
    proxies.publish(world(CDS="a=2"))
    second = await client.get()
    assert first.nonce != second.nonce
    assert proxies.streams[0].peer.startswith("ipv4:127.0.0.1:")
    assert (proxies.streams[0].variant, proxies.streams[0].type_url) == (variant, "")


async def test_client_waits_for_the_first_snapshot(proxies, channel, variant):
    snapshot, proxies.snapshot = proxies.snapshot, None
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    while not proxies.subscribers:
        await asyncio.sleep(0)
    proxies.publish(snapshot)
    assert (await client.get()).type_url == CLUSTER


async def test_ack_of_everything_does_not_wake_the_writer(proxies, channel, variant, monkeypatch):
    calls, take = [], Session.next

    def next_response(session: Session, now: float) -> bytes | None:
        calls.append(take(session, now))
        return calls[-1]

    monkeypatch.setattr(Session, "next", next_response)
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    for version in range(2, 5):
        response = await client.get()
        await client.ask(CLUSTER, nonce=response.nonce)
        await proxies.events.get()
        # The ACK may arrive before the writer has gone on.
        await eventually(lambda: len(calls) >= 2)
        assert [response is not None for response in calls] == [True, False]
        calls.clear()
        proxies.publish(world(CDS=f"a={version}"))


async def test_idle_stream_does_not_keep_its_last_response(proxies, channel, monkeypatch):
    responses, take = [], Session.next

    def next_response(session: Session, now: float) -> bytes | None:
        if (response := take(session, now)) is not None:
            responses.append(response)
        return response

    monkeypatch.setattr(Session, "next", next_response)
    proxies.publish(world(LDS="l=1"))
    client = Client(channel, Variant.SOTW)
    await client.ask(LISTENER)
    response = await client.get()
    await client.ask(LISTENER, nonce=response.nonce)
    assert isinstance(await proxies.events.get(), Acked)
    async with asyncio.timeout(30):
        while sys.getrefcount(responses[0]) > 2:  # The list, and the argument.
            await asyncio.sleep(0)


async def test_nack_is_logged_with_its_objects_and_not_retried(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    response = await client.get()
    with capture_logs() as logs:
        await client.ask(CLUSTER, nonce=response.nonce, error="cluster a: bad")
        nacked = await proxies.events.get()
    assert isinstance(nacked, Nacked)
    assert nacked.message == "cluster a: bad"
    (line,) = (line for line in logs if line["event"] == "proxy rejected configuration")
    assert line["proxy"] == "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"
    assert (line["type"], line["message"]) == ("Cluster", "cluster a: bad")
    assert line["sources"] == ("Object ns/a",)
    assert line["log_level"] == "warning"
    proxies.publish(world(CDS="a=2"))
    assert b"a=2" in (await client.get()).SerializeToString()


async def test_malformed_later_request_ends_the_stream(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.get()
    await client.call.write(b"\xff")
    assert (await client.end())[0] == grpc.StatusCode.INVALID_ARGUMENT
    await proxies.left.get()


async def test_refused_stream_gets_the_status_and_the_reason(proxies, channel):
    proxies.refusal = Refused(grpc.StatusCode.PERMISSION_DENIED, "not you")
    client = Client(channel)
    await client.ask(CLUSTER)
    assert await client.end() == (grpc.StatusCode.PERMISSION_DENIED, "not you")
    assert proxies.left.empty()


async def test_r61_half_closed_stream_ends(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.get()
    await client.call.done_writing()
    assert (await client.end())[0] == grpc.StatusCode.OK
    await proxies.left.get()
    assert proxies.subscribers == []


async def test_stream_without_a_request_is_no_subscriber(proxies, channel):
    client = Client(channel)
    await client.call.done_writing()
    assert (await client.end())[0] == grpc.StatusCode.OK
    assert proxies.streams == []


async def test_r61_cancelled_streams_leak_nothing(proxies, channel, variant):
    tasks = len(asyncio.all_tasks())
    for _ in range(50):
        client = Client(channel, variant)
        await client.ask(CLUSTER)
        await client.get()
        client.call.cancel()
        await proxies.left.get()
    assert proxies.subscribers == []
    while len(asyncio.all_tasks()) > tasks:
        await asyncio.sleep(0)


async def test_r51_streams_of_the_same_proxy_are_independent(proxies, channel):
    old, new = Client(channel), Client(channel, Variant.DELTA)
    await old.ask(CLUSTER)
    await new.ask(CLUSTER)
    await old.get()
    await new.get()
    old.call.cancel()
    await proxies.left.get()
    proxies.publish(world(CDS="a=2"))
    await new.get()


async def test_shutdown_ends_streams_as_unavailable_and_not_serving(proxies, channel, server, variant):
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=ADS)
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.get()
    await server.stop()
    assert await client.end() == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    assert proxies.subscribers == []
    await server.stop()


async def test_new_stream_during_shutdown_is_unavailable(proxies):
    service = DiscoveryService(proxies)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(service.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        service.stop()
        # It sends no request, as the call may already have ended.
        assert await Client(channel).end() == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    await server.stop(None)


async def test_shutdown_does_not_wait_for_a_client_that_does_not_read(proxies, channel, server):
    proxies.publish(Snapshot({CLUSTER: ResourceSet([Resource.of(CLUSTER, "a", bytes(30 << 20))])}))
    client = Client(channel)
    await client.ask(CLUSTER)
    while not proxies.subscribers:
        await asyncio.sleep(0)
    await asyncio.wait_for(server.stop(), 30)
    assert proxies.subscribers == []


async def test_port_in_use_is_an_error(proxies, server):
    other = XdsServer(proxies, f"127.0.0.1:{server.port}")
    with pytest.raises(RuntimeError):
        await other.start()


async def test_r42_delayed_response_is_sent_after_its_time_limit(proxies, channel, monkeypatch):
    monkeypatch.setitem(Session.__init__.__kwdefaults__, "patience", 0.05)
    proxies.publish(world(CDS="a=1", LDS="l=1"))
    client = Client(channel)
    await client.ask(CLUSTER)
    assert (await client.get()).type_url == CLUSTER
    await client.ask(LISTENER)
    assert (await client.get()).type_url == LISTENER
