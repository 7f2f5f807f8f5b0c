"""A control plane with sidecars that ACK when the test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import grpc.aio

from tests.policy.world import HTTP, peer, pod, service
from tests.support.waiting import eventually
from xds.introspect import Introspection
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.objects_service import ObjectsService
from xds.mesh.controlplane.policies_service import PoliciesService
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.controlplane.replica_traffic import ReplicaTraffic
from xds.mesh.controlplane.report.service import ReportsService
from xds.mesh.controlplane.rollouts_service import RolloutsService
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.objects import ROLLOUT, Change, Fact, Ref
from xds.mesh.observe.edges import Traffic
from xds.mesh.sources.report import ReadObject
from xds.mesh.v1 import described
from xds.server import Observer, XdsServer
from xds.snapshot import ENDPOINT, LISTENER
from xds.testing import EnvoyClient, Response

WITHIN = 30.0


class Sidecar(EnvoyClient):
    """A sidecar that answers every response, except for types that it holds."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        super().__init__(
            channel, node=f"sidecar~127.0.0.1~{name}.shop~shop.svc.cluster.local", timeout=WITHIN
        )

    async def answer(self, type_url: str, error: str = "") -> Response:
        """Answer the response that the sidecar holds, once it has arrived, and stop holding the type."""
        response = await super().answer(type_url, error)
        await self.release(type_url)
        return response


class MemorySource:
    """What the control plane has read, as the test decides."""

    has_versions = True

    def __init__(self) -> None:
        self.objects: dict[Ref, ReadObject] = {}
        self.is_read = True
        self.problems: list[FoundProblem] = []

    async def list_problems(self) -> list[FoundProblem]:
        return self.problems

    def read_object(self, ref: Ref) -> ReadObject | None:
        return self.objects.get(ref)

    def is_current(self, since: float) -> bool:
        return self.is_read and since > 0


class Plane:
    """A control plane for the service `web` (pods web-1 and web-2) and the client `one`, in `shop`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        controller: Controller,
        server: XdsServer,
        source: MemorySource,
        reports: TrafficReports,
    ) -> None:
        self.channel, self.controller, self.server = channel, controller, server
        self.reports = reports
        self.source = source
        self.one, self.first, self.second = (Sidecar(channel, name) for name in ("one", "web-1", "web-2"))

    def set_mode(self, mode: str, *more: Fact, at_once: bool = False) -> None:
        """Set the mode of the namespace. Sidecars do not answer the resulting responses until told to."""
        self.first.hold(LISTENER)
        self.one.hold(ENDPOINT)
        policy = peer("shop", mode)
        if at_once:
            policy = replace(policy, meta=replace(policy.meta, annotations={ROLLOUT: "immediate"}))
        self.apply(policy, *more)

    def apply(self, *facts: Fact, version: str = "1") -> None:
        """Have the control plane read objects."""
        self.source.objects |= {fact.ref: ReadObject(fact, version) for fact in facts}
        self.controller.change(Change(applied=facts))

    async def applied(self, *facts: Fact) -> None:
        """Have the control plane read objects, and wait until they take effect."""
        self.apply(*facts)
        await eventually(lambda: all(self.controller.mesh.get(fact.ref) == fact for fact in facts))


@asynccontextmanager
async def running(
    mode: str,
    traffic: Traffic | None = None,
    observer: Callable[[Controller], Observer] | None = None,
) -> AsyncIterator[Plane]:
    """Run a control plane whose sidecars have ACKed the desired state. `traffic` is what it has observed."""
    authority = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
    controller, source = Controller(authority), MemorySource()
    objects = ObjectsService(controller, source, source.list_problems)
    reports = TrafficReports(controller)
    if traffic is not None:
        reports.traffic = traffic
    observed = TrafficService(
        controller, ReplicaTraffic(reports, own_connected=lambda: controller.connections.streams)
    )
    services = [
        RolloutsService(controller),
        PoliciesService(controller, observed),
        objects,
        observed,
        ReportsService(controller, observed, lambda: [each.problem for each in source.problems]),
    ]
    server = XdsServer(
        controller.connections,
        "127.0.0.1:0",
        grace=0.2,
        observer=observer(controller) if observer else None,
        added=[Introspection(services, documented=described)],
    )
    task = asyncio.create_task(controller.run())
    pods = [*(pod(name, "shop", app="web") for name in ("web-1", "web-2")), pod("one", "shop")]
    policy = peer("shop", mode)
    source.objects[policy.ref] = ReadObject(policy, "1")
    controller.change(Change(applied=(*pods, service("web", "shop", HTTP), policy)))
    await controller.ready.wait()
    await server.start()
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
            AsyncExitStack() as stack,
        ):
            plane = Plane(channel, controller, server, source, reports)
            for sidecar in (plane.one, plane.first, plane.second):
                await stack.enter_async_context(sidecar)
                await sidecar.wait_for(lambda sidecar=sidecar: sidecar.live)
            await eventually(lambda: all(stream.session.synced for stream in server.discovery.streams))
            yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop()
