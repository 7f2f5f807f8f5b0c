"""A server with all introspection services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.protocol.stream import world
from tests.server.proxies import OneForAll
from tests.support.places import why_no_namespaces
from xds.introspect import Introspection
from xds.server import XdsServer


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(world(CDS="a=1 b=1", LDS="l=1"))


@pytest.fixture
async def server(proxies: OneForAll) -> AsyncIterator[XdsServer]:
    server = XdsServer(proxies, "127.0.0.1:0", identifier="xds-test", grace=0.2, added=[Introspection()])
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def target(server: XdsServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
async def channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(target) as channel:
        yield channel


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") and (reason := why_no_namespaces()):
        pytest.skip(reason)
