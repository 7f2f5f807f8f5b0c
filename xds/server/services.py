"""The discovery services by name, and the type that each is for."""

from __future__ import annotations

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"

SERVICES = {
    ADS: ("", "StreamAggregatedResources", "DeltaAggregatedResources"),
    "envoy.service.cluster.v3.ClusterDiscoveryService": (CLUSTER, "StreamClusters", "DeltaClusters"),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": (ENDPOINT, "StreamEndpoints", "DeltaEndpoints"),
    "envoy.service.listener.v3.ListenerDiscoveryService": (LISTENER, "StreamListeners", "DeltaListeners"),
    "envoy.service.route.v3.RouteDiscoveryService": (ROUTE, "StreamRoutes", "DeltaRoutes"),
    "envoy.service.secret.v3.SecretDiscoveryService": (SECRET, "StreamSecrets", "DeltaSecrets"),
}
"""By service: its type, and its methods in both variants."""
