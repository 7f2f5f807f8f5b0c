"""Our own service, xds.mesh.v1.Rollouts: how far changes of mode are, and what they wait for.

protos/xds/mesh/v1/rollouts.proto says what it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from xds.introspect.clock import Clock
from xds.introspect.cooperative import Checkpoint
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Hub
from xds.mesh.controlplane.dropped_connections import Cuts
from xds.mesh.model.objects import Mode
from xds.mesh.rollout.progress import RuleProgress, ServiceProgress, Waiting, progress, rules
from xds.mesh.rollout.transition import Stage
from xds.mesh.v1 import rollouts_pb2 as pb
from xds.server import DiscoveryService
from xds.server.stream import now

SERVICE = "xds.mesh.v1.Rollouts"

EVERY = 0.25
"""Seconds in which changes are put together for who watches."""

MOST_CLIENTS = 10
"""Clients that are named for one endpoint: where nobody has taken anything yet, all endpoints wait for all clients."""

_MODES = {Mode.DISABLE: pb.DISABLE, Mode.PERMISSIVE: pb.PERMISSIVE, Mode.STRICT: pb.STRICT}
_AWAITED = {
    Stage.LISTENER: pb.WaitingEndpoint.LISTENER,
    Stage.CLIENTS: pb.WaitingEndpoint.CLIENTS,
    Stage.REPLICAS: pb.WaitingEndpoint.REPLICAS,
}


class RolloutsService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(self, hub: Hub, cuts: Cuts) -> None:
        self._hub, self._cuts = hub, cuts

    def __call__(self, server: GuardedServer, _: DiscoveryService) -> None:
        """Add it, before the server starts."""

        async def list_(
            request: pb.ListRolloutsRequest, _: grpc.aio.ServicerContext
        ) -> pb.ListRolloutsResponse:
            return await self._look(request, Clock.read())

        async def watch(
            request: pb.ListRolloutsRequest, _: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.ListRolloutsResponse]:
            clock = Clock.read()
            told: pb.ListRolloutsResponse | None = None
            while True:
                found = await self._look(request, clock)
                lasting = _lasting(found)
                if told != lasting:
                    told = lasting
                    yield found
                await asyncio.sleep(EVERY)

        methods = {
            "List": grpc.unary_unary_rpc_method_handler(
                list_, pb.ListRolloutsRequest.FromString, pb.ListRolloutsResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch, pb.ListRolloutsRequest.FromString, pb.ListRolloutsResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def _look(self, request: pb.ListRolloutsRequest, clock: Clock) -> pb.ListRolloutsResponse:
        rollout, checkpoint = self._hub.rolling.rollout, Checkpoint()
        async with self._hub.at_rest:
            moment = now()
            response = pb.ListRolloutsResponse(
                locks=rollout.locked,
                cut=self._cuts.connections,
                draining=self._cuts.counting,
                unknown=self._cuts.unknown,
                passed_over=rollout.passed_over,
                time=clock.to_timestamp(moment),
            )
            for service in progress(self._hub.mesh, rollout, request.namespace):
                response.services.append(_service(service, clock, moment))
                await checkpoint()
            for rule in rules(rollout):
                if request.namespace in {"", rule.namespace}:
                    response.rules.append(_rule(rule, clock, moment))
        return response


def _lasting(response: pb.ListRolloutsResponse) -> pb.ListRolloutsResponse:
    """Return what does not change by itself as time goes by."""
    lasting = pb.ListRolloutsResponse()
    lasting.CopyFrom(response)
    lasting.ClearField("time")
    for each in (*lasting.services, *lasting.rules):
        each.ClearField("status")
    return lasting


def _service(service: ServiceProgress, clock: Clock, moment: float) -> pb.ServiceRollout:
    return pb.ServiceRollout(
        namespace=service.namespace,
        service=service.service,
        status=service.words(moment),
        endpoints=service.endpoints,
        mtls=service.mtls,
        plaintext=service.plaintext,
        waiting=[_waiting(each, clock) for each in service.waiting],
    )


def _waiting(waiting: Waiting, clock: Clock) -> pb.WaitingEndpoint:
    clients, replicas = ((), waiting.laggards) if waiting.stage is Stage.REPLICAS else (waiting.laggards, ())
    return pb.WaitingEndpoint(
        pod=waiting.pod,
        port=waiting.port,
        wanted=_MODES[waiting.wanted],
        awaited=_AWAITED[waiting.stage],
        since=clock.to_timestamp(waiting.since),
        clients=clients[:MOST_CLIENTS],
        more_clients=len(clients[MOST_CLIENTS:]),
        replicas=replicas,
        rejection=waiting.rejection,
        accepts_plaintext=waiting.awaits_lock,
        passed_over=waiting.passed_over,
    )


def _rule(rule: RuleProgress, clock: Clock, moment: float) -> pb.RuleRollout:
    return pb.RuleRollout(
        namespace=rule.namespace,
        name=rule.name,
        status=rule.words(moment),
        host=rule.host,
        deleted=rule.deleted,
        held=rule.held,
        since=clock.to_timestamp(rule.since),
        clients=rule.laggards[:MOST_CLIENTS],
        more_clients=len(rule.laggards[MOST_CLIENTS:]),
        rejection=rule.rejection,
        passed_over=rule.passed_over,
    )
