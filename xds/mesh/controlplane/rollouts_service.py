"""The gRPC service xds.mesh.v1.Rollouts: the progress of mode changes, and what they wait for.

protos/xds/mesh/v1/rollouts.proto documents the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.explanation import MODES
from xds.mesh.controlplane.rollout_text import rule_summary, service_summary
from xds.mesh.model.names import service_key
from xds.mesh.rollout.history import Finished
from xds.mesh.rollout.plan import Phase
from xds.mesh.rollout.progress import (
    RuleProgress,
    ServiceProgress,
    WaitingEndpoint,
    rule_progress,
    service_progress,
)
from xds.mesh.rollout.waits import WaitingFor
from xds.mesh.v1 import rollouts_pb2 as pb
from xds.server import DiscoveryService
from xds.server.stream import now

SERVICE = "xds.mesh.v1.Rollouts"

WATCH_INTERVAL = 0.25
"""Interval at which a Watch call checks for changes, in seconds."""

MAX_CLIENTS = 10
"""Maximum number of clients listed for one endpoint. Initially, all endpoints wait for all clients."""

_PHASES = {
    Phase.EXPAND: pb.WaitingEndpoint.EXPAND,
    Phase.MIGRATE: pb.WaitingEndpoint.MIGRATE,
    Phase.CONTRACT: pb.WaitingEndpoint.CONTRACT,
}
_WAITING_FOR = {
    WaitingFor.LISTENER: pb.WaitingEndpoint.LISTENER,
    WaitingFor.CLIENTS: pb.WaitingEndpoint.CLIENTS,
    WaitingFor.REPLICAS: pb.WaitingEndpoint.REPLICAS,
}


class RolloutsService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def __call__(self, server: GuardedServer, _: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def list_(
            request: pb.ListRolloutsRequest, _: grpc.aio.ServicerContext
        ) -> pb.ListRolloutsResponse:
            return await self.list(request, Clock.read())

        async def watch(
            request: pb.ListRolloutsRequest, _: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.ListRolloutsResponse]:
            clock = Clock.read()
            sent: pb.ListRolloutsResponse | None = None
            while True:
                response = await self.list(request, clock)
                content = without_time(response)
                if sent != content:
                    sent = content
                    yield response
                await asyncio.sleep(WATCH_INTERVAL)

        server.add_service(SERVICE, List=list_, Watch=watch)

    async def list(self, request: pb.ListRolloutsRequest, clock: Clock) -> pb.ListRolloutsResponse:
        """Return the current progress of the requested services and rules."""
        rollouts, checkpoint = self._controller.rollouts, Checkpoint()
        async with self._controller.mesh_lock:
            response_time = now()
            response = pb.ListRolloutsResponse(
                plaintext_disabled=rollouts.rollout.stats.plaintext_disabled,
                skipped=rollouts.rollout.stats.skips,
                time=clock.to_timestamp(response_time),
            )
            for service in service_progress(self._controller.mesh, rollouts, request.namespace):
                response.services.append(_service(service, clock, response_time))
                await checkpoint()
            for rule in rule_progress(rollouts):
                if request.namespace in {"", rule.namespace}:
                    response.rules.append(_rule(rule, clock, response_time))
            for finished in rollouts.rollout.history.recent(response_time) if request.finished else ():
                if request.namespace in {"", finished.key[0].namespace}:
                    response.finished.append(_finished(finished, clock))
                    await checkpoint()
        return response


def without_time(response: pb.ListRolloutsResponse) -> pb.ListRolloutsResponse:
    """Return a copy without the fields that change as time passes."""
    copy = pb.ListRolloutsResponse()
    copy.CopyFrom(response)
    copy.ClearField("time")
    for message in (*copy.services, *copy.rules):
        message.ClearField("status")
    return copy


def _service(service: ServiceProgress, clock: Clock, response_time: float) -> pb.ServiceRollout:
    return pb.ServiceRollout(
        namespace=service.namespace,
        service=service.service,
        status=service_summary(service, response_time),
        endpoints=service.endpoints,
        mtls=service.mtls,
        plaintext=service.plaintext,
        waiting=[_waiting(endpoint, clock) for endpoint in service.waiting],
    )


def _waiting(endpoint: WaitingEndpoint, clock: Clock) -> pb.WaitingEndpoint:
    waits_for_replicas = endpoint.waiting_for is WaitingFor.REPLICAS
    clients, replicas = ((), endpoint.lagging) if waits_for_replicas else (endpoint.lagging, ())
    return pb.WaitingEndpoint(
        pod=endpoint.key[0].name,
        port=endpoint.key[1],
        phase=_PHASES[endpoint.phase],
        desired_mode=MODES[endpoint.desired_mode],
        waiting_for=_WAITING_FOR[endpoint.waiting_for],
        since=clock.to_timestamp(endpoint.since),
        clients=clients[:MAX_CLIENTS],
        more_clients=len(clients[MAX_CLIENTS:]),
        replicas=replicas,
        rejection=endpoint.rejection,
        accepts_plaintext=endpoint.accepts_plaintext,
        skipped=endpoint.skipped,
    )


def _finished(finished: Finished, clock: Clock) -> pb.FinishedTransition:
    pod, port = finished.key
    services = sorted({service_key(host) for host, _ in finished.hosts})
    message = pb.FinishedTransition(
        namespace=pod.namespace,
        pod=pod.name,
        port=port,
        services=[f"{name}.{namespace}" for namespace, name in services],
        from_mode=MODES[finished.before],
        to_mode=MODES[finished.after],
        started_at=clock.to_timestamp(finished.started_at),
        finished_at=clock.to_timestamp(finished.finished_at),
        skipped=finished.skipped,
    )
    for phase, seconds in finished.phases.items():
        getattr(message, phase).FromMilliseconds(round(seconds * 1000))
    return message


def _rule(rule: RuleProgress, clock: Clock, response_time: float) -> pb.RuleRollout:
    return pb.RuleRollout(
        namespace=rule.namespace,
        name=rule.name,
        status=rule_summary(rule, response_time),
        host=rule.host,
        deleted=rule.deleted,
        held=rule.held,
        since=clock.to_timestamp(rule.since),
        clients=rule.lagging[:MAX_CLIENTS],
        more_clients=len(rule.lagging[MAX_CLIENTS:]),
        rejection=rule.rejection,
        skipped=rule.skipped,
    )
