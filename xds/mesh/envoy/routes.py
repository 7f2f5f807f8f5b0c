"""Routes (RDS): select the cluster for a request by its host."""

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
    RouteMatch,
    RouteMatchConnectMatcher,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate

from xds.codec import encode, field, join, pack
from xds.mesh.envoy import names
from xds.mesh.envoy.balancing import route_hash
from xds.mesh.envoy.common import seconds
from xds.mesh.envoy.filters import alpn_filter
from xds.mesh.model.loadbalancer import HashKey
from xds.mesh.model.objects import CLUSTER_DOMAIN, Protocol, Service
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits
from xds.snapshot import ROUTE, TYPE_PREFIX, Resource

_NAME = ROUTE.removeprefix(TYPE_PREFIX)
_VALIDATE_CLUSTERS = field(7, b"")
"""`validate_clusters: false`, as a BoolValue."""
_UNKNOWN = "502: no service of the mesh is called %REQ(:AUTHORITY)%; ask for SERVICE.NAMESPACE:PORT\n"
_NOT_HTTP = "502: %REQ(:AUTHORITY)% speaks TCP: use CONNECT\n"


class Host(NamedTuple):
    """The destination of some host names: a service port, or one of its endpoints."""

    domains: tuple[str, ...]
    """Host names without ports, most specific first."""
    port: int
    """Port that clients use."""
    cluster: str
    """Cluster that requests go to."""
    protocol: Protocol = Protocol.HTTP
    """Protocol of the port."""
    is_endpoint: bool = False
    """Whether the destination is a single endpoint. Service names take precedence over endpoint names."""
    is_entry: bool = False
    """Whether the destination is of a ServiceEntry. All other destinations take precedence."""
    limits: TcpLimits = NO_LIMITS
    """Timeouts of CONNECT tunnels."""
    hash_key: HashKey | None = None
    """Key of the cluster's consistent hash."""


def service_names(service: Service, *, same_namespace: bool) -> tuple[str, ...]:
    """Return the names and addresses that clients use for a service.

    `same_namespace` is whether the clients are in the service's namespace.
    """
    if service.entry_host:
        return service.host, f"{service.host}.", *service.addresses
    return (
        service.host,
        f"{service.host}.",
        f"{service.name}.{service.namespace}.svc",
        f"{service.name}.{service.namespace}",
        *((service.name,) if same_namespace else ()),
        *service.addresses,
    )


def pod_names(hostname: str, service: Service, *, same_namespace: bool) -> tuple[str, ...]:
    """Return the names that clients use for a pod of a headless service.

    `same_namespace` is whether the clients are in the service's namespace.
    """
    base = f"{hostname}.{service.name}"
    return (
        f"{base}.{service.namespace}.svc.{CLUSTER_DOMAIN}",
        f"{base}.{service.namespace}.svc.{CLUSTER_DOMAIN}.",
        f"{base}.{service.namespace}.svc",
        f"{base}.{service.namespace}",
        *((base,) if same_namespace else ()),
    )


@lru_cache(maxsize=2)
def _retries(*, elsewhere: bool) -> RetryPolicy:
    # Istio's defaults: retry requests that the server did not process.
    policy = RetryPolicy(
        retry_on="connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
        num_retries=2,
    )
    if elsewhere:
        predicate = RetryPolicyRetryHostPredicate(
            name="envoy.retry_host_predicates.previous_hosts", typed_config=pack(PreviousHostsPredicate())
        )
        policy.retry_host_predicate = [predicate]
        policy.host_selection_retry_max_attempts = 5
    return policy


def to_cluster(cluster: str, *, retries: bool = True, hash_key: HashKey | None = None) -> Route:
    """Return a route that sends all requests to a cluster, without a timeout.

    Args:
        cluster: name of the cluster.
        retries: whether to retry requests, at another endpoint unless the cluster uses a consistent hash.
        hash_key: key of the cluster's consistent hash.
    """
    return Route(
        match=RouteMatch(prefix="/"),
        route=RouteAction(
            cluster=cluster,
            timeout=timedelta(0),
            retry_policy=_retries(elsewhere=hash_key is None) if retries else None,
            hash_policy=list(route_hash(hash_key)),
        ),
    )


def _tunnel(cluster: str, limits: TcpLimits, hash_key: HashKey | None) -> Route:
    connect = RouteActionUpgradeConfig(
        upgrade_type="CONNECT", connect_config=RouteActionUpgradeConfigConnectConfig()
    )
    max_duration = None
    if limits.max_duration is not None:
        max_duration = RouteActionMaxStreamDuration(max_stream_duration=seconds(limits.max_duration))
    return Route(
        match=RouteMatch(connect_matcher=RouteMatchConnectMatcher()),
        route=RouteAction(
            cluster=cluster,
            timeout=timedelta(0),
            idle_timeout=seconds(limits.idle_timeout),
            max_stream_duration=max_duration,
            upgrade_configs=[connect],
            hash_policy=list(route_hash(hash_key)),
        ),
    )


def _refusals(text: str, *, connect: bool) -> list[Route]:
    """Return routes that respond with status 502 and a text. With `connect`, include CONNECT requests."""
    body = SubstitutionFormatString(text_format_source=DataSource(inline_string=text))
    response = DirectResponseAction(status=502, body_format=body)
    routes = [Route(match=RouteMatch(prefix="/"), direct_response=response)]
    if connect:
        match = RouteMatch(connect_matcher=RouteMatchConnectMatcher())
        routes.insert(0, Route(match=match, direct_response=response))
    return routes


@lru_cache(maxsize=16384)
def _virtual_host(name: str, domains: tuple[str, ...], host: Host, *, proxied: bool) -> bytes:
    """Return an encoded virtual host. Many route configurations contain it."""
    if not proxied:
        route = to_cluster(host.cluster, hash_key=host.hash_key)
        return encode(VirtualHost(name=name, domains=list(domains), routes=[route]))
    routes = [_tunnel(host.cluster, host.limits, host.hash_key)]
    if host.protocol is Protocol.TCP:
        routes += _refusals(_NOT_HTTP, connect=False)
    else:
        route = to_cluster(host.cluster, hash_key=host.hash_key)
        if host.protocol is Protocol.AUTO:
            override = alpn_filter("istio-http/1.1")
            route.typed_per_filter_config = (
                {override.name: override.typed_config} if override.typed_config else {}
            )
        routes.append(route)
    return encode(VirtualHost(name=name, domains=list(domains), routes=routes))


def with_ports(hosts: tuple[str, ...], port: int, *, bare: bool) -> tuple[str, ...]:
    """Return virtual host domains for hosts with a port. With `bare`, add each host without the port."""
    bracketed = (f"[{host}]" if ":" in host else host for host in hosts)
    return tuple(domain for host in bracketed for domain in ((host,) if bare else ()) + (f"{host}:{port}",))


@lru_cache(maxsize=256)
def route_configuration(
    name: str, hosts: tuple[Host, ...], *, allow_any: bool, proxied: bool = False
) -> Resource:
    """Return the route configuration of a listener.

    If several hosts have the same domain, services take precedence over endpoints, both take precedence over
    ServiceEntries, then the first host wins.
    If `proxied` is set, host names without a port mean port 80, and TCP ports require CONNECT.

    Args:
        name: port of the listener, or `http_proxy`.
        hosts: the destinations.
        allow_any: whether requests for unknown hosts keep their original destination. Ignored if `proxied`.
        proxied: whether applications use the listener as an HTTP proxy for all ports.
    """
    used_domains: set[str] = set()
    virtual_hosts: list[bytes] = []
    for host in sorted(hosts, key=lambda host: (host.is_entry, host.is_endpoint)):
        bare = host.port == 80 if proxied else True
        candidates = dict.fromkeys(with_ports(host.domains, host.port, bare=bare))
        domains = tuple(domain for domain in candidates if domain.lower() not in used_domains)
        used_domains.update(domain.lower() for domain in domains)
        if domains:
            # ServiceEntries of several namespaces can have the same host, and names must be unique.
            is_first = next(iter(candidates)) in domains
            label = f"{host.domains[0]}:{host.port}" if is_first else domains[0]
            virtual_hosts.append(_virtual_host(label, domains, host, proxied=proxied))
    if allow_any and not proxied:
        label, default_routes = "allow_any", [to_cluster(names.PASSTHROUGH, retries=False)]
    else:
        label, default_routes = "block_all", _refusals(_UNKNOWN, connect=proxied)
    virtual_hosts.append(encode(VirtualHost(name=label, domains=["*"], routes=default_routes)))
    # The numbers are those of the fields in Envoy's protos.
    fields = (field(1, name.encode()), *(field(2, host) for host in virtual_hosts), _VALIDATE_CLUSTERS)
    body = join(_NAME, fields)
    return Resource.of(ROUTE, name, body)
