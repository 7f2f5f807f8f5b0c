"""Malformed requests on a real socket: each ends only its own stream, with a status."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from tests.protocol.stream import NODE, TYPES, world
from tests.server.proxies import DELTA_REQUEST, REQUEST, Client, OneForAll
from xds.protocol.session import Variant
from xds.server import ADS, XdsServer
from xds.snapshot import CLUSTER, Resource, ResourceSet, Snapshot

STREAMS = 200
NARROW = (
    ("grpc.http2.lookahead_bytes", 65_535),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", -1),
)
METHODS = {
    Variant.SOTW: f"/{ADS}/StreamAggregatedResources",
    Variant.DELTA: f"/{ADS}/DeltaAggregatedResources",
}
NAMES = ("", "*", "a", "a/*", "xdstp://", "\x00", "é" * 50)


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(world(**dict.fromkeys(TYPES, "a=1")))


@pytest.fixture
async def server(proxies) -> AsyncIterator[XdsServer]:
    server = XdsServer(proxies, "127.0.0.1:0", grace=0.5)
    await server.start()
    yield server
    await server.stop()


async def test_r60_malformed_request_during_a_write_ends_the_stream(proxies, server):
    proxies.publish(Snapshot({CLUSTER: ResourceSet([Resource.of(CLUSTER, "a", bytes(20 << 20))])}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NARROW) as channel:
        client = Client(channel)
        await client.ask(CLUSTER)
        async with asyncio.timeout(30):
            while not any(stream._is_writing for stream in server.discovery.streams):
                await asyncio.sleep(0.001)
        await client.call.write(b"\xff")
        code, problem = await asyncio.wait_for(client.end(), 30)
    assert (code, problem.partition(":")[0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request is not a protobuf message of the expected type",
    )


def requests(rng: random.Random, variant: Variant) -> Iterator[bytes]:
    """Generate requests of any content, some of them damaged, and arbitrary bytes at the end."""
    for _ in range(rng.randrange(6)):
        message = (REQUEST if variant is Variant.SOTW else DELTA_REQUEST)(
            type_url=rng.choice((*TYPES.values(), "", "other")),
            response_nonce=rng.choice(("", "1", "2", "x")),
        )
        message.node.id = rng.choice((NODE, NODE, NODE, ""))
        if not rng.randrange(3):
            message.error_detail.message = rng.choice(NAMES)
        if variant is Variant.SOTW:
            message.resource_names.extend(rng.choices(NAMES, k=rng.randrange(4)))
        else:
            message.resource_names_subscribe.extend(rng.choices(NAMES, k=rng.randrange(4)))
            message.resource_names_unsubscribe.extend(rng.choices(NAMES, k=rng.randrange(4)))
            message.initial_resource_versions.update(dict.fromkeys(rng.choices(NAMES, k=2), "1"))
        data = bytearray(message.SerializeToString())
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data[: rng.choice((None, None, None, rng.randrange(len(data))))])
    if rng.randrange(2):
        yield rng.randbytes(rng.randrange(100))


def converse(channel: grpc.Channel, variant: Variant, sent: Iterator[bytes]) -> grpc.StatusCode:
    """Send the requests, read to the end, and return the status."""
    call = channel.stream_stream(METHODS[variant])(sent, timeout=60)
    with suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code()


async def test_arbitrary_bytes_affect_only_their_own_stream(proxies, server, caplog):
    seed = int(os.environ.get("XDS_TEST_SEED", "0"))
    rng = random.Random(seed)
    ended: Counter[grpc.StatusCode] = Counter()
    address = f"127.0.0.1:{server.port}"
    with capture_logs() as logs, grpc.insecure_channel(address) as others:
        async with grpc.aio.insecure_channel(address) as channel:
            witness = Client(channel)
            await witness.ask(CLUSTER)
            await witness.get()
            for number in range(STREAMS):
                variant = rng.choice((*Variant,))
                sent = iter([*requests(rng, variant)])
                ended[await asyncio.to_thread(converse, others, variant, sent)] += 1
                if number % 20 == 0:
                    proxies.publish(world(**dict.fromkeys(TYPES, f"a={number}-changed")))
                    response = await asyncio.wait_for(witness.get(), 30)
                    assert f"a={number}-changed".encode() in response.SerializeToString()
        while proxies.subscribers:
            await asyncio.wait_for(proxies.left.get(), 30)
    assert ended.keys() == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK}, f"XDS_TEST_SEED={seed}"
    assert ended[grpc.StatusCode.INVALID_ARGUMENT] == server.discovery.failed.total()
    assert not [line for line in logs if line["log_level"] == "error"], f"XDS_TEST_SEED={seed}"
    assert caplog.records == []
