"""Large answers yield to the event loop, and each part is current when it is built."""

from __future__ import annotations

import asyncio
import threading

import grpc.aio
import pytest

from tests.protocol.stream import Stream, world
from tests.server.proxies import Client, OneForAll
from xds import checkpoint
from xds.checkpoint import Checkpoint
from xds.introspect import Introspection, csds
from xds.introspect.cooperative import BATCH_SIZE, batches
from xds.mesh.controlplane.proxies_service import SERVICE, ProxiesService
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.session import Variant
from xds.protocol.status import State
from xds.server import XdsServer
from xds.snapshot import CLUSTER, SECRET

WITHIN = 30.0
CLUSTERS = world(CDS=" ".join(f"c{number:03}=1" for number in range(3 * BATCH_SIZE)))


@pytest.fixture
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "TIME_SLICE", 0.0)


async def test_batch_is_current_when_it_is_yielded() -> None:
    stream = Stream(Variant.DELTA, CLUSTERS)
    stream.ask("CDS")
    stream.get()
    [kind] = stream.session.status()
    states = []
    async for batch in batches(kind, Checkpoint()):
        states.append({status.state for status in batch})
        if len(states) == 1:
            stream.ack("CDS")
        elif len(states) == 2:
            stream.serve(world(CDS=" ".join(f"c{number:03}=2" for number in range(3 * BATCH_SIZE))))
            stream.get()
    assert states == [{State.STALE}, {State.SYNCED}, {State.STALE}], (
        "the last batch was sent again, and is not ACKed"
    )


@pytest.mark.usefixtures("_always_due")
@pytest.mark.parametrize("service", [SERVICE, csds.SERVICE])
async def test_large_stream_yields_to_the_event_loop(service: str) -> None:
    server = XdsServer(
        OneForAll(CLUSTERS), "127.0.0.1:0", grace=0.2, added=[Introspection([ProxiesService()])]
    )
    await server.start()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel, asyncio.timeout(WITHIN):
            client = Client(channel, Variant.DELTA)
            await client.ask(CLUSTER)
            await client.get()
            [stream] = server.discovery.streams
            looked: list[int] = []
            look = type(stream.session.status()[0]).resource_statuses
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(
                    "xds.protocol.status.TypeStatus.resource_statuses",
                    lambda kind, names: (looked.append(turns), look(kind, names))[1],
                )
                counting = asyncio.create_task(count())
                if service == SERVICE:
                    request = pb.ListProxiesRequest(unsynced=True).SerializeToString()
                    await channel.unary_unary(f"/{SERVICE}/List")(request)
                else:
                    await channel.unary_unary(f"/{csds.SERVICE}/FetchClientStatus")(b"")
                counting.cancel()
            *_, first, second, third = looked
            assert first < second < third
    finally:
        await server.stop()


async def test_resources_are_redacted_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def redact(_: str, body: bytes) -> bytes:
        threads.append(threading.current_thread())
        return body

    monkeypatch.setattr(csds, "redact", redact)
    server = XdsServer(OneForAll(world(SDS="s=1")), "127.0.0.1:0", grace=0.2, added=[Introspection()])
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel, asyncio.timeout(WITHIN):
            for _ in range(2):
                client = Client(channel, Variant.DELTA)
                await client.ask(SECRET, "s")
                await client.get()
            answer = await channel.unary_unary(f"/{csds.SERVICE}/FetchClientStatus")(b"")
    finally:
        await server.stop()
    assert answer.count(b"s=1") == 2
    assert len(threads) == 1, "once, however many have it"
    assert threads[0] is not threading.main_thread()
