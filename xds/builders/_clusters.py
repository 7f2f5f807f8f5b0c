"""Clusters and their endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
    ClusterDnsLookupFamily,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import Http2ProtocolOptions, Locality
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import UpstreamTlsContext
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)

from xds.builders._common import address, ads, host_and_port, is_ip, tls_socket
from xds.codec import pack
from xds.names import of_type
from xds.snapshot import ENDPOINT

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def cluster(
    name: str,
    endpoints: Iterable[str] | Mapping[str, int] | None = None,
    *,
    tls: UpstreamTlsContext | None = None,
    http2: bool = False,
    connect_timeout: float = 5.0,
    lb_policy: ClusterLbPolicy = ClusterLbPolicy.ROUND_ROBIN,
) -> Cluster:
    """Return a cluster: with the given endpoints, or with those of the ClusterLoadAssignment of its name.

    A change of a cluster makes Envoy open new connections; a change of an assignment does not. For endpoints
    that change, omit `endpoints`, and set the result of the function `endpoints` as a resource of its own.

    Args:
        name: Name of the cluster.
        endpoints: Addresses, as in the function `endpoints`. If one of them has a host name, Envoy resolves
            the names by DNS (STRICT_DNS), and prefers IPv4. Otherwise, the cluster is STATIC. None for an EDS
            cluster.
        tls: TLS to the endpoints; see `upstream_tls`. The default is plaintext.
        http2: Whether to speak HTTP/2 to the endpoints, which gRPC requires. The default is HTTP/1.1.
        connect_timeout: Seconds to wait for a connection.
        lb_policy: Load balancing policy.

    Raises:
        TypeError: `endpoints` is one str or contains something other than str, or `tls` is not a TLS context.
        ValueError: `endpoints` contains something other than HOST:PORT.
    """
    made = Cluster(name=name, connect_timeout=timedelta(seconds=connect_timeout), lb_policy=lb_policy)
    if endpoints is None:
        made.type = ClusterDiscoveryType.EDS
        service = of_type(name, ENDPOINT)
        made.eds_cluster_config = ClusterEdsClusterConfig(
            eds_config=ads(), service_name="" if service == name else service
        )
    else:
        weights = _weights(name, endpoints)
        made.load_assignment = _assignment(name, weights)
        static = all(is_ip(host_and_port(each)[0]) for each in weights)
        made.type = ClusterDiscoveryType.STATIC if static else ClusterDiscoveryType.STRICT_DNS
        # By default, Envoy uses only the IPv6 addresses of a name that has both.
        made.dns_lookup_family = ClusterDnsLookupFamily.V4_PREFERRED
    if tls:
        made.transport_socket = tls_socket(tls, UpstreamTlsContext, "upstream_tls")
    if http2:
        explicit = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=Http2ProtocolOptions())
        made.typed_extension_protocol_options[_HTTP_OPTIONS] = pack(
            HttpProtocolOptions(explicit_http_config=explicit)
        )
    return made


def endpoints(cluster: str, addresses: Iterable[str] | Mapping[str, int]) -> ClusterLoadAssignment:
    """Return the endpoints of an EDS cluster.

    Args:
        cluster: Name of the cluster. For an xdstp name, the assignment has the same name with its own type.
        addresses: Addresses such as `10.0.0.1:80` or `[::1]:80`, or a mapping from addresses to weights. The
            hosts are IP addresses: Envoy resolves no names in an assignment.

    Raises:
        TypeError: `addresses` is one str, or contains something other than str.
        ValueError: An address is not IP:PORT.
    """
    weights = _weights(cluster, addresses)
    for each in weights:
        host, _ = host_and_port(each)
        if not is_ip(host):
            raise ValueError(
                f"{cluster}: {each!r} has a host name, which Envoy does not resolve in an assignment;"
                f" pass it to cluster({cluster!r}, [{each!r}])"
            )
    return _assignment(cluster, weights)


def _weights(cluster: str, addresses: Iterable[str] | Mapping[str, int]) -> Mapping[str, int | None]:
    """Return the weight of each address; None for the default."""
    if isinstance(addresses, str):
        raise TypeError(f"{cluster}: {addresses!r} is one str: pass a list, [{addresses!r}]")
    return addresses if isinstance(addresses, Mapping) else dict.fromkeys(addresses)


def _assignment(cluster: str, weights: Mapping[str, int | None]) -> ClusterLoadAssignment:
    members = [
        LbEndpoint(endpoint=Endpoint(address=address(each)), load_balancing_weight=weight)
        for each, weight in weights.items()
    ]
    # gRPC rejects endpoints without a locality, and ignores those of a locality without a weight.
    locality = LocalityLbEndpoints(locality=Locality(), load_balancing_weight=1, lb_endpoints=members)
    return ClusterLoadAssignment(
        cluster_name=of_type(cluster, ENDPOINT), endpoints=[locality] if members else []
    )
