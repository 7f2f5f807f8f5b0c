"""Fair sharing of capacity between unauthenticated clients."""

from __future__ import annotations

import asyncio
import threading

import pytest

from xds.server.fair_share import CpuShare, FairExecutor, FairSemaphore


async def test_clients_get_slots_in_turn() -> None:
    slots, order = FairSemaphore(1, 1), []

    async def use(client: str) -> None:
        async with slots.slot(client):
            order.append(client)
            await asyncio.sleep(0)

    await asyncio.gather(*(use(client) for client in "aaaabbc"))
    assert order == list("aabcaba")


async def test_one_client_gets_its_share_of_the_slots() -> None:
    slots, go = FairSemaphore(3, 2), asyncio.Event()
    held: list[str] = []

    async def use(client: str) -> None:
        async with slots.slot(client):
            held.append(client)
            await go.wait()

    using = [asyncio.create_task(use(client)) for client in "aaaab"]
    while "b" not in held:
        await asyncio.sleep(0)
    assert held == ["a", "a", "b"]
    for task in (using[0], using[3]):  # One holds a slot, the other waits.
        task.cancel()
    go.set()
    await asyncio.gather(*using, return_exceptions=True)
    assert held == ["a", "a", "b", "a"]
    async with asyncio.timeout(10), slots.slot("a"), slots.slot("a"), slots.slot("b"):
        pass


async def test_cancelled_client_keeps_the_thread_until_its_work_ends() -> None:
    thread, share, go, running = FairExecutor(), CpuShare(), threading.Event(), []

    def work() -> None:
        running.append(1)
        go.wait(30)

    first = asyncio.create_task(thread.run("a", share, work))
    while not running:
        await asyncio.sleep(0.01)
    first.cancel()
    second = asyncio.create_task(thread.run("b", share, lambda: 5))
    assert not (await asyncio.wait([first, second], timeout=0.2))[0]
    go.set()
    assert await second == 5
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(ZeroDivisionError):
        await thread.run("a", share, lambda: 1 // 0)


def test_share_is_a_burst_and_then_a_rate() -> None:
    share = CpuShare()
    assert share.wait(100) == 0
    share.charge(CpuShare.BURST + 0.5, 100)
    assert share.wait(100) == pytest.approx(0.5 / CpuShare.SHARE)
    assert share.wait(102) == pytest.approx(0.5 / CpuShare.SHARE - 2)
    assert share.wait(100 + 0.5 / CpuShare.SHARE) == pytest.approx(0)
    assert not share.has_recovered(101)
    assert share.has_recovered(100 + (CpuShare.BURST + 0.5) / CpuShare.SHARE + 0.1)
