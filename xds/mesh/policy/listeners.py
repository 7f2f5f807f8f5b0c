"""Listeners for addresses: to which Service a client's sidecar sends an intercepted connection.

The translator creates the listeners that `listeners_of` yields. Predictions look them up with `listeners_at`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Interception, Pod, Service, ServicePort
from xds.mesh.model.traffic import TrafficPolicy
from xds.mesh.policy.destination import client_rule, rule_key
from xds.mesh.policy.visibility import hidden, is_visible_to_all


class Listener(NamedTuple):
    """A listener of clients' sidecars for connections to one address and port."""

    address: str
    """IP address that applications connect to."""
    number: int
    """Port that applications connect to."""
    service: Service
    """Service that handles the connections."""
    port: ServicePort
    """Port of the Service."""
    endpoint: Endpoint | None = None
    """Endpoint that gets the connections; None for all ready endpoints of the service port."""
    is_closed: bool = False
    """Whether the listener closes connections, because the Pod at the address is unknown."""
    passes_through: bool = False
    """Whether only clients whose DestinationRule sets PASSTHROUGH have the listener."""


def sidecar_ports(mesh: Mesh) -> frozenset[int]:
    """Return the ports that intercepting sidecars bind on all addresses. Other listeners cannot use them."""
    return mesh.config.own_ports(Interception.REDIRECT)


def has_endpoint_listeners(service: Service, policy: TrafficPolicy) -> bool:
    """Whether sidecars have a listener for each endpoint of a service port with this policy."""
    return service.headless or policy.is_passthrough


def is_routed_by_host(mesh: Mesh, port: ServicePort, number: int) -> bool:
    """Whether requests to `number` at any address reach a service port by its name in their `Host` header."""
    return port.protocol.is_http and number == port.port and number not in sidecar_ports(mesh)


def listeners_of(
    mesh: Mesh, service: Service, port: ServicePort, *, for_endpoints: bool
) -> Iterator[Listener]:
    """Yield the listeners for a service port, the first of which is used for an address and port.

    Args:
        mesh: the facts.
        service: the Service. It gets listeners only for addresses that it `may_answer`.
        port: port of the Service.
        for_endpoints: whether endpoints have listeners of their own (`has_endpoint_listeners`).
    """
    if not is_routed_by_host(mesh, port, port.port):
        for address in service.addresses:
            if mesh.may_answer(service, address):
                yield Listener(address, port.port, service, port)
    if for_endpoints:
        through = not service.headless
        found = mesh.endpoints(service, port)
        for endpoint in (single for combined in found for single in combined.by_address()):
            if mesh.may_answer(service, endpoint.address):
                for number in dict.fromkeys((port.port, endpoint.port)):
                    yield Listener(endpoint.address, number, service, port, endpoint, passes_through=through)
        for entry in mesh.unknown_endpoints(service, port):
            # The entry's pod is unknown, so its mode is too. Without a listener for the address,
            # connections would pass through in plaintext.
            if mesh.may_answer(service, entry.address):
                for number in dict.fromkeys((port.port, entry.port)):
                    yield Listener(
                        entry.address, number, service, port, is_closed=True, passes_through=through
                    )


def listeners_at(mesh: Mesh, address: str, number: int) -> tuple[Listener, ...]:
    """Return the listeners that sidecars may have for an address and port, in order of precedence.

    The oldest Service comes first. All listeners but the last are only for some clients (`is_used`).
    """
    found = []
    for service in mesh.services_at(address):
        for listener in _index(mesh, service).get((address, number), ()):
            found.append(listener)
            if not listener.passes_through and is_visible_to_all(mesh, service):
                return tuple(found)
    return tuple(found)


_Index: TypeAlias = dict[tuple[str, int], list[Listener]]


def _index(mesh: Mesh, service: Service) -> _Index:
    key = ("listeners", service.namespace, service.name)
    if key not in mesh.scratch:
        index: _Index = {}
        for_endpoints = service.headless or _can_pass_through(mesh, service)
        for port in service.ports:
            for listener in listeners_of(mesh, service, port, for_endpoints=for_endpoints):
                index.setdefault((listener.address, listener.number), []).append(listener)
        mesh.scratch[key] = index
    found: _Index = mesh.scratch[key]
    return found


def _can_pass_through(mesh: Mesh, service: Service) -> bool:
    """Whether a DestinationRule may set PASSTHROUGH for a service."""
    key = "rules with PASSTHROUGH"
    if key not in mesh.scratch:
        mesh.scratch[key] = [rule for rule in mesh.rules() if _sets_passthrough(rule.policy)]
    return any(rule.is_about(service.host) for rule in mesh.scratch[key])


def _sets_passthrough(policy: TrafficPolicy | None) -> bool:
    settings = (policy, *policy.ports.values()) if policy else ()
    return any(setting.is_passthrough for setting in settings)


def http_ports(mesh: Mesh, client: Pod) -> frozenset[int]:
    """Return the ports at which a client's sidecar takes connections to all addresses for HTTP."""
    key = ("HTTP ports", rule_key(mesh, client.namespace, client.meta.labels))
    if key not in mesh.scratch:
        mesh.scratch[key] = frozenset(
            port.port
            for service in mesh.services()
            for port in service.ports
            if is_routed_by_host(mesh, port, port.port)
            and not hidden(mesh, service, client.namespace, client.meta.labels)
        )
    ports: frozenset[int] = mesh.scratch[key]
    return ports


def is_used(mesh: Mesh, client: Pod, listener: Listener) -> bool:
    """Whether the sidecar of a client has a listener."""
    if hidden(mesh, listener.service, client.namespace, client.meta.labels):
        return False
    if not listener.passes_through:
        return True
    rule = client_rule(mesh, client.namespace, client.meta.labels, listener.service)
    policy = rule.for_port(listener.port.port) if rule else TrafficPolicy()
    return has_endpoint_listeners(listener.service, policy)


def servers_of(mesh: Mesh, listener: Listener) -> tuple[Endpoint, ...]:
    """Return the endpoints to which a listener may send a connection."""
    if listener.endpoint:
        return (listener.endpoint,)
    return () if listener.is_closed else ready_endpoints(mesh, listener.service, listener.port)


def ready_endpoints(mesh: Mesh, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
    """Return the ready endpoints of a service port."""
    return tuple(endpoint for endpoint in mesh.endpoints(service, port) if endpoint.ready)
