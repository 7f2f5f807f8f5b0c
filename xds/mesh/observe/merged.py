"""Observed traffic of all replicas of the control plane.

Pods of one client workload may be connected to several replicas, and the two sidecars of a connection to
different ones. The counts of an edge are therefore summed over replicas for each reporter. As within a
replica, the larger sum of both reporters applies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import NamedTuple

from xds.mesh.observe.counts import RETENTION, Counts, SummedCounts
from xds.mesh.observe.edges import (
    MAX_EDGES,
    TRAFFIC_RETENTION,
    Edge,
    EdgeKey,
    Reporter,
    Traffic,
)

MAX_REPLICAS = 8
"""Maximum number of other replicas whose traffic is kept, including replicas that have stopped."""
CLOCK_TOLERANCE = 1.0
"""Seconds by which times of the same report can differ after they were sent from replica to replica."""

_Edges = OrderedDict[EdgeKey, Edge]


class Missing(NamedTuple):
    """A replica whose traffic is missing."""

    replica: str
    """Name of the replica; empty if it is not known which replicas are running."""
    reason: str
    """Why its traffic is missing."""


class PeerTraffic:
    """Edges that other replicas sent, by replica. Edges of stopped replicas are kept until they expire.

    They are kept for TRAFFIC_RETENTION; their counts, and denied requests, for RETENTION.
    """

    def __init__(self, max_edges: int = MAX_EDGES, max_replicas: int = MAX_REPLICAS) -> None:
        self.live: AbstractSet[str] = frozenset()
        """The replicas that are running."""
        self.evicted = 0
        """Number of edges that were forgotten because there were too many edges or replicas."""
        self.last_evicted = 0.0
        """Unix time at which such an edge was last seen, the latest of them; 0 if there is none."""
        self.version = 0
        """Number of received edges, to detect changes."""
        self._replicas: OrderedDict[str, _Edges] = OrderedDict()
        """The edges of each replica; the replicas that changed longest ago first."""
        self._past = _Edges()
        """Edges of all replicas that were last seen longer ago than RETENTION."""
        self._max_edges = max_edges
        self._max_replicas = max_replicas

    def __bool__(self) -> bool:
        return any(self._replicas.values())

    @property
    def stopped(self) -> list[str]:
        """The replicas that have stopped and whose edges are kept."""
        return [name for name in self._replicas if name not in self.live]

    @property
    def past(self) -> list[tuple[EdgeKey, Edge]]:
        """The edges without counts, of all replicas together."""
        return list(self._past.items())

    @property
    def by_replica(self) -> Sequence[Mapping[EdgeKey, Edge]]:
        """The edges of each replica."""
        return tuple(self._replicas.values())

    def of(self, replica: str) -> list[tuple[EdgeKey, Edge]]:
        """Return the edges of a replica, the ones that were seen longest ago first."""
        return list(self._replicas.get(replica, _Edges()).items())

    def seen_since(self, since: float) -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges that were last seen at a Unix time or later."""
        for key, edge in chain.from_iterable(tuple(each.items()) for each in (self._past, *self.by_replica)):
            if edge.last_seen >= since:
                yield key, edge

    def put(self, replica: str, key: EdgeKey, edge: Edge, *, is_copy: bool = False, now: float = 0.0) -> None:
        """Set an edge of a replica.

        Args:
            replica: name of the replica whose sidecars reported the edge.
            key: key of the edge.
            edge: the edge.
            is_copy: whether another replica sent it. A copy is ignored unless it is newer than the known
                edge.
            now: Unix time, in seconds.
        """
        if edge.last_seen < now - RETENTION:
            if not key.denial:
                self._remember(key, edge)
            return
        edges = self._replicas.setdefault(replica, _Edges())
        self._replicas.move_to_end(replica)
        known = edges.get(key)
        if is_copy and known and edge.last_seen < known.last_seen + CLOCK_TOLERANCE:
            return
        edges[key] = edge
        edges.move_to_end(key)
        self.version += 1
        if len(edges) > self._max_edges:
            self._evict(edges)
        if len(self._replicas) > self._max_replicas:
            replica = next(
                (name for name in self._replicas if name not in self.live), next(iter(self._replicas))
            )
            edges = self._replicas.pop(replica)
            while edges:
                self._evict(edges)

    def expire(self, now: float) -> None:
        """Forget the edges whose retention has passed, and counts that are no longer kept."""
        for name, edges in tuple(self._replicas.items()):
            while edges and next(iter(edges.values())).last_seen < now - RETENTION:
                key, edge = edges.popitem(last=False)
                if not key.denial:
                    edge.clear_counts()
                    self._remember(key, edge)
            if not edges:
                del self._replicas[name]
        while self._past and next(iter(self._past.values())).last_seen < now - TRAFFIC_RETENTION:
            self._past.popitem(last=False)

    def _remember(self, key: EdgeKey, edge: Edge) -> None:
        """Keep an edge without counts. Those of several replicas are one."""
        known = self._past.get(key)
        if known is None or known.last_seen < edge.last_seen or known.by_server < edge.by_server:
            self._past[key] = merge([edge, known]) if known else edge
            self._past.move_to_end(key)
            self.version += 1
        if len(self._past) > self._max_edges:
            self._evict(self._past)

    def _evict(self, edges: _Edges) -> None:
        """Forget the edge that was seen longest ago, because there are too many."""
        _, edge = edges.popitem(last=False)
        self.evicted += 1
        self.last_evicted = max(self.last_evicted, edge.last_seen)


class MergedTraffic:
    """The edges of this replica and of its peers, for everything that shows observed traffic."""

    def __init__(self, own: Traffic, peers: PeerTraffic) -> None:
        self._own, self._peers = own, peers

    @property
    def version(self) -> int:
        """A number that grows with each change."""
        return self._own.version + self._peers.version

    def __bool__(self) -> bool:
        return bool(self._own or self._peers)

    def edges(self, namespace: str = "") -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges whose client or server is in a namespace; all edges by default."""
        peers = self._peers.by_replica
        merged: set[EdgeKey] = set()
        for key, edge in self._own.edges(namespace):
            merged.add(key)
            yield key, merge([edge, *(edges[key] for edges in peers if key in edges)])
        for position, edges in enumerate(peers):
            for key, edge in tuple(edges.items()):
                if key not in merged and namespace in {"", key.client.namespace, key.target.namespace}:
                    merged.add(key)
                    yield key, merge([edge, *(later[key] for later in peers[position + 1 :] if key in later)])

    def seen_since(self, since: float) -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges that were last seen at a Unix time or later, within TRAFFIC_RETENTION."""
        found: dict[EdgeKey, list[Edge]] = {}
        for key, edge in chain(self._own.seen_since(since), self._peers.seen_since(since)):
            found.setdefault(key, []).append(edge)
        for key, edges in found.items():
            yield key, merge(edges)

    def expire(self, now: float) -> None:
        """Forget the edges whose retention has passed, and counts that are no longer kept."""
        self._own.expire(now)
        self._peers.expire(now)


def merge(edges: Sequence[Edge]) -> Edge:
    """Return the sum of one edge's reports at several replicas. The result includes later reports."""
    if len(edges) == 1:
        return edges[0]
    counts: dict[Reporter, list[Counts]] = {}
    for edge in edges:
        for reporter, part in edge.counts.items():
            counts.setdefault(reporter, []).append(part)
    failed = [edge.failures for edge in edges if edge.failures]
    return Edge.restore(
        min(edge.first_seen for edge in edges),
        max(edge.last_seen for edge in edges),
        {reporter: SummedCounts(parts) for reporter, parts in counts.items()},
        SummedCounts(failed) if failed else None,
        by_server=any(edge.by_server for edge in edges),
    )
