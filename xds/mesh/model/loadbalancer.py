"""A DestinationRule's settings for load balancing."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, TypeAlias

MAX_HASH_ENTRIES = 65_537
"""Maximum entries of a hash ring or Maglev table: Envoy's default for tables, a prime number.

Each sidecar of the mesh allocates about 46 bytes for each entry, for each port of the service.
"""


class Simple(StrEnum):
    """`loadBalancer.simple`."""

    UNSPECIFIED = "UNSPECIFIED"
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"


class Cookie(NamedTuple):
    """`consistentHash.httpCookie`."""

    name: str
    """Name of the cookie."""
    path: str = ""
    """Path of the cookie that the sidecar creates; empty for none."""
    ttl: float | None = None
    """Lifetime of that cookie in seconds; 0 for a session cookie, None to create no cookie."""


class HashKey(NamedTuple):
    """What requests with the same endpoint have in common. Exactly one field is set."""

    header: str = ""
    """`httpHeaderName`."""
    cookie: Cookie | None = None
    """`httpCookie`."""
    source_ip: bool = False
    """`useSourceIp`; the only key of TCP connections."""
    query_parameter: str = ""
    """`httpQueryParameterName`."""


class ConsistentHash(NamedTuple):
    """`loadBalancer.consistentHash`."""

    key: HashKey
    """Key of the hash."""
    maglev: bool = False
    """True for `maglev`, False for `ringHash`."""
    size: int | None = None
    """`ringHash.minimumRingSize` or `maglev.tableSize`; None for Envoy's default."""


class Warmup(NamedTuple):
    """`loadBalancer.warmup`: the share of a new endpoint grows over a duration."""

    duration: float
    """Duration in seconds."""
    minimum_percent: float | None = None
    """Smallest share of the endpoint, in percent of its later share; None for Envoy's default."""
    aggression: float | None = None
    """Exponent of the growth; None for Envoy's default, linear growth."""


LocalityPattern: TypeAlias = tuple[str, ...]
"""Region, zone and sub-zone of localities. It matches all localities that start with its parts."""


class Distribute(NamedTuple):
    """An entry of `localityLbSetting.distribute`."""

    clients: LocalityPattern
    """`from`: the localities of the clients that the entry applies to."""
    weights: tuple[tuple[LocalityPattern, int], ...]
    """`to`: localities of endpoints, and their share of the requests in percent."""


class LocalityLb(NamedTuple):
    """`localityLbSetting`, of a DestinationRule or of the mesh."""

    enabled: bool = True
    """Whether localities have any effect."""
    distribute: tuple[Distribute, ...] = ()
    """Shares of localities. The first entry for the client's locality applies."""
    failover: tuple[tuple[str, str], ...] = ()
    """Regions of clients, each with the region to fail over to."""
    failover_priority: tuple[tuple[str, str | None], ...] = ()
    """Labels, the most important first, each with a value; None for the client's own value."""


BY_DISTANCE = LocalityLb()
"""Istio's default: requests go to the nearest locality with healthy endpoints."""


class LoadBalancer(NamedTuple):
    """A DestinationRule's `loadBalancer`."""

    simple: Simple = Simple.UNSPECIFIED
    """`simple`."""
    consistent_hash: ConsistentHash | None = None
    """`consistentHash`; overrides `simple`."""
    warmup: Warmup | None = None
    """`warmup`."""
    locality: LocalityLb | None = None
    """`localityLbSetting`; None for the mesh's."""
