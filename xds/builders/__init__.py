"""Envoy's most used resources, with good defaults.

    store.set(
        http_listener("web", "0.0.0.0:8080", routes="web"),
        routes("web", [route("blue")]),
        cluster("blue", ["10.0.0.1:80", "10.0.0.2:80"]),
    )

Each function returns a message of envoy_data_plane. To set a field that a function has no argument for,
assign it to the message. References to routes, endpoints and secrets name resources of the same stream (ADS).
"""

from xds.builders._clusters import cluster, endpoints
from xds.builders._listeners import api_listener, http_listener, tcp_listener
from xds.builders._routes import direct_response, redirect, route, routes, virtual_host, weighted_clusters
from xds.builders._runtime import runtime
from xds.builders._tls import certificate, downstream_tls, roots, upstream_tls

__all__ = [
    "api_listener",
    "certificate",
    "cluster",
    "direct_response",
    "downstream_tls",
    "endpoints",
    "http_listener",
    "redirect",
    "roots",
    "route",
    "routes",
    "runtime",
    "tcp_listener",
    "upstream_tls",
    "virtual_host",
    "weighted_clusters",
]
