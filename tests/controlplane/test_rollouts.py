"""Rollouts at a hub: what is waited for, for how long, and who does not have to."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.test_hub import running
from tests.policy.world import HTTP, meta, peer, pod, rule, service
from tests.support.waiting import eventually
from xds.mesh.model.objects import ROLLOUT, Change, Ref
from xds.mesh.rollout import driver, log
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET

WEB = "outbound|80||web.ns.svc.cluster.local"
FACTS = (
    pod("web", "ns"),
    pod("client", "ns"),
    pod("other", "ns"),
    service("web", "ns", HTTP),
)
PORT = HTTP.target


@asynccontextmanager
async def world(*facts, timeout: float | None = 30, names: tuple[str, ...] = ("web", "client")):
    """A hub with a server and a client that have all they should."""
    async with running(*FACTS, *facts, rollout_timeout=timeout) as hub, AsyncExitStack() as stack:
        sidecars = [await stack.enter_async_context(Sidecar(hub, name, "ns")) for name in names]
        for each in sidecars:
            await each.until(lambda each=each: LISTENER in each.has and WEB in each.has.get(ENDPOINT, {}))
        yield hub, *sidecars


def say(hub, mode: str | None, **more) -> None:
    if mode is None:
        hub.change(Change(removed=(Ref("PeerAuthentication", "ns", "default"),)))
    else:
        hub.change(Change(applied=(peer("ns", mode, **more),)))


async def over(hub) -> None:
    await eventually(lambda: not hub.rolling.is_open and not hub._pending, timeout=WITHIN)


async def waits_for(hub, stage: str) -> None:
    def is_waiting() -> bool:
        crossings = hub.rolling.rollout.crossings.values()
        return bool(crossings) and all(each.stage == stage for each in crossings)

    await eventually(is_waiting, timeout=WITHIN, every=0.01)


async def looked_twice(hub) -> None:
    """Wait until the hub has looked twice more how far everybody is."""
    for _ in range(2):
        before = hub.rolling._looked
        await eventually(lambda before=before: hub.rolling._looked > before, timeout=WITHIN, every=0.01)


async def test_clients_change_over_once_the_listener_and_its_secrets_are_in_force() -> None:
    disabled = peer("ns", "DISABLE")
    async with world(disabled) as (hub, web, client):
        web.withholds = {LISTENER}
        say(hub, "STRICT")
        await waits_for(hub, "listener")
        await looked_twice(hub)
        assert not client.is_told_mtls(WEB)
        web.answer(LISTENER)
        await web.until(lambda: web.accepts(PORT) == "S")
        assert client.is_told_mtls(WEB)
        await over(hub)


async def test_a_listener_that_waits_for_its_secret_moves_no_client() -> None:
    """Envoy acknowledges a listener before that is warm."""
    async with running(*FACTS, peer("ns", "DISABLE")) as hub, AsyncExitStack() as stack:
        web, client = Sidecar(hub, "web", "ns"), Sidecar(hub, "client", "ns")
        web.withholds = {SECRET}
        for each in (web, client):
            await stack.enter_async_context(each)
            await each.until(lambda each=each: LISTENER in each.has and WEB in each.has.get(ENDPOINT, {}))
        say(hub, "PERMISSIVE")
        await web.until(lambda: web.accepts(PORT) == "P")
        await looked_twice(hub)
        assert not client.is_told_mtls(WEB)
        web.answer(SECRET)
        await client.until(lambda: client.is_told_mtls(WEB))
        await over(hub)


async def test_a_server_is_locked_once_every_client_sends_mutual_tls() -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client", "other")) as (hub, web, client, other):
        other.withholds = {ENDPOINT}
        say(hub, "STRICT")
        await client.until(lambda: client.is_told_mtls(WEB))
        await waits_for(hub, "clients")
        (crossing,) = hub.rolling.rollout.crossings.values()
        await eventually(lambda: crossing.laggards == ("other.ns",), timeout=WITHIN)
        assert crossing.awaits_lock
        assert web.accepts(PORT) == "P"
        other.answer(ENDPOINT)
        await web.until(lambda: web.accepts(PORT) == "S")
        await over(hub)
        assert hub.rolling.rollout.locked == 1


async def test_who_lags_is_passed_over_in_time_and_named_until_it_is_there(monkeypatch) -> None:
    monkeypatch.setattr(log, "TOLD_EVERY", 0.0)
    with capture_logs() as logs:
        async with world(peer("ns", "DISABLE"), timeout=1.0) as (hub, web, client):
            client.withholds = {ENDPOINT}
            say(hub, "STRICT")
            await web.until(lambda: web.accepts(PORT) == "S")
            (late,) = hub.rolling.rollout.late.values()
            assert late.laggards == ("client.ns",)
            assert hub.rolling.rollout.passed_over == 1
            await eventually(
                lambda: any("any longer" in entry.get("status", "") for entry in logs), timeout=WITHIN
            )
            client.answer(ENDPOINT)
            await eventually(lambda: not hub.rolling.rollout.late, timeout=WITHIN)
    said = [entry["status"] for entry in logs if entry["event"] == "rollout"]
    assert any("web waiting for client.ns" in each for each in said)
    assert any("web did not wait for client.ns any longer" in each for each in said)
    assert said[-1] == "web.ns: done"


async def test_a_rule_that_a_client_rejects_is_told_when_that_changes_and_not_again_and_again(
    monkeypatch,
) -> None:
    monkeypatch.setattr(log, "TOLD_EVERY", 0.0)
    monkeypatch.setattr(driver, "LATE_EVERY", 0.1)
    mutual = rule("ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    with capture_logs() as logs:
        async with world(peer("ns", "PERMISSIVE"), timeout=0.5) as (hub, _web, client):
            client.rejects = {CLUSTER}
            hub.change(Change(applied=(mutual,)))
            await eventually(lambda: hub.rolling.rollout.late_rules, timeout=WITHIN)
            for _ in range(3):
                await looked_twice(hub)
            client.rejects = set()
            hub.change(Change(removed=(mutual.ref,)))
            await over(hub)
            await eventually(lambda: not hub.rolling.rollout.late_rules, timeout=WITHIN)
    said = [each["status"].partition(" (")[0] for each in logs if each["event"] == "rollout"]
    assert len(said) == len(set(said)), said
    assert "DestinationRule/ns/rule waiting for client.ns to take it, rejected: no" in said
    assert "DestinationRule/ns/rule did not wait for client.ns any longer, rejected: no" in said
    assert said[-1] == "DestinationRule/ns/rule: done"


async def test_a_server_that_lags_holds_back_only_its_own_clients_and_is_passed_over() -> None:
    async with world(peer("ns", "DISABLE"), timeout=1.0) as (hub, web, client):
        web.withholds = {LISTENER}
        say(hub, "PERMISSIVE")
        await waits_for(hub, "listener")
        await client.until(lambda: client.is_told_mtls(WEB))
        assert hub.rolling.rollout.passed_over == 1


async def test_a_rejected_listener_stops_the_step_for_good() -> None:
    async with world(peer("ns", "DISABLE"), timeout=0.5) as (hub, web, client):
        web.rejects = {LISTENER}
        say(hub, "STRICT")
        await eventually(
            lambda: [each.rejection for each in hub.rolling.rollout.crossings.values()] == ["no"],
            timeout=WITHIN,
        )
        (crossing,) = hub.rolling.rollout.crossings.values()
        await eventually(lambda: hub.rolling._looked > crossing.served_since + 1.5, timeout=WITHIN)
        assert not client.is_told_mtls(WEB)
        assert hub.rolling.rollout.passed_over == 0
        web.rejects = set()
        say(hub, "DISABLE")
        await over(hub)


async def test_a_client_that_rejects_its_endpoints_is_named_with_what_it_said() -> None:
    async with world(peer("ns", "DISABLE"), timeout=1.0) as (hub, web, client):
        client.rejects = {ENDPOINT}
        say(hub, "STRICT")
        await eventually(
            lambda: [each.rejection for each in hub.rolling.rollout.crossings.values()] == ["no"],
            timeout=WITHIN,
        )
        (crossing,) = hub.rolling.rollout.crossings.values()
        await eventually(lambda: crossing.laggards == ("client.ns",), timeout=WITHIN)
        await web.until(lambda: web.accepts(PORT) == "S")


async def test_nobody_is_waited_for_without_the_gate_or_where_the_policy_must_not_wait() -> None:
    async with world(peer("ns", "DISABLE"), timeout=None) as (hub, web, client):
        client.withholds = {ENDPOINT}
        say(hub, "STRICT")
        await web.until(lambda: web.accepts(PORT) == "S")
        assert not hub.rolling.is_open
    async with world(peer("ns", "DISABLE")) as (hub, web, client):
        client.withholds = {ENDPOINT}
        strict = peer("ns", "STRICT")
        immediate = replace(strict, meta=replace(strict.meta, annotations={ROLLOUT: "immediate"}))
        hub.change(Change(applied=(immediate,)))
        await web.until(lambda: web.accepts(PORT) == "S")
        client.answer(ENDPOINT)
        await client.until(lambda: client.is_told_mtls(WEB))
        await over(hub)


async def test_a_client_that_lost_its_stream_is_reckoned_with_until_it_is_back(monkeypatch) -> None:
    async with world(peer("ns", "DISABLE"), names=("web", "client")) as (hub, web, client):
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(hub, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
        await waits_for(hub, "clients")
        await looked_twice(hub)
        assert web.accepts(PORT) == "P"
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}) and other.is_told_mtls(WEB))
            await web.until(lambda: web.accepts(PORT) == "S")


async def test_a_client_that_does_not_come_back_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(driver, "AWAY", 0.5)
    async with world(peer("ns", "DISABLE")) as (hub, web, client):
        async with Sidecar(hub, "other", "ns") as other:
            await other.until(lambda: WEB in other.has.get(ENDPOINT, {}))
            other.withholds = {ENDPOINT}
            say(hub, "STRICT")
            await client.until(lambda: client.is_told_mtls(WEB))
        await web.until(lambda: web.accepts(PORT) == "S")


async def test_a_server_that_lost_its_stream_goes_on_and_is_waited_for_until_the_timeout(monkeypatch) -> None:
    monkeypatch.setattr(driver, "AWAY", 0.0)
    monkeypatch.setattr(driver, "RECOVERY", 0.0)
    async with world(peer("ns", "DISABLE"), names=("client",), timeout=WITHIN) as (hub, client):
        async with Sidecar(hub, "web", "ns") as web:
            await web.until(lambda: LISTENER in web.has and web.accepts(PORT) == "D")
            await eventually(
                lambda: web.session.in_force(LISTENER, web.session.tagged(LISTENER)), timeout=WITHIN
            )
            had = {
                kind: {name: resource.version for name, resource in found.items()}
                for kind, found in web.has.items()
            }
        say(hub, "STRICT")
        await waits_for(hub, "listener")
        await looked_twice(hub)
        assert not client.is_told_mtls(WEB)
        web = Sidecar(hub, "web", "ns")
        web.brings = had
        async with web:
            await client.until(lambda: client.is_told_mtls(WEB))
            await web.until(lambda: web.accepts(PORT) == "S")
            await over(hub)
        # Another pod of that name has nothing in force.
        say(hub, "DISABLE")
        await waits_for(hub, "listener")
        gone = hub.mesh.pod("ns", "web")
        assert gone
        hub.change(Change(applied=(replace(gone, meta=replace(gone.meta, uid="another")),)))
        await over(hub)
        say(hub, "PERMISSIVE")
        await eventually(lambda: not hub.rolling._away, timeout=WITHIN)


async def test_who_is_new_while_others_come_back_waits_until_it_is_known_what_servers_take(
    monkeypatch,
) -> None:
    monkeypatch.setattr(driver, "RECOVERY", 60.0)
    async with running(*FACTS, peer("ns", "STRICT")) as hub, AsyncExitStack() as stack:
        back, new = (Sidecar(hub, name, "ns") for name in ("client", "other"))
        back.brings = {CLUSTER: {"a": "1"}, LISTENER: {"virtualInbound": f"0.{PORT}S"}}
        await stack.enter_async_context(back)
        await eventually(lambda: ("ns", "client") in hub._held, timeout=WITHIN)
        await stack.enter_async_context(new)
        await eventually(lambda: ("ns", "other") in hub._held, timeout=WITHIN)
        web = Sidecar(hub, "web", "ns")
        web.brings, web.withholds = (
            {CLUSTER: {"a": "1"}, LISTENER: {"virtualInbound": f"0.{PORT}D"}},
            {LISTENER},
        )
        await stack.enter_async_context(web)
        await new.until(lambda: WEB in new.has.get(ENDPOINT, {}))
        assert not new.is_told_mtls(WEB)
        web.answer(LISTENER)
        await new.until(lambda: new.is_told_mtls(WEB))


async def test_a_control_plane_that_starts_finds_what_is_in_force() -> None:
    """The one before it was killed when it had just been told of STRICT."""
    async with world(peer("ns", "DISABLE")) as (hub, web, client):
        had = {
            each.name: {
                kind: {name: resource.version for name, resource in found.items()}
                for kind, found in each.has.items()
            }
            for each in (web, client)
        }
    async with running(*FACTS, peer("ns", "STRICT")) as hub, AsyncExitStack() as stack:
        client = Sidecar(hub, "client", "ns")
        client.brings = had["client"]
        await stack.enter_async_context(client)
        # The client comes first: what it should send depends on a server that may be about to come.
        await eventually(lambda: ("ns", "client") in hub._held, timeout=WITHIN)
        assert client.subscriber.snapshot is None
        web = Sidecar(hub, "web", "ns")
        web.brings, web.withholds = had["web"], {LISTENER}
        await stack.enter_async_context(web)
        await waits_for(hub, "listener")
        await stack.enter_async_context(Sidecar(hub, "other", "ns"))
        await client.until(lambda: client.subscriber.snapshot is not None)
        assert ENDPOINT not in client.has or not client.is_told_mtls(WEB)
        (crossing,) = hub.rolling.rollout.crossings.values()
        assert (crossing.serves, crossing.wanted) == ("PERMISSIVE", "STRICT")
        web.answer(LISTENER)
        await client.until(lambda: WEB in client.has.get(ENDPOINT, {}) and client.is_told_mtls(WEB))
        await web.until(lambda: web.accepts(PORT) == "S")
        await over(hub)


async def test_who_comes_back_waits_for_the_others_only_for_so_long(monkeypatch) -> None:
    monkeypatch.setattr(driver, "RECOVERY", 0.5)
    async with running(*FACTS) as hub:
        client = Sidecar(hub, "client", "ns")
        client.brings = {CLUSTER: {"gone": "1"}}
        async with client:
            await client.until(lambda: LISTENER in client.has)


async def test_a_rule_waits_for_servers_that_do_not_take_yet_what_it_says() -> None:
    mutual = rule("ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL")
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        web.withholds = {LISTENER}
        hub.change(Change(applied=(peer("ns", "STRICT"), mutual)))
        await waits_for(hub, "listener")
        await looked_twice(hub)
        assert hub.mesh.get(mutual.ref) is None
        web.answer(LISTENER)
        await web.until(lambda: web.accepts(PORT) == "S")
        assert hub.mesh.get(mutual.ref) == mutual
        await over(hub)
        hub.change(Change(removed=(mutual.ref,), applied=(peer("ns", "DISABLE"),)))
        await web.until(lambda: web.accepts(PORT) == "D")
        await over(hub)
        assert hub.mesh.get(mutual.ref) is None


async def test_a_pod_that_goes_is_waited_for_no_longer() -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, _client):
        web.withholds = {LISTENER}
        say(hub, "STRICT")
        await waits_for(hub, "listener")
        hub.change(Change(removed=(Ref("Pod", "ns", "web"),)))
        await over(hub)
        assert meta("Pod", "ns", "web").ref not in hub.rolling.rollout._wanted


@pytest.mark.parametrize("count", [2, 3])
async def test_policies_that_change_again_half_way_come_to_what_was_said_last(count: int) -> None:
    async with world(peer("ns", "DISABLE")) as (hub, web, client):
        for _ in range(count):
            say(hub, "STRICT")
            await waits_for(hub, "listener")
            say(hub, "DISABLE")
        await over(hub)
        assert web.accepts(PORT) == "D"
        assert not client.is_told_mtls(WEB)


async def test_an_error_of_a_step_is_told_once_and_ends_nothing(monkeypatch) -> None:
    with capture_logs() as logs:
        async with world(peer("ns", "DISABLE")) as (hub, web, client):
            web.withholds = {LISTENER}
            say(hub, "STRICT")
            await waits_for(hub, "listener")
            advance = hub.rolling.advance

            def fail(*_: object) -> None:
                raise RuntimeError("a bug")

            monkeypatch.setattr(hub.rolling, "advance", fail)
            await looked_twice(hub)
            monkeypatch.setattr(hub.rolling, "advance", advance)
            web.answer(LISTENER)
            await web.until(lambda: web.accepts(PORT) == "S")
            assert client.is_told_mtls(WEB)
    told = [entry for entry in logs if entry["event"] == "changes of mode cannot go on"]
    assert [entry["problem"] for entry in told] == ["RuntimeError: a bug"]


async def test_a_pod_that_is_gone_is_forgotten() -> None:
    async with world() as (hub, _web, _client):
        assert ("ns", "web") in hub.rolling._met
        hub.change(Change(removed=(Ref("Pod", "ns", "web"),)))
        await eventually(lambda: ("ns", "web") not in hub.rolling._met, timeout=WITHIN)
