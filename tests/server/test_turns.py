"""Streams that are ready at the same time leave the event loop its turn."""

from __future__ import annotations

import asyncio

import pytest

from xds.server import turns
from xds.server.turns import Turns


class Rounds:
    """Counts the rounds of the event loop."""

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


async def run(count: int, rounds: Rounds, line: Turns) -> list[tuple[int, int]]:
    """Let many work once; return who did in which round, in order."""
    worked: list[tuple[int, int]] = []

    async def work(number: int) -> None:
        await line.take()
        worked.append((rounds.number, number))

    await asyncio.gather(*(work(number) for number in range(count)))
    return worked


async def test_when_time_is_short_one_works_in_each_round_and_all_in_order(rounds, monkeypatch):
    monkeypatch.setattr(turns, "SLICE", 0.0)
    worked = await run(100, rounds, Turns())
    assert [number for _, number in worked] == list(range(100))
    assert len({when for when, _ in worked}) == 100


async def test_when_there_is_time_all_work_in_one_round(rounds, monkeypatch):
    monkeypatch.setattr(turns, "SLICE", 3600.0)
    worked = await run(100, rounds, Turns())
    assert len({when for when, _ in worked}) == 1


async def test_those_who_waited_go_on_together_as_far_as_there_is_time(rounds, monkeypatch):
    monkeypatch.setattr(turns, "SLICE", 0.0)
    line = Turns()

    async def plenty() -> None:
        await line.take()
        monkeypatch.setattr(turns, "SLICE", 3600.0)

    asyncio.get_running_loop().call_soon(lambda: None)
    first = asyncio.create_task(line.take())
    second = asyncio.create_task(plenty())
    worked = await run(100, rounds, line)
    await asyncio.gather(first, second)
    assert [number for _, number in worked] == list(range(100))
    assert len({when for when, _ in worked}) < 20


async def test_one_that_gives_up_holds_up_nobody(rounds, monkeypatch):
    monkeypatch.setattr(turns, "SLICE", 0.0)
    line = Turns()
    await line.take()
    leaving = [asyncio.create_task(line.take()) for _ in range(10)]
    staying = asyncio.create_task(line.take())
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait_for(staying, 10)
    assert all(task.cancelled() for task in leaving[1:])
    await asyncio.wait_for(line.take(), 10)
