"""A controller that is one of several: it begins once others know of it, and does nothing that they cannot know of."""

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
    """Run a controller with a pod that speaks plaintext, and say when it has something to tell others."""
    controller, news = Controller(AUTHORITY), asyncio.Event()
    exchange = controller.enable_sync()
    assert exchange
    exchange.on_change = news.set
    task = asyncio.create_task(controller.run())
    try:
        controller.change(Change(applied=(pod("web"), service("web"), policy(Mode.DISABLE))))
        yield controller, exchange, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def policy(mode: Mode) -> AuthenticationPolicy:
    return AuthenticationPolicy(meta=Meta(ref=Ref("Policy", "shop", "default")), mode=mode)


def write(controller: Controller, exchange: ReplicaSync) -> None:
    """Have a report written, and read back."""
    now = asyncio.get_running_loop().time()
    exchange.read_back(exchange.start_write(now).number, now)
    controller.peers_changed()


async def test_sidecars_may_be_elsewhere_only_where_there_are_other_replicas() -> None:
    assert not Controller(AUTHORITY).absences().may_be_on_other_replica, "there is no cluster"
    alone = Controller(AUTHORITY, rollout_timeout=None)
    assert alone.enable_sync() is None
    assert alone.absences().may_be_on_other_replica, "replicas do not hear of each other, so it is not known"
    async with running() as (controller, exchange, _):
        assert controller.absences().may_be_on_other_replica, "it is not known yet"
        write(controller, exchange)
        assert not controller.absences().may_be_on_other_replica
        now = asyncio.get_running_loop().time()
        exchange.receive("other", "1", ReplicaReport(1, "", {}), 15.0, now)
        assert controller.absences().may_be_on_other_replica
        exchange.forget("other")
        assert not controller.absences().may_be_on_other_replica


async def test_nothing_is_served_before_others_know_that_we_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "DEBOUNCE", 0.0)
    async with running() as (controller, exchange, _), asyncio.timeout(WITHIN):
        for _ in range(3):
            controller.peers_changed()
            while controller._wake.is_set():
                await asyncio.sleep(0)
        assert not controller.ready.is_set()
        write(controller, exchange)
        await controller.ready.wait()


async def test_if_they_cannot_be_told_it_begins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "JOIN_TIMEOUT", 0.2)
    async with running() as (controller, exchange, _), asyncio.timeout(WITHIN):
        await controller.ready.wait()
        assert not exchange.is_synced


async def test_each_step_is_told_before_it_is_taken() -> None:
    async with running() as (controller, exchange, news), asyncio.timeout(WITHIN):
        write(controller, exchange)
        await controller.ready.wait()
        write(controller, exchange)
        news.clear()
        controller.change(Change(applied=(policy(Mode.STRICT),)))
        await news.wait()
        transition = controller.rollouts.rollout.transitions[KEY]
        assert (transition.served_mode, transition.served_send) == (Mode.PERMISSIVE, Send.PLAINTEXT)
        assert exchange.peer_view(0.0).own_reports[-1][KEY].sends == {Send.PLAINTEXT, Send.MTLS}
        while KEY in controller.rollouts.rollout.transitions:
            news.clear()
            write(controller, exchange)
            await news.wait()
        assert controller.mesh.served.modes == {}


async def test_who_waits_for_nobody_has_nothing_to_share() -> None:
    assert Controller(AUTHORITY, rollout_timeout=None).enable_sync() is None
