"""The discovery services: their names, types and methods.

Envoy's protos define them: `envoy/service/discovery/v3/ads.proto`, `envoy/service/cluster/v3/cds.proto` and
so on.
"""

from __future__ import annotations

from dataclasses import dataclass

from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
)

ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
"""Full name of the aggregated discovery service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A discovery service. The name of a missing method is empty."""

    type_url: str = ""
    """Type URL of its resources; empty for ADS."""
    stream: str = ""
    """Name of the method for state-of-the-world streams."""
    delta: str
    """Name of the method for delta streams."""
    fetch: str = ""
    """Name of the unary method."""
    path: str = ""
    """HTTP path of the unary method over REST."""


def _service(type_url: str, resources: str, path: str) -> Service:
    return Service(
        type_url=type_url,
        stream=f"Stream{resources}",
        delta=f"Delta{resources}",
        fetch=f"Fetch{resources}",
        path=f"/v3/discovery:{path}",
    )


SERVICES = {
    ADS: Service(stream="StreamAggregatedResources", delta="DeltaAggregatedResources"),
    "envoy.service.cluster.v3.ClusterDiscoveryService": _service(CLUSTER, "Clusters", "clusters"),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": _service(ENDPOINT, "Endpoints", "endpoints"),
    "envoy.service.endpoint.v3.LocalityEndpointDiscoveryService": Service(
        type_url=LB_ENDPOINT, delta="DeltaLocalityEndpoints"
    ),
    "envoy.service.listener.v3.ListenerDiscoveryService": _service(LISTENER, "Listeners", "listeners"),
    "envoy.service.route.v3.RouteDiscoveryService": _service(ROUTE, "Routes", "routes"),
    "envoy.service.route.v3.ScopedRoutesDiscoveryService": _service(
        SCOPED_ROUTE, "ScopedRoutes", "scoped-routes"
    ),
    "envoy.service.route.v3.VirtualHostDiscoveryService": Service(
        type_url=VIRTUAL_HOST, delta="DeltaVirtualHosts"
    ),
    "envoy.service.secret.v3.SecretDiscoveryService": _service(SECRET, "Secrets", "secrets"),
    "envoy.service.runtime.v3.RuntimeDiscoveryService": _service(RUNTIME, "Runtime", "runtime"),
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService": _service(
        EXTENSION_CONFIG, "ExtensionConfigs", "extension_configs"
    ),
}
"""All discovery services, by full name."""
