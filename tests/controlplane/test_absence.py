"""Which sidecars should be connected and are not, as the hub sees it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.controlplane.hubs import pod, running, service
from tests.controlplane.sidecar import Sidecar
from xds.mesh.controlplane.absence import Absent
from xds.mesh.controlplane.controller import Hub
from xds.mesh.model.objects import Change, Pod, Ref

WITHIN = 5.0


def names(hub: Hub) -> list[str]:
    return [each.pod for each in hub.absences().pods]


async def applied(hub: Hub, *facts: Pod, removed: tuple[Ref, ...] = ()) -> None:
    before = hub.mesh
    hub.change(Change(applied=facts, removed=removed))
    async with asyncio.timeout(WITHIN):
        while hub.mesh is before:
            await asyncio.sleep(0)


async def test_only_pods_that_run_a_sidecar_are_expected() -> None:
    bare = replace(pod("bare"), meta=replace(pod("bare").meta, labels={"app": "web"}))
    facts = (pod("web"), bare, pod("pending", address=""), pod("done", ended=True), service("web"))
    async with running(*facts) as hub:
        assert len(hub.sidecars.expected) == 1
        assert hub.absences().pods == (Absent("shop", "web", None),)
        assert not hub.absences().elsewhere


async def test_a_sidecar_that_dies_is_absent_since_then() -> None:
    async with running(pod("web"), pod("other"), service("web")) as hub:
        async with Sidecar(hub, "web", "shop"):
            assert names(hub) == ["other"]
            async with Sidecar(hub, "web", "shop"):
                pass
            assert names(hub) == ["other"], "it has another stream"
        ended = asyncio.get_running_loop().time()
        other, web = hub.absences().pods
        assert (other.since, web.pod) == (None, "web")
        assert web.since is not None
        assert ended - 1 < web.since <= ended
        async with Sidecar(hub, "web", "shop"):
            assert names(hub) == ["other"]
            await applied(hub, removed=(Ref("Pod", "shop", "other"),))
            assert names(hub) == []


async def test_a_successor_of_the_same_name_was_never_connected() -> None:
    first = replace(pod("db-0"), meta=replace(pod("db-0").meta, uid="1"))
    async with running(first) as hub:
        async with Sidecar(hub, "db-0", "shop"):
            pass
        assert hub.absences().pods[0].since is not None
        await applied(hub, replace(first, meta=replace(first.meta, uid="2")))
        assert hub.absences().pods == (Absent("shop", "db-0", None),)


async def test_nothing_is_kept_of_pods_that_are_gone() -> None:
    async with running(pod("web")) as hub:
        async with Sidecar(hub, "web", "shop"), Sidecar(hub, "unknown", "shop"):
            pass
        assert len(hub.sidecars._ended) == 1
        await applied(hub, removed=(Ref("Pod", "shop", "web"),))
        assert hub.sidecars._ended == {}
        assert hub.absences().pods == ()
