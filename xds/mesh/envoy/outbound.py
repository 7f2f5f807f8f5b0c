"""LDS, outbound: what a sidecar does with a connection that its application opens."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.core.v3 import TrafficDirection
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, FilterChainMatch, Listener, ListenerFilter
from envoy_data_plane.envoy.config.route.v3 import VirtualHost

from xds.mesh.envoy import filters, names
from xds.mesh.envoy.common import address, seconds
from xds.mesh.envoy.routes import to_cluster
from xds.mesh.model.objects import MeshConfig, Protocol
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits
from xds.resources import Resource, resource

NAME = "virtualOutbound"


class Destination(NamedTuple):
    """An address and port that applications connect to, and what answers there."""

    address: str
    port: int
    protocol: Protocol
    cluster: str
    limits: TcpLimits = NO_LIMITS
    named: tuple[tuple[str, ...], str] = ((), "")
    """Domains whose HTTP requests go to another cluster: a service's own name, asked of one of its endpoints."""


@lru_cache(maxsize=1024)
def entry(config: MeshConfig) -> Resource:
    """Return the listener that all outbound connections are redirected to, from where the others get theirs."""
    onward = names.PASSTHROUGH if config.allow_any_outbound else names.BLACK_HOLE
    listener = Listener(
        name=NAME,
        address=address("0.0.0.0", config.proxy_listen_port),
        use_original_dst=True,
        # From there a connection would come round again.
        filter_chains=filters.closed((config.proxy_listen_port, config.proxy_inbound_listen_port)),
        default_filter_chain=FilterChain(name=onward, filters=[filters.tcp(onward)]),
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


@lru_cache(maxsize=1024)
def http_port(port: int) -> Resource:
    """Return the listener that all services share whose port is declared as HTTP; its routes are by host."""
    name = f"0.0.0.0_{port}"
    listener = Listener(
        name=name,
        address=address("0.0.0.0", port),
        bind_to_port=False,
        filter_chains=[FilterChain(name=name, filters=[filters.http_by_rds(str(port))])],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


@lru_cache(maxsize=1024)
def http_proxy(config: MeshConfig, host: str) -> Resource:
    """Return the listener of the HTTP proxy that applications use in interception mode NONE."""
    listener = Listener(
        name=names.HTTP_PROXY,
        address=address(host, config.proxy_http_port),
        filter_chains=[
            FilterChain(name=names.HTTP_PROXY, filters=[filters.http_by_rds(names.HTTP_PROXY, proxy=True)])
        ],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    return resource(listener)


def destination(config: MeshConfig, found: Destination, sources: tuple[str, ...]) -> Resource:
    """Return the listener for connections to one address and port."""
    name = f"{found.address}_{found.port}"
    listener = Listener(
        name=name,
        address=address(found.address, found.port),
        bind_to_port=False,
        filter_chains=list(_chains(found)),
        listener_filters=_detectors(found.protocol),
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    if found.protocol is Protocol.AUTO:
        # A client that waits for the server to speak first is taken for TCP when this time is over.
        listener.listener_filters_timeout = seconds(config.protocol_detection_timeout)
        listener.continue_on_listener_filters_timeout = True
    return resource(listener, sources=sources)


def _detectors(protocol: Protocol) -> list[ListenerFilter]:
    return [filters.http_inspector()] if protocol is Protocol.AUTO else []


@lru_cache(maxsize=8192)
def _chains(found: Destination) -> tuple[FilterChain, ...]:
    domains, cluster = found.named
    hosts = [VirtualHost(name=found.cluster, domains=["*"], routes=[to_cluster(found.cluster)])]
    if domains:
        hosts.insert(0, VirtualHost(name=cluster, domains=list(domains), routes=[to_cluster(cluster)]))
    tcp = FilterChain(name="tcp", filters=[filters.tcp(found.cluster, found.limits)])
    match found.protocol:
        case Protocol.TCP:
            return (tcp,)
        case Protocol.AUTO:
            return (
                FilterChain(
                    name="http1",
                    filter_chain_match=FilterChainMatch(application_protocols=["http/1.0", "http/1.1"]),
                    filters=[filters.http_to(found.cluster, hosts, alpn="istio-http/1.1")],
                ),
                FilterChain(
                    name="http2",
                    filter_chain_match=FilterChainMatch(application_protocols=["h2c"]),
                    filters=[filters.http_to(found.cluster, hosts, alpn="istio-h2")],
                ),
                tcp,
            )
    return (FilterChain(name="http", filters=[filters.http_to(found.cluster, hosts)]),)
