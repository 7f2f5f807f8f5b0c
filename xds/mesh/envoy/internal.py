"""Listeners inside Envoy, to which only Envoy's own clusters can connect."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import Address, EnvoyInternalAddress, TransportSocket
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener, ListenerInternalListenerConfig
from envoy_data_plane.envoy.config.route.v3 import Route, VirtualHost
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.transport_sockets.internal_upstream.v3 import InternalUpstreamTransport

from xds.codec import pack
from xds.mesh.envoy import filters, tls


def listener(name: str, route: Route, first: Iterable[HttpFilter]) -> Listener:
    """Return an HTTP listener inside Envoy with one route, and with these filters before the router."""
    hosts = [VirtualHost(name=name, domains=["*"], routes=[route])]
    return Listener(
        name=name,
        internal_listener=ListenerInternalListenerConfig(),
        filter_chains=[FilterChain(filters=[filters.http_to(name, hosts, first=first)])],
    )


def cluster(name: str, listener_name: str) -> Cluster:
    """Return a cluster whose connections go to a listener inside Envoy."""
    address = Address(envoy_internal_address=EnvoyInternalAddress(server_listener_name=listener_name))
    endpoint = LbEndpoint(endpoint=Endpoint(address=address))
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
        transport_socket=TransportSocket(
            name="envoy.transport_sockets.internal_upstream",
            typed_config=pack(InternalUpstreamTransport(transport_socket=tls.raw_buffer())),
        ),
    )


def is_internal(resource: Cluster | Listener) -> bool:
    """Whether a resource is a listener inside Envoy, which needs an extension in the bootstrap."""
    return isinstance(resource, Listener) and resource.internal_listener is not None
