"""The gRPC service xds.mesh.v1.Replicas: sends observed traffic to the other replicas.

protos/xds/mesh/v1/replicas.proto documents the messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice

import grpc
import grpc.aio

from xds.checkpoint import Checkpoint
from xds.introspect.guard import Admit, GuardedServer
from xds.mesh.controlplane.replica_traffic import SERVICE, ReplicaTraffic
from xds.mesh.model.objects import PodKey
from xds.mesh.observe.edges import Edge, EdgeKey, Traffic
from xds.mesh.observe.merged import MAX_REPLICAS, PeerTraffic
from xds.mesh.observe.replica_codec import encode_edge
from xds.mesh.v1 import replicas_pb2 as pb
from xds.server import DiscoveryService

UPDATE_INTERVAL = 2.0
"""Seconds between two updates of a stream."""
MAX_STREAMS = 2 * MAX_REPLICAS
"""Maximum number of streams. A replica that reconnects may have two for a while."""
EDGES_PER_MESSAGE = 500
"""Maximum number of edges of a message. An edge takes up to 5 kB."""
_PAST = "-"
"""Stands for the replica of edges without counts."""


class ReplicasService:
    """The service, for `XdsServer(added=[...])`.

    Args:
        traffic: the traffic of this replica and of its peers.
        admit: admits other replicas only.
    """

    def __init__(self, traffic: ReplicaTraffic, admit: Admit) -> None:
        self._traffic, self._admit = traffic, admit
        self._streams = 0

    def __call__(self, server: grpc.aio.Server, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""
        guarded = GuardedServer(server, self._admit, discovery.connections, admit_plaintext=self._admit)

        async def watch(
            _: pb.WatchReplicaTrafficRequest, context: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.ReplicaTraffic]:
            if self._streams >= MAX_STREAMS:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {MAX_STREAMS} replicas are served"
                )
            self._streams += 1
            try:
                async for message in self._messages():
                    yield message
            finally:
                self._streams -= 1

        guarded.add_service(SERVICE, WatchTraffic=watch)
        discovery.connections.own_services.update(guarded.services)

    async def _messages(self) -> AsyncIterator[pb.ReplicaTraffic]:
        """Yield the messages of a stream."""
        parts = (
            (self._traffic.reports.traffic, self._traffic.peers),
            (self._traffic.reports.denials, self._traffic.peer_denials),
        )
        sent = [(0, set[str]())] * len(parts)
        sidecars: frozenset[PodKey] | None = None
        returned: dict[PodKey, float] = {}
        while True:
            edges = [
                edge for part, state in zip(parts, sent, strict=True) for edge in self._edges(*part, *state)
            ]
            sent = [(own.version, {_PAST, *peers.stopped}) for own, peers in parts]
            remaining = iter(edges)
            while chunk := list(islice(remaining, EDGES_PER_MESSAGE)):
                yield await self._message(chunk)
            last = await self._message((), complete=True)
            if sidecars != (sidecars := frozenset(self._traffic.own_connected())):
                pods = [f"{namespace}/{name}" for namespace, name in sorted(sidecars)]
                last.sidecars.CopyFrom(pb.ConnectedSidecars(pods=pods))
            for namespace, at in self._traffic.own_incomplete.items():
                last.incomplete[namespace].FromMilliseconds(round(at * 1000))
            for pod, at in self._traffic.returned.items() - returned.items():
                last.returned["/".join(pod)].FromMilliseconds(round(at * 1000))
            returned = dict(self._traffic.returned)
            yield last
            await asyncio.sleep(UPDATE_INTERVAL)

    def _edges(
        self, own: Traffic, peers: PeerTraffic, version: int, sent_replicas: set[str]
    ) -> Iterator[tuple[str, EdgeKey, Edge]]:
        """Yield own edges that have changed since a version, and those of further replicas that stopped.

        Edges without counts, which belong to no replica, are sent once.
        """
        if _PAST not in sent_replicas:
            yield from ((_PAST, key, edge) for key, edge in peers.past)
        for replica in peers.stopped:
            if replica not in sent_replicas:
                yield from ((replica, key, edge) for key, edge in peers.of(replica))
        for key, edge in own.changes(version):
            yield self._traffic.name, key, edge

    async def _message(
        self, edges: Iterable[tuple[str, EdgeKey, Edge]], *, complete: bool = False
    ) -> pb.ReplicaTraffic:
        checkpoint, now = Checkpoint(), time.time()
        message = pb.ReplicaTraffic(
            replica=self._traffic.name, complete=complete, dropped=self._traffic.own_dropped
        )
        message.time.FromMilliseconds(round(now * 1000))
        if last_dropped := self._traffic.own_last_dropped:
            message.last_dropped.FromMilliseconds(round(last_dropped * 1000))
        message.since.FromMilliseconds(round(self._traffic.own_since * 1000))
        for replica, key, edge in edges:
            # An older replica ignores denials, and would take them for traffic among the edges.
            field = message.denials if key.denial else message.edges
            field.append(encode_edge(replica, key, edge, now))
            await checkpoint()
        return message
