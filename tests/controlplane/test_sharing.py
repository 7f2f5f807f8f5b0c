"""A hub that is one of several: it begins once others know of it, and does nothing that they cannot know of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.controlplane.hubs import AUTHORITY, WITHIN, pod, service
from xds.mesh.controlplane import controller as hub_module
from xds.mesh.controlplane.controller import Hub
from xds.mesh.model.objects import AuthenticationPolicy, Change, Meta, Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import driver
from xds.mesh.rollout.peers import Report
from xds.mesh.rollout.replica_sync import Exchange

KEY = (Ref("Pod", "shop", "web"), 8080)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Hub, Exchange, asyncio.Event]]:
    """Run a hub with a pod that speaks plaintext, and say when it has something to tell others."""
    hub, news = Hub(AUTHORITY), asyncio.Event()
    exchange = hub.share()
    assert exchange
    exchange.on_news = news.set
    task = asyncio.create_task(hub.run())
    try:
        hub.change(Change(applied=(pod("web"), service("web"), policy(Mode.DISABLE))))
        yield hub, exchange, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def policy(mode: Mode) -> AuthenticationPolicy:
    return AuthenticationPolicy(meta=Meta(ref=Ref("Policy", "shop", "default")), mode=mode)


def write(hub: Hub, exchange: Exchange) -> None:
    """Have a report written, and read back."""
    now = asyncio.get_running_loop().time()
    exchange.read_back(exchange.write(now).number, now)
    hub.hear()


async def test_sidecars_may_be_elsewhere_only_where_there_are_other_replicas() -> None:
    assert not Hub(AUTHORITY).absences().elsewhere, "there is no cluster"
    alone = Hub(AUTHORITY, rollout_timeout=None)
    assert alone.share() is None
    assert alone.absences().elsewhere, "replicas do not hear of each other, so it is not known"
    async with running() as (hub, exchange, _):
        assert hub.absences().elsewhere, "it is not known yet"
        write(hub, exchange)
        assert not hub.absences().elsewhere
        now = asyncio.get_running_loop().time()
        exchange.hear("other", "1", Report(1, "", {}), 15.0, now)
        assert hub.absences().elsewhere
        exchange.forget("other")
        assert not hub.absences().elsewhere


async def test_nothing_is_served_before_others_know_that_we_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "QUIET", 0.0)
    async with running() as (hub, exchange, _), asyncio.timeout(WITHIN):
        for _ in range(3):
            hub.hear()
            while hub._wake.is_set():
                await asyncio.sleep(0)
        assert not hub.ready.is_set()
        write(hub, exchange)
        await hub.ready.wait()


async def test_if_they_cannot_be_told_it_begins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "JOINING", 0.2)
    async with running() as (hub, exchange, _), asyncio.timeout(WITHIN):
        await hub.ready.wait()
        assert not exchange.is_known


async def test_each_step_is_told_before_it_is_taken() -> None:
    async with running() as (hub, exchange, news), asyncio.timeout(WITHIN):
        write(hub, exchange)
        await hub.ready.wait()
        write(hub, exchange)
        news.clear()
        hub.change(Change(applied=(policy(Mode.STRICT),)))
        await news.wait()
        crossing = hub.rolling.rollout.crossings[KEY]
        assert (crossing.serves, crossing.tells) == (Mode.PERMISSIVE, Send.PLAINTEXT)
        assert exchange.elsewhere(0.0).said[-1][KEY].sends == {Send.PLAINTEXT, Send.MTLS}
        while KEY in hub.rolling.rollout.crossings:
            news.clear()
            write(hub, exchange)
            await news.wait()
        assert hub.mesh.served.modes == {}


async def test_who_waits_for_nobody_has_nothing_to_share() -> None:
    assert Hub(AUTHORITY, rollout_timeout=None).share() is None
