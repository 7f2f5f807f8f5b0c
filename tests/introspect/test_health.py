"""gRPC health of the server and of each discovery service, by Check and Watch."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.introspect.grpcurl import call, grpcurl
from xds.server.services import SERVICES

STATUS = health_pb2.HealthCheckResponse


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_discovery_services_are_healthy_until_the_server_stops(server, channel, service):
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await health.Check(request)).status == STATUS.SERVING
    watching = health.Watch(request)
    assert (await watching.read()).status == STATUS.SERVING
    server._grace = 30.0  # The server ends the watch then, if the client has not read the change and left.
    stopping = asyncio.create_task(server.stop())
    assert (await watching.read()).status == STATUS.NOT_SERVING
    watching.cancel()
    await stopping


async def test_unserved_service_is_not_healthy(channel):
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="nothing")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health.Check(request)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watching = health.Watch(request)
    assert (await watching.read()).status == STATUS.SERVICE_UNKNOWN
    watching.cancel()


async def test_grpcurl_asks_for_health(target):
    assert await call(target, "grpc.health.v1.Health/Check") == [{"status": "SERVING"}]
    status, output = await grpcurl(target, "grpc.health.v1.Health/Check", stdin='{"service": "nothing"}')
    assert status == 64 + grpc.StatusCode.NOT_FOUND.value[0]
    assert "NotFound" in output


async def test_channelz_knows_the_server_and_its_sockets(target):
    channelz, servers, page = "grpc.channelz.v1.Channelz", [], {}
    while "end" not in page:
        start = int(servers[-1]["ref"]["serverId"]) + 1 if servers else 0
        (page,) = await call(target, f"{channelz}/GetServers", {"startServerId": start})
        servers += page.get("server", [])
    # Ours is the server of this process that was called last.
    ours = max(servers, key=lambda each: each["data"].get("lastCallStartedTimestamp", ""))["ref"]["serverId"]
    (found,) = await call(target, f"{channelz}/GetServer", {"serverId": ours})
    assert int(found["server"]["data"]["callsStarted"]) >= 2
    (found,) = await call(target, f"{channelz}/GetServerSockets", {"serverId": ours})
    assert found["end"]
    assert found["socketRef"], "the one that this very call came on"
