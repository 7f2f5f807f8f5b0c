"""A client that half-closes its stream gets its resources before the stream ends."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from tests.protocol.stream import world
from tests.server.proxies import DELTA_REQUEST, REQUEST, Client, OneForAll
from xds.protocol.session import Session, Variant
from xds.protocol.watch import RESPONSE_BUDGET
from xds.server import stream
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

SHORT = 10.0
"""Seconds, less than the wait for a client that could still ACK."""


@pytest.fixture
def proxies():
    return OneForAll(world(CDS="a=1", EDS="a=1", LDS="l=1", RDS="r=1"))


async def test_half_closed_stream_gets_all_types_without_acks(channel, variant):
    for _ in range(20):
        client = Client(channel, variant)
        await client.ask(CLUSTER)
        await client.ask(ENDPOINT, "a")
        await client.ask(LISTENER)
        await client.ask(ROUTE, "r")
        await client.call.done_writing()
        async with asyncio.timeout(SHORT):
            assert {(await client.get()).type_url for _ in range(4)} == {CLUSTER, ENDPOINT, LISTENER, ROUTE}
            assert await client.end() == (grpc.StatusCode.OK, "")


async def test_half_closed_stream_waits_for_the_first_snapshot(proxies, channel, variant):
    snapshot, proxies.snapshot = proxies.snapshot, None
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.call.done_writing()
    while not proxies.subscribers:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    proxies.publish(snapshot)
    assert (await client.get()).type_url == CLUSTER
    assert (await client.end())[0] == grpc.StatusCode.OK
    await proxies.left.get()


async def test_half_closed_stream_without_snapshot_is_unavailable(proxies, channel, variant, monkeypatch):
    monkeypatch.setattr(stream, "FIRST_SNAPSHOT_TIMEOUT", 0.05)
    proxies.snapshot = None
    client = Client(channel, variant, node="nobody")
    await client.ask(CLUSTER)
    await client.call.done_writing()
    code, details = await client.end()
    assert (code, details) == (
        grpc.StatusCode.UNAVAILABLE,
        "no configuration for nobody yet; try again later",
    )
    await proxies.left.get()


async def test_half_closed_stream_gets_all_parts(proxies, channel):
    body = bytes(RESPONSE_BUDGET // 2 + 1)
    resources = [Resource.of(CLUSTER, f"c{number}", body) for number in range(5)]
    proxies.publish(Snapshot({CLUSTER: ResourceSet(resources)}))
    client = Client(channel, Variant.DELTA)
    await client.ask(CLUSTER)
    await client.call.done_writing()
    names = [(await client.get()).resources[0].name for _ in resources]
    assert sorted(names) == [resource.name for resource in resources]
    assert (await client.end())[0] == grpc.StatusCode.OK


async def test_half_closed_stream_gets_no_later_changes(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(ENDPOINT, "there is none")
    await client.call.done_writing()
    async with asyncio.timeout(SHORT):
        await client.end()
    await proxies.left.get()


async def test_malformed_last_request_ends_the_stream_with_its_status(channel, variant):
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    await client.get()
    await client.call.write(b"\xff")
    await client.call.done_writing()
    assert (await client.end())[0] == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", [LISTENER, ROUTE])
def test_session_without_acks_does_not_wait_for_them(kind, variant):
    session = Session(variant)
    session.serve(world(CDS="a=1", LDS="r=1", RDS="r=1"))
    request = REQUEST if variant is Variant.SOTW else DELTA_REQUEST
    session.receive(request(type_url=CLUSTER, node={"id": "n"}).SerializeToString(), 0)
    named = {"resource_names" if variant is Variant.SOTW else "resource_names_subscribe": ["r"]}
    session.receive(request(type_url=kind, **named).SerializeToString(), 0)
    assert session.next(0)
    assert session.next(0) is None
    session.expect_no_acks()
    assert session.next(0)
    assert session.sent
    assert session.sent.type_url == kind
