"""A controller with peers starts once they know it, and takes no step before they can know of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.controlplane.world import AUTHORITY, WITHIN, pod, service
from xds.mesh.controlplane import controller as controller_module
from xds.mesh.controlplane.controller import Controller
from xds.mesh.model.objects import AuthenticationPolicy, Change, Meta, Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import driver
from xds.mesh.rollout.peers import ReplicaReport
from xds.mesh.rollout.replica_sync import ReplicaSync

KEY = (Ref("Pod", "shop", "web"), 8080)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Controller, ReplicaSync, asyncio.Event]]:
    """Run a controller with a plaintext pod. The event is set when there is something to report to peers."""
    controller, news = Controller(AUTHORITY), asyncio.Event()
    sync = controller.enable_sync()
    assert sync
    sync.on_change = news.set
    task = asyncio.create_task(controller.run())
    try:
        controller.change(Change(applied=(pod("web"), service("web"), policy(Mode.DISABLE))))
        yield controller, sync, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def policy(mode: Mode) -> AuthenticationPolicy:
    return AuthenticationPolicy(meta=Meta(ref=Ref("Policy", "shop", "default")), mode=mode)


def write(controller: Controller, sync: ReplicaSync) -> None:
    """Write a report, and read it back."""
    now = asyncio.get_running_loop().time()
    sync.read_back(sync.start_write(now).number, now)
    controller.peers_changed()


async def test_absent_sidecars_may_be_on_other_replicas_if_any() -> None:
    assert not Controller(AUTHORITY).absences().may_be_on_other_replica, "there is no cluster"
    alone = Controller(AUTHORITY, rollout_timeout=None)
    assert alone.enable_sync() is None
    assert alone.absences().may_be_on_other_replica, "replicas do not hear of each other, so it is not known"
    async with running() as (controller, sync, _):
        assert controller.absences().may_be_on_other_replica, "it is not known yet"
        write(controller, sync)
        assert not controller.absences().may_be_on_other_replica
        now = asyncio.get_running_loop().time()
        sync.receive("other", "1", ReplicaReport(1, "", {}), 15.0, now)
        assert controller.absences().may_be_on_other_replica
        sync.forget("other")
        assert not controller.absences().may_be_on_other_replica


async def test_nothing_is_served_before_peers_know_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "DEBOUNCE", 0.0)
    async with running() as (controller, sync, _), asyncio.timeout(WITHIN):
        for _ in range(3):
            controller.peers_changed()
            while controller._wake.is_set():
                await asyncio.sleep(0)
        assert not controller.ready.is_set()
        write(controller, sync)
        await controller.ready.wait()


async def test_replica_starts_without_peers_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "JOIN_TIMEOUT", 0.2)
    async with running() as (controller, sync, _), asyncio.timeout(WITHIN):
        await controller.ready.wait()
        assert not sync.is_synced


async def test_each_step_is_reported_before_it_is_taken() -> None:
    async with running() as (controller, sync, news), asyncio.timeout(WITHIN):
        write(controller, sync)
        await controller.ready.wait()
        write(controller, sync)
        news.clear()
        controller.change(Change(applied=(policy(Mode.STRICT),)))
        await news.wait()
        transition = controller.rollouts.rollout.transitions[KEY]
        assert (transition.served_mode, transition.served_send) == (Mode.PERMISSIVE, Send.PLAINTEXT)
        assert sync.peer_view(0.0).own_reports[-1][KEY].sends == {Send.PLAINTEXT, Send.MTLS}
        while KEY in controller.rollouts.rollout.transitions:
            news.clear()
            write(controller, sync)
            await news.wait()
        assert controller.mesh.served.modes == {}


async def test_replica_without_timeout_does_not_sync() -> None:
    assert Controller(AUTHORITY, rollout_timeout=None).enable_sync() is None
