"""A static listener that answers the kubelet's probes: it asks the application, whom the kubelet cannot ask under STRICT.

Every probe is on a path of its own. HTTP probes are passed on, so their answers are the application's own. TCP and gRPC probes have no
answer that HTTP could carry: the sidecar makes them itself, twice per period of the probe, and says how the last one went.

All ask the application where the kubelet would: at the pod's address, and in the name of what was let in from outside, which interception
leaves alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    BindConfig,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    HealthCheckTcpHealthCheck,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    SocketAddress,
)
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptionsExplicitHttpConfig

from xds.codec import pack
from xds.mesh.envoy import filters, names, tls
from xds.mesh.envoy.common import HTTP_OPTIONS, address, one_endpoint, seconds

NAME = "probes"

_ACCEPTABLE = "/?&=%:@!$'()*+,;~-._[]|{}^\"<>\\`"
"""What stays as it is in a path; a blank or a letter beyond ASCII would break the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe of the application, and the path where its outcome is asked for."""

    path: str
    port: int
    host: str = ""
    """Where to ask; empty: at the pod's address."""
    timeout: float = 1.0
    """Seconds; 0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe(Probe):
    """A GET, which succeeds with any status from 200 to 399."""

    target: str = "/"
    """The path that the application is asked for, perhaps with a query."""
    https: bool = False
    """Over TLS. Whose certificate the application has is not checked, as the kubelet does not."""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(Probe):
    """A probe that the sidecar makes on its own."""

    period: float = 10.0
    """Seconds between two questions of the kubelet's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe(Checked):
    """A connection, which is closed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcProbe(Checked):
    """A call of the gRPC health service."""

    service: str = ""


AnyProbe: TypeAlias = HttpProbe | TcpProbe | GrpcProbe


def listening(
    probes: Iterable[AnyProbe], where: str, port: int, app_address: str, *, intercepted: bool = True
) -> list[Cluster | Listener]:
    """Return the listener for probes and the clusters that it needs; nothing if there are no probes.

    Args:
        probes: on different paths.
        where: the address to listen on.
        port: its port.
        app_address: where the application listens.
        intercepted: the pod's traffic is redirected to the sidecar.
    """
    found = tuple(probes)
    if not found:
        return []
    routes = [_route(probe, app_address) for probe in found if isinstance(probe, HttpProbe)]
    checks = [
        filters.healthy(_name(probe), probe.path) for probe in found if not isinstance(probe, HttpProbe)
    ]
    hosts = [VirtualHost(name=NAME, domains=["*"], routes=routes)]
    listener = Listener(
        name=NAME,
        address=address(where, port),
        filter_chains=[FilterChain(filters=[filters.http_to(NAME, hosts, first=checks)])],
    )
    return [*(_cluster(probe, probe.host or app_address, intercepted) for probe in found), listener]


def _name(probe: Probe) -> str:
    return f"probe|{probe.path}"


def _route(probe: HttpProbe, app_address: str) -> Route:
    said = dict.fromkeys(name.lower() for name, _ in probe.headers)
    hosts = [value for name, value in probe.headers if name.lower() == "host"]
    return Route(
        match=RouteMatch(path=probe.path),
        route=RouteAction(
            cluster=_name(probe),
            prefix_rewrite=_target(probe.target),
            host_rewrite_literal=hosts[0] if hosts else _authority(probe.host or app_address, probe.port),
            timeout=seconds(probe.timeout),
        ),
        # The kubelet may send them itself, where the probe still has them.
        request_headers_to_add=[
            HeaderValueOption(
                header=HeaderValue(key=name, value=value.replace("%", "%%")),
                append_action=HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT,
            )
            for name, value in probe.headers
            if said.pop(name.lower(), 0) is None and name.lower() != "host"
        ],
        # To follow a redirect would lead the kubelet to a path that is not here; without, a redirect is a success.
        response_headers_to_remove=["location"],
    )


def _target(path: str) -> str:
    path = path.partition("#")[0]
    return quote(path if path.startswith("/") else f"/{path}", safe=_ACCEPTABLE)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cluster(probe: AnyProbe, host: str, intercepted: bool) -> Cluster:
    try:
        ipaddress.ip_address(host)
        kind = ClusterDiscoveryType.STATIC
    except ValueError:
        kind = ClusterDiscoveryType.STRICT_DNS
    inside = intercepted and not probe.host
    return Cluster(
        name=_name(probe),
        type=kind,
        connect_timeout=seconds(probe.timeout or 10.0),
        load_assignment=one_endpoint(_name(probe), host, probe.port),
        # Else the sidecar's own questions would be redirected to itself, and be refused under STRICT.
        upstream_bind_config=_source(host) if inside else None,
        transport_socket=tls.unverified() if isinstance(probe, HttpProbe) and probe.https else None,
        typed_extension_protocol_options=dict(_options(probe)),
        health_checks=[_check(probe)] if isinstance(probe, Checked) else [],
        # An application that does not answer yet must not keep its sidecar from starting.
        wait_for_warm_on_init=False if isinstance(probe, Checked) else None,
    )


def _source(host: str) -> BindConfig:
    source = names.PASSTHROUGH_SOURCE if "." in host else "::6"
    return BindConfig(source_address=SocketAddress(address=source, port_value=0))


def _options(probe: AnyProbe) -> Iterator[tuple[str, Any]]:
    if isinstance(probe, GrpcProbe):
        http = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=Http2ProtocolOptions())
        yield HTTP_OPTIONS, pack(UpstreamOptions(explicit_http_config=http))
    elif isinstance(probe, HttpProbe):
        # A connection that the application had closed meanwhile would be a failure of its own making.
        once = HttpProtocolOptions(max_requests_per_connection=1)
        http1 = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=Http1ProtocolOptions())
        yield (
            HTTP_OPTIONS,
            pack(UpstreamOptions(common_http_protocol_options=once, explicit_http_config=http1)),
        )


def _check(probe: Checked) -> HealthCheck:
    interval = seconds(probe.period / 2)
    # Who is down is asked often, to be found up soon.
    down = seconds(min(1.0, probe.period / 2))
    check = HealthCheck(
        timeout=seconds(probe.timeout or 1.0),
        interval=interval,
        no_traffic_healthy_interval=interval,
        no_traffic_interval=down,
        unhealthy_interval=down,
        unhealthy_threshold=1,
        healthy_threshold=1,
        reuse_connection=False,
    )
    if isinstance(probe, GrpcProbe):
        check.grpc_health_check = HealthCheckGrpcHealthCheck(service_name=probe.service)
    else:
        check.tcp_health_check = HealthCheckTcpHealthCheck()
    return check
