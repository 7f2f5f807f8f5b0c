"""Static bootstraps to test the harness itself: a sidecar that forwards everything and marks it."""

from __future__ import annotations

from typing import Any

_TYPE = "type.googleapis.com/envoy.extensions"
HTTP_PORTS = (80, 8080)


def passing_sidecar(name: str) -> dict[str, Any]:
    """Return the bootstrap of a sidecar that forwards to the original destination and marks HTTP requests."""
    return {
        "admin": {"address": _address("127.0.0.1", 15000)},
        "static_resources": {
            "listeners": [
                _listener(15001, "PassthroughCluster", {"x-out": name}),
                _listener(15006, "InboundPassthroughCluster", {"x-in": name}),
            ],
            "clusters": [
                _original_destination("PassthroughCluster"),
                _original_destination("InboundPassthroughCluster", source="127.0.0.6"),
            ],
        },
    }


def idle(address: str, port: int) -> dict[str, Any]:
    """Return a bootstrap with nothing but an admin interface."""
    return {"admin": {"address": _address(address, port)}}


def _listener(port: int, cluster: str, marks: dict[str, str]) -> dict[str, Any]:
    http = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"http_{port}",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }
            ],
            "request_headers_to_add": [
                {"header": {"key": key, "value": value}} for key, value in marks.items()
            ],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            }
        ],
    }
    tcp = {
        "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": f"tcp_{port}",
        "cluster": cluster,
    }
    return {
        "name": str(port),
        "address": _address("0.0.0.0", port),
        "listener_filters": [
            {
                "name": "envoy.filters.listener.original_dst",
                "typed_config": {"@type": f"{_TYPE}.filters.listener.original_dst.v3.OriginalDst"},
            }
        ],
        "filter_chains": [
            {
                "filter_chain_match": {"destination_port": http_port},
                "filters": [{"name": "http", "typed_config": http}],
            }
            for http_port in HTTP_PORTS
        ],
        "default_filter_chain": {"filters": [{"name": "tcp", "typed_config": tcp}]},
    }


def _original_destination(name: str, source: str = "") -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "use_downstream_protocol_config": {"http2_protocol_options": {}},
            }
        },
    }
    if source:
        cluster["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    return cluster


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}
