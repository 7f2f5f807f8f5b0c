"""Envoy messages that several resource types use."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    BackoffStrategy,
    ConfigSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    GrpcServiceGoogleGrpc,
    RetryPolicy,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    EndpointAdditionalAddress,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import AdditionalAddress
from envoy_data_plane.google.protobuf import Struct, Value

from xds.mesh.envoy.names import OWN_CERTIFICATE
from xds.mesh.model.families import Family
from xds.mesh.model.objects import MeshConfig

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""Key of the HTTP options in a cluster's extension options."""
_WILDCARDS: dict[Family, str] = {4: "0.0.0.0", 6: "::"}


def address(host: str, port: int) -> Address:
    """Return a TCP address."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def wildcards(families: Iterable[Family]) -> tuple[str, ...]:
    """Return the addresses that accept connections to all addresses of these IP versions."""
    return tuple(_WILDCARDS[family] for family in families)


def bound_to(hosts: Iterable[str], port: int) -> tuple[Address, list[AdditionalAddress]]:
    """Return the address and the additional addresses of a listener that is bound to these IP addresses."""
    first, *more = (address(host, port) for host in hosts)
    return first, [AdditionalAddress(address=item) for item in more]


def ads() -> ConfigSource:
    """Return the config source for the aggregated stream (ADS)."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def certificate(config: MeshConfig) -> ConfigSource:
    """Return the config source of a sidecar's own certificate: `xds proxy`, or that of the roots."""
    if config.sds_socket or not config.serves_own_certificate:
        return roots(config)
    server = GrpcServiceEnvoyGrpc(cluster_name=OWN_CERTIFICATE, retry_policy=retry_policy())
    api = ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[GrpcService(envoy_grpc=server)],
        set_node_on_first_message_only=True,
    )
    return ConfigSource(
        api_config_source=api,
        resource_api_version=ApiVersion.V3,
        # Wait for the certificate. After the default of 15 s, Envoy would be ready and fail all handshakes.
        initial_fetch_timeout=timedelta(0),
    )


def retry_policy() -> RetryPolicy:
    """Return a policy with a backoff of at most 5 s. Envoy's default is 30 s."""
    backoff = BackoffStrategy(base_interval=timedelta(milliseconds=500), max_interval=timedelta(seconds=5))
    return RetryPolicy(retry_back_off=backoff)


def roots(config: MeshConfig) -> ConfigSource:
    """Return the config source of the mesh's roots: ADS, or the mesh's SDS socket.

    For the mesh's socket, use Google's gRPC client, which needs no cluster in the bootstrap. The protocol
    variant is state-of-the-world, the only one that SPIRE's agent supports.
    """
    if not config.sds_socket:
        return ads()
    socket = GrpcServiceGoogleGrpc(target_uri=f"unix:{config.sds_socket}", stat_prefix="sds")
    api = ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[GrpcService(google_grpc=socket)],
        set_node_on_first_message_only=True,
    )
    return ConfigSource(api_config_source=api, resource_api_version=ApiVersion.V3)


def one_endpoint(cluster: str, host: str, *more_hosts: str, port: int) -> ClusterLoadAssignment:
    """Return a load assignment with a single endpoint, which may have several addresses."""
    more = [EndpointAdditionalAddress(address=address(item, port)) for item in more_hosts]
    endpoint = LbEndpoint(endpoint=Endpoint(address=address(host, port), additional_addresses=more))
    return ClusterLoadAssignment(
        cluster_name=cluster, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
    )


def seconds(value: float | None) -> timedelta | None:
    """Return a duration; None if the value is None."""
    return None if value is None else timedelta(seconds=value)


def strings(**values: str) -> Struct:
    """Return a Struct with string values."""
    return Struct(fields={key: Value(string_value=value) for key, value in values.items()})
