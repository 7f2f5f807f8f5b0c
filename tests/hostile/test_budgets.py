"""Cost of a sidecar with a valid token that requests as much as it can, also for other sidecars."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.hostile.harness import FETCH_CLUSTERS, MESH, MIB, Cost, Target
from tests.server.proxies import DELTA_REQUEST, DELTA_RESPONSE, REQUEST, Client
from xds.protocol.limits import Limits
from xds.protocol.session import Variant
from xds.server import ADS
from xds.server.discovery import PENDING_CALLS_FACTOR
from xds.snapshot import CLUSTER, ENDPOINT

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Limits()
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PODS = range(1, 6)
"""Pods of the attacker. Each attack uses another pod, to be independent of earlier attacks."""
INVADED = MESH + "".join(
    f"""---
apiVersion: v1
kind: Pod
metadata: {{name: evil-{number}, namespace: shop, labels: {{app: evil, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: evil}}
status: {{podIP: 127.9.1.{number}}}
"""
    for number in PODS
)
DELTA = f"/{ADS}/DeltaAggregatedResources"
SOTW = f"/{ADS}/StreamAggregatedResources"
HONEST = 15.0
"""Maximum seconds of an honest request on a busy machine during an attack."""


@asynccontextmanager
async def attacked(directory: Path) -> AsyncIterator[Target]:
    async with Target(directory, mesh=INVADED) as target:
        yield target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """One process for attacks whose cost does not depend on earlier attacks."""
    async with Target(tmp_path_factory.mktemp("shared"), mesh=INVADED) as target:
        yield target


class Channels:
    """Channels that take turns: a connection has at most eight streams."""

    def __init__(self, channels: Iterable[grpc.aio.Channel]) -> None:
        self._turns = cycle(channels)

    def stream_stream(self, method: str) -> Any:
        return next(self._turns).stream_stream(method)

    def unary_unary(self, method: str) -> Any:
        return next(self._turns).unary_unary(method)


@asynccontextmanager
async def attacker(target: Target, pod: str) -> AsyncIterator[Channels]:
    unlimited, token = ("grpc.max_receive_message_length", -1), target.token("shop/evil", pod)
    async with AsyncExitStack() as stack:
        yield Channels([await stack.enter_async_context(target.channel(token, unlimited)) for _ in range(16)])


class Attack:
    """A delta stream that reads and never ACKs."""

    def __init__(self, channel: Channels) -> None:
        self.call = channel.stream_stream(DELTA)()
        self.responses = 0
        self._moved = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def ask(self, type_url: str, *names: str, pod: str = "evil-1", **fields: Any) -> None:
        """Send a request if the stream is open."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(delta(type_url, *names, pod=pod, **fields))

    async def responded(self, count: int, within: float = 60.0) -> bool:
        """Wait for responses, the end of the stream, or a timeout. Return whether the stream is open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.responses < count and not self.reading.done():
                    self._moved.clear()
                    await self._moved.wait()
        return not self.reading.done()

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """Return the status of the stream."""
        await self.reading
        return await self.call.code(), await self.call.details() or ""

    async def _read(self) -> None:
        try:
            while await self.call.read() is not grpc.aio.EOF:
                self.responses += 1
                self._moved.set()
        except grpc.aio.AioRpcError:
            pass
        finally:
            self._moved.set()


def problems(target: Target) -> set[str]:
    """Return the reasons of refusals without the advice, which a client that still sends may miss."""
    return set(re.findall(r'event="malformed request".* problem="([^:"]*)', target.log.read_text()))


def delta(type_url: str, *names: str, pod: str = "evil-1", **fields: Any) -> bytes:
    request = DELTA_REQUEST(
        node={"id": node_of(pod)}, type_url=type_url, resource_names_subscribe=names, **fields
    )
    return request.SerializeToString()


def node_of(pod: str) -> str:
    return f"sidecar~127.9.1.1~{pod}.shop~shop.svc.cluster.local"


def names(count: int, length: int = 64, mark: str = "") -> list[str]:
    return [f"{mark}{number}.".ljust(length, "x") for number in range(count)]


async def first_ends(attacks: Iterable[Attack], count: int) -> list[tuple[grpc.StatusCode, str]]:
    """Return the statuses of the first `count` streams."""
    tasks = [asyncio.create_task(attack.ended()) for attack in attacks]
    async with asyncio.timeout(60):
        ends = [await end for _, end in zip(range(count), asyncio.as_completed(tasks), strict=False)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ends


async def flood(cost: Cost, attacks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run attacks until the honest sidecar has been served 10 times, or 60 s have passed."""
    tasks = [asyncio.create_task(attack) for attack in attacks]
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            while cost.served < 10:
                await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def endless(call: grpc.aio.StreamStreamCall, requests: list[bytes]) -> None:
    async def read() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    reading = asyncio.create_task(read())
    try:
        while True:
            for request in requests:
                await call.write(request)
    finally:
        reading.cancel()


async def rejecting(call: grpc.aio.StreamStreamCall, pod: str) -> None:
    """Subscribe to clusters, NACK them, and repeat."""
    await call.write(delta(CLUSTER, "*", pod=pod))
    while (data := await call.read()) is not grpc.aio.EOF:
        nonce = DELTA_RESPONSE.FromString(data).nonce
        error = {"code": 13, "message": "no " * 2000}
        await call.write(
            delta(CLUSTER, "BlackHoleCluster", pod=pod, response_nonce=nonce, error_detail=error)
        )


def honest_sidecar_is_served(cost: Cost) -> None:
    assert not cost.failures
    assert cost.slowest < HONEST


async def test_one_stream_asks_for_everything(tmp_path) -> None:
    async with attacked(tmp_path) as target, attacker(target, "evil-1") as channel:
        async with target.watched() as cost:
            attack = Attack(channel)
            many = names(90_000)
            for number in range(16):
                await attack.ask(f"type.googleapis.com/t{number}", *many)
                if number == 1 and not await attack.responded(1):
                    break
            attack.call.cancel()
        assert cost.memory < 150 * MIB
        assert problems(target) == {
            "this stream has 180,000 names, and the limit is 100,000 names per client"
        }
    honest_sidecar_is_served(cost)


async def test_many_streams_of_one_pod(tmp_path) -> None:
    async with attacked(tmp_path) as target, attacker(target, "evil-1") as channel:
        async with target.watched() as cost:
            attacks = []
            many = names(60_000)
            for _ in range(12):
                attacks.append(Attack(channel))
                await attacks[-1].ask(ENDPOINT, *many)
        assert cost.memory < 150 * MIB
        ends = await first_ends(attacks, 12 - 1)
    assert {code for code, _ in ends} == {EXHAUSTED}
    assert {why.partition(":")[0] for _, why in ends} == {
        "the streams of this client have 120,000 names, and the limit is 100,000 names per client"
    }
    honest_sidecar_is_served(cost)


async def test_one_stream_replaces_its_names_and_answers_nothing(tmp_path) -> None:
    async with attacked(tmp_path) as target, attacker(target, "evil-1") as channel:
        async with target.watched() as cost:
            attack = Attack(channel)
            before: list[str] = []
            for number in range(30):
                fresh = names(40_000, mark=f"{number}-")
                await attack.ask(ENDPOINT, *fresh, resource_names_unsubscribe=before)
                if not await attack.responded(number + 1):
                    break
                before = fresh
            attack.call.cancel()
        assert cost.memory < 120 * MIB
        [problem] = problems(target)
    assert problem.startswith("this stream has 1")
    assert problem.endswith(" names, and the limit is 100,000 names per client")
    honest_sidecar_is_served(cost)


async def test_fetches_of_many_names(shared) -> None:
    request = REQUEST(node={"id": node_of("evil-1")}, resource_names=names(400_000, 10)).SerializeToString()
    async with attacker(shared, "evil-1") as channel, shared.watched() as cost:
        fetches = (channel.unary_unary(FETCH_CLUSTERS)(request) for _ in range(12))
        ends = await asyncio.gather(*fetches, return_exceptions=True)
    assert cost.memory < 150 * MIB
    assert all(isinstance(end, grpc.aio.AioRpcError) and end.code() is EXHAUSTED for end in ends)
    assert "resource_names has 400,000 names, and the limit is 100,000 names per client" in ends[0].details()
    honest_sidecar_is_served(cost)


async def test_streams_that_do_not_read(shared) -> None:
    """Data that the server does not read stays with the client."""
    async with attacker(shared, "evil-2") as channel, shared.watched() as cost:
        lists = [names(6_000, mark=mark) for mark in "ab"]
        requests = [
            REQUEST(
                node={"id": node_of("evil-2")}, type_url=ENDPOINT, resource_names=subscription
            ).SerializeToString()
            for subscription in lists
        ]
        calls = [channel.stream_stream(SOTW)() for _ in range(LIMITS.streams)]
        await flood(cost, (endless(call, requests) for call in calls))
    assert cost.memory < 120 * MIB
    assert cost.served >= 10
    honest_sidecar_is_served(cost)


async def test_flood_of_small_requests(shared) -> None:
    """Each request changes one of many names, on the maximum number of streams."""
    async with attacker(shared, "evil-3") as channel, shared.watched() as cost:
        calls = [channel.stream_stream(DELTA)() for _ in range(LIMITS.streams)]
        first = (
            delta(ENDPOINT, *names(5_000, mark=f"{number}-"), pod="evil-3") for number in range(len(calls))
        )
        await asyncio.gather(*(call.write(request) for call, request in zip(calls, first, strict=True)))
        requests = [
            delta(ENDPOINT, "a", pod="evil-3", resource_names_unsubscribe=["b"]),
            delta(ENDPOINT, "b", pod="evil-3", resource_names_unsubscribe=["a"]),
        ]
        await flood(cost, (endless(call, requests) for call in calls))
    assert cost.log_lines >= LIMITS.streams
    assert cost.served >= 10
    honest_sidecar_is_served(cost)


async def test_flood_of_rejections(shared) -> None:
    began = time.monotonic()
    async with attacker(shared, "evil-4") as channel, shared.watched() as cost:
        calls = [channel.stream_stream(DELTA)() for _ in range(4)]
        tasks = [asyncio.create_task(rejecting(call, "evil-4")) for call in calls]
        await asyncio.sleep(5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert cost.log_lines < 50 + 10 * (time.monotonic() - began + 7)
    honest_sidecar_is_served(cost)


async def test_streams_without_a_request(shared) -> None:
    """A caller must not use all slots for calls without a first request."""
    limit = PENDING_CALLS_FACTOR * LIMITS.streams
    async with AsyncExitStack() as stack, shared.watched() as cost:
        channels = [await stack.enter_async_context(attacker(shared, "evil-5")) for _ in range(2)]
        attacks = [Attack(channel) for channel in channels for _ in range(limit // 2 + 10)]
        ends = await first_ends(attacks, len(attacks) - limit)
    assert set(ends) == {
        (
            EXHAUSTED,
            f"the caller has {limit} calls without a request, the maximum: send requests",
        )
    }
    honest_sidecar_is_served(cost)


async def test_invented_pods(shared) -> None:
    """A token that is bound to no pod may name pods that do not exist yet: they share one limit."""
    count = 60
    async with attacker(shared, "") as channel, shared.watched() as cost:
        attacks = [Attack(channel) for _ in range(count)]
        for number, attack in enumerate(attacks):
            await attack.ask(CLUSTER, pod=f"invented-{number}")
        ends = await first_ends(attacks, count - LIMITS.streams)
        # An existing pod is not affected.
        known = Client(channel, Variant.DELTA, node=node_of("evil-5"))
        await known.ask(CLUSTER)
        assert (await known.get()).resources
    assert set(ends) == {
        (
            EXHAUSTED,
            "the limit is 16 streams per client at the same time: close one, or raise the server's limit",
        )
    }
    honest_sidecar_is_served(cost)
