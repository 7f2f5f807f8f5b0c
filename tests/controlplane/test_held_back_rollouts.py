"""Rollouts treat resources that validation holds back as rejected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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
    until_finished,
    until_skipped,
    waits,
)
from tests.controlplane.world import running
from tests.policy.world import HTTP, peer, pod, rule, service
from tests.support.waiting import eventually
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.object_progress import ProgressTracker
from xds.mesh.controlplane.rollout_text import rule_line
from xds.mesh.model.objects import Change
from xds.mesh.rollout.progress import rule_progress
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, Resource, tag_of

API = "outbound|80||api.shop.svc.cluster.local"


class Refusing:
    """Refuses what the test decides."""

    def __init__(self) -> None:
        self.refuses: Callable[[Resource], bool] = lambda _: False
        self.open = asyncio.Event()
        """Set unless validation waits."""
        self.open.set()

    async def validate(self, resources: Sequence[Resource]) -> Mapping[Resource, str]:
        await self.open.wait()
        return {each: "it is bad" for each in resources if self.refuses(each)}


@asynccontextmanager
async def world(
    *facts: Any, timeout: float = 30
) -> AsyncIterator[tuple[Controller, Refusing, Sidecar, Sidecar]]:
    """Run a controller with a validator, a server and a client that have ACKed everything."""
    refusing = Refusing()
    options = {"rollout_timeout": timeout, "validator": refusing}
    async with running(*FACTS, *facts, **options) as controller, AsyncExitStack() as stack:
        sidecars = [
            await stack.enter_async_context(Sidecar(controller, name, "ns")) for name in ("web", "client")
        ]
        for each in sidecars:
            await each.wait_for(lambda each=each: each.listeners and WEB in each.endpoints)
        yield controller, refusing, *sidecars


def refuse(refusing: Refusing, type_url: str, name: str, known: Mapping[str, Resource]) -> None:
    """Refuse all versions of a resource but the one that a sidecar has."""
    good = known[name].version
    refusing.refuses = lambda each: (each.type_url, each.name) == (type_url, name) and each.version != good


async def test_rollouts_of_other_services_do_not_wait() -> None:
    """The timeout of the rollout exceeds that of the test."""
    facts = (pod("api", "shop"), service("api", "shop", HTTP), peer("ns", "DISABLE"))
    async with world(*facts, timeout=600) as (controller, refusing, web, client):
        refuse(refusing, CLUSTER, API, client.resources[CLUSTER])
        bad = rule("shop", "api.shop.svc.cluster.local", "SIMPLE")
        controller.change(Change(applied=(bad,)))
        reason = f"held back, Envoy refuses Cluster {API}: it is bad"
        line = f"{bad.ref} waiting for client.ns, web.ns, rejected: {reason}"
        await eventually(
            lambda: [rule_line(each) for each in rule_progress(controller.rollouts)] == [line], timeout=WITHIN
        )
        progress = await ProgressTracker(controller, bad.ref).read()
        assert {(each.reason, each.rejected) for each in progress.lagging} == {(reason, True)}
        assert len(progress.lagging) == 2

        set_mode(controller, "STRICT")
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        assert client.uses_mtls(WEB)
        await eventually(lambda: not transitions(controller), timeout=WITHIN)
        assert controller.rollouts.rollout.stats.skips == 0
        assert [rule_line(each) for each in rule_progress(controller.rollouts)] == [line]


async def test_client_without_its_endpoints_lags_until_it_acks_the_repaired_ones() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, client):
        refuse(refusing, ENDPOINT, WEB, client.resources[ENDPOINT])
        set_mode(controller, "STRICT")
        reason = f"held back, Envoy refuses ClusterLoadAssignment {WEB}: it is bad"
        lagging = ("client.ns", "web.ns")

        def waiting() -> list[tuple[str, tuple[str, ...]]]:
            return [(each.rejection, each.lagging) for each in waits(controller)]

        await eventually(lambda: waiting() == [(reason, lagging)], timeout=WITHIN)
        assert not client.uses_mtls(WEB)
        assert web.accepts(PORT) == "P"
        client.hold(ENDPOINT)
        refusing.refuses = lambda _: False
        for name in ("web", "client"):
            controller.publisher.schedule(("ns", name))
        await eventually(lambda: waiting() == [(reason, ("client.ns",))], timeout=WITHIN)
        for _ in range(3):
            await until_checked_twice(controller)
        assert waiting() == [(reason, ("client.ns",))]
        await client.release(ENDPOINT)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        await until_finished(controller)


async def test_client_without_its_endpoints_is_skipped_after_the_timeout() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, client):
        refuse(refusing, ENDPOINT, WEB, client.resources[ENDPOINT])
        set_mode(controller, "STRICT")
        await eventually(
            lambda: [bool(each.rejection) for each in waits(controller)] == [True], timeout=WITHIN
        )
        await until_skipped(controller)
        await web.wait_for(lambda: web.accepts(PORT) == "S")
        (skipped,) = controller.rollouts.rollout.skipped.ports.values()
        assert skipped.wait.rejection.startswith("held back, Envoy refuses ClusterLoadAssignment")


async def test_server_without_its_listener_is_never_skipped() -> None:
    """It still refuses mutual TLS, although it has ACKed all that it was sent."""
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, client):
        (inbound,) = (name for name, each in web.resources[LISTENER].items() if tag_of(each.version))
        refuse(refusing, LISTENER, inbound, web.resources[LISTENER])
        set_mode(controller, "STRICT")
        reason = f"held back, Envoy refuses Listener {inbound}: it is bad"
        await eventually(lambda: [each.rejection for each in waits(controller)] == [reason], timeout=WITHIN)
        controller.rollouts.rollout.timeout = 0.5
        (transition,) = transitions(controller)
        until = transition.listener.since + 1.5
        await eventually(lambda: controller.rollouts.checked_at > until, timeout=WITHIN)
        assert not client.uses_mtls(WEB)
        assert controller.rollouts.rollout.stats.skips == 0

        web.hold(LISTENER)
        refusing.refuses = lambda _: False
        controller.publisher.schedule(("ns", "web"))
        await web.wait_for(lambda: web.held(LISTENER))
        for _ in range(3):
            await until_checked_twice(controller)
        assert not client.uses_mtls(WEB)
        await web.release(LISTENER)
        await client.wait_for(lambda: client.uses_mtls(WEB))
        await until_finished(controller)


async def test_reconnected_client_still_lags_behind_what_is_held_back() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, client):
        refuse(refusing, ENDPOINT, WEB, client.resources[ENDPOINT])
        set_mode(controller, "STRICT")
        other = Sidecar(controller, "other", "ns")
        async with other:
            await other.wait_for(lambda: other.listeners)
        async with other:
            lagging = ("client.ns", "other.ns", "web.ns")
            await eventually(
                lambda: [each.lagging for each in waits(controller)] == [lagging], timeout=WITHIN
            )
            await eventually(lambda: other.subscriber.session.synced, timeout=WITHIN)
            await until_checked_twice(controller)
            assert [each.lagging for each in waits(controller)] == [lagging]
            assert web.accepts(PORT) == "P"


@pytest.mark.parametrize("is_replicated", [True, False])
async def test_returning_sidecar_gets_no_snapshot_from_before(is_replicated: bool) -> None:
    """Another replica may have served it a newer one."""
    async with world(peer("ns", "DISABLE")) as (controller, refusing, _, client):
        controller.rollouts.proxies.is_replicated = is_replicated
        await client.disconnect()
        await eventually(lambda: client.pod not in controller.connections.streams, timeout=WITHIN)
        refusing.open.clear()
        set_mode(controller, "PERMISSIVE")
        async with client:
            await eventually(lambda: controller.validation.is_pending(client.pod), timeout=WITHIN)
            assert (client.subscriber.snapshot is None) == is_replicated
            refusing.open.set()
            await client.wait_for(lambda: client.uses_mtls(WEB))


async def test_what_is_held_back_from_no_connected_sidecar_is_no_problem() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, client):
        refuse(refusing, ENDPOINT, WEB, client.resources[ENDPOINT])
        set_mode(controller, "STRICT")
        await eventually(lambda: controller.validation.held_back, timeout=WITHIN)
        await client.disconnect()
        await web.disconnect()
        await eventually(lambda: not controller.validation.held_back, timeout=WITHIN)


async def test_progress_of_an_object_waits_for_its_validation() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, *_):
        bad = rule("ns", "web.ns.svc.cluster.local", "SIMPLE")

        async def has(*reasons: tuple[str, bool]) -> bool:
            progress = await ProgressTracker(controller, bad.ref).read()
            return {(each.reason, each.rejected) for each in progress.lagging} == {*reasons}

        async def until_validating() -> None:
            pods = [("ns", "web"), ("ns", "client")]
            await eventually(lambda: all(map(controller.validation.is_pending, pods)), timeout=WITHIN)

        waiting = ("waiting for its configuration", False)
        refusing.refuses = lambda each: (each.type_url, each.name) == (CLUSTER, WEB)
        refusing.open.clear()
        controller.change(Change(applied=(bad,)))
        await until_validating()
        assert await has(waiting)
        refusing.open.set()
        rejected = (f"held back, Envoy refuses Cluster {WEB}: it is bad", True)
        await eventually(lambda: has(rejected), timeout=WITHIN)

        refusing.refuses = lambda _: False
        refusing.open.clear()
        for name in ("web", "client"):
            controller.publisher.schedule(("ns", name))
        await until_validating()
        assert await has(waiting)
        refusing.open.set()
        await eventually(has, timeout=WITHIN)


async def test_a_new_stream_without_a_snapshot_has_answered_nothing() -> None:
    async with world(peer("ns", "DISABLE")) as (controller, refusing, _, client):
        refuse(refusing, ENDPOINT, WEB, client.resources[ENDPOINT])
        set_mode(controller, "STRICT")
        await eventually(lambda: controller.validation.held_back_from(client.pod), timeout=WITHIN)
        client.hold(ENDPOINT)
        refusing.refuses = lambda _: False
        controller.publisher.schedule(client.pod)
        await client.wait_for(lambda: client.held(ENDPOINT))
        proxy = controller.rollouts.proxies._proxies[client.pod]
        assert proxy.held_back.cluster_errors
        controller.rollouts.proxies.is_replicated = True
        await client.disconnect()
        refusing.open.clear()
        async with client:
            await eventually(lambda: controller.validation.is_pending(client.pod), timeout=WITHIN)
            await until_checked_twice(controller)
            assert client.subscriber.snapshot is None
            assert proxy.held_back.cluster_errors
            refusing.open.set()
            await client.wait_for(lambda: client.held(ENDPOINT))
            await client.release(ENDPOINT)
            await eventually(lambda: not proxy.held_back.cluster_errors, timeout=WITHIN)


async def test_server_that_is_away_without_its_listener_is_skipped() -> None:
    """A server that does not return must not hold a rollout up for ever."""
    async with world(peer("ns", "DISABLE")) as (controller, refusing, web, _):
        (inbound,) = (name for name, each in web.resources[LISTENER].items() if tag_of(each.version))
        refuse(refusing, LISTENER, inbound, web.resources[LISTENER])
        set_mode(controller, "STRICT")
        reason = f"held back, Envoy refuses Listener {inbound}: it is bad"
        await eventually(lambda: [each.rejection for each in waits(controller)] == [reason], timeout=WITHIN)
        await web.disconnect()
        await until_skipped(controller)
        assert controller.rollouts.rollout.stats.skips == 1
