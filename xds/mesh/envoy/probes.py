"""A static listener for the kubelet's probes and Prometheus' scrapes, because neither can send mutual TLS.

Every probe has its own path. The sidecar forwards HTTP probes to the application. For a TCP or gRPC probe,
Envoy runs a health check twice per period, and the listener returns the latest result.

Anyone who can connect to the pod can send a request, also under STRICT. The application therefore gets only
what the probe contains: GET requests without a body, query or headers of the caller.

Like the kubelet, the sidecar probes the application at the pod's address. It connects from a source address
that interception excludes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    HealthCheckTcpHealthCheck,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
)
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher, Route, RouteAction, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptionsExplicitHttpConfig
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from xds.codec import pack
from xds.mesh.envoy import filters, scrape, tls
from xds.mesh.envoy.clusters import passthrough_source
from xds.mesh.envoy.common import HTTP_OPTIONS, bound_to, one_endpoint, seconds
from xds.mesh.envoy.scrape import AppMetrics
from xds.mesh.model.families import family_of
from xds.mesh.model.names import host_port

NAME = "probes"

_ACCEPT = ("Accept", "*/*")
"""Header that the kubelet sends unless the probe sets it."""
_ACCEPTABLE = "/?&=%:@!$'()*+,;~-._[]|{}^\"<>\\`"
"""Characters that need no escaping in a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe of the application."""

    path: str
    """Path of the probe on the listener."""
    port: int
    """Port of the application."""
    host: str = ""
    """Address or host name of the application; empty for the pod's address."""
    timeout: float = 1.0
    """Timeout in seconds; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe(Probe):
    """A GET request. A status from 200 to 399 is a success."""

    target: str = "/"
    """Path of the request, optionally with a query."""
    https: bool = False
    """Whether to use TLS. Like the kubelet, the sidecar does not verify the certificate."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckProbe(Probe):
    """A probe that Envoy runs as a health check."""

    period: float = 10.0
    """Period of the kubelet's probe, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe(HealthCheckProbe):
    """A TCP connection, closed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcProbe(HealthCheckProbe):
    """A call to the gRPC health service."""

    service: str = ""
    """Service name in the request."""


AnyProbe: TypeAlias = HttpProbe | TcpProbe | GrpcProbe


def probe_resources(
    probes: Iterable[AnyProbe],
    hosts: Iterable[str],
    port: int,
    app_address: str,
    *,
    intercepted: bool = True,
    metrics: AppMetrics | None = None,
) -> list[Cluster | Listener]:
    """Return the listener for probes and scrapes, and its clusters; empty if there are none.

    Args:
        probes: the probes, each with its own path.
        hosts: addresses to listen on.
        port: port to listen on.
        app_address: address where the application listens.
        intercepted: whether the pod's traffic is redirected to the sidecar.
        metrics: the application's metrics, to merge with Envoy's; None if Prometheus does not scrape the pod.
    """
    probes = tuple(probes)
    if not probes and metrics is None:
        return []
    routes = [_route(probe, app_address) for probe in probes if isinstance(probe, HttpProbe)]
    checks = [
        filters.healthy(_name(probe), probe.path) for probe in probes if not isinstance(probe, HttpProbe)
    ]
    merging: list[Cluster | Listener] = []
    if metrics:
        cluster = _cluster(_scrape(metrics), app_address, intercepted)
        authority = _authority(app_address, metrics.port)
        merging = [cluster, *scrape.merging_resources(cluster.name, authority, _target(metrics.target))]
        routes.append(scrape.route())
    virtual_hosts = [VirtualHost(name=NAME, domains=["*"], routes=routes)]
    address, more_addresses = bound_to(hosts, port)
    listener = Listener(
        name=NAME,
        address=address,
        additional_addresses=more_addresses,
        filter_chains=[
            FilterChain(
                filters=[
                    filters.http_to(
                        NAME,
                        virtual_hosts,
                        first=[filters.without_body(), *checks, filters.header_mutation()],
                        http1_only=True,
                    )
                ]
            )
        ],
    )
    clusters = (_cluster(probe, probe.host or app_address, intercepted) for probe in probes)
    return [*clusters, *merging, listener]


def _scrape(metrics: AppMetrics) -> HttpProbe:
    """Return the probe whose connections are those of a scrape."""
    return HttpProbe(path=scrape.PATH, port=metrics.port, https=metrics.https, timeout=scrape.MAX_TIMEOUT)


def _name(probe: Probe) -> str:
    return f"probe|{probe.path}"


def _route(probe: HttpProbe, app_address: str) -> Route:
    pending = dict.fromkeys(name.lower() for name, _ in (*probe.headers, _ACCEPT))
    hosts = [value for name, value in probe.headers if name.lower() == "host"]
    return Route(
        match=_get(probe.path),
        route=RouteAction(
            cluster=_name(probe),
            prefix_rewrite=_target(probe.target),
            host_rewrite_literal=hosts[0] if hosts else _authority(probe.host or app_address, probe.port),
            timeout=seconds(probe.timeout),
        ),
        request_headers_to_add=[
            HeaderValueOption(
                header=HeaderValue(key=name, value=value.replace("%", "%%")),
                append_action=HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT,
            )
            for name, value in (*probe.headers, _ACCEPT)
            if pending.pop(name.lower(), 0) is None and name.lower() != "host"
        ],
        typed_per_filter_config=filters.only_user_agent(),
        # The kubelet would follow a redirect to a path that the listener does not have. A redirect without
        # `location` is a success.
        response_headers_to_remove=["location"],
    )


def _get(path: str) -> RouteMatch:
    """Return the match for requests as the kubelet and Prometheus send them: GET, without a query."""
    return RouteMatch(
        path=path,
        headers=[
            HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET")),
            HeaderMatcher(name=":path", string_match=StringMatcher(exact=path)),
        ],
    )


def _target(path: str) -> str:
    path = path.partition("#")[0]
    return quote(path if path.startswith("/") else f"/{path}", safe=_ACCEPTABLE)


def _authority(host: str, port: int) -> str:
    return host_port(host, port)


def _cluster(probe: AnyProbe, host: str, intercepted: bool) -> Cluster:
    try:
        ipaddress.ip_address(host)
        kind = ClusterDiscoveryType.STATIC
    except ValueError:
        kind = ClusterDiscoveryType.STRICT_DNS
    is_own_pod = intercepted and not probe.host
    return Cluster(
        name=_name(probe),
        # Anyone can scrape the statistics, so they must not contain the key at the end of a hook's path.
        alt_stat_name="/".join(_name(probe).split("/")[:4]),
        type=kind,
        connect_timeout=seconds(probe.timeout or 10.0),
        load_assignment=one_endpoint(_name(probe), host, port=probe.port),
        # Without this address, probes would be redirected to the sidecar, which refuses them under STRICT.
        upstream_bind_config=passthrough_source((family_of(host),)) if is_own_pod else None,
        transport_socket=tls.unverified() if isinstance(probe, HttpProbe) and probe.https else None,
        typed_extension_protocol_options=dict(_options(probe)),
        health_checks=[_check(probe)] if isinstance(probe, HealthCheckProbe) else [],
        # The sidecar must become ready before the application does.
        wait_for_warm_on_init=False if isinstance(probe, HealthCheckProbe) else None,
    )


def _options(probe: AnyProbe) -> Iterator[tuple[str, Any]]:
    if isinstance(probe, GrpcProbe):
        http = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=Http2ProtocolOptions())
        yield HTTP_OPTIONS, pack(UpstreamOptions(explicit_http_config=http))
    elif isinstance(probe, HttpProbe):
        # A reused connection that the application has closed would fail the probe.
        single_use = HttpProtocolOptions(max_requests_per_connection=1)
        http1 = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=Http1ProtocolOptions())
        yield (
            HTTP_OPTIONS,
            pack(UpstreamOptions(common_http_protocol_options=single_use, explicit_http_config=http1)),
        )


def _check(probe: HealthCheckProbe) -> HealthCheck:
    interval = seconds(probe.period / 2)
    # Check an unhealthy application more often, to detect its recovery quickly.
    unhealthy_interval = seconds(min(1.0, probe.period / 2))
    check = HealthCheck(
        timeout=seconds(probe.timeout or 1.0),
        interval=interval,
        no_traffic_healthy_interval=interval,
        no_traffic_interval=unhealthy_interval,
        unhealthy_interval=unhealthy_interval,
        unhealthy_threshold=1,
        healthy_threshold=1,
        reuse_connection=False,
    )
    if isinstance(probe, GrpcProbe):
        check.grpc_health_check = HealthCheckGrpcHealthCheck(service_name=probe.service)
    else:
        check.tcp_health_check = HealthCheckTcpHealthCheck()
    return check
