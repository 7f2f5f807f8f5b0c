"""Edges of observed traffic: which client workload sends what to which service port, and how often."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple, TypeAlias, TypeVar

from xds.mesh.observe.counts import MINUTES, RETENTION, Counts

MAX_EDGES = 10_000
"""Maximum number of edges. Above it, the edge that was seen longest ago is forgotten.

An edge takes about 1 kB, and up to 3 kB if both sidecars report it and requests fail.
"""
MAX_EDGES_PER_REPORTER = 2_000
"""Maximum number of edges that the reports of one sidecar may create."""
MAX_ADDRESSES = 50
"""Maximum number of edges of addresses outside the mesh to one target. Further ones share one edge."""
RATE_MINUTES = 5
"""Number of minutes that the rate of an edge is averaged over."""

_T = TypeVar("_T")

PodName: TypeAlias = tuple[str, str]
"""Namespace and name of a pod."""


class TrafficMode(StrEnum):
    """How a request or connection was sent."""

    MTLS = "mtls"
    """Mutual TLS with the mesh's certificates."""
    TLS = "tls"
    """TLS that a DestinationRule configures (SIMPLE or MUTUAL)."""
    PLAINTEXT = "plaintext"
    """No TLS."""
    REFUSED = "refused"
    """No TLS, to a port that requires mutual TLS: the server's sidecar closed the connection."""

    __hash__ = str.__hash__  # Keys of edges are hashed often, and that of Enum is written in Python.


class Reporter(StrEnum):
    """Which sidecar reported traffic. Plaintext traffic between two sidecars is reported by both."""

    CLIENT = "client"
    SERVER = "server"

    __hash__ = str.__hash__


class Client(NamedTuple):
    """A client workload, or an address that belongs to no known pod."""

    namespace: str
    """Namespace of the pod; empty for an address."""
    name: str
    """Name of the pod's service account, or the address."""


OTHER_ADDRESSES = Client("", "other addresses")
"""Client of the edges that further addresses share."""


class Target(NamedTuple):
    """A port that clients called."""

    namespace: str
    """Namespace of the service or pod."""
    name: str
    """Name of the service; `pod/NAME` if the port of the pod belongs to no service."""
    port: int
    """Port of the service, or of the pod."""


class EdgeKey(NamedTuple):
    """Key of an edge."""

    client: Client
    """Client workload."""
    target: Target
    """Port that it called."""
    mode: TrafficMode
    """How it sent its requests."""


class Edge:
    """The traffic of one client workload to one service port in one mode."""

    __slots__ = ("_counts", "_failed", "first_seen", "last_seen", "reporter", "total")

    def __init__(self, reporter: PodName, now: float) -> None:
        self.reporter = reporter
        """The sidecar whose report created the edge."""
        self.first_seen = self.last_seen = now
        """Unix times of the first and last report, in seconds."""
        self.total = 0
        """Number of requests since `first_seen`. If both sidecars report, the larger number applies."""
        self._counts: dict[Reporter, Counts] = {}
        self._failed: Counts | None = None

    def add(self, source: Reporter, requests: int, failed: int, now: float) -> None:
        """Count requests, or connections that are no HTTP. 0 requests only update `last_seen`."""
        self.last_seen = max(now, self.last_seen)
        if requests:
            if (counts := self._counts.get(source)) is None:
                counts = self._counts[source] = Counts(now)
            counts.add(requests, now)
            self.total = max(self.total, counts.total)
        if failed:
            self._failed = self._failed or Counts(now)
            self._failed.add(failed, now)

    def minutes(self, now: float) -> list[int]:
        """Return the requests of each minute of the last hour, oldest first.

        If both sidecars report the traffic, the larger number of each minute applies.
        """
        columns = [counts.minutes(now) for counts in self._counts.values()]
        return [max(column) for column in zip(*columns, strict=True)] if columns else [0] * MINUTES

    def day(self, now: float) -> int:
        """Return the requests of the last 24 h."""
        return max((counts.day(now) for counts in self._counts.values()), default=0)

    def failed_in_hour(self, now: float) -> int:
        """Return the failed requests of the last hour."""
        return self._failed.hour(now) if self._failed else 0

    def rate(self, now: float) -> float:
        """Return the requests per minute, averaged over RATE_MINUTES or the age of a younger edge."""
        minutes = min(max((now - self.first_seen) / 60, 1.0), RATE_MINUTES)
        recent = (sum(counts.minutes(now)[-RATE_MINUTES:]) for counts in self._counts.values())
        return max(recent, default=0) / minutes


class Traffic:
    """All observed edges, the ones that were seen longest ago first. Their number is limited."""

    def __init__(
        self, max_edges: int = MAX_EDGES, max_edges_per_reporter: int = MAX_EDGES_PER_REPORTER
    ) -> None:
        self.totals: Counter[tuple[str, TrafficMode]] = Counter()
        """Number of reported requests by namespace of the server and mode. It is forgotten with the last edge
        of that namespace and mode."""
        self.evicted = 0
        """Number of edges that were forgotten because there were too many."""
        self.excess = 0
        """Number of reported edges that were ignored because their sidecar has too many."""
        self.version = 0
        """Number of reports, to detect changes."""
        self._edges: OrderedDict[EdgeKey, Edge] = OrderedDict()
        self._by_reporter: Counter[PodName] = Counter()
        self._by_namespace: Counter[tuple[str, TrafficMode]] = Counter()
        """Number of edges by namespace of the server and mode."""
        self._addresses: Counter[Target] = Counter()
        """Number of edges of addresses, by target."""
        self._max_edges = max_edges
        self._max_edges_per_reporter = max_edges_per_reporter
        self._expired_at = 0.0

    def __len__(self) -> int:
        return len(self._edges)

    def add(
        self,
        key: EdgeKey,
        source: Reporter,
        reporter: PodName,
        *,
        requests: int = 0,
        failed: int = 0,
        now: float,
    ) -> None:
        """Count requests of an edge.

        Args:
            key: the edge.
            source: whether the client's or the server's sidecar reports.
            reporter: pod of the sidecar.
            requests: number of requests, or of connections that are no HTTP.
            failed: number of failed requests among them.
            now: Unix time, in seconds.
        """
        if now != self._expired_at:  # The entries of a report have the same time.
            self.expire(now)
        edge = self._edges.get(key)
        if edge is None and _is_address(key.client):
            key = self._shared(key)
            edge = self._edges.get(key)
        if edge is None:
            if self._by_reporter[reporter] >= self._max_edges_per_reporter:
                self.excess += 1
                return
            edge = self._edges[key] = Edge(reporter, now)
            self._by_reporter[reporter] += 1
            self._by_namespace[key.target.namespace, key.mode] += 1
            if _is_address(key.client):
                self._addresses[key.target] += 1
            if len(self._edges) > self._max_edges:
                self._forget_oldest()
                self.evicted += 1
        else:
            self._edges.move_to_end(key)
        previous = edge.total
        edge.add(source, requests, failed, now)
        self.version += 1
        if increase := edge.total - previous:
            self.totals[key.target.namespace, key.mode] += increase

    def edges(self, namespace: str = "") -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges whose client or server is in a namespace; all edges by default."""
        for key, edge in tuple(self._edges.items()):
            if namespace in {"", key.client.namespace, key.target.namespace}:
                yield key, edge

    def expire(self, now: float) -> None:
        """Forget the edges whose counts are no longer kept."""
        self._expired_at = now
        while self._edges and next(iter(self._edges.values())).last_seen < now - RETENTION:
            self._forget_oldest()

    def _shared(self, key: EdgeKey) -> EdgeKey:
        """Return the key of the edge for a new address: a shared one if the target has many addresses."""
        is_full = self._addresses[key.target] >= MAX_ADDRESSES
        return key._replace(client=OTHER_ADDRESSES) if is_full else key

    def _forget_oldest(self) -> None:
        key, edge = self._edges.popitem(last=False)
        _decrement(self._by_reporter, edge.reporter)
        if _decrement(self._by_namespace, (key.target.namespace, key.mode)):
            del self.totals[key.target.namespace, key.mode]
        if _is_address(key.client):
            _decrement(self._addresses, key.target)


def _decrement(counts: Counter[_T], key: _T) -> bool:
    """Decrement a count. Remove it and return True if it reaches 0."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
    return key not in counts


def _is_address(client: Client) -> bool:
    return not client.namespace and client != OTHER_ADDRESSES
