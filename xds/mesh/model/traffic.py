"""Client settings of a DestinationRule: connections, TLS and load balancing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class TlsMode(StrEnum):
    """TLS mode of a DestinationRule."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """A DestinationRule's `tls`."""

    mode: TlsMode
    """TLS mode."""
    sni: str = ""
    """Server name; empty for the default."""
    subject_alt_names: tuple[str, ...] = ()
    """Accepted names of the server's certificate; empty for the default."""
    certificate: str = ""
    """clientCertificate, a path in the sidecar's file system (MUTUAL)."""
    private_key: str = ""
    """privateKey, also a path, never the key itself."""
    ca_certificates: str = ""
    """caCertificates, a path; empty for the system's roots."""
    insecure_skip_verify: bool = False
    """Whether the server's certificate is not verified."""


class LoadBalancing(StrEnum):
    """`loadBalancer.simple`."""

    UNSPECIFIED = "UNSPECIFIED"
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"


class TcpLimits(NamedTuple):
    """Timeouts of TCP connections, in seconds; None for no timeout."""

    idle_timeout: float | None = None
    """Time without traffic after which the connection is closed."""
    max_duration: float | None = None
    """Time after which the connection is closed."""


NO_LIMITS = TcpLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    """A DestinationRule's `connectionPool`, with its field names. Durations are in seconds; None if unset."""

    max_connections: int | None = None
    connect_timeout: float | None = None
    tcp_keepalive: tuple[int | None, float | None, float | None] | None = None
    """Number of probes, time and interval."""
    max_connection_duration: float | None = None
    tcp_idle_timeout: float | None = None
    http1_max_pending_requests: int | None = None
    http2_max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    http_idle_timeout: float | None = None
    h2_upgrade: bool | None = None
    """True for UPGRADE, False for DO_NOT_UPGRADE."""
    max_concurrent_streams: int | None = None

    @property
    def tcp_limits(self) -> TcpLimits:
        """Timeouts of connections that are proxied as TCP."""
        return TcpLimits(self.tcp_idle_timeout, self.max_connection_duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """A DestinationRule's `outlierDetection`. Durations are in seconds; None if unset."""

    consecutive_5xx: int | None = None
    consecutive_gateway_errors: int | None = None
    consecutive_local_origin_failures: int | None = None
    split_external_local_origin_errors: bool = False
    interval: float | None = None
    base_ejection_time: float | None = None
    max_ejection_percent: int | None = None
    min_health_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """A `trafficPolicy` of a DestinationRule, a port or a subset, with its field names; None if unset."""

    tls: ClientTls | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    load_balancer: LoadBalancing | None = None
    ports: Mapping[int, TrafficPolicy] = field(default_factory=dict)
    """portLevelSettings by service port; their own `ports` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A DestinationRule's named subset of a service's pods."""

    name: str
    """Name of the subset."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of its pods."""
    policy: TrafficPolicy | None = None
    """Settings that override the rule's."""
