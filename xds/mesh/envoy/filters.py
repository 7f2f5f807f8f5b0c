"""Network, HTTP and listener filters."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import DataSource, Http1ProtocolOptions, SubstitutionFormatString
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, FilterChainMatch, ListenerFilter
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher, RouteConfiguration, VirtualHost
from envoy_data_plane.envoy.extensions.filters.common.set_filter_state.v3 import (
    FilterStateValue,
    FilterStateValueSharedWithUpstream,
)
from envoy_data_plane.envoy.extensions.filters.http.buffer.v3 import Buffer
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation as HeaderMutationFilter,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutationPerRoute,
    Mutations,
)
from envoy_data_plane.envoy.extensions.filters.http.health_check.v3 import HealthCheck
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.http.set_filter_state.v3 import Config as SetFilterState
from envoy_data_plane.envoy.extensions.filters.listener.http_inspector.v3 import HttpInspector
from envoy_data_plane.envoy.extensions.filters.listener.original_dst.v3 import OriginalDst
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerForwardClientCertDetails,
    HttpConnectionManagerHcmAccessLogOptions,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    HttpConnectionManagerSetCurrentClientCertDetails,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    TcpProxyTcpAccessLogOptions,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent

from xds.codec import pack
from xds.mesh.envoy import access_logs
from xds.mesh.envoy.balancing import connection_hash
from xds.mesh.envoy.common import ads, seconds
from xds.mesh.envoy.names import BLACK_HOLE
from xds.mesh.model.loadbalancer import HashKey
from xds.mesh.model.objects import PathNormalization
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits

_HEADER_MUTATION = "envoy.filters.http.header_mutation"
_HCM = "envoy.filters.network.http_connection_manager"
_SET_FILTER_STATE = "envoy.filters.http.set_filter_state"

_REQUEST_TIMEOUT = timedelta(seconds=15)
"""Time within which a complete request must arrive from a caller who may be anyone."""
_UPGRADES = ("websocket",)
"""Protocols to which HTTP connections can be upgraded."""
_PEER_ALIASES = (
    "x[^a-z0-9-]forwarded[^a-z0-9]client[^a-z0-9]cert",
    "x-forwarded[^a-z0-9-]client[^a-z0-9]cert",
    "x-forwarded-client[^a-z0-9-]cert",
)
"""Header names that differ from x-forwarded-client-cert only in separators, in lower case as in Envoy.

In one regular expression, they would be too large for Envoy before 1.39, which rejects the listener.
"""


@lru_cache(maxsize=1)
def original_dst() -> ListenerFilter:
    """Return the listener filter that restores the original destination of intercepted connections."""
    return ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=pack(OriginalDst()))


@lru_cache(maxsize=1)
def tls_inspector() -> ListenerFilter:
    """Return the listener filter that detects TLS and its ALPN protocols."""
    return ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=pack(TlsInspector()))


@lru_cache(maxsize=1)
def http_inspector() -> ListenerFilter:
    """Return the listener filter that detects plaintext HTTP/1 and HTTP/2."""
    return ListenerFilter(name="envoy.filters.listener.http_inspector", typed_config=pack(HttpInspector()))


@lru_cache(maxsize=8192)
def tcp(
    cluster: str,
    limits: TcpLimits = NO_LIMITS,
    hash_key: HashKey | None = None,
    *,
    observed: bool = False,
    reports_denials: bool = False,
    has_dry_run: bool = False,
) -> Filter:
    """Return the filter that proxies TCP to a cluster.

    Args:
        cluster: name of the cluster.
        limits: timeouts of the connections.
        hash_key: key of the cluster's consistent hash.
        observed: whether each connection is reported.
        reports_denials: whether denied connections are reported.
        has_dry_run: whether RBAC filters before it have shadow rules.
    """
    proxy = TcpProxy(
        stat_prefix=cluster,
        cluster=cluster,
        idle_timeout=seconds(limits.idle_timeout),
        max_downstream_connection_duration=seconds(limits.max_duration),
        hash_policy=connection_hash(hash_key),
    )
    if observed:
        proxy.access_log.append(access_logs.reported())
    if reports_denials:
        proxy.access_log.append(access_logs.denied_connections(dry_run=has_dry_run))
    if proxy.access_log:
        proxy.access_log_options = TcpProxyTcpAccessLogOptions(
            flush_access_log_on_connected=observed, access_log_flush_interval=access_logs.PERIODIC_INTERVAL
        )
    return Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(proxy))


def refusing_chains(ports: Iterable[int]) -> list[FilterChain]:
    """Return filter chains that refuse connections to these ports."""
    return [
        FilterChain(
            name=f"{BLACK_HOLE}-{port}",
            filter_chain_match=FilterChainMatch(destination_port=port),
            filters=[tcp(BLACK_HOLE)],
        )
        for port in ports
    ]


@lru_cache(maxsize=8)
def alpn_filter(*protocols: str) -> HttpFilter:
    """Return the HTTP filter that sets the ALPN protocols of the upstream connection.

    Without protocols, the filter does nothing until a route overrides it. It replaces Istio's `istio.alpn`
    filter, which stock Envoy lacks. The server's sidecar uses ALPN to distinguish HTTP from TCP.
    """
    values = [
        FilterStateValue(
            object_key="envoy.network.application_protocols",
            format_string=SubstitutionFormatString(
                text_format_source=DataSource(inline_string=",".join(protocols))
            ),
            shared_with_upstream=FilterStateValueSharedWithUpstream.ONCE,
        )
    ]
    config = SetFilterState(on_request_headers=values if protocols else [])
    return HttpFilter(name=_SET_FILTER_STATE, typed_config=pack(config))


def healthy(cluster: str, path: str) -> HttpFilter:
    """Return the HTTP filter that responds to `path`: 200 if a cluster's endpoints are healthy, else 503."""
    path_matcher = HeaderMatcher(name=":path", string_match=StringMatcher(exact=path))
    check = HealthCheck(
        pass_through_mode=False,
        headers=[path_matcher],
        cluster_min_healthy_percentages={cluster: Percent(value=100.0)},
    )
    return HttpFilter(name="envoy.filters.http.health_check", typed_config=pack(check))


@lru_cache(maxsize=1)
def _without_peer_aliases() -> HttpFilter:
    # CGI and WSGI servers map "-" and "_" to the same character, and some servers map more. Their
    # applications could not distinguish a client's x_forwarded_client_cert from the header that Envoy sets.
    mutations = Mutations(request_mutations=[_without_headers(names) for names in _PEER_ALIASES])
    config = HeaderMutationFilter(mutations=mutations)
    return HttpFilter(name=_HEADER_MUTATION, typed_config=pack(config))


@lru_cache(maxsize=1)
def without_body() -> HttpFilter:
    """Return the HTTP filter that refuses requests with a body of more than one byte, Envoy's minimum."""
    return HttpFilter(name="envoy.filters.http.buffer", typed_config=pack(Buffer(max_request_bytes=1)))


@lru_cache(maxsize=1)
def header_mutation() -> HttpFilter:
    """Return the HTTP filter that removes the headers of routes with `only_user_agent`."""
    return HttpFilter(name=_HEADER_MUTATION, typed_config=pack(HeaderMutationFilter()))


@lru_cache(maxsize=1)
def only_user_agent() -> dict[str, Any]:
    """Return a route's settings for `header_mutation`, which remove all request headers but User-Agent."""
    name = "user-agent"
    # Envoy's regular expressions have no negation: match each other name at the letter where it differs. Each
    # letter has an expression of its own, because Envoy 1.39 and older reject those of over 100 instructions.
    others = [f"{name[:end]}([^{name[end]}].*)?" for end in range(1, len(name))]
    mutations = [_without_headers(names) for names in (f"[^:{name[0]}].*", *others, f"{name}.+")]
    return {_HEADER_MUTATION: pack(HeaderMutationPerRoute(mutations=Mutations(request_mutations=mutations)))}


def _without_headers(names: str) -> HeaderMutation:
    matcher = StringMatcher(safe_regex=RegexMatcher(regex=names))
    return HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=matcher))


@lru_cache(maxsize=1)
def _router() -> HttpFilter:
    return HttpFilter(name="envoy.filters.http.router", typed_config=pack(Router()))


def _manager(stat_prefix: str, *, upgrades: Iterable[str] = _UPGRADES) -> HttpConnectionManager:
    return HttpConnectionManager(
        stat_prefix=stat_prefix,
        # The sidecar is transparent: it adds neither timeouts nor a server header.
        stream_idle_timeout=timedelta(0),
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        # Accept HTTP/1.0 clients, as the application does without a sidecar.
        http_protocol_options=Http1ProtocolOptions(accept_http_10=True),
        upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type=name) for name in upgrades],
        normalize_path=True,
    )


def http_by_rds(route_config: str, *, proxy: bool = False) -> Filter:
    """Return the filter for outbound HTTP with routes from RDS.

    `proxy` is whether applications use the listener as an HTTP proxy.
    """
    manager = _manager(
        f"outbound_{route_config}", upgrades=("websocket", "CONNECT") if proxy else ("websocket",)
    )
    manager.rds = Rds(config_source=ads(), route_config_name=route_config)
    manager.http_filters = [alpn_filter(), _router()] if proxy else [_router()]
    if proxy:
        manager.codec_type = HttpConnectionManagerCodecType.HTTP1
    return Filter(name=_HCM, typed_config=pack(manager))


def http_to(
    stat_prefix: str,
    virtual_hosts: Iterable[VirtualHost],
    *,
    alpn: str = "",
    first: Iterable[HttpFilter] = (),
    http1_only: bool = False,
) -> Filter:
    """Return the filter for HTTP with static routes.

    Args:
        stat_prefix: prefix of the filter's statistics.
        virtual_hosts: virtual hosts with the routes.
        alpn: ALPN protocol of upstream TLS; empty for the cluster's own.
        first: HTTP filters that run before the others.
        http1_only: whether to refuse HTTP/2, upgrades to other protocols, and slow requests.
    """
    manager = _manager(stat_prefix, upgrades=() if http1_only else _UPGRADES)
    if http1_only:
        manager.codec_type = HttpConnectionManagerCodecType.HTTP1
        manager.request_timeout = _REQUEST_TIMEOUT
    manager.route_config = RouteConfiguration(
        name=stat_prefix, virtual_hosts=list(virtual_hosts), validate_clusters=False
    )
    manager.http_filters = [*first, *([alpn_filter(alpn)] if alpn else []), _router()]
    return Filter(name=_HCM, typed_config=pack(manager))


def http_from_peer(
    stat_prefix: str,
    virtual_host: VirtualHost,
    normalization: PathNormalization,
    *,
    guards: Iterable[HttpFilter] = (),
    observed: bool = False,
    reports_denials: bool = False,
) -> Filter:
    """Return the filter for inbound HTTP.

    It replaces X-Forwarded-Client-Cert with the peer's identity (ADR 0004).

    Args:
        stat_prefix: prefix of the filter's statistics.
        virtual_host: virtual host with the routes.
        normalization: how paths are changed.
        guards: HTTP filters that deny requests.
        observed: whether each request is reported.
        reports_denials: whether denied requests are reported.
    """
    manager = _manager(stat_prefix)
    manager.normalize_path = normalization is not PathNormalization.NONE
    merges = (PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE_SLASHES)
    manager.merge_slashes = normalization in merges
    if normalization is PathNormalization.DECODE_AND_MERGE_SLASHES:
        manager.path_with_escaped_slashes_action = (
            HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD
        )
    manager.route_config = RouteConfiguration(
        name=stat_prefix, virtual_hosts=[virtual_host], validate_clusters=False
    )
    manager.http_filters = [_without_peer_aliases(), *guards, _router()]
    manager.forward_client_cert_details = HttpConnectionManagerForwardClientCertDetails.SANITIZE_SET
    manager.set_current_client_cert_details = HttpConnectionManagerSetCurrentClientCertDetails(
        subject=True, uri=True
    )
    if observed:
        manager.access_log.append(access_logs.reported())
        # Report requests without end before they end.
        manager.access_log_options = HttpConnectionManagerHcmAccessLogOptions(
            access_log_flush_interval=access_logs.PERIODIC_INTERVAL
        )
    if reports_denials:
        manager.access_log.append(access_logs.denied_requests())
    return Filter(name=_HCM, typed_config=pack(manager))
