"""Which streams a rollout waits for: reconnected and polling ones, and those of deleted pods."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.transitions import (
    FACTS,
    PORT,
    WEB,
    set_mode,
    transitions,
    until_checked_twice,
    until_waiting_for,
    waits,
    world,
)
from tests.controlplane.world import running
from tests.policy.world import peer, pod
from tests.support.waiting import eventually
from xds.mesh.model.objects import Change, Ref
from xds.mesh.rollout import proxies
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.proxies import ProxyState
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource

FOREVER = 600.0
"""Seconds of each grace period and timeout: a rollout that waits for its end does not finish in time."""


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECONNECT_GRACE", FOREVER)
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", FOREVER)


def connect(controller, name: str, type_url: str = "") -> Subscriber:
    node = Node(id=f"sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local")
    return controller.connections.connect(
        node, StreamInfo(peer="x", variant=Variant.DELTA, type_url=type_url)
    )


async def becomes_strict(controller, web: Sidecar) -> None:
    set_mode(controller, "STRICT")
    await web.wait_for(lambda: web.accepts(PORT) == "S")


@asynccontextmanager
async def change_due_at_connection(controller) -> AsyncIterator[list[Report]]:
    """Let an unrelated change be due when a sidecar connects, so that it is applied before the next push.

    Yield the reports from then on.
    """
    connect, collect_report = controller.connections.connect, controller.rollouts.proxies.collect_report
    pending, reports = [], []

    def connect_with_change(node: Node, stream: StreamInfo) -> Subscriber:
        controller.change(Change(applied=(pod("unrelated", "ns"),)))
        due = time.monotonic() + 0.1
        while time.monotonic() < due:
            pass  # Keep the loop busy, so that the change is applied before anything else.
        subscriber = connect(node, stream)
        pending.append(len(controller.batcher))
        return subscriber

    def record(*args: Any, **options: Any) -> Report:
        report = collect_report(*args, **options)
        if pending:
            reports.append(report)
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller.connections, "connect", connect_with_change)
        patch.setattr(controller.rollouts.proxies, "collect_report", record)
        yield reports
    assert pending == [1]


async def test_reconnected_client_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints)
            other.hold(ENDPOINT)
            set_mode(controller, "STRICT")
            await client.wait_for(lambda: client.uses_mtls(WEB))
            await until_waiting_for(controller, "clients")
        await until_checked_twice(controller)
        async with change_due_at_connection(controller) as reports, other:
            await eventually(lambda: not controller.batcher, timeout=WITHIN)
            await until_checked_twice(controller)
            assert all("other.ns" in report.clients.named for report in reports)
            (wait,) = waits(controller)
            assert "other.ns" in wait.lagging
            (transition,) = transitions(controller)
            assert transition.listener.current == "PERMISSIVE"


async def test_reconnected_server_counts_before_it_is_served() -> None:
    async with world(peer("ns", "DISABLE"), names=("client",)) as (controller, client):
        async with Sidecar(controller, "web", "ns") as web:
            await web.wait_for(lambda: web.listeners)
            web.hold(LISTENER)
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "listener")
        controller.rollouts.proxies._recovery_ends = 0.0  # long after the start
        await until_checked_twice(controller)
        async with change_due_at_connection(controller), web:
            await eventually(lambda: not controller.batcher, timeout=WITHIN)
            await until_checked_twice(controller)
            assert not client.uses_mtls(WEB)


async def test_polling_stream_does_not_replace_disconnected_client() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints)
            other.hold(ENDPOINT)
            set_mode(controller, "STRICT")
            await client.wait_for(lambda: client.uses_mtls(WEB))
            await until_waiting_for(controller, "clients")
        polling = connect(controller, "other", CLUSTER)
        await until_checked_twice(controller)
        controller.connections.disconnect(polling)
        (wait,) = waits(controller)
        assert "other.ns" in wait.lagging
        (transition,) = transitions(controller)
        assert transition.listener.current == "PERMISSIVE"


@pytest.mark.parametrize("type_url", [SECRET, CLUSTER])
async def test_stream_without_listeners_does_not_count_as_server(type_url) -> None:
    async with world(peer("ns", "DISABLE"), timeout=FOREVER) as (controller, web, client):
        second = connect(controller, "web", type_url)
        second.session = Session(Variant.DELTA, type_url=type_url)
        await eventually(lambda: second.snapshot is not None, timeout=WITHIN)
        second.session.serve(second.snapshot)
        set_mode(controller, "PERMISSIVE")
        await eventually(lambda: client.uses_mtls(WEB), timeout=WITHIN)
        controller.connections.disconnect(second)
        await web.wait_for(lambda: web.accepts(PORT) == "P")


async def test_stream_of_deleted_pod_does_not_block_a_rollout() -> None:
    async with world(peer("ns", "DISABLE"), timeout=FOREVER, names=("web", "client", "other")) as (
        controller,
        web,
        _client,
        _other,
    ):
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await eventually(lambda: controller.mesh.pod("ns", "other") is None, timeout=WITHIN)
        await becomes_strict(controller, web)


async def test_deleted_pod_does_not_block_a_rollout() -> None:
    async with world(peer("ns", "DISABLE"), timeout=FOREVER) as (controller, web, _client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints)
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await becomes_strict(controller, web)


async def test_unknown_pods_do_not_block_and_leave_no_state() -> None:
    async with world(peer("ns", "DISABLE"), timeout=FOREVER) as (controller, web, _client):
        for number in range(50):
            async with Sidecar(controller, f"unknown-{number}", "ns"):
                pass
        names = [("ns", f"unknown-{number}") for number in range(50)]
        assert {controller.rollouts.proxies.state(name) for name in names} == {ProxyState.UNKNOWN}
        await becomes_strict(controller, web)


async def test_deferred_proxy_of_deleted_pod_is_released() -> None:
    async with running(*FACTS) as controller:
        client = Sidecar(controller, "client", "ns")
        await client.receive_earlier(Resource.of(CLUSTER, "gone", b"", version="1"))
        async with client:
            await eventually(lambda: ("ns", "client") in controller.publisher.deferred, timeout=WITHIN)
            controller.change(Change(removed=(Ref("Pod", "ns", "client"),)))
            controller.rollouts.proxies._recovery_ends = 0.0
            await eventually(lambda: not controller.publisher.deferred, timeout=WITHIN)


async def test_failed_observation_does_not_stop_a_rollout(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        web.hold(LISTENER)
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "listener")
        collect_progress, calls = controller.rollouts.collect_progress, []

        def fail_once(*args: object) -> object:
            calls.append(args)
            if len(calls) == 1:
                raise RuntimeError("a bug")
            return collect_progress(*args)

        monkeypatch.setattr(controller.rollouts, "collect_progress", fail_once)
        await web.release(LISTENER)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
