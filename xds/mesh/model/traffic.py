"""A DestinationRule's settings for clients: connections, TLS and load balancing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.loadbalancer import HashKey, LoadBalancer, Simple


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
    """Accepted SANs of the server's certificate; empty for the default."""
    certificate: str = ""
    """clientCertificate (mode MUTUAL): a path in the sidecar's file system."""
    private_key: str = ""
    """privateKey (mode MUTUAL): a path in the sidecar's file system, never the key itself."""
    ca_certificates: str = ""
    """caCertificates: a path in the sidecar's file system; empty for the system's roots."""
    insecure_skip_verify: bool = False
    """Whether clients skip verification of the server's certificate."""

    @property
    def reads_files(self) -> bool:
        """Whether sidecars read files that the rule names."""
        files = self.certificate or self.private_key or self.ca_certificates
        return self.mode in (TlsMode.SIMPLE, TlsMode.MUTUAL) and bool(files)


class TcpLimits(NamedTuple):
    """Timeouts of TCP connections, in seconds; None if not set."""

    idle_timeout: float | None = None
    """Time without traffic after which a connection is closed."""
    max_duration: float | None = None
    """Time after which a connection is closed, even if it is in use."""


NO_LIMITS = TcpLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    """A DestinationRule's `connectionPool`, with the same field names.

    Durations are in seconds. A field is None if it is not set.
    """

    max_connections: int | None = None
    connect_timeout: float | None = None
    tcp_keepalive: tuple[int | None, float | None, float | None] | None = None
    """tcpKeepalive: number of probes, time before the first probe, and interval between probes."""
    max_connection_duration: float | None = None
    tcp_idle_timeout: float | None = None
    http1_max_pending_requests: int | None = None
    http2_max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    http_idle_timeout: float | None = None
    h2_upgrade: bool | None = None
    """h2UpgradePolicy: True for UPGRADE, False for DO_NOT_UPGRADE."""
    max_concurrent_streams: int | None = None

    @property
    def tcp_limits(self) -> TcpLimits:
        """Timeouts of connections that are proxied as TCP."""
        return TcpLimits(self.tcp_idle_timeout, self.max_connection_duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """A DestinationRule's `outlierDetection`, with the same field names.

    Durations are in seconds. A field is None if it is not set.
    """

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
    """A `trafficPolicy` of a DestinationRule, a port or a subset, with the same field names.

    A field is None if it is not set.
    """

    tls: ClientTls | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    load_balancer: LoadBalancer | None = None
    ports: Mapping[int, TrafficPolicy] = field(default_factory=dict)
    """portLevelSettings by service port. The `ports` of each entry is empty."""

    @property
    def is_passthrough(self) -> bool:
        """Whether connections keep the endpoint that the application has chosen."""
        return self.load_balancer is not None and self.load_balancer.simple is Simple.PASSTHROUGH

    @property
    def hash_key(self) -> HashKey | None:
        """What requests to the same endpoint have in common; None if load balancing ignores them."""
        chosen = self.load_balancer and self.load_balancer.consistent_hash
        return chosen.key if chosen else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A named subset of a service's pods, defined by a DestinationRule."""

    name: str
    """Name of the subset."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of its pods."""
    policy: TrafficPolicy | None = None
    """Traffic policy of the subset, which overrides the rule's."""


def reads_files(policy: TrafficPolicy | None, subsets: Iterable[Subset]) -> bool:
    """Whether sidecars read files that a rule with these settings names."""
    policies = (policy, *(subset.policy for subset in subsets))
    settings = (each for policy in policies if policy for each in (policy, *policy.ports.values()))
    return any(each.tls is not None and each.tls.reads_files for each in settings)
