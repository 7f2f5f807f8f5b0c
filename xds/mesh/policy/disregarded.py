"""Find ignored entries of Services, EndpointSlices and Endpoints.

An entry is ignored if its address belongs to another object, its Pod is unknown, or its port belongs to a
sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import ListedEndpoint, Mesh
from xds.mesh.model.objects import Interception, Ref, Service
from xds.mesh.policy.reach import is_closed


class Disregarded(NamedTuple):
    """An ignored entry of an object."""

    ref: Ref
    """Object that contains the entry."""
    reason: str
    """Machine-readable reason in CamelCase."""
    what: str
    """Message for users: what is ignored and why."""


def disregarded(mesh: Mesh) -> Iterator[Disregarded]:
    """Yield the ignored entries of a mesh without duplicates, by the namespace of their Service."""
    entries = (entry for service in mesh.services() for entry in _entries_of(mesh, service))
    yield from dict.fromkeys(entries)


def _entries_of(mesh: Mesh, service: Service) -> Iterator[Disregarded]:
    for address in service.addresses:
        if not mesh.may_answer(service, address):
            owners = _owners(mesh, address)
            what = f"{address} belongs to {owners}: traffic to it is not sent to this {service.ref.kind}"
            if not service.entry_host:
                what = f"clusterIP {what}"
            yield Disregarded(service.ref, "AddressNotOwned", what)
    closed = mesh.config.closed_ports(Interception.NONE)  # in any mode of interception
    has_entries = mesh.in_namespace(service.namespace).has_workload_entries
    for port in service.ports:
        listed = tuple(mesh.listed_endpoints(service, port))
        for each in listed:
            yield from _listed_entries(mesh, service, each)
        if listed and not has_entries and not any(each.port in closed for each in listed):
            continue  # Finding the endpoints takes longer.
        for endpoint in mesh.endpoints(service, port):
            if is_closed(mesh, endpoint):
                what = (
                    f"port {port.port} forwards to port {endpoint.port}, "
                    "which is reserved for the sidecar: use another port for the application"
                )
                yield Disregarded(service.ref, "PortOfSidecar", what)


def _listed_entries(mesh: Mesh, service: Service, listed: ListedEndpoint) -> Iterator[Disregarded]:
    address, target_ref = listed.address, listed.entry.pod
    if listed.is_unknown:
        what = f"{address} is ignored until its targetRef {target_ref} is known to have this address"
        yield Disregarded(listed.source, "PodUnknown", what)
        return
    if target_ref and listed.pod and listed.pod.ref != target_ref:
        what = f"{address} belongs to {listed.pod.ref}: targetRef {target_ref} is ignored"
        yield Disregarded(listed.source, "AddressNotOwned", what)
    if service.headless and not mesh.may_answer(service, address):
        what = (
            f"{address} belongs to {_owners(mesh, address)}: connections to it are not sent to {service.ref}"
        )
        yield Disregarded(listed.source, "AddressNotOwned", what)


def _owners(mesh: Mesh, address: str) -> str:
    owners = mesh.owners(address)
    return f"{owners[0].ref}" + (" and others" if len(owners) > 1 else "")
