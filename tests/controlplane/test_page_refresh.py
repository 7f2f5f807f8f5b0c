"""Results that take long to compute."""

from __future__ import annotations

import asyncio

from tests.policy.world import mesh, pod
from xds.mesh.controlplane.page.refresh import Refresher
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, ServedDiff


class World:
    """A mesh that changes, and a computation that counts its pods."""

    def __init__(self) -> None:
        self.mesh: Mesh = mesh(pod("a", "x"))
        self.computed: list[Mesh] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.refresher = Refresher(lambda: self.mesh, self.compute)

    async def compute(self, current):
        self.computed.append(current)
        if self.error:
            raise self.error
        await self.go_on.wait()
        yield len(list(current.pods()))

    async def settle(self) -> None:
        while not self.refresher.is_current:
            self.refresher.trigger()
            await asyncio.sleep(0)


async def test_result_is_computed_once_for_the_same_objects():
    world = World()
    assert world.refresher.value is None
    assert await asyncio.gather(world.refresher.get(), world.refresher.get()) == [1, 1]
    world.mesh = world.mesh.with_served(ServedDiff(generation=5))
    assert world.refresher.is_current
    assert await world.refresher.get() == 1
    assert len(world.computed) == 1
    await world.refresher.stop()


async def test_last_result_is_returned_while_the_next_is_computed():
    world = World()
    await world.refresher.get()
    version = world.refresher.version
    world.go_on.clear()
    world.mesh = world.mesh.apply(Change(applied=(pod("b", "x"),)))
    assert await world.refresher.get() == 1
    assert not world.refresher.is_current
    world.go_on.set()
    await world.settle()
    assert (world.refresher.value, world.refresher.version) == (2, version + 1)
    await world.refresher.stop()


async def test_failed_computation_is_not_repeated_for_the_same_objects():
    world = World()
    world.error = ValueError("broken")
    assert await world.refresher.get() is None
    assert await world.refresher.get() is None
    assert len(world.computed) == 1
    world.error = None
    world.mesh = world.mesh.apply(Change(applied=(pod("b", "x"),)))
    await world.settle()
    assert world.refresher.value == 2
    await world.refresher.stop()
