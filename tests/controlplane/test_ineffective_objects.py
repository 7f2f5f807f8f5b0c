"""Objects without effect are reported once, after a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.policy.world import mesh, peer, pod, service
from tests.support.tasks import background
from xds.mesh.controlplane import ineffective_objects as module
from xds.mesh.controlplane import problem_times
from xds.mesh.controlplane.ineffective_objects import IneffectiveObjects
from xds.mesh.controlplane.problem_log import BURST
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change
from xds.mesh.policy.ineffective import Ineffective

WITHIN = 30.0
SHOP = [pod("web", "shop"), service("web", "shop")]
LOCK = peer("shop", "STRICT", name="lock", app="wbe")

Logs = list[MutableMapping[str, Any]]


class World:
    """A watcher and its mesh."""

    def __init__(self) -> None:
        self.mesh = mesh(*SHOP, LOCK)
        self.ready = asyncio.Event()
        self.looks = 0
        self.watcher = IneffectiveObjects(self._look, self.ready)

    def _look(self) -> Mesh:
        self.looks += 1
        return self.mesh

    def change(self, *facts) -> None:
        self.mesh = self.mesh.apply(Change(applied=facts))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WITHIN):
            while not condition():
                await asyncio.sleep(0.005)

    async def looked(self) -> None:
        """Wait until the current mesh has been examined."""
        seen = self.looks
        await self.until(lambda: self.looks >= seen + 3)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Logs]:
    with capture_logs() as logs:
        async with background(world.watcher.run()):
            world.ready.set()
            yield logs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.005)
    monkeypatch.setattr(module, "IDLE_FACTOR", 0)
    monkeypatch.setattr(problem_times, "SETTLE_TIME", 0.05)


async def test_object_is_reported_once_and_solved_once() -> None:
    world = World()
    async with running(world) as logs:
        await world.until(lambda: world.watcher.problems)
        (problem,) = world.watcher.problems
        assert world.watcher.by_object == {LOCK.ref: (problem,)}
        world.change(pod("other", "shop"))
        await world.looked()
        assert logs == [
            {
                "event": "object has no effect",
                "log_level": "warning",
                "where": "PeerAuthentication shop/lock",
                "what": "selector app=wbe matches no pod in namespace shop, so it has no effect",
                "hint": "did you mean app=web?",
            }
        ]
        world.change(pod("wbe", "shop"))
        await world.until(lambda: not world.watcher.problems)
        assert [entry["event"] for entry in logs] == ["object has no effect", "problem solved"]


async def test_check_finds_an_object_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 1000.0)
    world = World()
    async with running(world) as logs:
        await world.watcher.check()
        [found] = world.watcher.found
        assert found.problem.subject == str(LOCK.ref)
        world.change(pod("other", "shop"))
        await world.watcher.check()
        assert world.watcher.found == (found,), "the object keeps the time when it was found"
        world.change(pod("wbe", "shop"))
        await world.watcher.check()
        assert world.watcher.found == ()
        assert (world.watcher.problems, logs) == ((), [])


async def test_first_check_leaves_the_servers_time_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 1000.0)
    world = World()
    async with running(world):
        for _ in range(100):
            await asyncio.sleep(0)
        assert world.looks == 0


async def test_changing_mesh_is_checked_once_it_rests_or_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = 0

    def check(mesh: Mesh, _: object) -> Ineffective:
        nonlocal checks
        checks += 1
        return Ineffective()

    class Changing(World):
        rests = False

        def _look(self) -> Mesh:
            if not self.rests:
                self.change(pod(f"pod-{self.looks % 10}", "shop"))
            return super()._look()

    monkeypatch.setattr(module, "without_effect", check)
    monkeypatch.setattr(module, "MAX_DELAY", 1000.0)
    world = Changing()
    async with running(world):
        await world.until(lambda: world.looks >= 20)
        assert checks == 0
        world.rests = True
        await world.until(lambda: checks)
        world.rests = False
        monkeypatch.setattr(module, "MAX_DELAY", 0.0)
        await world.until(lambda: checks >= 3)


async def test_object_briefly_without_effect_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_times, "SETTLE_TIME", 1000.0)
    world = World()
    async with running(world) as logs:
        await world.looked()
        world.change(pod("wbe", "shop"))
        await world.looked()
        monkeypatch.setattr(problem_times, "SETTLE_TIME", 0.0)
        await world.looked()
        assert (world.watcher.problems, logs) == ((), [])


async def test_notice_is_not_logged_as_warning() -> None:
    world = World()
    world.mesh = mesh(*SHOP, service("empty", "shop"))
    async with running(world) as logs:
        await world.until(lambda: world.watcher.problems)
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [("notice", "info")]


async def test_log_is_limited_for_many_objects() -> None:
    world = World()
    world.mesh = mesh(*SHOP, *(peer("shop", "STRICT", name=f"lock-{n}", app=f"w{n}") for n in range(1000)))
    async with running(world) as logs:
        await world.until(lambda: len(world.watcher.problems) == 1000)
        await world.looked()
        assert len(logs) == BURST + 1
        assert logs[-1]["count"] == 1000 - BURST


async def test_failed_examination_is_logged_once_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    world = World()
    original = module.without_effect
    monkeypatch.setattr(module, "without_effect", broken)
    async with running(world) as logs:
        await world.until(lambda: logs)
        world.change(pod("other", "shop"))
        await world.looked()
        assert [entry["problem"] for entry in logs] == ["RuntimeError: a bug"]
        assert "in broken" in logs[0]["stack"]
        monkeypatch.setattr(module, "without_effect", original)
        world.change(pod("another", "shop"))
        await world.until(lambda: world.watcher.problems)
