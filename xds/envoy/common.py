"""Pieces of Envoy configuration that several resource types use."""

from __future__ import annotations

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.google.protobuf import Struct, Value

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""The key of a cluster's HTTP settings."""


def address(host: str, port: int) -> Address:
    """Return a TCP address."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def ads() -> ConfigSource:
    """Return the config source that asks on the aggregated stream."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def one_endpoint(cluster: str, host: str, port: int) -> ClusterLoadAssignment:
    """Return the assignment of a cluster that leads to one address."""
    endpoint = LbEndpoint(endpoint=Endpoint(address=address(host, port)))
    return ClusterLoadAssignment(
        cluster_name=cluster, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
    )


def seconds(value: float | None) -> timedelta | None:
    """Return a duration, or None for one that was not said."""
    return None if value is None else timedelta(seconds=value)


def strings(**values: str) -> Struct:
    """Return a Struct of strings."""
    return Struct(fields={key: Value(string_value=value) for key, value in values.items()})
