"""Find entries of Services, EndpointSlices and Endpoints that are ignored: foreign addresses and ports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import ListedEndpoint, Mesh
from xds.mesh.model.objects import Ref, Service
from xds.mesh.policy.reach import is_closed


class Disregarded(NamedTuple):
    """An entry of an object that is ignored."""

    ref: Ref
    """Object that has the entry."""
    reason: str
    """Machine-readable reason in CamelCase."""
    what: str
    """Message for users: what is ignored, why, and what to do."""


def disregarded(mesh: Mesh) -> Iterator[Disregarded]:
    """Yield addresses of other owners, unknown Pods and sidecar ports, each once and by namespace."""
    entries = (entry for service in mesh.services() for entry in _of(mesh, service))
    yield from dict.fromkeys(entries)


def _of(mesh: Mesh, service: Service) -> Iterator[Disregarded]:
    for address in service.addresses:
        if not mesh.may_answer(service, address):
            owners = _owners(mesh, address)
            what = f"clusterIP {address} belongs to {owners}: traffic to it is not sent to this Service"
            yield Disregarded(service.ref, "AddressNotOwned", what)
    for port in service.ports:
        for listed in mesh.listed(service, port):
            yield from _listed(mesh, service, listed)
        for endpoint in mesh.endpoints(service, port):
            if is_closed(mesh, endpoint):
                what = (
                    f"port {port.port} leads to port {endpoint.port}, "
                    "which is the sidecar's own and not served: "
                    "let the application listen on another port"
                )
                yield Disregarded(service.ref, "PortOfSidecar", what)


def _listed(mesh: Mesh, service: Service, listed: Listed) -> Iterator[Disregarded]:
    address, named = listed.address, listed.entry.pod
    if listed.withheld:
        what = f"{address} is left out until {named} is known to have this address, as targetRef says"
        yield Disregarded(listed.source, "PodUnknown", what)
        return
    if named and listed.pod and listed.pod.ref != named:
        what = f"{address} belongs to {listed.pod.ref}: targetRef {named} is ignored"
        yield Disregarded(listed.source, "AddressNotOwned", what)
    if service.headless and not mesh.may_answer(service, address):
        what = (
            f"{address} belongs to {_owners(mesh, address)}: connections to it are not sent to {service.ref}"
        )
        yield Disregarded(listed.source, "AddressNotOwned", what)


def _owners(mesh: Mesh, address: str) -> str:
    owners = mesh.owners(address)
    return f"{owners[0].ref}" + (" and others" if len(owners) > 1 else "")
