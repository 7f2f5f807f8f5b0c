"""Route configurations, virtual hosts and routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RedirectAction,
    RedirectActionRedirectResponseCode,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
    WeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher

from xds.builders._common import strings

SAFE_RETRIES = "connect-failure,refused-stream"
"""Failures after which an endpoint has not processed the request, so that any request can be retried."""


def routes(name: str, hosts: Iterable[VirtualHost | Route]) -> RouteConfiguration:
    """Return a route configuration.

    Args:
        name: Name of the configuration, as listeners refer to it.
        hosts: Virtual hosts; or routes, which then apply to all domains.

    Raises:
        TypeError: `hosts` contains both virtual hosts and routes, or something else.
    """
    if isinstance(hosts, VirtualHost | Route):
        raise TypeError(f"{name}: pass a list, not one {type(hosts).__name__}")
    items = list(hosts)
    made = [item for item in items if isinstance(item, VirtualHost)]
    plain = [item for item in items if isinstance(item, Route)]
    if len(made) + len(plain) != len(items) or (made and plain):
        raise TypeError(f"{name}: pass a list of virtual hosts, or a list of routes")
    if plain:
        made = [virtual_host(name, plain)]
    return RouteConfiguration(name=name, virtual_hosts=made)


def virtual_host(name: str, routes: Iterable[Route], *, domains: Iterable[str] = ("*",)) -> VirtualHost:
    """Return a virtual host.

    Args:
        name: Name of the virtual host.
        routes: Routes. The first one that matches a request is used.
        domains: Domains of the host, such as `example.com`, `*.example.com` or `*`. A request's port is a
            part of its domain.

    Raises:
        TypeError: `routes` is one route, or `domains` is one str.
    """
    if isinstance(routes, Route):
        raise TypeError(f"{name}: pass a list of routes, not one Route")
    return VirtualHost(name=name, domains=[*strings("domains", domains)], routes=list(routes))


def route(
    cluster: str | Mapping[str, int],
    *,
    prefix: str = "",
    path: str = "",
    regex: str = "",
    headers: Mapping[str, str] | None = None,
    prefix_rewrite: str = "",
    timeout: float | None = 15.0,
    retries: int = 2,
    retry_on: str = SAFE_RETRIES,
) -> Route:
    """Return a route to a cluster.

    Args:
        cluster: Name of the cluster, or a mapping from names to weights, such as `{"blue": 90, "green": 10}`.
        prefix: Start of the paths to match. The default is to match all paths. At most one of `prefix`,
            `path` and `regex` can be set.
        path: Path to match.
        regex: Regular expression (RE2) that must match the whole path.
        headers: Headers that a request must have, with their values.
        prefix_rewrite: Replacement for `prefix` or `path` in the request.
        timeout: Seconds for the response as a whole; None for no limit, for example for streams.
        retries: Maximum number of retries.
        retry_on: Failures to retry, as in Envoy's header `x-envoy-retry-on`. The default retries only
            requests that no endpoint has processed.

    Raises:
        ValueError: More than one of `prefix`, `path` and `regex` is set, `prefix` or `path` does not start
            with a slash, no weight is positive, or one is negative.
    """
    action = RouteAction(
        prefix_rewrite=prefix_rewrite, timeout=timedelta(seconds=0 if timeout is None else timeout)
    )
    if isinstance(cluster, str):
        action.cluster = cluster
    else:
        action.weighted_clusters = weighted_clusters(cluster)
    if retries:
        action.retry_policy = RetryPolicy(retry_on=retry_on, num_retries=retries)
    return Route(match=_match(prefix, path, regex, headers or {}), route=action)


def weighted_clusters(weights: Mapping[str, int]) -> WeightedCluster:
    """Return clusters that share requests in proportion to their weights.

    A cluster with weight 0 gets no request.

    Raises:
        ValueError: No weight is positive, or one is negative.
    """
    check_weights(weights)
    return WeightedCluster(
        clusters=[WeightedClusterClusterWeight(name=name, weight=weight) for name, weight in weights.items()]
    )


def check_weights(weights: Mapping[str, int]) -> None:
    """Raise ValueError if a weight is negative or none is positive."""
    if negative := {name: weight for name, weight in weights.items() if weight < 0}:
        raise ValueError(f"negative weight: {negative}; a cluster with weight 0 gets no request")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"no cluster has a positive weight: {dict(weights)}")


def redirect(
    *,
    prefix: str = "",
    path: str = "",
    regex: str = "",
    headers: Mapping[str, str] | None = None,
    https: bool = False,
    host: str = "",
    to_path: str = "",
    permanent: bool = False,
) -> Route:
    """Return a route that redirects a client.

    Args:
        prefix: Start of the paths to match; see `route`, as for `path`, `regex` and `headers`.
        path: Path to match.
        regex: Regular expression that must match the whole path.
        headers: Headers that a request must have.
        https: Whether to redirect to the scheme `https`.
        host: Host to redirect to. The default is the requested host.
        to_path: Path to redirect to. The default is the requested path.
        permanent: Whether the status is 308 instead of 307. Both keep the method and the body.

    Raises:
        ValueError: The redirect changes nothing, or as in `route`.
    """
    if not (https or host or to_path):
        raise ValueError("a redirect to the same URL: pass https=True, host= or to_path=")
    code = RedirectActionRedirectResponseCode
    action = RedirectAction(
        host_redirect=host,
        response_code=code.PERMANENT_REDIRECT if permanent else code.TEMPORARY_REDIRECT,
    )
    if https:
        action.https_redirect = True
    if to_path:
        action.path_redirect = to_path
    return Route(match=_match(prefix, path, regex, headers or {}), redirect=action)


def direct_response(
    status: int,
    body: str = "",
    *,
    prefix: str = "",
    path: str = "",
    regex: str = "",
    headers: Mapping[str, str] | None = None,
) -> Route:
    """Return a route that Envoy answers itself.

    Args:
        status: HTTP status of the response.
        body: Body of the response, at most 4 KiB in UTF-8.
        prefix: Start of the paths to match; see `route`, as for `path`, `regex` and `headers`.
        path: Path to match.
        regex: Regular expression that must match the whole path.
        headers: Headers that a request must have.

    Raises:
        ValueError: As in `route`.
    """
    action = DirectResponseAction(status=status, body=DataSource(inline_string=body) if body else None)
    return Route(match=_match(prefix, path, regex, headers or {}), direct_response=action)


def _match(prefix: str, path: str, regex: str, headers: Mapping[str, str]) -> RouteMatch:
    if sum(map(bool, (prefix, path, regex))) > 1:
        raise ValueError(f"pass one of prefix={prefix!r}, path={path!r} and regex={regex!r}")
    for kind, value in (("prefix", prefix), ("path", path)):
        if value and not value.startswith("/"):
            raise ValueError(f"{kind}={value!r} matches no request: write {kind}={'/' + value!r}")
    matchers = [
        HeaderMatcher(name=name, string_match=StringMatcher(exact=value)) for name, value in headers.items()
    ]
    if path:
        return RouteMatch(path=path, headers=matchers)
    if regex:
        return RouteMatch(safe_regex=RegexMatcher(regex=regex), headers=matchers)
    return RouteMatch(prefix=prefix or "/", headers=matchers)
