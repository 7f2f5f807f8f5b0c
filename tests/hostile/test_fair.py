"""Fair sharing of capacity between unauthenticated clients."""

from __future__ import annotations

import asyncio
import threading
import time

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


async def test_only_the_steps_of_a_coroutine_are_charged() -> None:
    share = CpuShare()
    loop = asyncio.get_running_loop()

    def burn(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    async def work() -> str:
        burn(0.05)
        await asyncio.sleep(0.01)
        burn(0.05)
        return "done"

    async def other_work() -> None:
        await asyncio.sleep(0)
        burn(0.5)

    share.SHARE = 1e-6  # So that nothing recovers meanwhile, however long the test waits for a CPU.
    other = asyncio.create_task(other_work())
    assert await share.charged(work()) == "done"
    await other
    # 0.9 s of the burst of 1 s are left: 1.1 s more exceed it by 0.2 s.
    share.charge(1.1, loop.time())
    assert 0.1 < share.wait(loop.time()) * share.SHARE < 0.3


async def test_charged_coroutine_can_be_cancelled_and_fail() -> None:
    share, cancelled = CpuShare(), []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    task = asyncio.create_task(share.charged(wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled
    with pytest.raises(ValueError, match="broken"):
        await share.charged(fail())
