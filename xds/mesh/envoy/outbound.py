"""Outbound listeners (LDS): how a sidecar handles its application's connections."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.core.v3 import TrafficDirection
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, FilterChainMatch, Listener
from envoy_data_plane.envoy.config.route.v3 import VirtualHost

from xds.mesh.envoy import filters, names
from xds.mesh.envoy.common import address, bound_to, seconds, wildcards
from xds.mesh.envoy.routes import to_cluster
from xds.mesh.model.families import Family
from xds.mesh.model.loadbalancer import HashKey
from xds.mesh.model.objects import MeshConfig, Protocol
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits
from xds.resources import Resource, resource

NAME = "virtualOutbound"


class OutboundAddress(NamedTuple):
    """An address and port that applications connect to, and its cluster."""

    address: str
    """IP address."""
    port: int
    """Port."""
    protocol: Protocol
    """Protocol of the port."""
    cluster: str
    """Cluster that connections go to."""
    limits: TcpLimits = NO_LIMITS
    """Timeouts of TCP connections."""
    hash_key: HashKey | None = None
    """Key of the consistent hash of the service's cluster."""
    service_route: tuple[tuple[str, ...], str] = ((), "")
    """Domains and cluster of the service, if the address belongs to one of its endpoints. HTTP requests for
    these domains go to the service's cluster instead of `cluster`."""


@lru_cache(maxsize=1024)
def redirect_listener(config: MeshConfig, families: tuple[Family, ...], *, allow_any: bool) -> Resource:
    """Return the listener that iptables redirects all outbound connections to.

    Envoy passes a connection to the listener for its original destination. If there is none, the default
    filter chain handles it: with `allow_any`, it passes the connection through, and closes it otherwise.
    """
    default_cluster = names.PASSTHROUGH if allow_any else names.BLACK_HOLE
    address, more_addresses = bound_to(wildcards(families), config.proxy_listen_port)
    listener = Listener(
        name=NAME,
        address=address,
        additional_addresses=more_addresses,
        use_original_dst=True,
        # Connections to these ports would loop.
        filter_chains=filters.refusing_chains((config.proxy_listen_port, config.proxy_inbound_listen_port)),
        default_filter_chain=FilterChain(name=default_cluster, filters=[filters.tcp(default_cluster)]),
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


@lru_cache(maxsize=1024)
def http_listener(port: int, families: tuple[Family, ...]) -> Resource:
    """Return the listener for an HTTP port, shared by all services with that port. Routes match the host."""
    name = f"0.0.0.0_{port}"
    address, more_addresses = bound_to(wildcards(families), port)
    listener = Listener(
        name=name,
        address=address,
        additional_addresses=more_addresses,
        bind_to_port=False,
        filter_chains=[FilterChain(name=name, filters=[filters.http_by_rds(str(port))])],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


@lru_cache(maxsize=1024)
def http_proxy_listener(config: MeshConfig, host: str) -> Resource:
    """Return the listener that applications use as an HTTP proxy in interception mode NONE."""
    listener = Listener(
        name=names.HTTP_PROXY,
        address=address(host, config.proxy_http_port),
        filter_chains=[
            FilterChain(name=names.HTTP_PROXY, filters=[filters.http_by_rds(names.HTTP_PROXY, proxy=True)])
        ],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


def destination_listener(config: MeshConfig, spec: OutboundAddress, sources: tuple[str, ...]) -> Resource:
    """Return the listener for connections to one address and port."""
    name = f"{spec.address}_{spec.port}"
    listener = Listener(
        name=name,
        address=address(spec.address, spec.port),
        bind_to_port=False,
        filter_chains=list(_chains(spec)),
        listener_filters=[filters.http_inspector()] if spec.protocol is Protocol.AUTO else [],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    if spec.protocol is Protocol.AUTO:
        # In a server-first protocol, the client sends nothing: treat it as TCP after this timeout.
        listener.listener_filters_timeout = seconds(config.protocol_detection_timeout)
        listener.continue_on_listener_filters_timeout = True
    return resource(listener, sources=sources)


@lru_cache(maxsize=8192)
def _chains(spec: OutboundAddress) -> tuple[FilterChain, ...]:
    domains, service_cluster = spec.service_route
    # The cluster of a single endpoint needs no hash.
    hash_key = None if domains else spec.hash_key
    route = to_cluster(spec.cluster, hash_key=hash_key)
    virtual_hosts = [VirtualHost(name=spec.cluster, domains=["*"], routes=[route])]
    if domains:
        by_name = VirtualHost(
            name=service_cluster,
            domains=list(domains),
            routes=[to_cluster(service_cluster, hash_key=spec.hash_key)],
        )
        virtual_hosts.insert(0, by_name)
    tcp = FilterChain(name="tcp", filters=[filters.tcp(spec.cluster, spec.limits, hash_key)])
    match spec.protocol:
        case Protocol.TCP:
            return (tcp,)
        case Protocol.AUTO:
            return (
                FilterChain(
                    name="http1",
                    filter_chain_match=FilterChainMatch(application_protocols=["http/1.0", "http/1.1"]),
                    filters=[filters.http_to(spec.cluster, virtual_hosts, alpn="istio-http/1.1")],
                ),
                FilterChain(
                    name="http2",
                    filter_chain_match=FilterChainMatch(application_protocols=["h2c"]),
                    filters=[filters.http_to(spec.cluster, virtual_hosts, alpn="istio-h2")],
                ),
                tcp,
            )
    return (FilterChain(name="http", filters=[filters.http_to(spec.cluster, virtual_hosts)]),)
