"""A controller with peers starts once their plan includes it, and serves only plans that are stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.controlplane.world import AUTHORITY, WITHIN, pod, service
from tests.support.tasks import background
from xds.mesh.controlplane import batcher
from xds.mesh.controlplane.controller import Controller
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Meta, Mode, ModePolicy, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import driver
from xds.mesh.rollout.observation import Ask, Observed, Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.stages import Staged
from xds.mesh.rollout.sync import ReplicaSync

KEY = (Ref("Pod", "shop", "web"), 8080)


class Replica:
    """A controller with a plaintext pod, and what its API server has stored."""

    def __init__(self, *, leads: bool) -> None:
        self.controller = Controller(AUTHORITY)
        self.sync = ReplicaSync("this", lambda: leads)
        self.news = asyncio.Event()
        """Set when there may be something to write."""
        self.version = 0
        """The version of the stored plan; 0 if there is none."""
        self.sync.on_change = self.news.set
        assert self.controller.enable_sync(self.sync)

    def read(self, plan: StoredPlan) -> None:
        """Read a plan that another replica has stored; the first one is empty, because there is none."""
        self.sync.plan_read(str(self.version or ""), plan)
        self.controller.peers_changed()

    def renew(self) -> None:
        """Write the report."""
        now = asyncio.get_running_loop().time()
        self.sync.reports.renewed(now, now)

    def store(self) -> StoredPlan | None:
        """Store the plan of the replica, and return it; None if it has none."""
        found = self.sync.plan_to_store(asyncio.get_running_loop().time())
        if found is None:
            return None
        replaced, plan = found
        assert replaced == str(self.version or "")
        self.version += 1
        self.sync.plan_stored(replaced, str(self.version), plan)
        self.controller.peers_changed()
        return plan

    async def join(self) -> None:
        """Let the replica become a member of the first plan, and wait until it serves."""
        self.renew()
        self.read(StoredPlan())
        plan = self.store()
        assert plan
        assert plan.members == {"this"}
        await self.controller.ready.wait()

    async def change_mode(self, mode: Mode) -> None:
        """Change the policy, and wait until there is a plan to write."""
        self.news.clear()
        self.controller.change(Change(applied=(policy(mode),)))
        await self.until_news()

    async def until_news(self) -> None:
        """Wait until there is something to write."""
        await self.news.wait()
        self.news.clear()

    async def checks(self) -> None:
        """Let the controller check everything that it was told."""
        self.controller.peers_changed()
        before = self.controller.rollouts.checked_at
        while self.controller.rollouts.checked_at == before:
            await asyncio.sleep(0.01)
        async with self.controller.mesh_lock:  # It is held during the check.
            pass


@asynccontextmanager
async def running(*, leads: bool = True) -> AsyncIterator[Replica]:
    replica = Replica(leads=leads)
    async with background(replica.controller.run()):
        replica.controller.change(Change(applied=(pod("web"), service("web"), policy(Mode.DISABLE))))
        yield replica


def policy(mode: Mode) -> ModePolicy:
    return ModePolicy(meta=Meta(ref=Ref("Policy", "shop", "default")), mode=mode)


async def test_absent_sidecars_may_be_on_other_replicas_if_any() -> None:
    assert not Controller(AUTHORITY).absences().may_be_on_other_replica, "there is no cluster"
    alone = Controller(AUTHORITY, rollout_timeout=None)
    assert not alone.enable_sync(ReplicaSync("alone", lambda: True))
    assert alone.absences().may_be_on_other_replica, "replicas do not hear of each other, so it is not known"
    async with running() as replica:
        absences, sync = replica.controller.absences, replica.sync
        assert absences().may_be_on_other_replica, "it is not known yet"
        replica.renew()
        assert not absences().may_be_on_other_replica
        sync.reports.receive("other", "1", Report(), 15.0, asyncio.get_running_loop().time())
        assert absences().may_be_on_other_replica
        sync.reports.forget("other")
        assert not absences().may_be_on_other_replica


async def test_nothing_is_served_before_the_plan_includes_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "DEBOUNCE", 0.0)
    async with running() as replica, asyncio.timeout(WITHIN):
        controller = replica.controller
        replica.renew()
        for plan in (None, StoredPlan(), StoredPlan(3, members=frozenset({"other"}))):
            if plan:
                replica.read(plan)
            controller.peers_changed()
            while controller._wake.is_set():
                await asyncio.sleep(0)
            assert not controller.ready.is_set()
        plan = replica.store()
        assert plan
        assert plan.members == {"this", "other"}
        await controller.ready.wait()


async def test_replica_starts_without_peers_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "JOIN_TIMEOUT", 0.2)
    async with running() as replica, asyncio.timeout(WITHIN):
        await replica.controller.ready.wait()
        assert not replica.sync.has_joined


async def test_each_plan_is_stored_before_it_is_served() -> None:
    async with running() as replica, asyncio.timeout(WITHIN):
        await replica.join()
        controller = replica.controller
        await replica.change_mode(Mode.STRICT)
        await replica.checks()
        assert controller.rollouts.rollout.plan.ports == {}
        assert controller.mesh.served.modes == {KEY: Mode.DISABLE}
        assert controller.mesh.served.mtls == {KEY: False}
        plan = replica.store()
        assert plan
        listener, clients = plan.ports[KEY]
        assert (listener.current, clients.current) == (Mode.PERMISSIVE, Send.PLAINTEXT)
        await replica.checks()
        assert controller.rollouts.rollout.plan.ports[KEY].listener.current is Mode.PERMISSIVE
        assert controller.mesh.served.modes == {KEY: Mode.PERMISSIVE}
        assert controller.mesh.served.generation == plan.generation
        while KEY in controller.rollouts.rollout.plan.ports:
            await replica.checks()
            replica.store()
        assert (controller.mesh.served.modes, controller.mesh.served.mtls) == ({}, {})


async def test_plan_is_not_served_if_another_one_was_stored() -> None:
    async with running() as replica, asyncio.timeout(WITHIN):
        await replica.join()
        controller = replica.controller
        await replica.change_mode(Mode.STRICT)
        found = replica.sync.plan_to_store(asyncio.get_running_loop().time())
        assert found
        # Another leader was faster.
        replica.version += 1
        replica.read(StoredPlan(found[1].generation + 5, members=frozenset({"this"})))
        await replica.checks()
        assert controller.rollouts.rollout.plan.ports == {}
        assert controller.mesh.served.modes == {KEY: Mode.DISABLE}
        assert controller.mesh.served.generation == found[1].generation + 5
        plan = replica.store()
        assert plan
        assert KEY in plan.ports
        assert plan.generation > found[1].generation + 5


async def test_plan_that_is_read_during_a_check_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not know of it, so that what it proposes must not be stored."""
    async with running() as replica, asyncio.timeout(WITHIN):
        await replica.join()
        controller, loop = replica.controller, asyncio.get_running_loop()
        rollouts = controller.rollouts
        apply, has_started, may_go_on = rollouts.apply, asyncio.Event(), threading.Event()
        offered: list[StoredPlan] = []

        def apply_slowly(mesh: Mesh, change: Change, observed: Observed, now: float) -> Mesh:
            loop.call_soon_threadsafe(has_started.set)
            assert may_go_on.wait(WITHIN)
            return apply(mesh, change, observed, now)

        def changed() -> None:
            if found := replica.sync.plan_to_store(loop.time()):
                offered.append(found[1])
            replica.news.set()

        monkeypatch.setattr(rollouts, "apply", apply_slowly)
        replica.sync.on_change = changed
        controller.change(Change(applied=(policy(Mode.STRICT),)))
        await has_started.wait()
        replica.version += 1
        replica.read(StoredPlan(20, members=frozenset({"this"})))
        assert not offered
        may_go_on.set()
        while not offered:
            await replica.until_news()
        assert controller.mesh.served.generation == 20
        assert all(plan.generation > 20 and KEY in plan.ports for plan in offered)
        plan = replica.store()
        assert plan == offered[-1]


async def test_replica_asks_the_leader_and_serves_its_plan() -> None:
    async with running(leads=False) as replica, asyncio.timeout(WITHIN):
        await replica.join()
        controller, sync = replica.controller, replica.sync
        controller.change(Change(applied=(policy(Mode.STRICT),)))
        ask = Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=False)
        while sync.reports.own.asks != {KEY: ask}:
            await replica.until_news()
        await replica.checks()
        assert replica.store() is None
        assert controller.mesh.served.modes == {KEY: Mode.DISABLE}
        listener = Staged(Mode.PERMISSIVE, 7, (Mode.DISABLE, Mode.PERMISSIVE))
        clients = Staged(Send.PLAINTEXT, 7, (Send.PLAINTEXT, Send.MTLS))
        replica.version += 1
        replica.read(StoredPlan(7, {KEY: (listener, clients)}, members=frozenset({"this", "leader"})))
        await replica.checks()
        assert controller.mesh.served.modes == {KEY: Mode.PERMISSIVE}
        assert controller.mesh.served.generation == sync.reports.own.generation == 7
        assert sync.reports.own.asks == {}


async def test_replica_without_timeout_does_not_sync() -> None:
    controller = Controller(AUTHORITY, rollout_timeout=None)
    assert not controller.enable_sync(ReplicaSync("this", lambda: True))
    assert controller.rollouts.sync is None
