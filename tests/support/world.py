"""A small world for one Envoy: clusters, assignments, listeners, routes and secrets, all changeable.

It is a value: equal worlds give equal resources in every process. Processes exchange it as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any, Literal, Self

from envoy_data_plane.envoy.config.cluster.v3 import Cluster as ClusterMessage
from envoy_data_plane.envoy.config.cluster.v3 import (
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    ClusterTransportSocketMatch,
)
from envoy_data_plane.envoy.config.core.v3 import HealthCheck, HealthCheckHttpHealthCheck, TransportSocket
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain
from envoy_data_plane.envoy.config.listener.v3 import Listener as ListenerMessage
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    SdsSecretConfig,
    UpstreamTlsContext,
)

from tests.support.upstream import SLOW_PATH
from xds.codec import pack
from xds.mesh.envoy.common import address, ads, strings
from xds.mesh.envoy.tls import raw_buffer
from xds.mesh.identity import ROOTS
from xds.mesh.identity.secrets import roots_secret
from xds.resources import Resource, resource

HOST = "127.0.0.1"
"""Where Envoy listens, and where the applications are."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster and its endpoints."""

    endpoints: tuple[int, ...] | None = ()
    """Ports of applications; None: there is no assignment at all."""
    static: bool = False
    """The endpoints are in the cluster itself, not in an assignment."""
    setting: int = 0
    """Stands for all settings which, changed, make Envoy warm the cluster anew."""
    checked: bool = False
    """Health is checked, so that warming takes until the endpoints have answered."""
    secured: bool = False
    """It has a TLS context that no endpoint uses, and so waits for a secret."""
    fault: Literal["", "invalid", "unfit"] = ""
    """Envoy rejects it: alone, or with the rest of its response because the message is invalid."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener for HTTP whose routes come by RDS."""

    port: int
    routes: str
    setting: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """Everything that the Envoy should have."""

    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    routes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By the route configuration's name: which cluster a path goes to."""
    roots: str = ""
    """Certificates, in PEM form, of the secret that secured clusters wait for."""

    def routes_at(self, port: int) -> str:
        """Return the name of the route configuration of the listener at a port; empty if there is none."""
        return next((listener.routes for listener in self.listeners.values() if listener.port == port), "")

    def serves(self, port: int, path: str) -> frozenset[int]:
        """Return the applications that may answer a request."""
        name = self.routes.get(self.routes_at(port), {}).get(path)
        cluster = self.clusters.get(name) if name else None
        return frozenset((cluster and cluster.endpoints) or ())

    def having(self, **clusters: Cluster | None) -> World:
        """Return the world with other clusters; None: without."""
        together = {**self.clusters, **clusters}
        return replace(self, clusters={name: cluster for name, cluster in together.items() if cluster})

    def routing(self, routes: str, **paths: str) -> World:
        """Return the world with some paths of a route configuration going elsewhere."""
        moved = {f"/{path}": cluster for path, cluster in paths.items()}
        return replace(self, routes={**self.routes, routes: {**self.routes.get(routes, {}), **moved}})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        read: dict[str, Any] = json.loads(text)
        clusters = {
            name: Cluster(**{**cluster, "endpoints": cluster["endpoints"] and tuple(cluster["endpoints"])})
            for name, cluster in read.pop("clusters").items()
        }
        listeners = {name: Listener(**listener) for name, listener in read.pop("listeners").items()}
        return cls(clusters=clusters, listeners=listeners, **read)

    def resources(self) -> list[Resource]:
        return [
            *(_cluster(name, _without_eds(cluster)) for name, cluster in self.clusters.items()),
            *(
                _assignment(name, cluster.endpoints)
                for name, cluster in self.clusters.items()
                if not cluster.static and cluster.endpoints is not None
            ),
            *(_listener(name, listener) for name, listener in self.listeners.items()),
            *(_routes(name, tuple(paths.items())) for name, paths in self.routes.items()),
            *([_secret(self.roots)] if self.roots else []),
        ]


def _without_eds(cluster: Cluster) -> Cluster:
    """Leave only what the cluster's own message says."""
    return cluster if cluster.static else replace(cluster, endpoints=())


@cache
def _cluster(name: str, spec: Cluster) -> Resource:
    message = ClusterMessage(name=name, connect_timeout=timedelta(milliseconds=1000 + spec.setting))
    if spec.fault == "invalid":
        message.connect_timeout = timedelta(0)
    if spec.fault == "unfit":
        message.lb_policy = ClusterLbPolicy.CLUSTER_PROVIDED
    if spec.static:
        message.type = ClusterDiscoveryType.STATIC
        message.load_assignment = _load_assignment(name, spec.endpoints or ())
    else:
        message.type = ClusterDiscoveryType.EDS
        message.eds_cluster_config = ClusterEdsClusterConfig(eds_config=ads())
    if spec.checked:
        message.health_checks = [
            HealthCheck(
                timeout=timedelta(seconds=5),
                interval=timedelta(seconds=60),
                unhealthy_threshold=3,
                healthy_threshold=1,
                http_health_check=HealthCheckHttpHealthCheck(path=SLOW_PATH),
            )
        ]
        message.ignore_health_on_host_removal = True
    if spec.secured:
        context = CommonTlsContext(
            validation_context_sds_secret_config=SdsSecretConfig(name=ROOTS, sds_config=ads())
        )
        socket = TransportSocket(
            name="envoy.transport_sockets.tls",
            typed_config=pack(UpstreamTlsContext(common_tls_context=context)),
        )
        message.transport_socket = raw_buffer()
        message.transport_socket_matches = [
            ClusterTransportSocketMatch(name="tls", match=strings(tls="yes"), transport_socket=socket)
        ]
    return resource(message)


@cache
def _assignment(name: str, endpoints: tuple[int, ...]) -> Resource:
    return resource(_load_assignment(name, endpoints))


def _load_assignment(name: str, endpoints: tuple[int, ...]) -> ClusterLoadAssignment:
    found = [LbEndpoint(endpoint=Endpoint(address=address(HOST, port))) for port in endpoints]
    localities = [LocalityLbEndpoints(lb_endpoints=found)] if found else []
    return ClusterLoadAssignment(cluster_name=name, endpoints=localities)


@cache
def _listener(name: str, spec: Listener) -> Resource:
    manager = HttpConnectionManager(
        stat_prefix=name,
        rds=Rds(config_source=ads(), route_config_name=spec.routes),
        http_filters=[HttpFilter(name="envoy.filters.http.router", typed_config=pack(Router()))],
        max_request_headers_kb=60 + spec.setting % 30,
    )
    message = ListenerMessage(
        name=name,
        address=address(HOST, spec.port),
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(name="envoy.filters.network.http_connection_manager", typed_config=pack(manager))
                ]
            )
        ],
        # Every other change affects the whole listener, not only filter chains, which Envoy updates in place.
        listener_filters_timeout=timedelta(seconds=15 + spec.setting // 2),
    )
    return resource(message)


@cache
def _routes(name: str, paths: tuple[tuple[str, str], ...]) -> Resource:
    routes = [
        Route(match=RouteMatch(path=path), route=RouteAction(cluster=cluster)) for path, cluster in paths
    ]
    hosts = [VirtualHost(name="all", domains=["*"], routes=routes)]
    return resource(RouteConfiguration(name=name, virtual_hosts=hosts))


@cache
def _secret(roots: str) -> Resource:
    return roots_secret([roots.encode()])
