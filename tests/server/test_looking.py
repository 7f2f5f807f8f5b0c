"""Authorization of introspection: local callers in plaintext, named callers over TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.server.doors import (
    SLEEP,
    Site,
    issued,
    opened,
)
from xds.mesh.controlplane.proxies_service import SERVICE
from xds.mesh.controlplane.rollouts_service import SERVICE as ROLLOUTS
from xds.mesh.v1 import proxies_pb2 as pb


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with opened() as site:
        yield site


async def look(channel: grpc.aio.Channel) -> list[str]:
    """Call every introspection service. Return the responses."""
    ends = []

    async def end(call) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            ends.append(f"{error.code().name} {error.details()}")
        else:
            ends.append("OK")

    async def first(call) -> None:
        assert await call.read() is not grpc.aio.EOF, await call.code()

    await end(channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest()))
    ask = channel.unary_unary(f"/{SERVICE}/List", response_deserializer=pb.ListProxiesResponse.FromString)
    await end(ask(b""))
    watch = channel.unary_stream(f"/{SERVICE}/Watch")(b"")
    await end(first(watch))
    watch.cancel()
    await end(channel.unary_unary(f"/{ROLLOUTS}/List")(b""))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    await end(first(reflection.ServerReflectionInfo(iter([request]))))
    while ends[-1].startswith("INTERNAL "):  # So grpc.aio calls a write after the end of the call.
        ends.pop()
        await end(first(reflection.ServerReflectionInfo(iter([request]))))
    await end(
        channel.unary_unary("/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus")(b"")
    )
    return ends


async def test_account_of_the_control_plane_may_introspect(site):
    async with site.token("admin") as channel:
        assert await look(channel) == ["OK"] * 6
    async with site.shows(issued("spiffe://cluster.local/ns/istio-system/sa/xds")) as channel:
        assert await look(channel) == ["OK"] * 6
    async with site.plain() as channel:
        assert await look(channel) == ["OK"] * 6


async def test_other_callers_may_not_introspect(site):
    async with site.token("own") as channel:
        results = await look(channel)
    assert len(results) == 6
    assert {result.partition(":")[0] for result in results} == {
        "PERMISSION_DENIED service account full/sleep is not an admin"
    }
    async with site.shows(issued(SLEEP)) as channel:
        assert await look(channel) == results
    async with site.token(None) as channel:
        assert {result.partition(" ")[0] for result in await look(channel)} == {"UNAUTHENTICATED"}
