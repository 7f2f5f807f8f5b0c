"""Endpoints (EDS), each with its mTLS mode.

The mode is in the endpoint's metadata, for the cluster's `transport_socket_matches`, and in the sub-zone of
its locality: Envoy drains pooled connections only when a host is replaced, and a changed locality replaces
the host (ADR 0003).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from xds.codec import message_class, serialize
from xds.mesh.model.mesh import Endpoint
from xds.snapshot import ENDPOINT, TYPE_PREFIX, Resource

_HEALTHY, _UNHEALTHY = 1, 2
MTLS_ZONE = "istio"
"""Sub-zone of endpoints that get mutual TLS."""


class Target(NamedTuple):
    """One endpoint of a ClusterLoadAssignment. The order of fields makes sorting group by locality."""

    region: str
    """Region of the locality."""
    zone: str
    """Zone of the locality."""
    sub_zone: str
    """Sub-zone of the locality, which includes the mode."""
    address: str
    """IP address."""
    port: int
    """Port."""
    ready: bool
    """Whether it is healthy."""
    mtls: bool
    """Whether clients send mutual TLS."""


def target(endpoint: Endpoint, *, mtls: bool) -> Target:
    """Return the target for an endpoint and its mode."""
    sub_zone = endpoint.sub_zone
    if mtls:
        sub_zone = f"{sub_zone}/{MTLS_ZONE}" if sub_zone else MTLS_ZONE
    return Target(
        endpoint.region, endpoint.zone, sub_zone, endpoint.address, endpoint.port, endpoint.ready, mtls
    )


def assignment(name: str, targets: Iterable[Target], sources: tuple[str, ...]) -> Resource:
    """Return a cluster's ClusterLoadAssignment.

    This message can be large, so it is built with protobuf directly: ten times faster than betterproto2 (ADR
    0002).
    """
    message: Any = message_class(ENDPOINT.removeprefix(TYPE_PREFIX))(cluster_name=name)
    group: Any = None
    zone: tuple[str, str, str] | None = None
    for target in sorted(targets):
        if target[:3] != zone:
            zone = target[:3]
            group = message.endpoints.add()
            group.locality.SetInParent()
            group.locality.region, group.locality.zone, group.locality.sub_zone = zone
        entry = group.lb_endpoints.add()
        socket = entry.endpoint.address.socket_address
        socket.address, socket.port_value = target.address, target.port
        entry.health_status = _HEALTHY if target.ready else _UNHEALTHY
        if target.mtls:
            entry.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    return Resource.of(ENDPOINT, name, serialize(message), sources=sources)
