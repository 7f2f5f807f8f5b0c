"""Scheduling of streams that are ready at the same time, and limits per client."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from tests.protocol.stream import world
from tests.server.proxies import DELTA_REQUEST, DELTA_RESPONSE, OneForAll
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, scheduling
from xds.server import stream as stream_module
from xds.server.scheduling import CLIENT_BURST, CLIENT_SHARE, RequestPacer, TurnScheduler
from xds.server.stream import Stream, now
from xds.snapshot import CLUSTER, ENDPOINT, SECRET
from xds.testing import Request


class Rounds:
    """Counts iterations of the event loop."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._next)

    def _next(self) -> None:
        self.number += 1
        self._handle = self._loop.call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.fixture
async def rounds():
    counted = Rounds()
    yield counted
    counted.stop()


async def run(count: int, rounds: Rounds, scheduler: TurnScheduler) -> list[tuple[int, int]]:
    """Run many tasks once. Return the round and the number of each, in order."""
    worked: list[tuple[int, int]] = []

    async def work(number: int) -> None:
        await scheduler.wait_turn()
        worked.append((rounds.number, number))

    await asyncio.gather(*(work(number) for number in range(count)))
    return worked


async def test_one_stream_runs_per_round_when_time_is_short(rounds, monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    worked = await run(100, rounds, TurnScheduler())
    assert [number for _, number in worked] == list(range(100))
    assert len({when for when, _ in worked}) == 100


async def test_all_streams_run_in_one_round_when_there_is_time(rounds, monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 3600.0)
    worked = await run(100, rounds, TurnScheduler())
    assert len({when for when, _ in worked}) == 1


async def test_waiting_streams_continue_together_within_a_slice(rounds, monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    scheduler = TurnScheduler()

    async def plenty() -> None:
        await scheduler.wait_turn()
        monkeypatch.setattr(scheduling, "TIME_SLICE", 3600.0)

    asyncio.get_running_loop().call_soon(lambda: None)
    first = asyncio.create_task(scheduler.wait_turn())
    second = asyncio.create_task(plenty())
    worked = await run(100, rounds, scheduler)
    await asyncio.gather(first, second)
    assert [number for _, number in worked] == list(range(100))
    assert len({when for when, _ in worked}) < 20


@pytest.mark.parametrize("time_slice", [0.0, 3600.0])
async def test_low_priority_gets_one_of_many_turns_while_others_wait(rounds, monkeypatch, time_slice):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    scheduler, order = TurnScheduler(), []

    async def work(name: str) -> None:
        await scheduler.wait_turn(low_priority=name == "low")
        order.append(name)

    await scheduler.wait_turn()
    working = [asyncio.create_task(work(name)) for name in ("low", "normal") for _ in range(64)]
    await asyncio.sleep(0)
    monkeypatch.setattr(scheduling, "TIME_SLICE", time_slice)
    await asyncio.gather(*working)
    assert order[0] == "low", "nobody else waited"
    until_last_normal = order[1 : len(order) - order[::-1].index("normal")]
    assert until_last_normal.count("low") == 64 // (scheduling._LOW_PRIORITY_INTERVAL - 1)
    assert order.count("low") == 64


async def test_normal_priority_continues_at_once_while_only_low_priority_waits(rounds, monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    scheduler = TurnScheduler()
    await scheduler.wait_turn()
    waiting = asyncio.create_task(scheduler.wait_turn(low_priority=True))
    await asyncio.sleep(0)
    monkeypatch.setattr(scheduling, "TIME_SLICE", 3600.0)
    began = rounds.number
    await scheduler.wait_turn()
    assert rounds.number == began
    await waiting


@pytest.mark.parametrize("low_priority", [False, True])
async def test_cancelled_stream_does_not_delay_others(rounds, monkeypatch, low_priority):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    scheduler = TurnScheduler()
    await scheduler.wait_turn()
    leaving = [asyncio.create_task(scheduler.wait_turn(low_priority=low_priority)) for _ in range(10)]
    staying = asyncio.create_task(scheduler.wait_turn(low_priority=True))
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait_for(staying, 30)
    assert all(task.cancelled() for task in leaving[1:])
    await asyncio.wait_for(scheduler.wait_turn(), 30)


class Peer:
    """The client side of a stream, which reads at once and sends queued requests."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self.requests.get()

    async def write(self, _: bytes) -> None:
        pass


class Noting:
    """An Observer that records the rounds in which streams were active."""

    def __init__(self, rounds: Rounds) -> None:
        self.sent_in: list[int] = []
        self.received_in: list[int] = []
        self._rounds = rounds

    def sent(self, *_: object) -> None:
        self.sent_in.append(self._rounds.number)

    def received(self, *_: object) -> None:
        self.received_in.append(self._rounds.number)


async def test_ready_streams_write_and_read_in_turn(rounds, monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    proxies, noting, scheduler = OneForAll(world(CDS="a=1")), Noting(rounds), TurnScheduler()
    node = Node(id="proxy")
    info = StreamInfo(peer="", variant=Variant.DELTA, type_url="")
    peers = [Peer() for _ in range(50)]
    running = []
    for peer in peers:
        session = Session(info.variant)
        session.receive(DELTA_REQUEST(node={"id": node.id}, type_url=CLUSTER).SerializeToString(), now())
        stream = Stream(info, node, session, proxies.connect(node, info), scheduler)
        running.append(asyncio.create_task(stream.run(peer, proxies, noting)))
    async with asyncio.timeout(20):
        while len(noting.sent_in) < len(peers):
            await asyncio.sleep(0)
        for peer in peers:
            peer.requests.put_nowait(DELTA_REQUEST(type_url=CLUSTER, response_nonce="1").SerializeToString())
        for _ in peers:
            await proxies.events.get()
        for peer in peers:
            peer.requests.put_nowait(grpc.aio.EOF)
        await asyncio.gather(*running)
    assert len({*noting.sent_in}) == len({*noting.received_in}) == len(peers)


class AckingPeer(Peer):
    """A client that ACKs each response at once."""

    async def write(self, response: bytes) -> None:
        nonce = DELTA_RESPONSE.FromString(response).nonce
        self.requests.put_nowait(DELTA_REQUEST(type_url=CLUSTER, response_nonce=nonce).SerializeToString())
        await asyncio.sleep(0)


async def test_acks_keep_up_with_responses_under_constant_change(monkeypatch):
    monkeypatch.setattr(scheduling, "TIME_SLICE", 0.0)
    proxies, scheduler, node = OneForAll(world(CDS="a=0")), TurnScheduler(), Node(id="proxy")
    info = StreamInfo(peer="", variant=Variant.DELTA, type_url="")
    sessions, subscribers, running = [], [], []
    for _ in range(10):
        session = Session(info.variant)
        session.receive(DELTA_REQUEST(node={"id": node.id}, type_url=CLUSTER).SerializeToString(), now())
        sessions.append(session)
        subscribers.append(proxies.connect(node, info))
        stream = Stream(info, node, session, subscribers[-1], scheduler)
        running.append(asyncio.create_task(stream.run(AckingPeer(), proxies, None)))
    unanswered = []
    for number in range(1, 2000):
        for subscriber in subscribers:
            subscriber.publish(world(CDS=f"a={number}"))
        await asyncio.sleep(0)
        unanswered.append(max(len(session._watches[CLUSTER].acks.unanswered) for session in sessions))
    for task in running:
        task.cancel()
    assert 1 <= max(unanswered) <= 2 * stream_module._LOW_PRIORITY_BACKLOG


async def test_only_a_client_beyond_its_share_waits():
    pacer, loop = RequestPacer(), asyncio.get_running_loop()
    began = loop.time()
    pacer.charge("a", CLIENT_BURST)
    pacer.charge("b", CLIENT_BURST + 1000 * CLIENT_SHARE)
    pacer.charge("d", CLIENT_BURST + 0.2 * CLIENT_SHARE)
    waiting = asyncio.create_task(pacer.wait("b"))
    for client in ("a", "c"):
        await pacer.wait(client)
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await pacer.wait("d")
    assert loop.time() - began >= 0.19


async def test_failed_work_is_charged():
    pacer, loop = RequestPacer(), asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ValueError, match="bad"), pacer.measure("a", CLIENT_BURST + 0.2 * CLIENT_SHARE):
        raise ValueError("bad")
    await pacer.wait("a")
    assert loop.time() - began >= 0.19


async def test_idle_clients_are_removed():
    pacer = RequestPacer()
    pacer.charge("busy", 10.0)
    for number in range(10_000):
        pacer.charge(number, 0.0)
    assert len(pacer._free_at) <= 1025
    assert "busy" in pacer._free_at


async def test_concurrent_first_requests_of_a_client_are_limited():
    pacer, held = RequestPacer(), []
    for _ in range(scheduling.MAX_CONCURRENT_FIRST_REQUESTS):
        held.append(pacer.first_requests("a"))
        await held[-1].acquire()
    assert pacer.first_requests("a").locked()
    assert not pacer.first_requests("b").locked()
    held.clear()
    assert not pacer.first_requests("a").locked()


class PipeliningClient:
    """The context of a client that sends its second request while the first response is written."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[object] = asyncio.Queue()
        self.responses = 0
        self.stream: Stream | None = None
        self.finished = asyncio.Event()

    async def ask(self, type_url: str, name: str) -> None:
        await self._requests.put(Request(type_url=type_url, names=(name,)).encode(Variant.DELTA, {"id": "n"}))

    async def read(self) -> object:
        return await self._requests.get()

    async def write(self, _: bytes) -> None:
        self.responses += 1
        if self.responses == 2:
            self.finished.set()
            return
        await self.ask(SECRET, "s")
        assert self.stream
        while self.stream.session.is_idle:  # until the request is processed
            await asyncio.sleep(0)


async def test_response_to_a_request_during_a_write_is_charged(monkeypatch):
    charged = []
    measure = RequestPacer.measure

    def count(pacer: RequestPacer, client: object, extra: float = 0.0) -> object:
        charged.append("request" if extra else "response")
        return measure(pacer, client, extra)

    monkeypatch.setattr(RequestPacer, "measure", count)
    info = StreamInfo(peer="ipv4:127.0.0.1:1", variant=Variant.DELTA, type_url="")
    node = Node(id="n")
    client = PipeliningClient()
    proxies = OneForAll(world(EDS="a=1", SDS="s=1"))
    client.stream = Stream(info, node, Session(Variant.DELTA), proxies.connect(node, info), TurnScheduler())
    await client.ask(ENDPOINT, "a")
    running = asyncio.create_task(client.stream.run(client, proxies, None))
    async with asyncio.timeout(30):
        await client.finished.wait()
    running.cancel()
    assert charged == ["request", "response", "request", "response"]
