"""The status that a controller reports: problems of proxies, times of changes, counters and certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from datetime import timedelta

import pytest

from tests.controlplane.world import (
    NOW,
    STREAM,
    WITHIN,
    busy,
    namespace,
    node,
    pod,
    published,
    running,
    service,
)
from xds.mesh.controlplane import batcher, publisher
from xds.mesh.envoy.features import Features
from xds.mesh.envoy.translate import steps
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Pod, Ref
from xds.snapshot import ResourceSet, Snapshot


async def test_problem_of_a_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def build(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        if broken:
            raise RuntimeError("a bug")
        return (yield from steps(mesh, pod, secrets, features))

    monkeypatch.setattr(publisher, "translation_steps", build)
    async with running(service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        assert controller.problem_of(subscriber) == "its pod is not known"
        controller.change(Change(applied=(pod("a"),)))
        async with asyncio.timeout(WITHIN):
            while not controller.stats.failed:
                await asyncio.sleep(0.01)
        assert controller.problem_of(subscriber) == "translation failed: RuntimeError: a bug"
        broken = False
        controller.change(Change(applied=(service("other"),)))
        await published(subscriber)
        assert controller.problem_of(subscriber) == ""
        controller.change(Change(removed=(Ref("Pod", "shop", "a"),)))
        async with asyncio.timeout(WITHIN):
            while not controller.problem_of(subscriber):
                await asyncio.sleep(0.01)
        assert controller.problem_of(subscriber) == "its pod is not known"


async def test_change_time_is_when_the_source_reported_it() -> None:
    loop = asyncio.get_running_loop()
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)
        assert subscriber.changed_at is None, "the initial snapshot is not a change"
        before = loop.time()
        controller.change(Change(applied=(service("other"),)))
        reported_by = loop.time()
        await published(subscriber)
        first = subscriber.changed_at
        assert first is not None
        assert before <= first <= reported_by
        controller.change(Change(applied=(service("third"),)))
        await published(subscriber)
        assert subscriber.changed_at == first, "the server has not read it since"
        subscriber.changed_at = None
        controller.change(Change(applied=(namespace("more"),)))
        controller.change(Change(applied=(service("fourth"),)))
        await published(subscriber)
        assert subscriber.changed_at is not None
        assert subscriber.changed_at > reported_by


async def test_superseded_translation_keeps_the_change_time(monkeypatch: pytest.MonkeyPatch) -> None:
    supersede = False

    def slow(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        nonlocal supersede
        if supersede:
            supersede = False
            for n in range(20):
                controller.change(Change(applied=(service(f"s{n}"),)))
                busy(batcher.MAX_DEBOUNCE / 10)
                yield
        return (yield from steps(mesh, pod, secrets, features))

    monkeypatch.setattr(publisher, "translation_steps", slow)
    loop = asyncio.get_running_loop()
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)
        supersede = True
        before = loop.time()
        controller.change(Change(applied=(service("other"),)))
        reported_by = loop.time()
        await published(subscriber)
        assert (controller.stats.superseded, supersede) == (1, False)
        assert subscriber.changed_at is not None
        assert before <= subscriber.changed_at <= reported_by


async def test_stats_and_certificates_are_counted() -> None:
    async with running(
        pod("a"), pod("bb"), service("web"), lifetime=timedelta(hours=2), now=lambda: NOW
    ) as controller:
        assert controller.certificates.stats()[:3] == (0, 0, None)
        for name in ("a", "bb"):
            await published(controller.connections.connect(node(name), STREAM))
        issued, current, soonest, root = controller.certificates.stats()
        assert (issued, current) == (2, 2)
        assert soonest == NOW.replace(microsecond=0) + timedelta(hours=2)
        assert root > NOW + timedelta(days=3650)
        controller.change(Change(removed=(Ref("Pod", "shop", "bb"),)))
        async with asyncio.timeout(WITHIN):
            while controller.certificates.stats().current != 1:
                await asyncio.sleep(0.01)
        assert controller.certificates.stats().issued == 2
        stats = controller.stats
        assert (stats.changes, stats.batches, stats.failed) == (2, 2, 0)
        assert stats.translated >= 2
        assert stats.translate_seconds > 0
        assert stats.apply_seconds > 0
