"""Find connections to a Service that do not go to its cluster, because another Service may own the address.

For example, the EndpointSlice of a headless Service can list a pod of another namespace, or a clusterIP.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Service, ServicePort
from xds.mesh.policy.listeners import Listener, is_routed_by_host, listeners_at, ready_endpoints, servers_of
from xds.mesh.policy.mtls import dialled_by_clients


@dataclass(frozen=True, slots=True)
class Contest:
    """Where connections to an endpoint of a service port go."""

    key: Hashable
    """Contests with equal keys lead to equal answers."""
    listeners: tuple[Listener | None, ...] = field(compare=False)
    """Listeners that clients' sidecars may have for the dialled address, in order of precedence.

    None stands for the cluster of the called Service. Without a listener, connections pass through.
    """
    endpoint: Endpoint = field(compare=False)
    """The endpoint of the called Service."""
    dialled: tuple[Endpoint, ...] = field(compare=False)
    """Servers at the address that clients connect to."""
    listed: tuple[Endpoint, ...] = field(compare=False)
    """Servers at the endpoint's address, to which the cluster of the called Service connects."""


def contest_of(
    mesh: Mesh,
    service: Service,
    port: ServicePort,
    endpoint: Endpoint,
    key_of: Callable[[Mesh, Endpoint], Hashable],
) -> Contest | None:
    """Return where connections to an endpoint go; None if they go to the Service's cluster and the endpoint.

    Args:
        mesh: the facts.
        service: Service that clients call.
        port: port of the Service.
        endpoint: endpoint that a load balancer picks.
        key_of: returns the properties of a server that answers depend on.
    """
    if endpoint.pod and not service.headless and _is_only_owner(mesh, service):
        return None
    listeners = _listeners(mesh, service, port, endpoint)
    at_address = _servers_of_owner(mesh, service, *dialled_by_clients(service, port, endpoint))
    at_endpoint = None if endpoint.pod else _servers_of_owner(mesh, service, endpoint.address, endpoint.port)
    if at_address is at_endpoint is None and listeners and not any(listeners):
        return None
    listed = (endpoint,) if at_endpoint is None else at_endpoint
    dialled = listed if at_address is None else at_address
    key = (
        *(tuple(key_of(mesh, server) for server in servers) for servers in (dialled, listed)),
        *(found and _key(mesh, found, key_of) for found in listeners),
    )
    return Contest(key, listeners, endpoint, dialled, listed)


def _is_only_owner(mesh: Mesh, service: Service) -> bool:
    """Whether no other Service or pod has a clusterIP of a service."""
    key = ("is only owner", service.namespace, service.name)
    if key not in mesh.scratch:
        mesh.scratch[key] = all(
            mesh.may_answer(service, address) and len(mesh.services_at(address)) == 1
            for address in service.addresses
        )
    found: bool = mesh.scratch[key]
    return found


def _listeners(
    mesh: Mesh, service: Service, port: ServicePort, endpoint: Endpoint
) -> tuple[Listener | None, ...]:
    address, number = dialled_by_clients(service, port, endpoint)
    if not address:
        return (None,)

    def is_own(found: Listener) -> bool:
        is_endpoint = found.endpoint is None or found.endpoint.port == endpoint.port
        return found.service.ref == service.ref and found.port == port and is_endpoint and not found.is_closed

    found = listeners_at(mesh, address, number)
    listeners = tuple(None if is_own(listener) else listener for listener in found)
    if is_routed_by_host(mesh, port, number) and all(listener.passes_through for listener in found):
        return (*listeners, None)
    return listeners


def _servers_of_owner(mesh: Mesh, service: Service, address: str, number: int) -> tuple[Endpoint, ...] | None:
    """Return the servers at an address that is a clusterIP of another Service; None if it is not."""
    owner = next(iter(mesh.owners(address)), None)
    if not isinstance(owner, Service) or owner.ref == service.ref:
        return None
    return next((ready_endpoints(mesh, owner, port) for port in owner.ports if port.port == number), ())


def _key(mesh: Mesh, listener: Listener, key_of: Callable[[Mesh, Endpoint], Hashable]) -> Hashable:
    servers = tuple(key_of(mesh, server) for server in servers_of(mesh, listener))
    return listener.service.ref, listener.port, listener.passes_through, servers
