"""Endpoints (EDS), including whether clients send each endpoint mutual TLS.

An endpoint's metadata and the sub-zone of its locality both contain this setting. The metadata selects the
transport socket, by the cluster's `transport_socket_matches`. The sub-zone makes Envoy drain pooled
connections, which it does only when a host is replaced. A changed locality replaces the host (ADR 0003).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from xds.codec import field, integer_field, join, message_class, serialize
from xds.mesh.envoy.locality import NO_PREFERENCE, Place
from xds.mesh.model.mesh import Endpoint
from xds.snapshot import ENDPOINT, TYPE_PREFIX, Resource

_HEALTHY, _UNHEALTHY = 1, 2  # envoy.config.core.v3.HealthStatus
_NAME = ENDPOINT.removeprefix(TYPE_PREFIX)
MTLS_SUB_ZONE = "istio"
"""Last part of the sub-zone of endpoints that get mutual TLS."""
_DUAL_STACK_SUB_ZONE = "dual-stack"
"""Part of the sub-zone of endpoints with additional addresses."""


class LoadTarget(NamedTuple):
    """One endpoint of a ClusterLoadAssignment. Sorting groups by priority and locality."""

    priority: int
    """Priority of the locality."""
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
    weight: int
    """Part of the weight of the locality; 0 if localities have no weights."""
    more_addresses: tuple[str, ...] = ()
    """Other IP addresses. Envoy tries them if it cannot connect to `address`."""


def target(endpoint: Endpoint, *, mtls: bool, place: Place = NO_PREFERENCE) -> LoadTarget:
    """Return the target for an endpoint.

    Args:
        endpoint: the endpoint.
        mtls: whether clients send it mutual TLS.
        place: its place in the assignment.
    """
    # Envoy ignores a change of the additional addresses, too, unless it replaces the host.
    parts = (
        endpoint.sub_zone,
        _DUAL_STACK_SUB_ZONE if endpoint.more_addresses else "",
        MTLS_SUB_ZONE if mtls else "",
    )
    return LoadTarget(
        place.priority,
        endpoint.region,
        endpoint.zone,
        "/".join(filter(None, parts)),
        endpoint.address,
        endpoint.port,
        endpoint.ready,
        mtls,
        place.weight,
        endpoint.more_addresses,
    )


def assignment(name: str, targets: Iterable[LoadTarget], sources: tuple[str, ...]) -> Resource:
    """Return a cluster's ClusterLoadAssignment.

    It can have thousands of endpoints, and a changed mode changes all of them: join encoded parts. The
    numbers are those of the fields in Envoy's protos.
    """
    parts = [field(1, name.encode())]
    for (priority, region, zone, sub_zone), group in groupby(sorted(targets), itemgetter(0, 1, 2, 3)):
        members = tuple(group)
        locality = _string(1, region) + _string(2, zone) + _string(3, sub_zone)
        endpoints = b"".join(
            [field(2, _addresses(target) + _status(target.ready, target.mtls)) for target in members]
        )
        weight = sum(target.weight for target in members)
        balancing = field(3, integer_field(1, weight)) if weight else b""
        balancing += integer_field(5, priority) if priority else b""
        parts.append(field(2, field(1, locality) + endpoints + balancing))
    body = join(_NAME, parts)
    return Resource.of(ENDPOINT, name, body, sources=sources)


def _addresses(target: LoadTarget) -> bytes:
    """Return the fields of an LbEndpoint with its addresses. They are the same in all modes."""
    more = [field(4, _address(address, target.port)) for address in target.more_addresses]
    return field(1, b"".join((_address(target.address, target.port), *more)))


@lru_cache(maxsize=16384)
def _address(address: str, port: int) -> bytes:
    return field(1, field(1, _string(2, address) + integer_field(3, port)))


def _string(number: int, text: str) -> bytes:
    return field(number, text.encode()) if text else b""


@cache
def _status(ready: bool, mtls: bool) -> bytes:
    """Return the fields of an LbEndpoint with its health and metadata."""
    message: Any = message_class("envoy.config.endpoint.v3.LbEndpoint")()
    message.health_status = _HEALTHY if ready else _UNHEALTHY
    if mtls:
        message.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    return serialize(message)
