"""A proxyless gRPC mesh: each service is a listener, routes, a cluster and its endpoints."""

from __future__ import annotations

from collections.abc import Iterable

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ConfigSource,
    Locality,
    Metadata,
    SocketAddress,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    NonForwardingAction,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
    WeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateProviderPluginInstance,
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Struct, Value

from xds.codec import pack

ADS = ConfigSource(ads=AggregatedConfigSource())
SERVICE = "svc"
SERVER_LISTENER = "grpc/server?xds.resource.listening_address=%s"
"""The template by which a gRPC server names its listener."""

_PLUGIN = CertificateProviderPluginInstance(instance_name="default")


def _router() -> HttpFilter:
    return HttpFilter(name="router", typed_config=pack(Router()))


def listener() -> Listener:
    """Return what the target `xds:///svc` resolves to first."""
    manager = HttpConnectionManager(
        rds=Rds(route_config_name="svc-routes", config_source=ADS), http_filters=[_router()]
    )
    return Listener(name=SERVICE, api_listener=ApiListener(api_listener=pack(manager)))


def routes(*clusters: str) -> RouteConfiguration:
    """Return routes that spread everything over clusters."""
    weights = [WeightedClusterClusterWeight(name=name, weight=1) for name in clusters]
    action = RouteAction(weighted_clusters=WeightedCluster(clusters=weights))
    route = Route(match=RouteMatch(prefix=""), route=action)
    return RouteConfiguration(
        name="svc-routes", virtual_hosts=[VirtualHost(name="svc", domains=["*"], routes=[route])]
    )


def cluster(
    name: str, *, peer: str = "", tls: bool = False, policy: ClusterLbPolicy = ClusterLbPolicy.ROUND_ROBIN
) -> Cluster:
    """Return a cluster; with TLS to a server that says it is `peer`."""
    made = Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ADS, service_name=f"{name}-endpoints"),
        lb_policy=policy,
    )
    if tls:
        context = UpstreamTlsContext(common_tls_context=_tls(peer))
        made.transport_socket = TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=pack(context)
        )
    return made


def endpoints(cluster: str, ports: Iterable[int], *, remark: str = "") -> ClusterLoadAssignment:
    """Return the endpoints of a cluster, on the loopback address; with a remark in the metadata of each."""
    metadata = Metadata(filter_metadata={"remark": Struct(fields={"text": Value(string_value=remark)})})
    locality = LocalityLbEndpoints(
        locality=Locality(zone="z"),
        load_balancing_weight=1,
        lb_endpoints=[
            LbEndpoint(endpoint=Endpoint(address=_address(port)), metadata=metadata) for port in ports
        ],
    )
    return ClusterLoadAssignment(cluster_name=f"{cluster}-endpoints", endpoints=[locality])


def world(
    cluster_name: str, *ports: int
) -> list[Listener | RouteConfiguration | Cluster | ClusterLoadAssignment]:
    """Return all that a client of the service asks for."""
    return [listener(), routes(cluster_name), cluster(cluster_name), endpoints(cluster_name, ports)]


def server_listener(port: int, *, tls: bool = False) -> Listener:
    """Return the listener of a gRPC server; with TLS it wants certificates from clients."""
    route = Route(match=RouteMatch(prefix=""), non_forwarding_action=NonForwardingAction())
    inbound = RouteConfiguration(
        name="inbound", virtual_hosts=[VirtualHost(name="inbound", domains=["*"], routes=[route])]
    )
    manager = HttpConnectionManager(route_config=inbound, http_filters=[_router()])
    chain = FilterChain(name="inbound", filters=[Filter(name="http", typed_config=pack(manager))])
    if tls:
        context = DownstreamTlsContext(require_client_certificate=True, common_tls_context=_tls())
        chain.transport_socket = TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=pack(context)
        )
    name = SERVER_LISTENER % f"127.0.0.1:{port}"
    return Listener(name=name, address=_address(port), filter_chains=[chain])


def _address(port: int) -> Address:
    return Address(socket_address=SocketAddress(address="127.0.0.1", port_value=port))


def _tls(peer: str = "") -> CommonTlsContext:
    """Return TLS with the certificates of the provider that the client's bootstrap configures."""
    validation = CertificateValidationContext(ca_certificate_provider_instance=_PLUGIN)
    if peer:
        validation.match_subject_alt_names = [StringMatcher(exact=peer)]
    return CommonTlsContext(tls_certificate_provider_instance=_PLUGIN, validation_context=validation)
