"""Who is reckoned with in a rollout: streams that come back, that are somebody else's, or of pods that are gone."""

from __future__ import annotations

import time

import pytest

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.test_rollouts import FACTS, PORT, WEB, looked_twice, say, waits_for, world
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
    say(controller, "STRICT")
    await web.until(lambda: web.accepts(PORT) == "S")
    assert time.monotonic() < said + SOON


async def comes_back(controller, before: Sidecar) -> Sidecar:
    """Return the next stream of a sidecar, which comes while an unrelated change is due."""
    await looked_twice(controller)
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


async def test_a_client_that_comes_back_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(controller, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
            await waits_for(controller, "clients")
        async with await comes_back(controller, other):
            await eventually(lambda: not controller._pending, timeout=WITHIN)
            await looked_twice(controller)
            (transition,) = controller.rollouts.rollout.transitions.values()
            assert transition.served_mode == "PERMISSIVE"


async def test_a_server_that_comes_back_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE"), names=("client",)) as (controller, client):
        async with Sidecar(controller, "web", "ns") as web:
            await web.until(lambda: LISTENER in web.has)
            web.withholds = {LISTENER}
            say(controller, "STRICT")
            await waits_for(controller, "listener")
        controller.rollouts._recovery_ends = 0.0  # long after the start
        async with await comes_back(controller, web):
            await eventually(lambda: not controller._pending, timeout=WITHIN)
            await looked_twice(controller)
            assert not client.is_told_mtls(WEB)


async def test_who_polls_does_not_take_the_place_of_who_is_away() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(controller, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
            await waits_for(controller, "clients")
        polling = connect(controller, "other", CLUSTER)
        await looked_twice(controller)
        controller.disconnect(polling)
        assert [each.served_mode for each in controller.rollouts.rollout.transitions.values()] == [
            "PERMISSIVE"
        ]


@pytest.mark.parametrize("type_url", [SECRET, CLUSTER])
async def test_a_stream_for_something_else_is_not_waited_for_as_a_server(type_url) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        second = connect(controller, "web", type_url)
        second.session = Session(Variant.DELTA, type_url=type_url)
        await eventually(lambda: second.snapshot is not None, timeout=WITHIN)
        second.session.serve(second.snapshot)
        say(controller, "PERMISSIVE")
        await eventually(
            lambda: not controller.rollouts.rollout.transitions or _told(controller), timeout=SOON
        )
        controller.disconnect(second)
        await web.until(lambda: web.accepts(PORT) == "P")


def _told(controller) -> bool:
    return all(
        each.served_send is each.desired_send for each in controller.rollouts.rollout.transitions.values()
    )


async def test_the_stream_of_a_pod_that_is_gone_is_not_waited_for() -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client", "other")) as (
        controller,
        web,
        _client,
        _other,
    ):
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await eventually(lambda: controller.mesh.pod("ns", "other") is None, timeout=WITHIN)
        await is_locked_soon(controller, web)


async def test_a_pod_that_is_gone_is_not_reckoned_with() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await is_locked_soon(controller, web)


async def test_pods_that_nobody_knows_are_not_reckoned_with_and_leave_nothing() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        for number in range(50):
            async with Sidecar(controller, f"nobody-{number}", "ns"):
                pass
        assert not controller.rollouts._disconnected
        await is_locked_soon(controller, web)


async def test_who_is_held_and_whose_pod_goes_is_not_held_any_more() -> None:
    async with running(*FACTS) as controller:
        client = Sidecar(controller, "client", "ns")
        client.brings = {CLUSTER: {"gone": "1"}}
        async with client:
            await eventually(lambda: ("ns", "client") in controller._held, timeout=WITHIN)
            controller.change(Change(removed=(Ref("Pod", "ns", "client"),)))
            controller.rollouts._recovery_ends = 0.0
            await eventually(lambda: not controller._held, timeout=WITHIN)


async def test_an_error_while_looking_ends_nothing(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        web.withholds = {LISTENER}
        say(controller, "STRICT")
        await waits_for(controller, "listener")
        observe, calls = controller.rollouts.observe, []

        def fail_once(*args: object) -> object:
            calls.append(args)
            if len(calls) == 1:
                raise RuntimeError("a bug")
            return observe(*args)

        monkeypatch.setattr(controller.rollouts, "observe", fail_once)
        web.answer(LISTENER)
        await web.until(lambda: web.accepts(PORT) == "S")
