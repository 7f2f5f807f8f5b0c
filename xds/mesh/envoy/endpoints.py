"""Endpoints (EDS), including whether clients send each endpoint mutual TLS.

An endpoint's metadata and the sub-zone of its locality both contain this setting. The metadata selects the
transport socket, by the cluster's `transport_socket_matches`. The sub-zone makes Envoy drain pooled
connections, which it does only when a host is replaced. A changed locality replaces the host (ADR 0003).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from xds.codec import message_class, serialize
from xds.mesh.model.mesh import Endpoint
from xds.snapshot import ENDPOINT, TYPE_PREFIX, Resource

_HEALTHY, _UNHEALTHY = 1, 2  # envoy.config.core.v3.HealthStatus
MTLS_SUB_ZONE = "istio"
"""Last part of the sub-zone of endpoints that get mutual TLS."""


class Target(NamedTuple):
    """One endpoint of a ClusterLoadAssignment. Locality fields come first, so sorting groups by locality."""

    region: str
    """Region of the locality."""
    zone: str
    """Zone of the locality."""
    sub_zone: str
    """Sub-zone of the locality; it ends in `istio` if `mtls` is set."""
    address: str
    """IP address."""
    port: int
    """Port."""
    ready: bool
    """Whether the endpoint is marked healthy."""
    mtls: bool
    """Whether clients send mutual TLS to the endpoint."""


def target(endpoint: Endpoint, *, mtls: bool) -> Target:
    """Return the target for an endpoint. `mtls` is whether clients send it mutual TLS."""
    sub_zone = endpoint.sub_zone
    if mtls:
        sub_zone = f"{sub_zone}/{MTLS_SUB_ZONE}" if sub_zone else MTLS_SUB_ZONE
    return Target(
        endpoint.region, endpoint.zone, sub_zone, endpoint.address, endpoint.port, endpoint.ready, mtls
    )


def assignment(name: str, targets: Iterable[Target], sources: tuple[str, ...]) -> Resource:
    """Return a cluster's ClusterLoadAssignment.

    The message can be large. It is built with protobuf, which is ten times faster than betterproto2
    (ADR 0002).
    """
    message: Any = message_class(ENDPOINT.removeprefix(TYPE_PREFIX))(cluster_name=name)
    group: Any = None
    locality: tuple[str, str, str] | None = None
    for target in sorted(targets):
        if target[:3] != locality:
            locality = target[:3]
            group = message.endpoints.add()
            group.locality.SetInParent()
            group.locality.region, group.locality.zone, group.locality.sub_zone = locality
        lb_endpoint = group.lb_endpoints.add()
        socket_address = lb_endpoint.endpoint.address.socket_address
        socket_address.address, socket_address.port_value = target.address, target.port
        lb_endpoint.health_status = _HEALTHY if target.ready else _UNHEALTHY
        if target.mtls:
            lb_endpoint.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    return Resource.of(ENDPOINT, name, serialize(message), sources=sources)
