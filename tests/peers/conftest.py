"""A server of ours, and a client that is somebody else's as far as bytes go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest

pytest.register_assert_rewrite("tests.peers.adapter", "tests.peers.client", "tests.peers.programs")

from tests.peers.adapter import Adapter  # noqa: E402 - failed assertions in it are to be explained
from tests.peers.client import NODE, Client, Variant  # noqa: E402
from tests.peers.xdsprotos import Codec  # noqa: E402
from xds.server import XdsServer  # noqa: E402


@pytest.fixture(scope="session")
def codec() -> Iterator[Codec]:
    with Codec() as codec:
        yield codec


@pytest.fixture
def adapter(codec: Codec) -> Adapter:
    return Adapter(codec)


@pytest.fixture
async def client(adapter: Adapter, codec: Codec, variant: Variant) -> AsyncIterator[Client]:
    server = XdsServer(adapter, "127.0.0.1:0", identifier="xds-test", grace=0.2)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Client(channel, variant, codec, adapter)
        adapter.clear_state(NODE)
    await server.stop()
