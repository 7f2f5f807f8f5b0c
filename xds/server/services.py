"""The discovery services by name: the type that each is for, and the forms in which it can be asked.

As in Envoy's protos: `envoy/service/discovery/v3/ads.proto`, `envoy/service/cluster/v3/cds.proto` and so on.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One discovery service; a form that it does not have is empty."""

    type_url: str = ""
    """Its type; empty for all of them."""
    stream: str = ""
    """The method for state-of-the-world streams,"""
    delta: str
    """for delta streams,"""
    fetch: str = ""
    """and for one request and one response."""
    path: str = ""
    """Where `fetch` is in the REST form."""


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
"""By name."""
