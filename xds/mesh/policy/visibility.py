"""Visibility: which clients can use a service by its name and addresses.

For all other clients, the addresses of the service are unknown addresses.
"""

from __future__ import annotations

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Service


def exported_to(mesh: Mesh, service: Service) -> tuple[str, ...]:
    """Return the namespaces whose clients see a service; `*` stands for all of them, `~` for none."""
    default = mesh.config.default_service_export_to
    return service.export_to or tuple(service.namespace if name == "." else name for name in default)


def is_visible(mesh: Mesh, service: Service, namespace: str) -> bool:
    """Whether clients in a namespace see a service."""
    namespaces = exported_to(mesh, service)
    return "*" in namespaces or namespace in namespaces
