"""A server on a real socket. Tests that need another one override the fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.protocol.stream import world
from tests.server.proxies import OneForAll
from xds.server import XdsServer


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(world(CDS="a=1"))


@pytest.fixture
async def server(proxies) -> AsyncIterator[XdsServer]:
    server = XdsServer(proxies, "127.0.0.1:0", identifier="xds-test", grace=0.2)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def channel(server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
