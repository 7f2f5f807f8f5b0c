"""xds.mesh.v1.Rollouts: the progress of mode changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import grpc.aio
import pytest

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.introspect.grpcurl import call, grpcurl
from tests.policy.world import rule
from xds.introspect.clock import Clock
from xds.mesh.controlplane.rollouts_service import MAX_CLIENTS, SERVICE, _waiting
from xds.mesh.model.objects import Change, Mode, Ref
from xds.mesh.rollout.plan import Phase
from xds.mesh.rollout.progress import WaitingEndpoint
from xds.mesh.rollout.waits import WaitingFor
from xds.mesh.v1 import rollouts_pb2 as pb
from xds.snapshot import ENDPOINT, LISTENER


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with running("DISABLE") as plane:
        yield plane


class Ask:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def list(self, **request: object) -> pb.ListRolloutsResponse:
        method = self._channel.unary_unary(
            f"/{SERVICE}/List",
            request_serializer=pb.ListRolloutsRequest.SerializeToString,
            response_deserializer=pb.ListRolloutsResponse.FromString,
        )
        response: pb.ListRolloutsResponse = await method(pb.ListRolloutsRequest(**request), timeout=WITHIN)
        assert abs(response.time.ToSeconds() - time.time()) < WITHIN
        return response

    async def until(self, is_so: Callable[[pb.ListRolloutsResponse], bool]) -> pb.ListRolloutsResponse:
        """Ask until a condition holds. Only the control plane knows when it has read an ACK."""
        async with asyncio.timeout(WITHIN):
            while not is_so(found := await self.list()):
                await asyncio.sleep(0.01)
        return found

    def watch(self, **request: str) -> grpc.aio.UnaryStreamCall:
        method = self._channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=pb.ListRolloutsRequest.SerializeToString,
            response_deserializer=pb.ListRolloutsResponse.FromString,
        )
        return method(pb.ListRolloutsRequest(**request), timeout=3 * WITHIN)


def awaits(awaited: pb.WaitingEndpoint.WaitingFor, *pods: str) -> Callable[[pb.ListRolloutsResponse], bool]:
    def is_so(response: pb.ListRolloutsResponse) -> bool:
        waiting = [each for service in response.services for each in service.waiting]
        return [each.pod for each in waiting if each.waiting_for == awaited] == list(pods)

    return is_so


def is_done(response: pb.ListRolloutsResponse) -> bool:
    return not (response.services or response.rules)


async def test_no_transition_is_listed(plane: Plane):
    found = await Ask(plane.channel).list()
    assert (is_done(found), found.plaintext_disabled, found.skipped) == (True, 0, 0)


async def test_endpoints_transition_individually_on_acks(plane: Plane):
    ask = Ask(plane.channel)
    before = time.time()
    plane.set_mode("STRICT")
    # web-1 does not answer, and blocks no other endpoint: clients are switched for web-2.
    await ask.until(awaits(pb.WaitingEndpoint.CLIENTS, "web-2"))
    # Each sidecar can be a client. Only one has not ACKed the change.
    found = await ask.until(lambda found: list(found.services[0].waiting[1].clients) == ["one.shop"])
    [service] = found.services
    assert (service.namespace, service.service, service.endpoints) == ("shop", "web", 2)
    assert (service.mtls, service.plaintext) == (0, 1)
    slow, fast = service.waiting
    assert (slow.pod, slow.port, slow.desired_mode) == ("web-1", 8080, pb.STRICT)
    assert (slow.waiting_for, list(slow.clients), slow.rejection) == (pb.WaitingEndpoint.LISTENER, [], "")
    assert (slow.accepts_plaintext, slow.skipped) == (True, False)
    assert before - 1 < slow.since.ToMilliseconds() / 1000 <= found.time.ToMilliseconds() / 1000
    assert (fast.waiting_for, list(fast.clients)) == (pb.WaitingEndpoint.CLIENTS, ["one.shop"])
    assert service.status.startswith("web.shop: 0/2 endpoints mTLS, web-1 waiting for its listener (")
    assert found.plaintext_disabled == 0

    await plane.one.answer(ENDPOINT)
    found = await ask.until(lambda found: found.plaintext_disabled == 1)
    await plane.first.answer(LISTENER)
    found = await ask.until(is_done)
    assert (found.plaintext_disabled, found.skipped) == (2, 0)

    assert not found.finished
    finished = (await ask.list(finished=True)).finished
    assert {(each.namespace, each.pod, each.port) for each in finished} == {
        ("shop", "web-1", 8080),
        ("shop", "web-2", 8080),
    }
    last = finished[0]
    assert (list(last.services), last.from_mode, last.to_mode) == (["web.shop"], pb.DISABLE, pb.STRICT)
    assert before - 1 < last.started_at.ToMilliseconds() / 1000 <= last.finished_at.ToMilliseconds() / 1000
    assert all(last.HasField(phase) for phase in ("expand", "migrate", "contract"))
    assert not last.skipped
    assert not (await ask.list(namespace="elsewhere", finished=True)).finished


async def test_rejection_has_the_sidecars_message(plane: Plane):
    ask = Ask(plane.channel)
    plane.set_mode("PERMISSIVE")
    await plane.first.answer(LISTENER, error="not to my taste")
    found = await ask.until(
        lambda found: any(each.rejection for service in found.services for each in service.waiting)
    )
    [stopped] = [each for each in found.services[0].waiting if each.pod == "web-1"]
    message = "Error adding/updating listener(s) virtualInbound: not to my taste"
    assert (stopped.rejection, stopped.accepts_plaintext) == (message, False)


async def test_skipped_proxies_are_listed(plane: Plane):
    ask = Ask(plane.channel)
    plane.controller.rollouts.rollout.timeout = 0.3
    plane.set_mode("PERMISSIVE")
    found = await ask.until(lambda found: found.skipped >= 2)
    passed = [each for each in found.services[0].waiting if each.skipped]
    assert {each.pod for each in passed} >= {"web-1"}
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    await ask.until(is_done)


async def test_a_rule_that_is_held_back(plane: Plane):
    ask = Ask(plane.channel)
    plane.set_mode("STRICT", rule("shop", "web.shop.svc.cluster.local", "ISTIO_MUTUAL"))
    found = await ask.until(lambda found: bool(found.rules))
    [held] = found.rules
    assert (held.namespace, held.name, held.host) == ("shop", "rule", "web.shop.svc.cluster.local")
    assert (held.held, held.deleted) == (True, False)
    assert held.status.startswith("DestinationRule shop/rule held until its servers accept it (")
    assert len((await ask.list(namespace="shop")).rules) == 1
    assert is_done(await ask.list(namespace="elsewhere"))
    await plane.first.answer(LISTENER)
    await ask.until(lambda found: not any(each.held for each in found.rules))
    await plane.one.answer(ENDPOINT)
    await ask.until(is_done)
    plane.controller.change(Change(removed=(Ref("DestinationRule", "shop", "rule"),)))
    await ask.until(is_done)


async def test_watch_sends_changes(plane: Plane):
    watch = Ask(plane.channel).watch()
    assert is_done(await watch.read())
    plane.set_mode("STRICT")
    found = await watch.read()
    while not awaits(pb.WaitingEndpoint.CLIENTS, "web-2")(found):
        found = await watch.read()
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    seen = [found]
    while not is_done(seen[-1]):
        seen.append(await watch.read())
    for each in seen:
        each.ClearField("time")
    assert all(one != other for one, other in pairwise(seen))
    watch.cancel()


def waiting_endpoint(stage: WaitingFor, *lagging: str) -> pb.WaitingEndpoint:
    waiting = WaitingEndpoint(
        key=(Ref("Pod", "ns", "web-1"), 80),
        phase=Phase.MIGRATE,
        desired_mode=Mode.STRICT,
        waiting_for=stage,
        since=0,
        lagging=lagging,
    )
    return _waiting(waiting, Clock(0))


def test_a_thousand_clients_are_not_all_named():
    many = [f"client-{number:04}.shop" for number in range(1000)]
    found = waiting_endpoint(WaitingFor.CLIENTS, *many)
    assert (list(found.clients), found.more_clients) == (many[:MAX_CLIENTS], 1000 - MAX_CLIENTS)


def test_other_replicas_are_no_clients():
    found = waiting_endpoint(WaitingFor.REPLICAS, "xds-a", "xds-b")
    assert (found.waiting_for, list(found.replicas)) == (pb.WaitingEndpoint.REPLICAS, ["xds-a", "xds-b"])
    assert (list(found.clients), found.more_clients) == ([], 0)


async def test_grpcurl_prints_rollouts(plane: Plane):
    target = f"127.0.0.1:{plane.server.port}"
    status, described = await grpcurl(target, "describe", SERVICE)
    assert status == 0
    assert (
        "// Returns the current progress. Empty lists of services and rules mean that no rollout is in "
        "progress." in described
    )
    plane.set_mode("STRICT")
    await Ask(plane.channel).until(awaits(pb.WaitingEndpoint.LISTENER, "web-1"))
    [answer] = await call(target, f"{SERVICE}/List", {"namespace": "shop"})
    [service] = answer["services"]
    assert {
        "pod": "web-1",
        "desiredMode": "STRICT",
        "waitingFor": "LISTENER",
        "acceptsPlaintext": True,
    }.items() <= service["waiting"][0].items()
