"""The gRPC service xds.mesh.v1.Policies: what policies mean for connections.

protos/xds/mesh/v1/policies.proto documents the messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

import grpc
import grpc.aio

from xds.checkpoint import Checkpoint
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane import predictions
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.explainer import Explainer
from xds.mesh.controlplane.hop_traffic import HopTraffic
from xds.mesh.controlplane.one_at_a_time import OneAtATime
from xds.mesh.controlplane.sidecar_states import SERVER_TYPES, SidecarStates
from xds.mesh.controlplane.traffic_comparison import ObservedPeriod, recording, timestamp
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, pod_matching
from xds.mesh.sources.files import Folder, Text
from xds.mesh.sources.settings import SettingsLoader
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1.traffic_pb2 import ListTrafficRequest, ListTrafficResponse
from xds.server import DiscoveryService

SERVICE = "xds.mesh.v1.Policies"

WATCH_INTERVAL = 0.25
"""Interval at which a Reach call with `watch` checks for changes, in seconds."""
MAX_WATCH_LOAD = 0.2
"""Maximum share of the event loop's time that a Reach call with `watch` uses."""


class PoliciesService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(self, controller: Controller, traffic: TrafficService | None = None) -> None:
        """Create the service. `traffic` has the observed traffic, if any is collected."""
        self._controller, self._traffic = controller, traffic
        self._plans = OneAtATime()

    def __call__(self, server: GuardedServer, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def explain(request: pb.ExplainRequest, context: grpc.aio.ServicerContext) -> pb.Explanation:
            try:
                return await self.explain(discovery, request)
            except UnknownNameError as error:
                return await _not_found(context, error)

        async def describe_pod(
            request: pb.DescribePodRequest, context: grpc.aio.ServicerContext
        ) -> pb.PodDescription:
            try:
                return await self._describe(request, discovery)
            except UnknownNameError as error:
                return await _not_found(context, error)

        server.add_service(
            SERVICE,
            Explain=explain,
            Reach=self._reach,
            Plan=self._plan,
            DescribePod=describe_pod,
        )

    async def explain(self, discovery: DiscoveryService, request: pb.ExplainRequest) -> pb.Explanation:
        """Return an explanation. Raises UnknownNameError if the client or the service does not exist."""
        async with self._controller.mesh_lock:
            traffic = (self._traffic.traffic, self._traffic.denials) if self._traffic else ()
            explainer = Explainer(self._controller, discovery, traffic, request)
        return await explainer.explain()

    async def _reach(
        self, request: pb.ReachRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ReachResponse]:
        checkpoint, sent = Checkpoint(), None
        while True:
            mesh, started_at = self._controller.mesh, time.monotonic()
            try:
                for response in self._results(mesh, request) if mesh is not sent else ():
                    yield response
                    await checkpoint()
            except UnknownNameError as error:
                if sent is None:
                    await _not_found(context, error)
                yield pb.ReachResponse(last=True)  # The last pod of a workload may be replaced right now.
            if not request.watch:
                return
            sent = mesh
            await asyncio.sleep(max(WATCH_INTERVAL, (time.monotonic() - started_at) / MAX_WATCH_LOAD))

    def _results(self, mesh: Mesh, request: pb.ReachRequest) -> Iterator[pb.ReachResponse]:
        observed = None
        if self._traffic is not None and mesh.config.observe and not request.watch:
            observed = HopTraffic(self._traffic.traffic.edges(request.namespace), time.time())
        return predictions.reach(mesh, request, observed)

    async def _plan(
        self, request: pb.PlanRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.PlanResponse]:
        try:
            responses = await self._plans.run(lambda: self._plan_in_thread(request))
        except UnknownNameError as error:
            await _not_found(context, error)
        for response in responses:
            yield response

    async def _plan_in_thread(self, request: pb.PlanRequest) -> list[pb.PlanResponse]:
        observed = await self._observed(request) if request.HasField("observed") else None
        recorded = await self._recorded(request) if request.HasField("replay") else None
        return await asyncio.to_thread(_plan, self._controller.mesh, request, observed, recorded)

    async def _observed(self, request: pb.PlanRequest) -> ObservedPeriod:
        seconds = request.observed.ToMilliseconds() / 1000
        if self._traffic is None:
            return ObservedPeriod(seconds=seconds, now=time.time(), enabled=False)
        return await self._traffic.observed_for(seconds)

    async def _recorded(self, request: pb.PlanRequest) -> ListTrafficResponse:
        if self._traffic is None:
            now = timestamp(time.time())
            return ListTrafficResponse(since=now, time=now)
        return await self._traffic.list(ListTrafficRequest(period=request.replay))

    async def _describe(
        self, request: pb.DescribePodRequest, discovery: DiscoveryService
    ) -> pb.PodDescription:
        async with self._controller.mesh_lock:
            mesh = self._controller.mesh
            pod = pod_matching(mesh, request.pod)
            sidecars = SidecarStates(self._controller, discovery, Checkpoint())
        description = predictions.pod_description(mesh, pod)
        description.time.CopyFrom(sidecars.time)
        if pod.has_sidecar:
            description.proxy.CopyFrom(await sidecars.find(pod, SERVER_TYPES))
        return description


def _plan(
    mesh: Mesh,
    request: pb.PlanRequest,
    observed: ObservedPeriod | None,
    recorded: ListTrafficResponse | None,
) -> list[pb.PlanResponse]:
    record = recording(recorded, request.replay.ToMilliseconds() / 1000) if recorded else None
    texts = [Text(manifest.name, manifest.text) for manifest in request.manifests]
    settings = SettingsLoader(base=mesh.config)
    folder = None
    if texts:
        folder = Folder(
            (),
            settings,
            texts=texts,
            reads_workloads=True,
            default_namespace=request.default_namespace,
            ignored_kinds=request.ignored_kinds,
        )
    return list(predictions.plan(mesh, folder, request.deletions, observed, record=record))


async def _not_found(context: grpc.aio.ServicerContext, error: UnknownNameError) -> NoReturn:
    await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    raise error  # not reached: `abort` raises
