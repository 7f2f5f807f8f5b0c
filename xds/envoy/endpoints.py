"""EDS: the endpoints of a cluster, each with what is to be sent to it.

The mode is in the endpoint's metadata, for the cluster's transport socket matches, and in its locality's sub zone: Envoy moves
pooled connections only when a host is replaced, and a changed locality replaces it (ADR 0003).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.core.v3 import HealthStatus, Locality, Metadata
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)

from xds.envoy.common import address, resource, strings
from xds.mesh import Endpoint as MeshEndpoint
from xds.snapshot import ENDPOINT, Resource

MTLS_ZONE = "istio"


class Target(NamedTuple):
    """One endpoint of an assignment."""

    region: str
    zone: str
    sub_zone: str
    address: str
    port: int
    ready: bool
    mtls: bool


def target(endpoint: MeshEndpoint, *, mtls: bool) -> Target:
    """Return an endpoint as it is to be reached."""
    sub_zone = endpoint.sub_zone
    if mtls:
        sub_zone = f"{sub_zone}/{MTLS_ZONE}" if sub_zone else MTLS_ZONE
    return Target(
        endpoint.region, endpoint.zone, sub_zone, endpoint.address, endpoint.port, endpoint.ready, mtls
    )


@lru_cache(maxsize=65536)
def _lb_endpoint(found: Target) -> LbEndpoint:
    metadata = {"envoy.transport_socket_match": strings(tlsMode="istio")} if found.mtls else {}
    return LbEndpoint(
        endpoint=Endpoint(address=address(found.address, found.port)),
        health_status=HealthStatus.HEALTHY if found.ready else HealthStatus.UNHEALTHY,
        metadata=Metadata(filter_metadata=metadata) if metadata else None,
    )


def assignment(name: str, targets: Iterable[Target], sources: tuple[str, ...]) -> Resource:
    """Return a cluster's assignment, empty where there is no endpoint."""
    localities: dict[tuple[str, str, str], LocalityLbEndpoints] = {}
    for found in sorted(targets):
        key = found[:3]
        if key not in localities:
            region, zone, sub_zone = key
            locality = Locality(region=region, zone=zone, sub_zone=sub_zone)
            localities[key] = LocalityLbEndpoints(locality=locality)
        localities[key].lb_endpoints.append(_lb_endpoint(found))
    message = ClusterLoadAssignment(cluster_name=name, endpoints=list(localities.values()))
    return resource(ENDPOINT, name, message, sources=sources)
