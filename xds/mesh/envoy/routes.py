"""RDS: which cluster a request goes to, by the host that it is for."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.core.v3 import DataSource, SubstitutionFormatString
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteActionUpgradeConfig,
    RouteActionUpgradeConfigConnectConfig,
    RouteConfiguration,
    RouteMatch,
    RouteMatchConnectMatcher,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate

from xds.codec import pack
from xds.mesh.envoy import names
from xds.mesh.envoy.common import seconds
from xds.mesh.envoy.filters import alpn_filter
from xds.mesh.model.objects import CLUSTER_DOMAIN, Protocol, Service
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits
from xds.resources import Resource, resource

_UNKNOWN = "502: no service of the mesh is called %REQ(:AUTHORITY)%; ask for SERVICE.NAMESPACE:PORT\n"
_NOT_HTTP = "502: %REQ(:AUTHORITY)% speaks TCP: use CONNECT\n"


class Host(NamedTuple):
    """What answers to some names: one service port, or one endpoint of it."""

    domains: tuple[str, ...]
    """Without ports, the most specific first."""
    port: int
    cluster: str
    protocol: Protocol = Protocol.HTTP
    addressed: bool = False
    """It is one endpoint, asked for by its own name or address; names of services come first."""
    limits: TcpLimits = NO_LIMITS
    """For what is tunnelled by CONNECT."""


def service_names(service: Service, *, own: bool) -> tuple[str, ...]:
    """Return every name that clients may use for a service (`own`: those of its namespace), with its addresses."""
    return (
        service.host,
        f"{service.host}.",
        f"{service.name}.{service.namespace}.svc",
        f"{service.name}.{service.namespace}",
        *((service.name,) if own else ()),
        *service.addresses,
    )


def pod_names(hostname: str, service: Service, *, own: bool) -> tuple[str, ...]:
    """Return every name that clients may use for one pod of a headless service (`own`: those of its namespace)."""
    base = f"{hostname}.{service.name}"
    return (
        f"{base}.{service.namespace}.svc.{CLUSTER_DOMAIN}",
        f"{base}.{service.namespace}.svc.{CLUSTER_DOMAIN}.",
        f"{base}.{service.namespace}.svc",
        f"{base}.{service.namespace}",
        *((base,) if own else ()),
    )


@lru_cache(maxsize=1)
def _retries() -> RetryPolicy:
    # Istio's defaults, for failures in which the request was not processed.
    return RetryPolicy(
        retry_on="connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
        num_retries=2,
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts", typed_config=pack(PreviousHostsPredicate())
            )
        ],
        host_selection_retry_max_attempts=5,
    )


def to_cluster(cluster: str, *, retries: bool = True) -> Route:
    """Return the route of every request to a cluster, without a time limit of its own."""
    return Route(
        match=RouteMatch(prefix="/"),
        route=RouteAction(
            cluster=cluster, timeout=timedelta(0), retry_policy=_retries() if retries else None
        ),
    )


def _tunnel(cluster: str, limits: TcpLimits) -> Route:
    connect = RouteActionUpgradeConfig(
        upgrade_type="CONNECT", connect_config=RouteActionUpgradeConfigConnectConfig()
    )
    most = None
    if limits.max_duration is not None:
        most = RouteActionMaxStreamDuration(max_stream_duration=seconds(limits.max_duration))
    return Route(
        match=RouteMatch(connect_matcher=RouteMatchConnectMatcher()),
        route=RouteAction(
            cluster=cluster,
            timeout=timedelta(0),
            idle_timeout=seconds(limits.idle_timeout),
            max_stream_duration=most,
            upgrade_configs=[connect],
        ),
    )


def _refusals(text: str, *, connect: bool) -> list[Route]:
    body = SubstitutionFormatString(text_format_source=DataSource(inline_string=text))
    answer = DirectResponseAction(status=502, body_format=body)
    found = [Route(match=RouteMatch(prefix="/"), direct_response=answer)]
    if connect:
        match = RouteMatch(connect_matcher=RouteMatchConnectMatcher())
        found.insert(0, Route(match=match, direct_response=answer))
    return found


@lru_cache(maxsize=8192)
def _virtual_host(name: str, domains: tuple[str, ...], host: Host, *, proxied: bool) -> VirtualHost:
    if not proxied:
        return VirtualHost(name=name, domains=list(domains), routes=[to_cluster(host.cluster)])
    routes = [_tunnel(host.cluster, host.limits)]
    if host.protocol is Protocol.TCP:
        routes += _refusals(_NOT_HTTP, connect=False)
    else:
        route = to_cluster(host.cluster)
        if host.protocol is Protocol.AUTO:
            override = alpn_filter("istio-http/1.1")
            route.typed_per_filter_config = (
                {override.name: override.typed_config} if override.typed_config else {}
            )
        routes.append(route)
    return VirtualHost(name=name, domains=list(domains), routes=routes)


def with_ports(found: tuple[str, ...], port: int, *, bare: bool) -> tuple[str, ...]:
    """Return the domains under which names are asked for: each with the port, and also without it if `bare`."""
    literal = (f"[{name}]" if ":" in name else name for name in found)
    return tuple(text for name in literal for text in ((name,) if bare else ()) + (f"{name}:{port}",))


@lru_cache(maxsize=4096)
def route_configuration(
    name: str, hosts: tuple[Host, ...], *, allow_any: bool, proxied: bool = False
) -> Resource:
    """Return the routes of a listener.

    Args:
        name: the listener's port, or `http_proxy`.
        hosts: who answers; where two claim the same name, the first, and services before endpoints.
        allow_any: whether requests for unknown hosts go where the client meant to go.
        proxied: the client sends requests for any port to one proxy: names count with their port (bare ones mean port 80),
            TCP is reached by CONNECT, and nothing goes to an address taken from a request.
    """
    taken: set[str] = set()
    found: list[VirtualHost] = []
    for host in sorted(hosts, key=lambda host: host.addressed):
        bare = host.port == 80 if proxied else True
        domains = tuple(
            d for d in dict.fromkeys(with_ports(host.domains, host.port, bare=bare)) if d.lower() not in taken
        )
        taken.update(domain.lower() for domain in domains)
        if domains:
            label = f"{host.domains[0]}:{host.port}"
            found.append(_virtual_host(label, domains, host, proxied=proxied))
    if allow_any and not proxied:
        found.append(
            VirtualHost(
                name="allow_any", domains=["*"], routes=[to_cluster(names.PASSTHROUGH, retries=False)]
            )
        )
    else:
        found.append(
            VirtualHost(name="block_all", domains=["*"], routes=_refusals(_UNKNOWN, connect=proxied))
        )
    return resource(RouteConfiguration(name=name, virtual_hosts=found, validate_clusters=False))
