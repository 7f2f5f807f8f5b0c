"""Clusters (CDS): the destinations of a sidecar, and how it connects to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterCommonLbConfigLocalityWeightedLbConfig,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    ClusterTransportSocketMatch,
    OutlierDetection,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    BindConfig,
    ExtraSourceAddress,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    SocketAddress,
    TcpKeepalive,
    TransportSocket,
)
from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptions as CommonHttpOptions
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
    HttpProtocolOptionsUseDownstreamHttpConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct

from xds.codec import pack
from xds.mesh.envoy import names, tls
from xds.mesh.envoy.balancing import balance
from xds.mesh.envoy.common import HTTP_OPTIONS, ads, one_endpoint, seconds, strings
from xds.mesh.envoy.features import Features, served_config
from xds.mesh.model.families import Family
from xds.mesh.model.loadbalancer import LoadBalancer
from xds.mesh.model.objects import MeshConfig, Protocol
from xds.mesh.model.traffic import ConnectionPool, TrafficPolicy
from xds.mesh.model.traffic import OutlierDetection as OutlierPolicy
from xds.resources import Resource, resource

_NO_LIMIT = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundSpec:
    """Specification of an outbound cluster."""

    name: str
    """Name of the cluster."""
    sni: str
    """TLS server name that the sidecar sends."""
    protocol: Protocol
    """Protocol of the service port."""
    policy: TrafficPolicy
    """The DestinationRule's settings for the port and subset."""
    identities: tuple[str, ...]
    """SPIFFE IDs that endpoints may have; empty for any ID of the trust domains."""
    features: Features
    """Features of the sidecar's Envoy, which its TLS settings depend on."""
    has_locality_weights: bool = False
    """Whether the load assignment has weights of localities."""


def outbound(config: MeshConfig, spec: OutboundSpec, sources: tuple[str, ...]) -> Resource:
    """Return the EDS cluster of a service port, a subset or a single endpoint."""
    config = served_config(config, spec.features)
    policy = spec.policy
    pool = policy.connection_pool or ConnectionPool()
    http2 = spec.protocol is Protocol.HTTP2 or (spec.protocol is Protocol.HTTP and pool.h2_upgrade is True)
    socket: TransportSocket | None = None
    matches: list[ClusterTransportSocketMatch] = []
    if policy.tls:
        socket = tls.explicit(config, policy.tls, spec.sni, spec.identities, http2=http2)
    elif config.enable_auto_mtls:
        matches = [
            ClusterTransportSocketMatch(
                name="tlsMode-istio",
                match=strings(tlsMode="istio"),
                transport_socket=tls.mutual(config, spec.sni, spec.identities, http2=http2),
            ),
            ClusterTransportSocketMatch(
                name="tlsMode-disabled", match=Struct(), transport_socket=tls.raw_buffer()
            ),
        ]
    outlier = policy.outlier_detection
    panic_threshold = (outlier.min_health_percent if outlier else None) or 0
    cluster = Cluster(
        name=spec.name,
        # `;` ends the cluster's name in statistics, because the name can contain dots.
        alt_stat_name=f"{spec.name};",
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ads(), service_name=spec.name),
        connect_timeout=seconds(pool.connect_timeout or config.connect_timeout),
        circuit_breakers=_circuit_breakers(pool),
        # The default of 0 disables panic mode, which would send requests to endpoints that are not ready.
        common_lb_config=ClusterCommonLbConfig(
            healthy_panic_threshold=Percent(value=float(panic_threshold)),
            locality_weighted_lb_config=ClusterCommonLbConfigLocalityWeightedLbConfig()
            if spec.has_locality_weights
            else None,
        ),
        outlier_detection=_outlier_detection(outlier) if outlier else None,
        upstream_connection_options=_keepalive(pool),
        typed_extension_protocol_options=_http_options(spec.protocol, pool, http2=http2),
        transport_socket_matches=matches,
        transport_socket=socket,
    )
    balance(cluster, policy.load_balancer or LoadBalancer())
    return resource(cluster, sources=sources)


def _circuit_breakers(pool: ConnectionPool) -> CircuitBreakers:
    def limit(value: int | None) -> int:
        return _NO_LIMIT if value is None else value

    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=limit(pool.max_connections),
                max_pending_requests=limit(pool.http1_max_pending_requests),
                max_requests=limit(pool.http2_max_requests),
                max_retries=limit(pool.max_retries),
                track_remaining=True,
            )
        ]
    )


def _outlier_detection(policy: OutlierPolicy) -> OutlierDetection:
    def enforce(threshold: int | None) -> int | None:
        return None if threshold is None else (100 if threshold else 0)

    return OutlierDetection(
        consecutive_5xx=policy.consecutive_5xx or None,
        enforcing_consecutive_5xx=enforce(policy.consecutive_5xx),
        consecutive_gateway_failure=policy.consecutive_gateway_errors or None,
        enforcing_consecutive_gateway_failure=enforce(policy.consecutive_gateway_errors),
        split_external_local_origin_errors=policy.split_external_local_origin_errors,
        consecutive_local_origin_failure=policy.consecutive_local_origin_failures or None,
        enforcing_consecutive_local_origin_failure=enforce(policy.consecutive_local_origin_failures),
        interval=seconds(policy.interval),
        base_ejection_time=seconds(policy.base_ejection_time),
        max_ejection_percent=policy.max_ejection_percent,
        # As in Istio, only the rule's thresholds eject endpoints.
        enforcing_success_rate=0,
    )


def _keepalive(pool: ConnectionPool) -> UpstreamConnectionOptions | None:
    if pool.tcp_keepalive is None:
        return None
    probes, time, interval = pool.tcp_keepalive
    return UpstreamConnectionOptions(
        tcp_keepalive=TcpKeepalive(
            keepalive_probes=probes,
            keepalive_time=None if time is None else round(time),
            keepalive_interval=None if interval is None else round(interval),
        )
    )


def _http_options(protocol: Protocol, pool: ConnectionPool, *, http2: bool) -> dict[str, Any]:
    if protocol is Protocol.TCP:
        return {}
    idle_timeout, max_requests = pool.http_idle_timeout, pool.max_requests_per_connection or None
    h2 = Http2ProtocolOptions(max_concurrent_streams=pool.max_concurrent_streams)
    options = HttpProtocolOptions()
    if idle_timeout is not None or max_requests or pool.max_connection_duration is not None:
        options.common_http_protocol_options = CommonHttpOptions(
            idle_timeout=seconds(idle_timeout),
            max_requests_per_connection=max_requests,
            max_connection_duration=seconds(pool.max_connection_duration),
        )
    if protocol is Protocol.AUTO:
        options.use_downstream_protocol_config = HttpProtocolOptionsUseDownstreamHttpConfig(
            http_protocol_options=Http1ProtocolOptions(), http2_protocol_options=h2
        )
    elif http2:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=h2)
    elif options.common_http_protocol_options:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        )
    else:
        return {}
    return {HTTP_OPTIONS: pack(options)}


class Application(NamedTuple):
    """How a sidecar connects to its application."""

    addresses: tuple[str, ...] = ()
    """Addresses of the application, the preferred one first. Empty: the original destination."""
    families: tuple[Family, ...] = ()
    """IP versions of the original destinations."""


def inbound(
    config: MeshConfig,
    port: int,
    protocol: Protocol,
    application: Application,
    sources: tuple[str, ...],
) -> Resource:
    """Return the cluster for a port of the application."""
    return replace(_inbound(config, port, protocol, application), sources=sources)


@lru_cache(maxsize=8192)
def _inbound(config: MeshConfig, port: int, protocol: Protocol, application: Application) -> Resource:
    name = names.inbound(port)
    http2 = protocol is Protocol.HTTP2
    options = _http_options(protocol, ConnectionPool(), http2=http2)
    if application.addresses:
        return resource(_static(config, name, application.addresses, port, options=options))
    return resource(_original_destination(config, name, families=application.families, options=options))


def _static(
    config: MeshConfig, name: str, hosts: tuple[str, ...], port: int, *, options: dict[str, Any]
) -> Cluster:
    return Cluster(
        name=name,
        alt_stat_name=f"{name};",
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=seconds(config.connect_timeout),
        circuit_breakers=_circuit_breakers(ConnectionPool()),
        typed_extension_protocol_options=options,
        load_assignment=one_endpoint(name, *hosts, port=port),
    )


def _original_destination(
    config: MeshConfig, name: str, *, families: tuple[Family, ...] = (), options: dict[str, Any]
) -> Cluster:
    """Return a cluster that keeps the original destination.

    `families` are the IP versions of a pod whose own application is the destination; empty for others.
    """
    return Cluster(
        name=name,
        alt_stat_name=f"{name};",
        type=ClusterDiscoveryType.ORIGINAL_DST,
        lb_policy=ClusterLbPolicy.CLUSTER_PROVIDED,
        connect_timeout=seconds(config.connect_timeout),
        circuit_breakers=_circuit_breakers(ConnectionPool()),
        typed_extension_protocol_options=options,
        upstream_bind_config=passthrough_source(families) if families else None,
    )


@lru_cache(maxsize=1024)
def inbound_passthrough(config: MeshConfig, families: tuple[Family, ...]) -> Resource:
    """Return the cluster for ports of the application that no Service targets."""
    options = _http_options(Protocol.AUTO, ConnectionPool(), http2=False)
    return resource(
        _original_destination(config, names.INBOUND_PASSTHROUGH, families=families, options=options)
    )


def passthrough_source(families: Iterable[Family]) -> BindConfig:
    """Return the source addresses of a sidecar's connections to its application."""
    first, *more = (
        SocketAddress(address=names.PASSTHROUGH_SOURCES[family], port_value=0) for family in families
    )
    return BindConfig(
        source_address=first, extra_source_addresses=[ExtraSourceAddress(address=item) for item in more]
    )


@lru_cache(maxsize=1024)
def fixed(config: MeshConfig, *, intercepted: bool) -> tuple[Resource, ...]:
    """Return the clusters that every sidecar has, and `PassthroughCluster` if it intercepts traffic."""
    black_hole = Cluster(
        name=names.BLACK_HOLE,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=seconds(config.connect_timeout),
    )
    identity = Cluster(
        name=names.IDENTITY,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=seconds(config.connect_timeout),
        transport_socket=tls.mutual(config, "", ()),
    )
    result = [black_hole, identity]
    if intercepted:
        options = _http_options(Protocol.AUTO, ConnectionPool(), http2=False)
        result.append(_original_destination(config, names.PASSTHROUGH, options=options))
    return tuple(map(resource, result))
