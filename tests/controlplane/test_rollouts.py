"""Rollouts of a controller: which proxies they wait for, and for how long."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from math import inf
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.transitions import (
    FACTS,
    PORT,
    WEB,
    set_mode,
    transitions,
    until_checked_twice,
    until_finished,
    until_skipped,
    until_waiting_for,
    waits,
    world,
)
from tests.controlplane.world import running
from tests.policy.rollout_world import UNREAD
from tests.policy.world import meta, peer, rule
from tests.support.waiting import eventually
from xds.mesh.controlplane import rollout_log
from xds.mesh.model.objects import ROLLOUT, Change, Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import driver, proxies
from xds.mesh.rollout.progress import accepts_plaintext, port_waits
from xds.mesh.rollout.proxies import ProxyState
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource

NO_CLUSTER = f"Error adding/updating cluster(s) {WEB}: no"
NO_LISTENER = "Error adding/updating listener(s) virtualInbound: no"
ROLLOUT_EVENTS = {"rollout in progress", "rollout stalled", "rollout finished"}


async def test_clients_migrate_once_the_listener_is_active() -> None:
    disabled = peer("ns", "DISABLE")
    async with world(disabled) as (controller, web, client):
        web.hold(LISTENER)
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "listener")
        await until_checked_twice(controller)
        assert not client.uses_mtls(WEB)
        await web.release(LISTENER)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        assert client.uses_mtls(WEB)
        await until_finished(controller)


async def test_clients_do_not_migrate_while_the_listener_warms() -> None:
    """Envoy ACKs a listener before it is warm."""
    async with running(*FACTS, peer("ns", "DISABLE")) as controller, AsyncExitStack() as stack:
        web, client = Sidecar(controller, "web", "ns"), Sidecar(controller, "client", "ns")
        web.hold(SECRET)
        await stack.enter_async_context(web)
        await web.wait_for(lambda: web.held(SECRET))
        await web.stop_warming()  # Its clusters.
        await stack.enter_async_context(client)
        for each in (web, client):
            await each.wait_for(lambda each=each: each.listeners and WEB in each.endpoints)
        set_mode(controller, "PERMISSIVE")
        await web.wait_for(lambda: web.accepts(PORT) == "P")
        await until_checked_twice(controller)
        assert not client.uses_mtls(WEB)
        await web.release(SECRET)
        await client.wait_for(lambda: client.uses_mtls(WEB))
        await until_finished(controller)


async def test_server_contracts_once_every_client_uses_mtls() -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client", "other")) as (
        controller,
        web,
        client,
        other,
    ):
        other.hold(ENDPOINT)
        set_mode(controller, "STRICT")
        await client.wait_for(lambda: client.uses_mtls(WEB))
        await until_waiting_for(controller, "clients")
        await eventually(
            lambda: [each.lagging for each in waits(controller)] == [("other.ns",)], timeout=WITHIN
        )
        ((key, transition, _),) = port_waits(controller.rollouts)
        assert accepts_plaintext(controller.rollouts.rollout, key, transition)
        assert web.accepts(PORT) == "P"
        await other.release(ENDPOINT)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        await until_finished(controller)
        assert controller.rollouts.rollout.stats.plaintext_disabled == 1


async def test_lagging_client_is_skipped_and_reported(monkeypatch) -> None:
    monkeypatch.setattr(rollout_log, "LOG_INTERVAL", 0.0)
    with capture_logs() as logs:
        async with world(peer("ns", "DISABLE")) as (controller, web, client):
            client.hold(ENDPOINT)
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "clients")
            await eventually(lambda: lagging(controller) == ["client.ns"], timeout=WITHIN)
            await until_checked_twice(controller)
            await until_skipped(controller)
            await web.wait_for(lambda: web.accepts(PORT) == "S")
            (skipped,) = controller.rollouts.rollout.skipped.ports.values()
            assert skipped.wait.lagging == ("client.ns",)
            assert controller.rollouts.rollout.stats.skips == 1
            await eventually(
                lambda: any("skipped" in entry.get("status", "") for entry in logs), timeout=WITHIN
            )
            await client.release(ENDPOINT)
            await eventually(lambda: not controller.rollouts.rollout.skipped.ports, timeout=WITHIN)
            await eventually(lambda: logs[-1]["event"] == "rollout finished", timeout=WITHIN)
    events = [entry for entry in logs if entry["event"] in ROLLOUT_EVENTS]
    assert any("web waiting for client.ns" in entry.get("status", "") for entry in events)
    assert any("web skipped client.ns" in entry.get("status", "") for entry in events)
    assert (events[-1]["event"], events[-1]["name"]) == ("rollout finished", "web.ns")


async def test_rejected_rule_is_logged_only_on_change(
    monkeypatch,
) -> None:
    monkeypatch.setattr(rollout_log, "LOG_INTERVAL", 0.0)
    monkeypatch.setattr(driver, "SKIPPED_CHECK_INTERVAL", 0.1)
    mutual = rule("ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    with capture_logs() as logs:
        async with world(peer("ns", "PERMISSIVE")) as (controller, _web, client):
            client.reject(CLUSTER, message="no")
            controller.change(Change(applied=(mutual,)))
            await eventually(
                lambda: any("rejected: " in entry.get("status", "") for entry in logs), timeout=WITHIN
            )
            await until_skipped(controller)
            await eventually(lambda: controller.rollouts.rollout.skipped.rules, timeout=WITHIN)
            for _ in range(3):
                await until_checked_twice(controller)
            client.accept(CLUSTER)
            controller.change(Change(removed=(mutual.ref,)))
            await until_finished(controller)
            await eventually(lambda: not controller.rollouts.rollout.skipped.rules, timeout=WITHIN)
            await eventually(lambda: logs[-1]["event"] == "rollout finished", timeout=WITHIN)
    events = [entry for entry in logs if entry["event"] in ROLLOUT_EVENTS]
    statuses = [entry["status"].partition(" (")[0] for entry in events if "status" in entry]
    assert len(statuses) == len(set(statuses)), statuses
    assert f"DestinationRule ns/rule waiting for client.ns, rejected: {NO_CLUSTER}" in statuses
    assert f"DestinationRule ns/rule skipped client.ns, rejected: {NO_CLUSTER}" in statuses
    assert (events[-1]["event"], events[-1]["name"]) == ("rollout finished", "DestinationRule ns/rule")


async def test_lagging_server_is_skipped_after_the_timeout() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        web.hold(LISTENER)
        set_mode(controller, "PERMISSIVE")
        await until_waiting_for(controller, "listener")
        await until_skipped(controller)
        await client.wait_for(lambda: client.uses_mtls(WEB))
        assert controller.rollouts.rollout.stats.skips == 1


async def test_rejected_listener_is_never_skipped() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        web.reject(LISTENER, message="no")
        set_mode(controller, "STRICT")
        await eventually(
            lambda: [each.rejection for each in waits(controller)] == [NO_LISTENER], timeout=WITHIN
        )
        controller.rollouts.rollout.timeout = 0.5
        (transition,) = transitions(controller)
        until = transition.listener.since + 1.5
        await eventually(lambda: controller.rollouts.checked_at > until, timeout=WITHIN)
        assert not client.uses_mtls(WEB)
        assert controller.rollouts.rollout.stats.skips == 0
        web.accept(LISTENER)
        set_mode(controller, "DISABLE")
        await until_finished(controller)


async def test_client_that_rejects_endpoints_is_reported() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        client.reject(ENDPOINT, message="no")
        set_mode(controller, "STRICT")
        await eventually(
            lambda: (
                [(each.rejection, each.lagging) for each in waits(controller)] == [("no", ("client.ns",))]
            ),
            timeout=WITHIN,
        )
        await until_skipped(controller)
        await web.wait_for(lambda: web.accepts(PORT) == "S")


async def test_immediate_rollout_waits_for_no_proxy() -> None:
    async with world(peer("ns", "DISABLE"), timeout=None) as (controller, web, client):
        client.hold(ENDPOINT)
        set_mode(controller, "STRICT")
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        assert not controller.rollouts.rollout.is_in_progress
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        client.hold(ENDPOINT)
        strict = peer("ns", "STRICT")
        immediate = replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"}))
        controller.change(Change(applied=(immediate,)))
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        await client.release(ENDPOINT)
        await client.wait_for(lambda: client.uses_mtls(WEB))
        await until_finished(controller)


async def test_disconnected_client_counts_until_it_reconnects(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECONNECT_GRACE", 600.0)
    async with world(peer("ns", "DISABLE"), names=("web", "client")) as (controller, web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints)
            other.hold(ENDPOINT)
            set_mode(controller, "STRICT")
            await client.wait_for(lambda: client.uses_mtls(WEB))
        await until_waiting_for(controller, "clients")
        await until_checked_twice(controller)
        (wait,) = waits(controller)
        assert "other.ns" in wait.lagging
        assert web.accepts(PORT) == "P"
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints and other.uses_mtls(WEB))
            await web.wait_for(lambda: web.accepts(PORT) == "S")


async def test_client_that_does_not_reconnect_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECONNECT_GRACE", 0.5)
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        async with Sidecar(controller, "other", "ns") as other:
            await other.wait_for(lambda: WEB in other.endpoints)
            other.hold(ENDPOINT)
            set_mode(controller, "STRICT")
            await client.wait_for(lambda: client.uses_mtls(WEB))
        await web.wait_for(lambda: web.accepts(PORT) == "S")


async def test_server_that_leaves_before_its_ack_counts_until_the_timeout(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECONNECT_GRACE", 0.0)
    async with world(peer("ns", "DISABLE"), names=("client",), timeout=WITHIN) as (controller, client):
        async with Sidecar(controller, "web", "ns") as web:
            await web.wait_for(lambda: web.listeners and web.accepts(PORT) == "D")
            web.hold(LISTENER)
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "listener")
        await until_checked_twice(controller)
        assert not client.uses_mtls(WEB)


def lagging(controller) -> list[str]:
    return [name for wait in waits(controller) for name in wait.lagging]


async def test_new_client_does_not_lag() -> None:
    """It has no earlier configuration, so a constant arrival of new pods delays nobody."""
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        client.hold(ENDPOINT)
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "clients")
        await eventually(lambda: lagging(controller) == ["client.ns"], timeout=WITHIN)
        other = Sidecar(controller, "other", "ns")
        other.hold(CLUSTER)
        async with other:
            await eventually(lambda: other.subscriber.session.first_generation >= 0, timeout=WITHIN)
            await until_checked_twice(controller)
            assert lagging(controller) == ["client.ns"]


async def test_client_that_reconnects_does_not_lag_behind_what_it_had(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, _web, client):
        client.hold(ENDPOINT)
        async with Sidecar(controller, "other", "ns") as other:
            set_mode(controller, "STRICT")
            await other.wait_for(lambda: WEB in other.endpoints and other.uses_mtls(WEB))
            await eventually(lambda: lagging(controller) == ["client.ns"], timeout=WITHIN)
        monkeypatch.setattr(proxies, "WORKER_DELAY", inf)
        async with other:
            await until_checked_twice(controller)
            assert lagging(controller) == ["client.ns"]


async def test_disconnected_server_counts_until_the_timeout(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECONNECT_GRACE", 0.0)
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 0.0)
    async with world(peer("ns", "DISABLE"), names=("client",), timeout=WITHIN) as (controller, client):
        async with Sidecar(controller, "web", "ns") as web:
            await web.wait_for(lambda: web.listeners and web.accepts(PORT) == "D")
            session = web.subscriber.session
            await eventually(lambda: session.has_acked(LISTENER, session.tagged(LISTENER)), timeout=WITHIN)
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "listener")
        await until_checked_twice(controller)
        assert not client.uses_mtls(WEB)
        async with web:
            await client.wait_for(lambda: client.uses_mtls(WEB))
            await web.wait_for(lambda: web.accepts(PORT) == "S")
            await until_finished(controller)
        # A new pod of that name has no active listener.
        set_mode(controller, "DISABLE")
        await until_waiting_for(controller, "listener")
        gone = controller.mesh.pod("ns", "web")
        assert gone
        controller.change(Change(applied=(replace(gone, meta=replace(gone.meta, uid="another")),)))
        await until_finished(controller)
        set_mode(controller, "PERMISSIVE")
        await eventually(
            lambda: controller.rollouts.proxies.state(("ns", "web")) is ProxyState.UNKNOWN, timeout=WITHIN
        )


def earlier(mode: str) -> list[Resource]:
    """Return what an earlier control plane has served to a sidecar."""
    listener = Resource.of(LISTENER, "virtualInbound", b"", version=f"0.{PORT}{mode}")
    return [Resource.of(CLUSTER, "a", b"", version="1"), listener]


async def test_new_client_is_held_while_servers_reconnect(
    monkeypatch,
) -> None:
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 60.0)
    async with running(*FACTS, peer("ns", "STRICT")) as controller, AsyncExitStack() as stack:
        back, new = (Sidecar(controller, name, "ns") for name in ("client", "other"))
        await back.receive_earlier(*earlier("S"))
        await stack.enter_async_context(back)
        await eventually(lambda: ("ns", "client") in controller.publisher.deferred, timeout=WITHIN)
        assert controller.rollouts.proxies.state(("ns", "client")) is ProxyState.RETURNED
        await stack.enter_async_context(new)
        await eventually(lambda: ("ns", "other") in controller.publisher.deferred, timeout=WITHIN)
        web = Sidecar(controller, "web", "ns")
        await web.receive_earlier(*earlier("D"))
        web.hold(LISTENER)
        await stack.enter_async_context(web)
        await new.wait_for(lambda: WEB in new.endpoints)
        assert not new.uses_mtls(WEB)
        await web.release(LISTENER)
        await new.wait_for(lambda: new.uses_mtls(WEB))
        assert controller.rollouts.proxies.state(("ns", "other")) is ProxyState.CURRENT


async def test_restarted_control_plane_recovers_active_modes(monkeypatch) -> None:
    """The earlier control plane was killed just after the change to STRICT."""
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 60.0)
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        pass
    async with running(*FACTS, peer("ns", "STRICT")) as controller, AsyncExitStack() as stack:
        await stack.enter_async_context(client.moved_to(controller))
        # The client reconnects first. What it should send depends on a server that may be about to reconnect.
        await eventually(lambda: ("ns", "client") in controller.publisher.deferred, timeout=WITHIN)
        assert client.subscriber.snapshot is None
        web.hold(LISTENER)
        await stack.enter_async_context(web.moved_to(controller))
        await until_waiting_for(controller, "listener")
        await stack.enter_async_context(Sidecar(controller, "other", "ns"))
        await client.wait_for(lambda: client.subscriber.snapshot is not None)
        assert not client.uses_mtls(WEB)
        ((key, transition),) = controller.rollouts.rollout.plan.ports.items()
        desired = controller.rollouts.rollout.ports[key].desired
        assert (transition.listener.current, desired.mode) == ("PERMISSIVE", "STRICT")
        await web.release(LISTENER)
        await client.wait_for(lambda: client.uses_mtls(WEB))
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        await until_finished(controller)


async def test_change_before_clients_have_reconnected_waits_for_them(monkeypatch) -> None:
    """They use what an earlier control plane served them."""
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 60.0)
    async with running(*FACTS, peer("ns", "PERMISSIVE")) as controller:
        set_mode(controller, "DISABLE")
        await eventually(lambda: transitions(controller), timeout=WITHIN)
        await until_checked_twice(controller)
        (transition,) = transitions(controller)
        assert {Send.MTLS, Send.PLAINTEXT} <= set(transition.clients.possible)
        assert transition.listener.current is Mode.PERMISSIVE


async def test_rule_that_changed_before_its_server_reported_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 1.0)
    mutual = rule("ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    async with world(peer("ns", "DISABLE")) as (_, web, _client):
        pass
    async with running(*FACTS, peer("ns", "PERMISSIVE")) as controller:
        controller.change(Change(applied=(mutual,)))
        await eventually(lambda: controller.mesh.served_rule(mutual.ref) == mutual, timeout=WITHIN)
        web.hold(LISTENER)
        async with web.moved_to(controller):
            await until_waiting_for(controller, "listener")
            await until_checked_twice(controller)
            assert controller.mesh.served_rule(mutual.ref) is None
            await web.release(LISTENER)
            await eventually(lambda: controller.mesh.served_rule(mutual.ref) == mutual, timeout=WITHIN)


async def test_start_waits_for_unclassified_connections() -> None:
    """A new control plane makes the client send mutual TLS; then the policy changes to STRICT."""
    earlier = rule("ns", "web.ns.svc.cluster.local", "DISABLE")
    async with world(peer("ns", "PERMISSIVE"), earlier) as (_, web, client):
        before = client.resources[CLUSTER][WEB]
    async with running(*FACTS, peer("ns", "PERMISSIVE")) as controller, AsyncExitStack() as stack:
        migrated = time.monotonic()  # Or later, when this test may be paused.
        for each in (web, client, Sidecar(controller, "other", "ns")):
            await stack.enter_async_context(each.moved_to(controller))
        await client.wait_for(lambda: client.resources[CLUSTER][WEB].version != before.version)
        set_mode(controller, "STRICT")
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        assert time.monotonic() > migrated + UNREAD


async def test_reconnected_proxy_is_held_only_for_the_recovery_period(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 0.5)
    async with running(*FACTS) as controller:
        client = Sidecar(controller, "client", "ns")
        await client.receive_earlier(Resource.of(CLUSTER, "gone", b"", version="1"))
        async with client:
            await client.wait_for(lambda: client.listeners)


async def test_rule_is_held_until_servers_accept_it() -> None:
    mutual = rule("ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        web.hold(LISTENER)
        controller.change(Change(applied=(peer("ns", "STRICT"), mutual)))
        await until_waiting_for(controller, "listener")
        await until_checked_twice(controller)
        assert controller.mesh.served_rule(mutual.ref) is None
        await web.release(LISTENER)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        assert controller.mesh.served_rule(mutual.ref) == mutual
        await until_finished(controller)
        controller.change(Change(removed=(mutual.ref,), applied=(peer("ns", "DISABLE"),)))
        await web.wait_for(lambda: web.accepts(PORT) == "D")
        await until_finished(controller)
        assert controller.mesh.served_rule(mutual.ref) is None


async def test_deleted_server_ends_its_transition() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        web.hold(LISTENER)
        set_mode(controller, "STRICT")
        await until_waiting_for(controller, "listener")
        controller.change(Change(removed=(Ref("Pod", "ns", "web"),)))
        await until_finished(controller)
        gone = meta("Pod", "ns", "web").ref
        assert gone not in {pod for pod, _ in controller.rollouts.rollout.ports}


@pytest.mark.parametrize("count", [2, 3])
async def test_last_policy_wins_during_a_transition(count: int) -> None:
    async with world(peer("ns", "DISABLE")) as (controller, web, client):
        for _ in range(count):
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "listener")
            set_mode(controller, "DISABLE")
        await until_finished(controller)
        assert web.accepts(PORT) == "D"
        assert not client.uses_mtls(WEB)


async def test_failed_step_is_logged_once_and_retried(monkeypatch) -> None:
    with capture_logs() as logs:
        async with world(peer("ns", "DISABLE")) as (controller, web, client):
            web.hold(LISTENER)
            set_mode(controller, "STRICT")
            await until_waiting_for(controller, "listener")
            advance = controller.rollouts.advance

            def fail(*_: object) -> None:
                raise RuntimeError("a bug")

            monkeypatch.setattr(controller.rollouts, "advance", fail)
            await until_checked_twice(controller)
            monkeypatch.setattr(controller.rollouts, "advance", advance)
            await web.release(LISTENER)
            await web.wait_for(lambda: web.accepts(PORT) == "S")
            assert client.uses_mtls(WEB)
    errors = [entry for entry in logs if entry["event"] == "rollout step failed"]
    assert [entry["problem"] for entry in errors] == ["RuntimeError: a bug"]


async def test_deleted_pod_is_forgotten_by_the_tracker() -> None:
    async with world() as (controller, _web, _client):
        proxy = controller.rollouts.proxies._proxies["ns", "web"]
        assert proxy.has_reported
        controller.change(Change(removed=(Ref("Pod", "ns", "web"),)))
        await eventually(lambda: not proxy.has_reported, timeout=WITHIN)


@pytest.mark.parametrize(("is_replicated", "reports"), [(False, 1), (True, 2)])
async def test_server_reports_again_if_another_replica_may_have_served_it(is_replicated, reports) -> None:
    async with world(names=("client",)) as (controller, _client):
        tracker, web = controller.rollouts.proxies, Sidecar(controller, "web", "ns")
        tracker.is_replicated = is_replicated
        with patch.object(tracker._rollout, "recover", wraps=tracker._rollout.recover) as recover:
            for _ in range(2):
                async with web:
                    await web.wait_for(lambda: web.listeners)
                assert tracker.state(("ns", "web")) is ProxyState.AWAY
        assert recover.call_count == reports


async def test_server_that_leaves_before_its_modes_are_planned_reports_again() -> None:
    async with running(*FACTS, peer("ns", "STRICT")) as controller:
        rollout, web = controller.rollouts.rollout, Sidecar(controller, "web", "ns")
        await web.receive_earlier(*earlier("D"))
        web.hold(LISTENER)
        for _ in range(2):
            async with web:
                await eventually(lambda: rollout.collect_asks({Ref("Pod", "ns", "web"): -1}), timeout=WITHIN)
            assert not rollout.has_unplanned_mode()


async def test_deleted_pod_is_not_expected_to_reconnect(monkeypatch) -> None:
    monkeypatch.setattr(proxies, "RECOVERY_PERIOD", 60.0)
    async with running(*FACTS) as controller:
        controller.change(Change(removed=(Ref("Pod", "ns", "other"),)))
        await eventually(lambda: controller.mesh.pod("ns", "other") is None, timeout=WITHIN)
        report = controller.rollouts.proxies.collect_report(controller.mesh, time.monotonic())
        assert report.clients.named == {"client.ns": -1, "web.ns": -1}


async def test_steps_that_do_not_fit_into_one_call_follow(monkeypatch) -> None:
    monkeypatch.setattr(driver, "MAX_STEPS", 1)
    async with world(peer("ns", "DISABLE")) as (controller, web, _client):
        set_mode(controller, "STRICT")
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        await until_finished(controller)
