"""What changes leave behind in memory, with the garbage collector as in `xds serve`."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.controlplane.transitions import PORT, WEB, set_mode, world
from tests.policy.world import peer
from xds.cli import garbage
from xds.cli.garbage import MAX_NEW

FLIPS = 50


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
                    await web.until(lambda accepts=accepts: web.accepts(PORT) == accepts)
                    await client.until(lambda is_mtls=is_mtls: client.uses_mtls(WEB) is is_mtls)
            gc.collect(1)  # as after MAX_NEW objects
            return len(gc.get_objects())

        before = await flip(10)
        after = await flip(FLIPS - 10)
        assert after < before + 500, "less than 15 objects for each change"
        assert gc.collect() < MAX_NEW


@pytest.mark.usefixtures("_collector")
def test_young_objects_are_collected_and_old_ones_are_not_visited() -> None:
    generations: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            generations.append(info["generation"])

    gc.callbacks.append(count)
    try:
        kept: list[list[int]] = [[] for _ in range(MAX_NEW * garbage.MAX_YOUNG * 40)]
    finally:
        gc.callbacks.remove(count)
    assert generations.count(1) >= 20
    assert 2 not in generations
    assert kept
