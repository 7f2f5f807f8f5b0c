"""Checks of policies on a live mesh: cooperative, limited in time and CPU, and over HTTPS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from tests.inject.webhooks import NAME, NOW, Call, authority, policy, request, running
from tests.policy.world import HTTP, peer, pod, rule, service
from xds.mesh.controlplane.metrics.admission import AdmissionMetrics
from xds.mesh.inject import InjectionSettings, policy_webhook, webhook
from xds.mesh.inject.policy_review import read_proposal
from xds.mesh.inject.policy_webhook import (
    MAX_CACHED,
    EffectChecker,
    NotCheckedError,
    PlanShare,
    PolicyReviewer,
)
from xds.mesh.inject.webhook import WebhookServer
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact
from xds.mesh.policy.prediction import predict_change_steps

SHOP: list[Fact] = [service("web", "shop", HTTP), pod("web", "shop"), pod("client", "zoo", sidecar=False)]
STRICT = Change(applied=(peer("shop", "STRICT"),))
BREAKS = "zoo/client -> web.shop:80 would fail: server-requires-mtls (PeerAuthentication shop/default); "


class World:
    """A mesh that tests can replace, and a count of plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *facts: Fact) -> None:
        self.mesh = Mesh([*SHOP, *facts])
        self.plans = 0
        self.checker = EffectChecker(lambda: self.mesh)

        def count(*args: Any) -> Any:
            self.plans += 1
            return predict_change_steps(*args)

        monkeypatch.setattr(policy_webhook, "predict_change_steps", count)

    async def check(self, change: Change = STRICT, key: bytes = b"", client: str = "") -> Any:
        return await self.checker.check(change, key or repr(change).encode(), client)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine needs longer than the API server would wait."""
    monkeypatch.setattr(policy_webhook, "TIME_LIMIT", 60.0)
    monkeypatch.setattr(webhook, "QUEUE_TIMEOUT", 60.0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def test_effects_are_those_of_the_current_mesh(world: World) -> None:
    found = await world.check()
    assert (found.breaks, found.sentences[0].startswith(BREAKS)) == (1, True)
    world.mesh = world.mesh.apply(Change(applied=(pod("client", "zoo"),)))
    assert (await world.check()).breaks == 0


async def test_object_without_effect_is_reported(world: World) -> None:
    found = await world.check(Change(applied=(peer("shop", "STRICT", app="typo"),)))
    assert (found.breaks, len(found.ineffective)) == (0, 1)
    assert found.ineffective[0].startswith("selector app=typo matches no pod in namespace shop")
    found = await world.check(Change(applied=(rule("shop", "typo.shop.svc.cluster.local", "DISABLE"),)))
    assert "matches no Service" in found.ineffective[0]


async def test_changed_object_keeps_its_age(world: World) -> None:
    older = peer("shop", "PERMISSIVE", name="older", age=10)
    world.mesh = world.mesh.apply(Change(applied=(older, peer("shop", "PERMISSIVE", name="newer", age=5))))
    changed = peer("shop", "STRICT", name="newer")
    found = await world.check(Change(applied=(changed,)))
    assert "PeerAuthentication shop/older overrides it" in found.ineffective[0]


async def test_results_are_cached_until_the_mesh_changes(world: World) -> None:
    first = await world.check()
    assert await world.check() is first
    assert world.plans == 1
    world.mesh = world.mesh.apply(Change())
    assert await world.check() == first
    assert world.plans == 2
    for number in range(MAX_CACHED):
        await world.check(key=str(number).encode())
    await world.check()
    assert world.plans == 2 + MAX_CACHED + 1


async def test_event_loop_runs_during_a_check(world: World) -> None:
    """A check of 5,000 pods takes many slices, and other tasks run between them."""
    many = [pod(f"web-{number}", "shop") for number in range(5000)]
    world.mesh = Mesh([*SHOP, *(replace(one, probe_ports=(8080,)) for one in many)])
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    try:
        assert (await world.check()).breaks == 2
    finally:
        counting.cancel()
    assert turns >= 10


async def test_check_beyond_the_time_limit_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: Any) -> Any:
        while True:
            yield

    with monkeypatch.context() as patched:
        patched.setattr(policy_webhook, "TIME_LIMIT", 0.1)
        patched.setattr(policy_webhook, "_effects", endless)
        waiting = asyncio.gather(*(world.check(client=str(n)) for n in range(3)), return_exceptions=True)
        assert [str(error) for error in await waiting] == ["it took longer than 0 s"] * 3
    assert (await world.check()).breaks == 1


async def test_checks_share_a_part_of_the_cpu(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await world.check()).breaks == 1
    monkeypatch.setattr(PlanShare, "BURST", -100.0)
    with pytest.raises(NotCheckedError, match="more than 10% of a CPU core; try again in"):
        await world.check(key=b"other")
    assert (await world.check()).breaks == 1, "a cached result costs nothing"


async def test_cancelled_check_leaves_its_turn(world: World) -> None:
    task = asyncio.create_task(world.check())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await world.check()).breaks == 1


# --- the reviewer and the server ----------------------------------------------------------------------------


async def test_unexpected_error_is_logged_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("secret")
        yield

    monkeypatch.setattr(policy_webhook, "_effects", fail)
    proposal = read_proposal(request("CREATE", policy()))
    for enforce, expected in ((False, "unchecked"), (True, "refused")):
        reviewer = PolicyReviewer(lambda: Mesh(SHOP), enforce=enforce)
        with capture_logs() as logs:
            result, response = await reviewer.review(proposal, "", lambda: True)
            await reviewer.review(proposal, "", lambda: False)
        assert (result, response["allowed"]) == (expected, not enforce)
        assert "unexpected KeyError" in str(response)
        assert [entry["event"] for entry in logs] == [
            "failed to check a policy",
            *(["policy refused"] if enforce else []),
        ]


def review(**fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": request(**fields),
    }


class Plane:
    """A webhook server that reviews policies of a mesh."""

    def __init__(self, *, enforce: bool = False) -> None:
        self.mesh = Mesh(SHOP)
        self.policies = PolicyReviewer(lambda: self.mesh, enforce=enforce)
        self._ca = authority()
        self.server = WebhookServer(
            InjectionSettings,
            lambda: self._ca.issue_server([NAME], NOW),
            "127.0.0.1",
            0,
            policies=self.policies,
        )

    async def call(self, body: Any) -> tuple[int, Any]:
        call = Call(self.server.port, self._ca)
        return await call(body, url=call.url.replace("/inject", "/validate"))


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane()
    async with running(plane.server):
        yield plane


async def test_reviews_are_answered_and_counted(plane: Plane) -> None:
    status, answered = await plane.call(review(operation="CREATE", new=policy()))
    assert (status, answered["kind"], answered["response"]["uid"]) == (200, "AdmissionReview", "705ab4f5")
    assert answered["response"]["allowed"]
    assert answered["response"]["warnings"][0].startswith(BREAKS)
    _, answered = await plane.call(review(operation="CREATE", new=policy({"mtls": {"mode": "STRICKT"}})))
    assert answered["response"]["status"]["code"] == 422
    await plane.call(review(operation="CREATE", new=policy({})))
    for body in (b"{", review(operation="CREATE")):
        assert (await plane.call(body))[0] == 400
    assert plane.policies.results == {"warned": 1, "refused": 1, "allowed": 1, "malformed": 2}
    exposed = generate_latest(AdmissionMetrics({}, plane.policies.results)).decode()  # type: ignore[arg-type]
    assert 'xds_policy_webhook_requests_total{result="warned"} 1.0' in exposed
    assert 'xds_policy_webhook_requests_total{result="malformed"} 2.0' in exposed


async def test_enforced_refusal_is_logged_with_its_object() -> None:
    plane = Plane(enforce=True)
    async with running(plane.server):
        with capture_logs() as logs:
            _, answered = await plane.call(review(operation="CREATE", new=policy(), dryRun=True))
    assert answered["response"]["status"]["code"] == 403
    [line] = [entry for entry in logs if entry["event"] == "policy refused"]
    assert (line["object"], line["dry_run"]) == ("PeerAuthentication shop/default", True)
    assert line["problem"].startswith(BREAKS)


async def test_server_without_policies_reviews_none() -> None:
    ca = authority()
    server = WebhookServer(InjectionSettings, lambda: ca.issue_server([NAME], NOW), "127.0.0.1", 0)
    async with running(server):
        call = Call(server.port, ca)
        body = review(operation="CREATE", new=policy())
        assert (await call(body, url=call.url.replace("/inject", "/validate")))[0] == 404
