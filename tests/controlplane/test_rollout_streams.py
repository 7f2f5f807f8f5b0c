"""Who is reckoned with in a rollout: streams that come back, that are somebody else's, or of pods that are gone."""

from __future__ import annotations

import time

import pytest

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.test_rollouts import (
    FACTS,
    PORT,
    WEB,
    set_mode,
    until_checked_twice,
    until_waiting_for,
    world,
)
from tests.controlplane.world import running
from tests.policy.world import peer, pod
from tests.support.waiting import eventually
from xds.mesh.model.objects import Change, Ref
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET

SOON = 6.0
"""Seconds in which a rollout is over that waits for nobody: less than anybody is reckoned with, or waited
for."""


def connect(controller, name: str, type_url: str = "") -> Subscriber:
    node = Node(id=f"sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local")
    return controller.connect(node, StreamInfo(peer="x", variant=Variant.DELTA, type_url=type_url))


async def is_locked_soon(controller, web: Sidecar) -> None:
    said = time.monotonic()
    set_mode(controller, "STRICT")
    await web.until(lambda: web.accepts(PORT) == "S")
    assert time.monotonic() < said + SOON


async def comes_back(controller, before: Sidecar) -> Sidecar:
    """Return the next stream of a sidecar, which comes while an unrelated change is due."""
    await until_checked_twice(controller)
    controller.change(Change(applied=(pod("unrelated", "ns"),)))
    due = time.monotonic() + 0.1
    while time.monotonic() < due:
        pass  # The loop is busy: the change is taken before anything else.
    back = Sidecar(controller, before.name, "ns")
    back.brings = {
        kind: {name: resource.version for name, resource in found.items()}
        for kind, found in before.has.items()
    }
    back.withholds = before.withholds
    return back


async def test_reconnected_client_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            set_mode(controller, "STRICT")
            await client.until(lambda: client.uses_mtls(WEB))
            await until_waiting_for(controller, "clients")
        async with await comes_back(controller, other):
            await eventually(lambda: not controller._pending, timeout=WITHIN)
            await until_checked_twice(controller)
            (transition,) = controller.rollouts.rollout.transitions.values()
            assert transition.served_mode == "PERMISSIVE"


async def test_reconnected_server_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE"), names=("client",)) as (controller, client):
        async with Sidecar(controller, "web", "ns") as web:
            await web.until(lambda: LISTENER in web.has)
            web.withholds = {LISTENER}
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "listener")
        controller.rollouts._recovery_ends = 0.0  # long after the start
        async with await comes_back(controller, web):
            await eventually(lambda: not controller._pending, timeout=WITHIN)
            await until_checked_twice(controller)
            assert not client.uses_mtls(WEB)


async def test_polling_stream_does_not_replace_disconnected_client() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            set_mode(controller, "STRICT")
            await client.until(lambda: client.uses_mtls(WEB))
            await until_waiting_for(controller, "clients")
        polling = connect(controller, "other", CLUSTER)
        await until_checked_twice(controller)
        controller.disconnect(polling)
        assert [each.served_mode for each in controller.rollouts.rollout.transitions.values()] == [
            "PERMISSIVE"
        ]


@pytest.mark.parametrize("type_url", [SECRET, CLUSTER])
async def test_stream_without_listeners_does_not_count_as_server(type_url) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        second = connect(controller, "web", type_url)
        second.session = Session(Variant.DELTA, type_url=type_url)
        await eventually(lambda: second.snapshot is not None, timeout=WITHIN)
        second.session.serve(second.snapshot)
        set_mode(controller, "PERMISSIVE")
        await eventually(
            lambda: not controller.rollouts.rollout.transitions or _told(controller), timeout=SOON
        )
        controller.disconnect(second)
        await web.until(lambda: web.accepts(PORT) == "P")


def _told(controller) -> bool:
    return all(
        each.served_send is each.desired_send for each in controller.rollouts.rollout.transitions.values()
    )


async def test_stream_of_deleted_pod_does_not_block_a_rollout() -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client", "other")) as (
        controller,
        web,
        _client,
        _other,
    ):
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await eventually(lambda: controller.mesh.pod("ns", "other") is None, timeout=WITHIN)
        await is_locked_soon(controller, web)


async def test_deleted_pod_does_not_block_a_rollout() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await is_locked_soon(controller, web)


async def test_unknown_pods_do_not_block_and_leave_no_state() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        for number in range(50):
            async with Sidecar(controller, f"nobody-{number}", "ns"):
                pass
        assert not controller.rollouts._disconnected
        await is_locked_soon(controller, web)


async def test_held_proxy_of_deleted_pod_is_released() -> None:
    async with running(*FACTS) as controller:
        client = Sidecar(controller, "client", "ns")
        client.brings = {CLUSTER: {"gone": "1"}}
        async with client:
            await eventually(lambda: ("ns", "client") in controller._held, timeout=WITHIN)
            controller.change(Change(removed=(Ref("Pod", "ns", "client"),)))
            controller.rollouts._recovery_ends = 0.0
            await eventually(lambda: not controller._held, timeout=WITHIN)


async def test_failed_observation_does_not_stop_a_rollout(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        web.withholds = {LISTENER}
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "listener")
        observe, calls = controller.rollouts.observe, []

        def fail_once(*args: object) -> object:
            calls.append(args)
            if len(calls) == 1:
                raise RuntimeError("a bug")
            return observe(*args)

        monkeypatch.setattr(controller.rollouts, "observe", fail_once)
        web.answer(LISTENER)
        await web.until(lambda: web.accepts(PORT) == "S")
