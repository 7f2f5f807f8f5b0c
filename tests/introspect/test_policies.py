"""xds.mesh.v1.Policies: what policies require, what is served, and what proxies have ACKed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.policy.world import peer, pod, rule
from xds.mesh.controlplane import explainer
from xds.mesh.controlplane.explanation import MAX_SERVERS, MAX_UNSYNCED
from xds.mesh.controlplane.policies_service import SERVICE
from xds.mesh.model.objects import Change
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import rollouts_pb2
from xds.snapshot import ENDPOINT, LISTENER

HOST = "web.shop.svc.cluster.local"


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with running("DISABLE") as plane:
        yield plane


async def explain(plane: Plane, client: str = "one.shop", service: str = "web.shop") -> pb.Explanation:
    method = plane.channel.unary_unary(
        f"/{SERVICE}/Explain",
        request_serializer=pb.ExplainRequest.SerializeToString,
        response_deserializer=pb.Explanation.FromString,
    )
    found: pb.Explanation = await method(pb.ExplainRequest(client=client, service=service), timeout=WITHIN)
    return found


async def until(plane: Plane, is_so: Callable[[pb.Explanation], bool]) -> pb.Explanation:
    async with asyncio.timeout(WITHIN):
        while not is_so(found := await explain(plane)):
            await asyncio.sleep(0.01)
    return found


def differences(found: pb.Explanation) -> list[str]:
    return [difference for group in found.groups for difference in group.differences]


async def test_settled_mesh_has_no_differences(plane: Plane):
    found = await until(plane, lambda found: not differences(found))
    (group,) = found.groups
    assert sorted(endpoint.pod for endpoint in group.endpoints) == ["web-1.shop", "web-2.shop"]
    assert (group.outcome, group.reason) == ("plaintext", "server-plaintext")
    assert group.server.decided_by.name == "default"
    assert [named.kind for named in group.server.overridden] == ["MeshPolicy"]
    assert (
        group.desired
        == group.served
        == pb.Configured(send=pb.Configured.PLAINTEXT, mode=rollouts_pb2.DISABLE)
    )
    for proxy in (found.client_proxy, *group.server_proxies):
        assert (proxy.synced, proxy.status) == (True, "synced")
        assert proxy.acked_generation == proxy.served_generation > 0
        assert proxy.certificate_expires.ToSeconds() > time.time()
    assert abs(found.time.ToSeconds() - time.time()) < WITHIN


async def test_transition_is_followed_from_the_server_to_the_client(plane: Plane):
    plane.set_mode("STRICT")
    # The second server is faster, so that the answers differ. The first one may be sent its listener later.
    found = await until(
        plane,
        lambda found: (
            len(found.groups) == 2
            and any("web-1.shop: LDS waiting " in text for text in differences(found))
            and any("web-1 waiting for its listener" in text for text in differences(found))
        ),
    )
    by_pod = {group.endpoints[0].pod: group for group in found.groups}
    first = by_pod["web-1.shop"]
    assert first.summary == "mutual TLS: auto mTLS is enabled, and the server's mode is STRICT"
    assert first.differences[:2] == [
        "the client is still configured to send plaintext, not mutual TLS",
        (
            "the server is still configured to accept mutual TLS and plaintext (PERMISSIVE), "
            "not mutual TLS only (STRICT)"
        ),
    ]
    assert first.served.mode == rollouts_pb2.PERMISSIVE
    assert any(text.startswith("the server's sidecar web-1.shop: LDS waiting ") for text in first.differences)
    assert any("web-1 waiting for its listener" in text for text in first.differences)
    (lagging,) = first.server_proxies
    assert lagging.acked_generation < lagging.served_generation

    await plane.first.answer(LISTENER)
    await until(
        plane,
        lambda found: any(
            text.startswith("the client's sidecar one.shop: EDS waiting ") for text in differences(found)
        ),
    )
    await plane.one.answer(ENDPOINT)
    done = await until(plane, lambda found: not differences(found))
    (group,) = done.groups
    assert group.served == group.desired


async def test_rule_that_is_held_is_reported(plane: Plane):
    plane.set_mode(
        "STRICT", rule("shop", HOST, "ISTIO_MUTUAL"), rule("shop", "else.where", "DISABLE", name="x")
    )
    found = await until(plane, lambda found: bool(found.rule_transitions))
    (line,) = found.rule_transitions
    assert line.startswith("DestinationRule shop/rule held until its servers accept it")
    assert found.groups[0].client.decided_by.kind == "DestinationRule"
    assert (
        found.groups[0].differences[0] == "the client is still configured to send plaintext, not mutual TLS"
    )


async def test_rule_that_cannot_apply_to_the_client_is_not_reported(plane: Plane):
    local = rule("zoo", HOST, "ISTIO_MUTUAL", name="local", export_to=(".",))
    plane.set_mode("STRICT", pod("z", "zoo"), pod("bare", "shop", sidecar=False), local)
    async with asyncio.timeout(WITHIN):
        while local.ref not in plane.controller.rollouts.rollout.rules:
            await asyncio.sleep(0.01)
    assert not (await explain(plane)).rule_transitions
    assert (await explain(plane, client="z.zoo")).rule_transitions
    assert not (await explain(plane, client="bare.shop")).rule_transitions


async def test_rejection_is_reported_with_its_message(plane: Plane):
    plane.set_mode("STRICT")
    await plane.first.answer(LISTENER, error="no such thing")
    found = await until(plane, lambda found: any("LDS rejected" in text for text in differences(found)))
    message = "LDS rejected: Error adding/updating listener(s) virtualInbound: no such thing"
    assert any(text.startswith(f"the server's sidecar web-1.shop: {message}") for text in differences(found))


async def test_sidecars_that_are_not_connected(plane: Plane):
    count = MAX_UNSYNCED + 2
    more = [pod(f"extra-{number}", "shop", app="web") for number in range(count)]
    bare = pod("bare", "shop", sidecar=False)
    plane.controller.change(Change(applied=(*more, bare, peer("shop", "DISABLE"))))
    omitted = "2 more servers' sidecars are not synced"
    found = await until(plane, lambda found: omitted in differences(found))
    # The order of endpoints depends on their addresses, so any of them can be omitted.
    assert sum(text.endswith(".shop: not connected (never)") for text in differences(found)) == MAX_UNSYNCED
    # During the rollout, the sidecars that are connected can have a group of their own.
    states = {proxy.pod: proxy for group in found.groups for proxy in group.server_proxies}
    assert states["extra-0.shop"].acked_generation == -1
    assert not states["extra-0.shop"].HasField("certificate_expires")
    assert not (await explain(plane, client="bare.shop")).HasField("client_proxy")


async def test_state_of_unsynced_sidecars_is_limited(plane: Plane):
    more = [pod(f"extra-{number}", "shop", app="web") for number in range(MAX_SERVERS + 5)]
    plane.controller.change(Change(applied=tuple(more)))
    omitted = f"at least {MAX_SERVERS - MAX_UNSYNCED} more servers' sidecars are not synced"
    found = await until(plane, lambda found: omitted in differences(found))
    [states] = (group.server_proxies for group in found.groups if omitted in group.differences)
    assert (len(states), any(state.synced for state in states)) == (MAX_SERVERS, False)


async def test_explanation_does_not_block_changes(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    blocked: list[bool] = []

    def explanations(*args: Any) -> Any:
        blocked.append(plane.controller.mesh_lock.locked())
        return original(*args)

    original = explainer.explanations
    monkeypatch.setattr(explainer, "explanations", explanations)
    await explain(plane)
    assert blocked == [False]


async def test_sidecar_on_another_replica_is_no_difference(plane: Plane):
    plane.controller.rollouts.proxies.is_replicated = True
    plane.controller.change(Change(applied=(pod("two", "shop"),)))
    async with asyncio.timeout(WITHIN):
        while not plane.controller.mesh.pod("shop", "two"):
            await asyncio.sleep(0.01)
    found = await explain(plane, client="two.shop")
    proxy = found.client_proxy
    assert (proxy.synced, proxy.may_be_on_other_replica) == (False, True)
    assert proxy.status == "not connected here (never)"
    assert not any("two.shop" in text for text in differences(found))


@pytest.mark.parametrize(
    ("client", "service", "message"),
    [
        ("on.shop", "web.shop", "pod on.shop not found (POD.NAMESPACE); did you mean one.shop"),
        ("one.shop", "web.shp", "service web.shp not found (SERVICE.NAMESPACE); did you mean web.shop?"),
        ("one.shop", "web.shop:81", "port 81 not found (service web.shop); did you mean 80?"),
    ],
)
async def test_unknown_names_are_not_found(plane: Plane, client, service, message):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explain(plane, client, service)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (caught.value.details() or "").startswith(message)
