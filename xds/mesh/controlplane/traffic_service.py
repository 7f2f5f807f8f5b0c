"""The gRPC service xds.mesh.v1.Traffic: observed traffic by client workload, service port and mode.

protos/xds/mesh/v1/traffic.proto documents the messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio

from xds.checkpoint import Checkpoint
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.replica_traffic import ReplicaTraffic
from xds.mesh.controlplane.traffic_comparison import ObservedPeriod, timestamp
from xds.mesh.model.objects import Pod, PodKey, Service
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import TRAFFIC_RETENTION, UNENCRYPTED, Client, Edge, EdgeKey, Edges
from xds.mesh.observe.merged import Missing
from xds.mesh.observe.replica_codec import edge_message
from xds.mesh.observe.strict import SeenTraffic
from xds.mesh.v1 import traffic_pb2 as pb
from xds.server import DiscoveryService
from xds.server.stream import now as clock

SERVICE = "xds.mesh.v1.Traffic"

WATCH_INTERVAL = 1.0
"""Interval at which a Watch call checks for new reports, in seconds."""


class TrafficService:
    """The service, for `Introspection(added=[...])`.

    Args:
        controller: knows whether there may be other replicas.
        replicas: the traffic of this replica and of its peers.
    """

    def __init__(self, controller: Controller, replicas: ReplicaTraffic) -> None:
        self._controller = controller
        self._replicas = replicas
        self.traffic: Edges = replicas.merged
        """The observed traffic of all replicas."""
        self.denials: Edges = replicas.denials
        """The denied requests of all replicas."""

    @property
    def connected(self) -> frozenset[PodKey]:
        """The pods whose sidecars are connected to any replica."""
        return self._replicas.connected

    def summary(self, now: float) -> pb.ListTrafficResponse:
        """Return a response without edges: what is known about the observation at a Unix time."""
        missing, last_dropped = self._missing(), self._replicas.last_dropped
        return pb.ListTrafficResponse(
            enabled=self._replicas.reports.enabled,
            may_be_on_other_replica=bool(missing),
            since=timestamp(self._replicas.since),
            time=timestamp(now),
            dropped=self._replicas.dropped,
            last_dropped=timestamp(last_dropped) if last_dropped else None,
            missing_replicas=[
                pb.MissingReplica(replica=replica, reason=reason) for replica, reason in missing
            ],
        )

    async def observed_for(self, seconds: float) -> ObservedPeriod:
        """Return the plaintext and refused traffic of the last seconds, and what may be missing in it."""
        now = time.time()
        self.traffic.expire(now)
        summary = self.summary(now)
        return ObservedPeriod(
            seconds=seconds,
            now=now,
            enabled=summary.enabled,
            since=summary.since.ToMilliseconds() / 1000,
            last_dropped=summary.last_dropped.ToMilliseconds() / 1000,
            missing_replicas=self._missing(),
            connected=self._replicas.connected,
            incomplete=self._replicas.incomplete,
            returned=self._replicas.returned,
            root_namespace=self._controller.mesh.config.root_namespace,
            seen=[
                SeenTraffic(*key[:3], edge.first_seen, edge.last_seen, edge.by_server)
                for key, edge in self.traffic.seen_since(now - seconds)
                if key.mode in UNENCRYPTED
            ],
        )

    def _incomplete(self, namespace: str, now: float) -> Iterator[pb.IncompleteReports]:
        """Yield which sidecars may have seen more, in one namespace or in all of them."""
        replicas, found = self._replicas, dict[tuple[str, str], tuple[str, float]]()
        for name, at in replicas.incomplete.items():
            found[name, ""] = "reports were dropped or malformed", at
        for key, at in replicas.returned.items():
            found[key] = "the sidecar was disconnected for a while", at
        for pod in self._controller.mesh.pods():
            if pod.has_sidecar and not pod.ended and pod.key not in replicas.connected:
                found[pod.key] = "the sidecar is not connected", now
        for (of, name), (reason, at) in sorted(found.items()):
            if namespace in {"", of}:
                yield pb.IncompleteReports(namespace=of, pod=name, reason=reason, last=timestamp(at))

    def _missing(self) -> list[Missing]:
        if self._replicas.access is None and self._controller.rollouts.may_have_peers(clock()):
            return [Missing("", "replicas know each other only with --rollout=gated")]
        return self._replicas.missing()

    def __call__(self, server: GuardedServer, _: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def list_(
            request: pb.ListTrafficRequest, _: grpc.aio.ServicerContext
        ) -> pb.ListTrafficResponse:
            return await self.list(request)

        async def watch(
            request: pb.ListTrafficRequest, _: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.ListTrafficResponse]:
            state, traffic = None, self._asked_for(request)
            while True:
                if state != (state := (traffic.version, self._missing())):
                    yield await self.list(request)
                await asyncio.sleep(WATCH_INTERVAL)

        server.add_service(SERVICE, List=list_, Watch=watch)

    def _asked_for(self, request: pb.ListTrafficRequest) -> Edges:
        return self.denials if request.denied_only else self.traffic

    async def list(self, request: pb.ListTrafficRequest) -> pb.ListTrafficResponse:
        """Return the observed traffic."""
        checkpoint, now = Checkpoint(), time.time()
        traffic = self._asked_for(request)
        traffic.expire(now)
        found, period = traffic.edges(request.namespace), RETENTION
        if request.HasField("period"):
            retention = RETENTION if request.denied_only else TRAFFIC_RETENTION
            period = min(request.period.ToMilliseconds() / 1000, retention)
            found = traffic.seen_since(now - period)
        edges = [(key, edge) for key, edge in found if _is_requested(request, key)]
        edges.sort(key=lambda item: (item[0].target, item[0].client, item[0].mode, item[0].denial or ()))
        response = self.summary(now)
        response.request.CopyFrom(request)
        response.period.FromMilliseconds(round(period * 1000))
        for incomplete in self._incomplete(request.namespace, now):
            response.incomplete.append(incomplete)
            await checkpoint()
        for key, edge in edges:
            response.edges.append(_edge(key, edge, now))
            await checkpoint()
        return response


def _is_requested(request: pb.ListTrafficRequest, key: EdgeKey) -> bool:
    is_in_namespace = request.namespace in {"", key.client.namespace, key.target.namespace}
    return is_in_namespace and (key.mode in UNENCRYPTED or not request.plaintext_only)


def observed_edges(traffic: Edges, client: Pod, service: Service) -> list[pb.TrafficEdge]:
    """Return the traffic from a pod's service account to a service, in the order of the service's ports."""
    now = time.time()
    sender = Client(client.namespace, client.service_account)
    edges = (
        (key, edge)
        for key, edge in traffic.edges(service.namespace)
        if key.client == sender and key.target[:2] == service.key
    )
    return [_edge(key, edge, now) for key, edge in sorted(edges, key=lambda item: item[0])]


def _edge(key: EdgeKey, edge: Edge, now: float) -> pb.TrafficEdge:
    message = edge_message(key, edge.first_seen, edge.last_seen, by_server=edge.by_server)
    message.requests_per_minute = edge.rate(now)
    message.minutes.extend(edge.minutes(now))
    message.requests_per_day = edge.day(now)
    message.failed_per_hour = edge.failed_in_hour(now)
    return message
