"""Who is reckoned with in a rollout: streams that come back, that are somebody else's, or of pods that are gone."""

from __future__ import annotations

import time

import pytest

from tests.controlplane.hubs import running
from tests.controlplane.mode_changes import FACTS, PORT, WEB, looked_twice, say, waits_for, world
from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.policy.world import peer, pod
from tests.support.waiting import eventually
from xds.mesh.model.objects import Change, Ref
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET

SOON = 6.0
"""Seconds in which a rollout is over that waits for nobody: less than anybody is reckoned with, or waited for."""


def connect(hub, name: str, type_url: str = "") -> Subscriber:
    node = Node(id=f"sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local")
    return hub.connect(node, StreamInfo(peer="x", variant=Variant.DELTA, type_url=type_url))


async def is_locked_soon(hub, web: Sidecar) -> None:
    said = time.monotonic()
    say(hub, "STRICT")
    await web.until(lambda: web.accepts(PORT) == "S")
    assert time.monotonic() < said + SOON


async def comes_back(hub, before: Sidecar) -> Sidecar:
    """Return the next stream of a sidecar, which comes while an unrelated change is due."""
    await looked_twice(hub)
    hub.change(Change(applied=(pod("unrelated", "ns"),)))
    due = time.monotonic() + 0.1
    while time.monotonic() < due:
        pass  # The loop is busy: the change is taken before anything else.
    back = Sidecar(hub, before.name, "ns")
    back.brings = {
        kind: {name: resource.version for name, resource in found.items()}
        for kind, found in before.has.items()
    }
    back.withholds = before.withholds
    return back


async def test_a_client_that_comes_back_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE")) as (hub, _web, client):
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(hub, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
            await waits_for(hub, "clients")
        async with await comes_back(hub, other):
            await eventually(lambda: not hub._pending, timeout=WITHIN)
            await looked_twice(hub)
            (crossing,) = hub.rolling.rollout.crossings.values()
            assert crossing.serves == "PERMISSIVE"


async def test_a_server_that_comes_back_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE"), names=("client",)) as (hub, client):
        async with Sidecar(hub, "web", "ns") as web:
            await web.until(lambda: LISTENER in web.has)
            web.withholds = {LISTENER}
            say(hub, "STRICT")
            await waits_for(hub, "listener")
        hub.rolling._recovers_until = 0.0  # long after the start
        async with await comes_back(hub, web):
            await eventually(lambda: not hub._pending, timeout=WITHIN)
            await looked_twice(hub)
            assert not client.is_told_mtls(WEB)


async def test_who_polls_does_not_take_the_place_of_who_is_away() -> None:
    async with world(peer("ns", "DISABLE")) as (hub, _web, client):
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(hub, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
            await waits_for(hub, "clients")
        polling = connect(hub, "other", CLUSTER)
        await looked_twice(hub)
        hub.disconnect(polling)
        assert [each.serves for each in hub.rolling.rollout.crossings.values()] == ["PERMISSIVE"]


@pytest.mark.parametrize("type_url", [SECRET, CLUSTER])
async def test_a_stream_for_something_else_is_not_waited_for_as_a_server(type_url) -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        second = connect(hub, "web", type_url)
        second.session = Session(Variant.DELTA, type_url=type_url)
        await eventually(lambda: second.snapshot is not None, timeout=WITHIN)
        second.session.serve(second.snapshot)
        say(hub, "PERMISSIVE")
        await eventually(lambda: not hub.rolling.rollout.crossings or _told(hub), timeout=SOON)
        hub.disconnect(second)
        await web.until(lambda: web.accepts(PORT) == "P")


def _told(hub) -> bool:
    return all(each.tells is each.will for each in hub.rolling.rollout.crossings.values())


async def test_the_stream_of_a_pod_that_is_gone_is_not_waited_for() -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client", "other")) as (hub, web, _client, _other):
        hub.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await eventually(lambda: hub.mesh.pod("ns", "other") is None, timeout=WITHIN)
        await is_locked_soon(hub, web)


async def test_a_pod_that_is_gone_is_not_reckoned_with() -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
        hub.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await is_locked_soon(hub, web)


async def test_pods_that_nobody_knows_are_not_reckoned_with_and_leave_nothing() -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        for number in range(50):
            async with Sidecar(hub, f"nobody-{number}", "ns"):
                pass
        assert not hub.rolling._away
        await is_locked_soon(hub, web)


async def test_who_is_held_and_whose_pod_goes_is_not_held_any_more() -> None:
    async with running(*FACTS) as hub:
        client = Sidecar(hub, "client", "ns")
        client.brings = {CLUSTER: {"gone": "1"}}
        async with client:
            await eventually(lambda: ("ns", "client") in hub._held, timeout=WITHIN)
            hub.change(Change(removed=(Ref("Pod", "ns", "client"),)))
            hub.rolling._recovers_until = 0.0
            await eventually(lambda: not hub._held, timeout=WITHIN)


async def test_an_error_while_looking_ends_nothing(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        web.withholds = {LISTENER}
        say(hub, "STRICT")
        await waits_for(hub, "listener")
        known, calls = hub.rolling.known, []

        def fail_once(*args: object) -> object:
            calls.append(args)
            if len(calls) == 1:
                raise RuntimeError("a bug")
            return known(*args)

        monkeypatch.setattr(hub.rolling, "known", fail_once)
        web.answer(LISTENER)
        await web.until(lambda: web.accepts(PORT) == "S")
