"""Edges of observed traffic: which client workload sends what to which service port, and how often."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import takewhile
from typing import NamedTuple, Protocol, TypeVar

from xds.mesh.model.objects import PodKey
from xds.mesh.observe.counts import MINUTES, RETENTION, Counts

MAX_EDGES = 10_000
"""Maximum number of edges. Above it, the edge that was seen longest ago is forgotten.

An edge takes about 1 kB, and up to 3 kB if both sidecars report it and requests fail.
"""
TRAFFIC_RETENTION = 7 * 86400.0
"""Seconds for which traffic is remembered; its counts, and denied requests, only for RETENTION."""
MAX_EDGES_PER_REPORTER = 2_000
"""Maximum number of edges that the reports of one sidecar may create."""
MAX_DENIALS, MAX_DENIALS_PER_REPORTER = 5_000, 500
"""The same for edges of denied requests, which do not count as edges of traffic."""
MAX_PATHS = 20
"""Maximum number of methods and paths that one rule denies to one client of a target. Further ones share an
edge."""
MAX_ADDRESSES = 50
"""Maximum number of addresses outside the mesh with edges to one target. Further ones share an edge."""
RATE_MINUTES = 5
"""Number of minutes that the rate of an edge is averaged over."""

_T = TypeVar("_T")


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


UNENCRYPTED = (TrafficMode.PLAINTEXT, TrafficMode.REFUSED)
"""Modes that a server that requires mutual TLS refuses."""


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


def address_words(name: str) -> str:
    """Return what an observed client is that is no other pod: an address, or `OTHER_ADDRESSES`."""
    if name == OTHER_ADDRESSES.name:
        return "more addresses that belong to no pod"
    try:
        is_loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_loopback = False
    if is_loopback:
        return "a process in the server's own pod or on its machine, such as a port-forward"
    return "no pod: a node, or a client outside the mesh"


class Target(NamedTuple):
    """A port that clients called."""

    namespace: str
    """Namespace of the service or pod."""
    name: str
    """Name of the service; `pod/NAME` if the port of the pod belongs to no service."""
    port: int
    """Port of the service, or of the pod."""


class Denial(NamedTuple):
    """What AuthorizationPolicies deny: requests with a method to paths with a prefix, or connections."""

    rule: str
    """Istio's name of the rule that denies; empty if no rule of an ALLOW policy matches."""
    method: str = ""
    """HTTP method; empty for connections that are not HTTP."""
    path: str = ""
    """Path, or a prefix of paths with `*`, without the query; empty for connections that are not HTTP."""
    dry_run: bool = False
    """Whether the requests were allowed, and would be denied without `istio.io/dry-run`."""


class EdgeKey(NamedTuple):
    """Key of an edge."""

    client: Client
    """Client workload."""
    target: Target
    """Port that it called."""
    mode: TrafficMode
    """How it sent its requests."""
    denial: Denial | None = None
    """Why they are denied. Denials are edges of a `Traffic` of their own."""

    @property
    def series(self) -> tuple[str, str]:
        """Labels of the metric that counts its requests: the server's namespace, and mode or `dry_run`."""
        label = str(self.denial.dry_run).lower() if self.denial else self.mode.value
        return self.target.namespace, label


class Edge:
    """The traffic of one client workload to one service port in one mode."""

    __slots__ = (
        "_counts",
        "_failed",
        "by_server",
        "first_seen",
        "last_seen",
        "reporter",
        "total",
        "version",
    )

    def __init__(self, reporter: PodKey, now: float) -> None:
        self.reporter = reporter
        """The sidecar whose report created the edge."""
        self.first_seen = self.last_seen = now
        """Unix times of the first and last report, in seconds."""
        self.by_server = False
        """Whether the server's sidecar has reported it."""
        self.total = 0
        """Number of requests. If both sidecars report, the larger number applies."""
        self._counts: dict[Reporter, Counts] = {}
        self._failed: Counts | None = None
        self.version = 0
        """`Traffic.version` at the last report."""

    @classmethod
    def restore(
        cls,
        first_seen: float,
        last_seen: float,
        counts: Mapping[Reporter, Counts],
        failed: Counts | None,
        *,
        by_server: bool,
    ) -> Edge:
        """Return an edge with counts that were made elsewhere."""
        edge = cls(("", ""), first_seen)
        edge.last_seen, edge.by_server = last_seen, by_server
        edge._counts.update(counts)
        edge._failed = failed
        return edge

    @property
    def counts(self) -> Mapping[Reporter, Counts]:
        """The requests, by reporter."""
        return self._counts

    @property
    def failures(self) -> Counts | None:
        """The failed requests; None if there were none."""
        return self._failed

    def add(self, source: Reporter, requests: int, failed: int, now: float) -> None:
        """Count requests, or connections that are no HTTP. 0 requests only update `last_seen`."""
        self.last_seen = max(now, self.last_seen)
        self.by_server |= source is Reporter.SERVER
        if requests:
            if (counts := self._counts.get(source)) is None:
                counts = self._counts[source] = Counts(now)
            counts.add(requests, now)
            self.total = max(self.total, counts.total)
        if failed:
            self._failed = self._failed or Counts(now)
            self._failed.add(failed, now)

    def clear_counts(self) -> None:
        """Forget the requests over time."""
        self._counts, self._failed, self.total = {}, None, 0

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

    def has_failed(self, now: float) -> bool:
        """Whether requests of the last RATE_MINUTES have failed."""
        return self._failed is not None and any(self._failed.minutes(now)[-RATE_MINUTES:])

    def rate(self, now: float) -> float:
        """Return the requests per minute, averaged over RATE_MINUTES or the age of a younger edge."""
        minutes = min(max((now - self.first_seen) / 60, 1.0), RATE_MINUTES)
        recent = (sum(counts.minutes(now)[-RATE_MINUTES:]) for counts in self._counts.values())
        return max(recent, default=0) / minutes


def format_rate(value: float) -> str:
    """Return a rate in short, such as `<0.1`, `2.4`, `310` or `1.2k`."""
    if 0 < value < 0.1:
        return "<0.1"
    unit = ""
    if round(value) >= 1000:
        value, unit = value / 1000, "k"
    text = f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
    return text + unit


class Edges(Protocol):
    """Observed edges: `Traffic` of one replica, or `xds.mesh.observe.merged.MergedTraffic` of all."""

    @property
    def version(self) -> int:
        """A number that changes with the edges."""

    def __bool__(self) -> bool:
        """Whether there are edges."""

    def edges(self, namespace: str = "") -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges whose client or server is in a namespace; all edges by default."""

    def seen_since(self, since: float) -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges that were last seen at a Unix time or later, within TRAFFIC_RETENTION."""

    def expire(self, now: float) -> None:
        """Forget the edges whose retention has passed."""


class Traffic:
    """Edges that one replica's sidecars reported, the ones that were seen longest ago first.

    Their number is limited. They are kept for TRAFFIC_RETENTION; their counts, and denied requests, for
    RETENTION.
    """

    def __init__(
        self, max_edges: int = MAX_EDGES, max_edges_per_reporter: int = MAX_EDGES_PER_REPORTER
    ) -> None:
        self.totals: Counter[tuple[str, str]] = Counter()
        """Number of reported requests by `EdgeKey.series`; forgotten with the last edge of the series."""
        self.evicted = 0
        """Number of edges that were forgotten because there were too many."""
        self.last_evicted = 0.0
        """Unix time at which such an edge was last seen, the latest of them; 0 if there is none."""
        self.excess = 0
        """Number of reported edges that were ignored because their sidecar has too many."""
        self.version = 0
        """Number of reports, to detect changes."""
        self._edges: OrderedDict[EdgeKey, Edge] = OrderedDict()
        self._past: OrderedDict[EdgeKey, Edge] = OrderedDict()
        """Edges that were last seen longer ago than RETENTION."""
        self._by_reporter: Counter[PodKey] = Counter()
        self._by_series: Counter[tuple[str, str]] = Counter()
        """Number of edges by `EdgeKey.series`."""
        self._addresses: Counter[Target] = Counter()
        """Number of addresses with edges, by target."""
        self._edges_of: Counter[tuple[Client, Target]] = Counter()
        """Number of edges of each of these addresses."""
        self._paths: Counter[EdgeKey] = Counter()
        """Number of edges of denied requests that differ only by method and path."""
        self._max_edges = max_edges
        self._max_edges_per_reporter = max_edges_per_reporter
        self._expired_at = 0.0

    def __len__(self) -> int:
        return len(self._edges)

    def __bool__(self) -> bool:
        return bool(self._edges)

    def add(
        self,
        key: EdgeKey,
        source: Reporter,
        reporter: PodKey,
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
        if edge is None and (shared := self._shared(key)) != key:
            key = shared
            edge = self._edges.get(key)
        if edge is None:
            edge = self._past.pop(key, None)
            if edge is None:
                if self._by_reporter[reporter] >= self._max_edges_per_reporter:
                    self.excess += 1
                    return
                edge = Edge(reporter, now)
                self._by_reporter[reporter] += 1
            self._edges[key] = edge
            self._by_series[key.series] += 1
            if _is_address(key.client):
                self._edges_of[key.client, key.target] += 1
                self._addresses[key.target] += self._edges_of[key.client, key.target] == 1
            if key.denial:
                self._paths[_any_path(key)] += 1
            if len(self._edges) + len(self._past) > self._max_edges:
                self._evict()
        else:
            self._edges.move_to_end(key)
        previous = edge.total
        edge.add(source, requests, failed, now)
        self.version += 1
        edge.version = self.version
        if increase := edge.total - previous:
            self.totals[key.series] += increase

    def edges(self, namespace: str = "") -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges of the last RETENTION seconds whose client or server is in a namespace.

        All edges by default.
        """
        for key, edge in tuple(self._edges.items()):
            if namespace in {"", key.client.namespace, key.target.namespace}:
                yield key, edge

    def seen_since(self, since: float) -> Iterator[tuple[EdgeKey, Edge]]:
        """Yield the edges that were last seen at a Unix time or later, within TRAFFIC_RETENTION."""
        for key, edge in (*self._past.items(), *self._edges.items()):
            if edge.last_seen >= since:
                yield key, edge

    def changes(self, since: int) -> list[tuple[EdgeKey, Edge]]:
        """Return the edges that were reported after a version, in the order of their last reports."""
        if not since:
            return [*self._past.items(), *self._edges.items()]
        latest_first = takewhile(lambda item: item[1].version > since, reversed(self._edges.items()))
        return list(latest_first)[::-1]

    def expire(self, now: float) -> None:
        """Forget the edges whose retention has passed, and counts that are no longer kept."""
        self._expired_at = now
        while self._edges and _oldest(self._edges).last_seen < now - RETENTION:
            key, edge = self._pop_oldest()
            if key.denial:
                self._release(edge)
            else:
                edge.clear_counts()
                self._past[key] = edge
        while self._past and _oldest(self._past).last_seen < now - TRAFFIC_RETENTION:
            self._release(self._past.popitem(last=False)[1])

    def _shared(self, key: EdgeKey) -> EdgeKey:
        """Return the key of a new edge: a shared one if there are many of its addresses or paths."""
        is_new = _is_address(key.client) and (key.client, key.target) not in self._edges_of
        if is_new and self._addresses[key.target] >= MAX_ADDRESSES:
            key = key._replace(client=OTHER_ADDRESSES)
        if key.denial and key.denial.path and self._paths[_any_path(key)] >= MAX_PATHS:
            key = _any_path(key)
        return key

    def _evict(self) -> None:
        """Forget the edge that was seen longest ago, because there are too many."""
        _, edge = self._past.popitem(last=False) if self._past else self._pop_oldest()
        self._release(edge)
        self.evicted += 1
        self.last_evicted = max(self.last_evicted, edge.last_seen)

    def _pop_oldest(self) -> tuple[EdgeKey, Edge]:
        key, edge = self._edges.popitem(last=False)
        _decrement(self._by_series, key.series)
        if not self._by_series[key.series]:
            self.totals.pop(key.series, None)
        if _is_address(key.client):
            _decrement(self._edges_of, (key.client, key.target))
            if (key.client, key.target) not in self._edges_of:
                _decrement(self._addresses, key.target)
        if key.denial:
            _decrement(self._paths, _any_path(key))
        return key, edge

    def _release(self, edge: Edge) -> None:
        """Let the reporter of a forgotten edge create another one."""
        _decrement(self._by_reporter, edge.reporter)


def _oldest(edges: OrderedDict[EdgeKey, Edge]) -> Edge:
    return next(iter(edges.values()))


def _decrement(counts: Counter[_T], key: _T) -> None:
    """Decrement a count, and remove it at 0."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _any_path(key: EdgeKey) -> EdgeKey:
    """Return the key of the edge that further methods and paths of a denial share."""
    return key._replace(denial=key.denial and key.denial._replace(method="*", path="*"))


def _is_address(client: Client) -> bool:
    return not client.namespace and client != OTHER_ADDRESSES
