"""What a sidecar with a good token costs that asks for as much as it can, and what the other sidecars notice of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from tests.hostile.harness import FETCH_CLUSTERS, MESH, MIB, Target
from tests.server.proxies import DELTA_REQUEST, DELTA_RESPONSE, REQUEST, Client
from xds.protocol.limits import Limits
from xds.protocol.session import Variant
from xds.server import ADS
from xds.snapshot import CLUSTER, ENDPOINT

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMITS = Limits()
EVIL = "sidecar~127.9.0.2~evil-1.shop~shop.svc.cluster.local"
INVADED = f"""{MESH}
---
apiVersion: v1
kind: Pod
metadata: {{name: evil-1, namespace: shop, labels: {{app: evil, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: evil}}
status: {{podIP: 127.9.0.2}}
"""
DELTA = f"/{ADS}/DeltaAggregatedResources"
SOTW = f"/{ADS}/StreamAggregatedResources"
HONEST = 5.0
"""Seconds in which an honest request is answered on a busy machine, whatever the attack."""


@pytest.fixture
async def target(tmp_path) -> AsyncIterator[Target]:
    async with Target(tmp_path, mesh=INVADED) as target:
        yield target


@asynccontextmanager
async def attacker(
    target: Target, account: str = "shop/evil", pod: str = "evil-1"
) -> AsyncIterator[grpc.aio.Channel]:
    async with target.channel(target.token(account, pod), ("grpc.max_receive_message_length", -1)) as channel:
        yield channel


def delta(type_url: str, *names: str, node: str = EVIL, **fields: object) -> bytes:
    request = DELTA_REQUEST(node={"id": node}, type_url=type_url, resource_names_subscribe=names, **fields)
    return request.SerializeToString()


def names(count: int, length: int = 64, mark: str = "") -> list[str]:
    return [f"{mark}{number}.".ljust(length, "x") for number in range(count)]


async def drained(call: grpc.aio.StreamStreamCall, within: float = 60) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(within):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return await call.code(), await call.details() or ""


async def send(call: grpc.aio.StreamStreamCall, *requests: bytes) -> None:
    """Write until the server ends the stream."""
    try:
        for request in requests:
            await call.write(request)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass


async def test_subscribing_to_everything_imaginable(target) -> None:
    """Before: 8 types of 100,000 names each took 330 MiB, 64 types of 500,000 1.8 GB."""
    async with attacker(target) as channel, target.watched() as cost:
        call = channel.stream_stream(DELTA)()
        many = names(90_000)
        await send(call, *(delta(f"type.googleapis.com/t{number}", *many) for number in range(8)))
        code, why = await drained(call)
    assert code is EXHAUSTED, why
    assert "this stream has 180,000 names, and the limit is 100,000 names per client" in why
    assert cost.memory < 200 * MIB
    assert cost.slowest < HONEST
    assert not cost.failures


async def test_streams_of_one_pod(target) -> None:
    """Before: 64 streams of one pod with 30,000 names each took 530 MiB."""
    async with attacker(target) as channel, target.watched() as cost:
        calls = [channel.stream_stream(DELTA)() for _ in range(64)]
        many = names(30_000)
        for call in calls:
            await send(call, delta(ENDPOINT, *many))
        ends = await first_ends(calls, 64 - 3)
    assert {code for code, _ in ends} == {EXHAUSTED}
    reasons = {why.partition(":")[0] for _, why in ends}
    assert (
        "the streams of this client have 120,000 names, and the limit is 100,000 names per client" in reasons
    )
    assert cost.memory < 200 * MIB
    assert cost.slowest < HONEST
    assert not cost.failures


async def test_invented_pods(target) -> None:
    """Before: each of 500 pods that do not exist had a stream that waited for it, for ever."""
    async with attacker(target, pod="") as channel, target.watched() as cost:
        calls = [channel.stream_stream(DELTA)() for _ in range(500)]
        for number, call in enumerate(calls):
            await send(call, delta(CLUSTER, node=EVIL.replace("evil-1", f"evil-{number + 2}")))
        ends = await first_ends(calls, 500 - LIMITS.streams)
        assert {code for code, _ in ends} == {EXHAUSTED}
        assert {why for _, why in ends} == {
            "the limit is 16 streams per client at the same time: close one, or raise the server's limit"
        }
        # Pods that exist do not share this budget.
        known = Client(channel, Variant.DELTA, node=EVIL)
        await known.ask(CLUSTER)
        assert (await known.get()).resources
    assert cost.slowest < HONEST
    assert not cost.failures


async def test_subscriptions_that_are_replaced_and_never_answered(target) -> None:
    """Before: removals that are not answered kept 30 times 80,000 names, 480 MiB."""
    async with attacker(target) as channel, target.watched() as cost:
        call = channel.stream_stream(DELTA)()
        ending = asyncio.create_task(drained(call))
        before: list[str] = []
        for number in range(30):
            fresh = names(80_000, mark=f"{number}-")
            await send(call, delta(ENDPOINT, *fresh, resource_names_unsubscribe=before))
            before = fresh
        code, why = await ending
    assert code is EXHAUSTED, why
    assert cost.memory < 200 * MIB
    assert cost.slowest < HONEST
    assert not cost.failures


async def test_flood_of_the_largest_requests(target) -> None:
    """Before: the honest sidecar waited for 16 requests, of 0.15 s each, and longer."""
    async with attacker(target) as channel, target.watched() as cost:
        lists = [
            REQUEST(node={"id": EVIL}, type_url=ENDPOINT, resource_names=names(6_000, mark=mark))
            for mark in "ab"
        ]
        requests = [request.SerializeToString() for request in lists]
        calls = [channel.stream_stream(SOTW)() for _ in range(LIMITS.streams)]
        await flooded(cost, (endless(call, requests) for call in calls))
    assert cost.served >= 20
    assert not cost.failures
    assert cost.slowest < HONEST


async def test_flood_of_small_requests(target) -> None:
    """Subscribing to names that do not exist, and unsubscribing, on as many streams as there may be."""
    async with attacker(target) as channel, target.watched() as cost:
        requests = [
            delta(ENDPOINT, "a", "b", resource_names_unsubscribe=["c", "d"]),
            delta(ENDPOINT, "c", "d", resource_names_unsubscribe=["a", "b"]),
        ]
        calls = [channel.stream_stream(DELTA)() for _ in range(LIMITS.streams)]
        await flooded(cost, (endless(call, requests) for call in calls))
    assert cost.served >= 20
    assert not cost.failures
    assert cost.slowest < HONEST


async def test_flood_of_rejections(target) -> None:
    """Before: each NACK was a line of 4 KiB in the log, thousands of them a second."""
    async with attacker(target) as channel, target.watched() as cost:
        calls = [channel.stream_stream(DELTA)() for _ in range(4)]
        await flooded(cost, (rejecting(call) for call in calls))
    assert cost.log_lines < 300
    assert not cost.failures
    assert cost.slowest < HONEST


async def test_fetches_of_many_names(target) -> None:
    """Before: 12 fetches of 400,000 names each took 500 MiB."""
    request = REQUEST(node={"id": EVIL}, resource_names=names(400_000, 10)).SerializeToString()
    async with attacker(target) as channel, target.watched() as cost:
        fetch = channel.unary_unary(FETCH_CLUSTERS)
        ends = await asyncio.gather(*(fetch(request) for _ in range(12)), return_exceptions=True)
    assert all(isinstance(end, grpc.aio.AioRpcError) and end.code() is EXHAUSTED for end in ends)
    assert "resource_names has 400,000 names, and the limit is 100,000 names per client" in ends[0].details()
    assert cost.memory < 100 * MIB
    assert cost.slowest < HONEST
    assert not cost.failures


async def first_ends(calls, count: int) -> list[tuple[grpc.StatusCode, str]]:
    """Return how the first `count` streams end."""
    tasks = [asyncio.create_task(drained(call)) for call in calls]
    ends = [await end for _, end in zip(range(count), asyncio.as_completed(tasks), strict=False)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ends


async def flooded(cost, attacks) -> None:
    """Run attacks until the honest sidecar has been served 20 times, or 10 s have passed."""
    tasks = [asyncio.create_task(attack) for attack in attacks]
    try:
        async with asyncio.timeout(10):
            while cost.served < 20:
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def endless(call: grpc.aio.StreamStreamCall, requests: list[bytes]) -> None:
    reading = asyncio.create_task(drained(call))
    try:
        while True:
            await send(call, *requests)
    finally:
        reading.cancel()


async def rejecting(call: grpc.aio.StreamStreamCall) -> None:
    """Ask for a cluster, reject it, ask again."""
    await call.write(delta(CLUSTER, "*"))
    while (data := await call.read()) is not grpc.aio.EOF:
        nonce = DELTA_RESPONSE.FromString(data).nonce
        error = {"code": 13, "message": "no " * 2000}
        await call.write(delta(CLUSTER, "*", response_nonce=nonce, error_detail=error))
        await call.write(delta(CLUSTER, "nothing", "BlackHoleCluster", "PassthroughCluster"))
