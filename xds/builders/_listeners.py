"""Listeners for HTTP, TCP and proxyless gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import betterproto2
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    TcpProxyWeightedCluster,
    TcpProxyWeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import DownstreamTlsContext

from xds.builders._common import address, ads, tls_socket
from xds.builders._routes import check_weights
from xds.codec import pack


def http_listener(
    name: str,
    bind: str,
    *,
    routes: str | RouteConfiguration,
    tls: DownstreamTlsContext | None = None,
    trusted_hops: int = 0,
    websocket: bool = False,
) -> Listener:
    """Return a listener for HTTP/1.1 and HTTP/2.

    It follows Envoy's advice for proxies at the edge: paths are normalized, `x-forwarded-for` of clients is
    not trusted, and a client has 10 s for the headers of a request.

    Args:
        name: Name of the listener, and the prefix of its statistics.
        bind: Address to listen on, such as `0.0.0.0:8080`.
        routes: Name of the route configuration, which is a resource of its own, or the configuration itself.
            With a name, a change of routes keeps all connections; otherwise the listener is replaced.
        tls: TLS for clients; see `downstream_tls`. The default is plaintext.
        trusted_hops: Number of proxies in front of this one whose `x-forwarded-for` is trusted.
        websocket: Whether clients may upgrade to WebSocket.

    Raises:
        ValueError: `bind` is not HOST:PORT.
    """
    manager = _manager(name, routes)
    manager.use_remote_address = True
    manager.xff_num_trusted_hops = trusted_hops
    manager.normalize_path = True
    manager.merge_slashes = True
    manager.path_with_escaped_slashes_action = (
        HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
    )
    manager.request_headers_timeout = timedelta(seconds=10)
    if websocket:
        manager.upgrade_configs = [HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")]
    return _listener(name, bind, "http_connection_manager", manager, tls)


def tcp_listener(
    name: str, bind: str, cluster: str | Mapping[str, int], *, tls: DownstreamTlsContext | None = None
) -> Listener:
    """Return a listener that forwards TCP connections.

    Args:
        name: Name of the listener, and the prefix of its statistics.
        bind: Address to listen on, such as `0.0.0.0:5432`.
        cluster: Name of the cluster to forward to, or a mapping from names to weights. A cluster with
            weight 0 gets no connection.
        tls: TLS for clients; see `downstream_tls`. The default is to forward bytes unchanged.

    Raises:
        ValueError: `bind` is not HOST:PORT, or no weight is positive.
    """
    proxy = TcpProxy(stat_prefix=name)
    if isinstance(cluster, str):
        proxy.cluster = cluster
    else:
        check_weights(cluster)
        proxy.weighted_clusters = TcpProxyWeightedCluster(
            clusters=[
                TcpProxyWeightedClusterClusterWeight(name=each, weight=weight)
                for each, weight in cluster.items()
                if weight  # Envoy rejects 0 here.
            ]
        )
    return _listener(name, bind, "tcp_proxy", proxy, tls)


def api_listener(name: str, *, routes: str | RouteConfiguration) -> Listener:
    """Return the listener of a gRPC client without a proxy. The client's target is `xds:///NAME`.

    Args:
        name: Name of the service.
        routes: Name of the route configuration, or the configuration itself.
    """
    return Listener(name=name, api_listener=ApiListener(api_listener=pack(_manager(name, routes))))


def _manager(name: str, routes: str | RouteConfiguration) -> HttpConnectionManager:
    router = HttpFilter(name="envoy.filters.http.router", typed_config=pack(Router()))
    manager = HttpConnectionManager(stat_prefix=name, http_filters=[router])
    if isinstance(routes, str):
        manager.rds = Rds(config_source=ads(), route_config_name=routes)
    else:
        manager.route_config = routes
    return manager


def _listener(
    name: str, bind: str, kind: str, config: betterproto2.Message, tls: DownstreamTlsContext | None
) -> Listener:
    chain = FilterChain(filters=[Filter(name=f"envoy.filters.network.{kind}", typed_config=pack(config))])
    if tls:
        chain.transport_socket = tls_socket(tls, DownstreamTlsContext, "downstream_tls")
    return Listener(name=name, address=address(bind), filter_chains=[chain])
