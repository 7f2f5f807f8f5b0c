"""The services can be added to any server of grpc.aio, before or after its start."""

from __future__ import annotations

import grpc.aio
import pytest

from tests.introspect.grpcurl import grpcurl
from tests.protocol.stream import world
from tests.server.proxies import OneForAll
from xds.introspect import Introspection, csds
from xds.server import DiscoveryService


@pytest.mark.parametrize("late", [False, True])
async def test_services_can_be_added_before_or_after_start(late: bool) -> None:
    discovery = DiscoveryService(OneForAll(world()))
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers(tuple(discovery.handlers()))
    if late:
        await server.start()
    Introspection()(server, discovery)
    if not late:
        await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary(f"/{csds.SERVICE}/FetchClientStatus")(b"", timeout=30) == b""
            assert await channel.unary_unary("/grpc.channelz.v1.Channelz/GetServers")(b"", timeout=30)
        status, listed = await grpcurl(f"127.0.0.1:{port}", "list")
        assert status == 0
        assert {csds.SERVICE, "grpc.channelz.v1.Channelz"} <= set(listed.split())
    finally:
        await server.stop(None)
