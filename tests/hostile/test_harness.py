"""The harness detects an attack; otherwise the attack tests would prove nothing."""

from __future__ import annotations

import asyncio

from tests.hostile.harness import MIB, Target


async def test_harness_measures_a_quiet_control_plane(tmp_path) -> None:
    async with Target(tmp_path) as target, target.watched() as cost:
        while cost.served < 3:
            await asyncio.sleep(0.05)
    assert not cost.failures
    assert cost.slowest < 15
    assert cost.memory < 64 * MIB
    assert cost.log_lines < 10


async def test_harness_counts_descriptors(tmp_path) -> None:
    async with Target(tmp_path) as target:
        async with target.watched() as cost:
            writers = [(await asyncio.open_connection(*target.admin))[1] for _ in range(20)]
            while cost.descriptors < 20:
                await asyncio.sleep(0.02)
            for writer in writers:
                writer.close()
        assert cost.descriptors >= 20
