"""Messages to make resources from."""

from __future__ import annotations

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType, ClusterEdsClusterConfig
from envoy_data_plane.envoy.config.core.v3 import (
    AggregatedConfigSource,
    ApiConfigSource,
    ConfigSource,
    PathConfigSource,
    SelfConfigSource,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    Rds,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    UpstreamTlsContext,
)

from xds.codec import pack

ADS = ConfigSource(ads=AggregatedConfigSource())
SELF = ConfigSource(self=SelfConfigSource())
ELSEWHERE = ConfigSource(api_config_source=ApiConfigSource())
FILE = ConfigSource(path_config_source=PathConfigSource(path="x"))


def eds_cluster(
    name: str, service: str = "", source: ConfigSource = ADS, *, certificate: str = "", roots: str = ""
) -> Cluster:
    cluster = Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=source, service_name=service),
    )
    if certificate:
        common = CommonTlsContext(
            tls_certificate_sds_secret_configs=[SdsSecretConfig(name=certificate, sds_config=ADS)]
        )
        if roots:
            common.combined_validation_context = CommonTlsContextCombinedCertificateValidationContext(
                validation_context_sds_secret_config=SdsSecretConfig(name=roots, sds_config=ADS)
            )
        context = pack(UpstreamTlsContext(common_tls_context=common))
        cluster.transport_socket = TransportSocket(name="envoy.transport_sockets.tls", typed_config=context)
    return cluster


def assignment(name: str) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(cluster_name=name)


def routes(name: str, vhost_header: str = "") -> RouteConfiguration:
    return RouteConfiguration(name=name, vhost_header=vhost_header)


def http(route: str, source: ConfigSource = ADS) -> HttpConnectionManager:
    return HttpConnectionManager(stat_prefix="x", rds=Rds(route_config_name=route, config_source=source))


def chain(route: str, certificate: str = "") -> FilterChain:
    chain = FilterChain(filters=[Filter(name="http", typed_config=pack(http(route)))])
    if certificate:
        common = CommonTlsContext(
            tls_certificate_sds_secret_configs=[SdsSecretConfig(name=certificate, sds_config=ADS)]
        )
        chain.transport_socket = TransportSocket(
            name="envoy.transport_sockets.tls",
            typed_config=pack(DownstreamTlsContext(common_tls_context=common)),
        )
    return chain


def listener(name: str, *route: str, certificate: str = "") -> Listener:
    return Listener(name=name, filter_chains=[chain(one, certificate) for one in route])


def api_listener(name: str, route: str) -> Listener:
    return Listener(name=name, api_listener=ApiListener(api_listener=pack(http(route))))
