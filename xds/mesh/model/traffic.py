"""What a DestinationRule tells clients: how to connect, what TLS to send, how to choose among endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class TlsMode(StrEnum):
    """What a DestinationRule tells clients to send."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """A DestinationRule's `tls`."""

    mode: TlsMode
    sni: str = ""
    subject_alt_names: tuple[str, ...] = ()
    certificate: str = ""
    """clientCertificate, a path in the sidecar's file system (MUTUAL)."""
    private_key: str = ""
    """privateKey, likewise: a path, never the key."""
    ca_certificates: str = ""
    """caCertificates, a path; empty: the system's roots."""
    insecure_skip_verify: bool = False


class LoadBalancing(StrEnum):
    """`loadBalancer.simple`."""

    UNSPECIFIED = "UNSPECIFIED"
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"


class TcpLimits(NamedTuple):
    """When a TCP connection ends though both sides would keep it: in seconds; None: not for that reason."""

    idle_timeout: float | None = None
    max_duration: float | None = None


NO_LIMITS = TcpLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    """A DestinationRule's `connectionPool`. Durations are seconds; None: not said."""

    max_connections: int | None = None
    connect_timeout: float | None = None
    tcp_keepalive: tuple[int | None, float | None, float | None] | None = None
    """probes, time, interval."""
    max_connection_duration: float | None = None
    tcp_idle_timeout: float | None = None
    http1_max_pending_requests: int | None = None
    http2_max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    http_idle_timeout: float | None = None
    h2_upgrade: bool | None = None
    """True: UPGRADE, False: DO_NOT_UPGRADE."""
    max_concurrent_streams: int | None = None

    @property
    def tcp_limits(self) -> TcpLimits:
        """What holds for connections whose bytes are passed on."""
        return TcpLimits(self.tcp_idle_timeout, self.max_connection_duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """A DestinationRule's `outlierDetection`. Durations are seconds; None: not said."""

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
    """A DestinationRule's `trafficPolicy`, at the top, for a port, or for a subset. None: not said."""

    tls: ClientTls | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    load_balancer: LoadBalancing | None = None
    ports: Mapping[int, TrafficPolicy] = field(default_factory=dict)
    """portLevelSettings, keyed by service port; their own `ports` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A DestinationRule's named subset of a service's pods."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    policy: TrafficPolicy | None = None
