"""Pods without a connected sidecar, as the controller reports them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.controlplane.sidecar import Sidecar
from tests.controlplane.world import pod, running, service
from xds.mesh.controlplane.absence import Absent
from xds.mesh.controlplane.controller import Controller
from xds.mesh.model.objects import Change, Pod, Ref

WITHIN = 20.0


def names(controller: Controller) -> list[str]:
    return [each.pod for each in controller.absences().pods]


async def applied(controller: Controller, *facts: Pod, removed: tuple[Ref, ...] = ()) -> None:
    before = controller.mesh
    controller.change(Change(applied=facts, removed=removed))
    async with asyncio.timeout(WITHIN):
        while controller.mesh is before:
            await asyncio.sleep(0)


async def test_only_running_pods_with_a_sidecar_are_expected() -> None:
    bare = replace(pod("bare"), meta=replace(pod("bare").meta, labels={"app": "web"}))
    facts = (pod("web"), bare, pod("pending", address=""), pod("done", ended=True), service("web"))
    async with running(*facts) as controller:
        assert len(controller.connections.sidecars.expected) == 1
        assert controller.absences().pods == (Absent("shop", "web", None),)
        assert not controller.absences().may_be_on_other_replica


async def test_numbers_in_names_are_sorted_by_value() -> None:
    async with running(pod("web-10"), pod("web-9"), service("web")) as controller:
        assert names(controller) == ["web-9", "web-10"]


async def test_dead_sidecar_is_absent_since_its_last_stream_ended() -> None:
    async with running(pod("web"), pod("other"), service("web")) as controller:
        async with Sidecar(controller, "web", "shop"):
            assert names(controller) == ["other"]
            async with Sidecar(controller, "web", "shop"):
                pass
            assert names(controller) == ["other"], "it has another stream"
            was_connected = asyncio.get_running_loop().time()
        ended = asyncio.get_running_loop().time()
        other, web = controller.absences().pods
        assert (other.since, web.pod) == (None, "web")
        assert web.since is not None
        assert was_connected <= web.since <= ended
        async with Sidecar(controller, "web", "shop"):
            assert names(controller) == ["other"]
            await applied(controller, removed=(Ref("Pod", "shop", "other"),))
            assert names(controller) == []


async def test_new_pod_of_the_same_name_never_connected() -> None:
    first = replace(pod("db-0"), meta=replace(pod("db-0").meta, uid="1"))
    async with running(first) as controller:
        async with Sidecar(controller, "db-0", "shop"):
            pass
        assert controller.absences().pods[0].since is not None
        await applied(controller, replace(first, meta=replace(first.meta, uid="2")))
        assert controller.absences().pods == (Absent("shop", "db-0", None),)


async def test_deleted_pod_is_forgotten_by_the_tracker() -> None:
    async with running(pod("web")) as controller:
        async with Sidecar(controller, "web", "shop"), Sidecar(controller, "unknown", "shop"):
            pass
        assert len(controller.connections.sidecars._disconnected) == 1
        await applied(controller, removed=(Ref("Pod", "shop", "web"),))
        assert controller.connections.sidecars._disconnected == {}
        assert controller.absences().pods == ()
