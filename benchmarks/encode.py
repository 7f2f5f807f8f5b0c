"""Compare the speed of `xds.codec.encode` and of betterproto2's `bytes`: python benchmarks/encode.py.

Ratios are comparable between machines; durations are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median

import betterproto2
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as tcp_proxy
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.google.protobuf import Struct, Value

from xds.codec import encode, message_class, pack

ROUNDS = 7
NAME = "outbound|8000||httpbin.foo.svc.cluster.local"


def make_struct(**fields: str) -> Struct:
    return Struct(fields={key: Value(string_value=text) for key, text in fields.items()})


def make_cluster() -> cluster.Cluster:
    context = tls.UpstreamTlsContext(
        sni="outbound_.8000_._.httpbin.foo.svc.cluster.local",
        common_tls_context=tls.CommonTlsContext(alpn_protocols=["istio"]),
    )
    return cluster.Cluster(
        name=NAME,
        type=cluster.ClusterDiscoveryType.EDS,
        connect_timeout=timedelta(seconds=10),
        eds_cluster_config=cluster.ClusterEdsClusterConfig(
            service_name=NAME, eds_config=core.ConfigSource(ads=core.AggregatedConfigSource())
        ),
        transport_socket_matches=[
            cluster.ClusterTransportSocketMatch(
                name="tlsMode-istio",
                match=make_struct(tlsMode="istio"),
                transport_socket=core.TransportSocket(
                    name="envoy.transport_sockets.tls", typed_config=pack(context)
                ),
            ),
            cluster.ClusterTransportSocketMatch(
                name="tlsMode-disabled",
                match=Struct(),
                transport_socket=core.TransportSocket(name="envoy.transport_sockets.raw_buffer"),
            ),
        ],
    )


def make_endpoint(number: int) -> endpoint.LbEndpoint:
    address = f"10.1.{number // 250}.{number % 250}"
    return endpoint.LbEndpoint(
        endpoint=endpoint.Endpoint(
            address=core.Address(socket_address=core.SocketAddress(address=address, port_value=8000))
        ),
        health_status=core.HealthStatus.HEALTHY,
        metadata=core.Metadata(
            filter_metadata={"envoy.transport_socket_match": make_struct(tlsMode="istio")}
        ),
        load_balancing_weight=1,
    )


def make_assignment(size: int) -> endpoint.ClusterLoadAssignment:
    locality = endpoint.LocalityLbEndpoints(
        locality=core.Locality(region="eu", zone="a", sub_zone="istio"),
        lb_endpoints=[make_endpoint(number) for number in range(size)],
    )
    return endpoint.ClusterLoadAssignment(cluster_name=NAME, endpoints=[locality])


def make_listener() -> listener.Listener:
    proxy = tcp_proxy.TcpProxy(stat_prefix="inbound", cluster="inbound|8000||")
    return listener.Listener(
        name="virtualInbound",
        address=core.Address(socket_address=core.SocketAddress(address="0.0.0.0", port_value=15006)),
        listener_filters_timeout=timedelta(seconds=1),
        filter_chains=[
            listener.FilterChain(
                name="8000",
                filter_chain_match=listener.FilterChainMatch(
                    destination_port=8000, transport_protocol="tls", application_protocols=["istio", "h2"]
                ),
                filters=[listener.Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(proxy))],
            )
        ],
    )


def seconds(run: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def compare(name: str, message: betterproto2.Message, repeat: int) -> None:
    """Print how much faster `encode` is. Measure alternately, so that other load affects both equally."""
    body = encode(message)
    upb = message_class(
        f"{type(message).__module__.removeprefix('envoy_data_plane.')}.{type(message).__name__}"
    )
    parsed = upb.FromString(body)
    fast, slow, floor = [], [], []
    for _ in range(ROUNDS):
        fast.append(seconds(lambda: encode(message), repeat))
        slow.append(seconds(lambda: bytes(message), max(1, repeat // 20)))
        floor.append(seconds(parsed.SerializeToString, repeat))
    ratio = median(b / a for a, b in zip(fast, slow, strict=True))
    print(
        f"{name:24} {len(body):7} bytes: bytes() {median(slow) * 1e3:8.3f} ms, "
        f"encode() {median(fast) * 1e3:7.3f} ms, "
        f"{ratio:5.0f} times faster (serialization alone {median(floor) * 1e3:.4f} ms)"
    )


if __name__ == "__main__":
    compare("Cluster", make_cluster(), 400)
    compare("1,000-endpoint CLA", make_assignment(1000), 3)
    compare("Listener", make_listener(), 400)
