"""What changes leave behind in memory, with the garbage collector as in `xds serve`."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.controlplane.transitions import PORT, WEB, set_mode, world
from tests.policy.world import peer
from xds.cli import garbage
from xds.cli.garbage import MAX_NEW

FLIPS = 50


class _Cycle:
    """An object that only a collection frees."""

    itself: _Cycle


@pytest.fixture
def _collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.collect()
    garbage.freeze()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("_collector")
async def test_changes_of_the_mode_leave_no_garbage() -> None:
    """Without collections of old objects, as many objects are in use after 50 changes as after 10."""
    async with world(peer("ns", "PERMISSIVE"), timeout=None) as (controller, web, client):

        async def flip(times: int) -> int:
            for _ in range(times):
                for mode, accepts, is_mtls in (("DISABLE", "D", False), ("STRICT", "S", True)):
                    set_mode(controller, mode)
                    await web.wait_for(lambda accepts=accepts: web.accepts(PORT) == accepts)
                    await client.wait_for(lambda is_mtls=is_mtls: client.uses_mtls(WEB) is is_mtls)
            for sidecar in (web, client):
                sidecar.conversation.clear()
            gc.collect(1)  # as after MAX_NEW objects
            return len(gc.get_objects())

        before = await flip(10)
        after = await flip(FLIPS - 10)
        assert after < before + 500, "less than 15 objects for each change"
        assert gc.collect() < MAX_NEW


@pytest.mark.usefixtures("_collector")
async def test_old_garbage_is_collected_after_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(garbage, "GROWTH", 0)
    cycle = _Cycle()
    cycle.itself = cycle
    collected = asyncio.Event()
    weakref.finalize(cycle, collected.set)
    gc.collect(1)
    del cycle
    gc.collect(1)
    assert not collected.is_set(), "the object is old"
    task = asyncio.create_task(garbage.collect_after_growth())
    async with asyncio.timeout(20):
        await collected.wait()
    task.cancel()


@pytest.mark.usefixtures("_collector")
def test_young_objects_are_collected_and_old_ones_are_not_visited() -> None:
    generations: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            generations.append(info["generation"])

    gc.callbacks.append(count)
    try:
        kept: list[list[int]] = [[] for _ in range(MAX_NEW * (garbage.MAX_YOUNG + 2) * 21)]
    finally:
        gc.callbacks.remove(count)
    assert generations.count(1) >= 20
    assert 2 not in generations
    assert kept
