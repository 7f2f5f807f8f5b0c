"""Visibility: which clients can use a service by its name and addresses.

For all other clients, the addresses of the service are unknown addresses. discoverySelectors hide all
services of a namespace from all clients. `exportTo` of the service, or else the mesh's default, says in which
namespaces clients may see it. A Sidecar says which of these services its clients see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Namespace, Ref, Service, Sidecar, selects

Imports: TypeAlias = frozenset[tuple[str, str]]
"""Namespaces and hosts of services that clients see. `*` stands for all namespaces, `.` for the client's."""
_ALL: Imports = frozenset({("*", "*")})


class Hidden(NamedTuple):
    """Why clients do not see a service."""

    by: Ref | None
    """Object that hides it; None if the mesh's default does."""


def is_discovered(mesh: Mesh, namespace: str) -> bool:
    """Whether discoverySelectors select a namespace. They do if its labels are not known."""
    if not mesh.config.discovery_selectors:  # In most meshes.
        return True
    found = mesh.get(Ref("Namespace", "", namespace))
    return not isinstance(found, Namespace) or any(
        selects(selector, found.meta.labels) for selector in mesh.config.discovery_selectors
    )


def exported_to(mesh: Mesh, service: Service) -> tuple[str, ...]:
    """Return the namespaces in which clients may see a service; `*` stands for all of them, `~` for none."""
    if not is_discovered(mesh, service.namespace):
        return ("~",)
    default = mesh.config.default_service_export_to
    return service.export_to or tuple(service.namespace if name == "." else name for name in default)


def sidecar_of(mesh: Mesh, namespace: str, labels: Mapping[str, str]) -> Sidecar | None:
    """Return the Sidecar that applies to clients; None if there is none.

    Those with a matching selector come first, then the namespace's, then the mesh's. The oldest one wins.
    """
    if not namespaces_with_sidecars(mesh):  # In most meshes.
        return None
    for sidecar in mesh.in_namespace(namespace).sidecars:
        if covers(sidecar.selector, labels):
            return sidecar
    return default_sidecar(mesh)


def default_sidecar(mesh: Mesh) -> Sidecar | None:
    """Return the Sidecar of namespaces without one of their own."""
    root = mesh.config.root_namespace
    return next((found for found in mesh.in_namespace(root).sidecars if found.is_mesh_wide(root)), None)


def allows_any_outbound(mesh: Mesh, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether connections of clients to unknown addresses are passed through (ALLOW_ANY)."""
    sidecar = sidecar_of(mesh, namespace, labels)
    if sidecar is None or sidecar.allow_any_outbound is None:
        return mesh.config.allow_any_outbound
    return sidecar.allow_any_outbound


def imports_of(mesh: Mesh, namespace: str, labels: Mapping[str, str]) -> Imports:
    """Return the services that the Sidecar of clients lets them see."""
    sidecar = sidecar_of(mesh, namespace, labels)
    return _ALL if sidecar is None else _imports(mesh, sidecar)


def _imports(mesh: Mesh, sidecar: Sidecar) -> Imports:
    key = ("imports", sidecar.ref)
    if key not in mesh.scratch:
        mesh.scratch[key] = frozenset(sidecar.hosts)
    imports: Imports = mesh.scratch[key]
    return imports


def is_imported(imports: Imports, service: Service, namespace: str) -> bool:
    """Whether a service is among those that a Sidecar lets clients in a namespace see."""
    host = service.host
    # Look up each pattern that matches: a Sidecar can have thousands of them.
    suffixes = (f"*{host[start:]}" for start, char in enumerate(host) if char == ".")
    names = ("*", service.namespace, *["."] * (service.namespace == namespace))
    return any((name, pattern) in imports for pattern in ("*", host, *suffixes) for name in names)


def is_exported(mesh: Mesh, service: Service, namespace: str) -> bool:
    """Whether clients in a namespace may see a service."""
    namespaces = exported_to(mesh, service)
    return "*" in namespaces or namespace in namespaces


def hidden(mesh: Mesh, service: Service, namespace: str, labels: Mapping[str, str]) -> Hidden | None:
    """Return why clients do not see a service; None if they see it."""
    if not is_exported(mesh, service, namespace):
        if not is_discovered(mesh, service.namespace):
            return Hidden(Ref("Namespace", "", service.namespace))
        return Hidden(service.ref if service.export_to else None)
    sidecar = sidecar_of(mesh, namespace, labels)
    if sidecar and not is_imported(_imports(mesh, sidecar), service, namespace):
        return Hidden(sidecar.ref)
    return None


def namespaces_with_sidecars(mesh: Mesh) -> frozenset[str]:
    """Return the namespaces with a Sidecar."""
    key = "namespaces with Sidecars"
    if key not in mesh.scratch:
        mesh.scratch[key] = frozenset(name for name in mesh.namespaces() if mesh.in_namespace(name).sidecars)
    names: frozenset[str] = mesh.scratch[key]
    return names


def _limits(mesh: Mesh) -> frozenset[Imports]:
    """Return what the Sidecars of the mesh let their clients see."""
    if _limits not in mesh.scratch:
        mesh.scratch[_limits] = frozenset(
            _imports(mesh, each)
            for name in namespaces_with_sidecars(mesh)
            for each in mesh.in_namespace(name).sidecars
        )
    limits: frozenset[Imports] = mesh.scratch[_limits]
    return limits


def limits_visibility(mesh: Mesh) -> bool:
    """Whether there may be services that some clients do not see."""
    return (
        bool(mesh.config.discovery_selectors)
        or "*" not in mesh.config.default_service_export_to
        or bool(namespaces_with_sidecars(mesh))
        or any(mesh.in_namespace(name).export_scopes for name in mesh.namespaces())
    )


def is_visible_to_all(mesh: Mesh, service: Service) -> bool:
    """Whether all clients are sure to see a service."""
    key = ("visible to all", service.key)
    if key not in mesh.scratch:
        is_hidden = any(not is_imported(imports, service, "") for imports in _limits(mesh))
        mesh.scratch[key] = "*" in exported_to(mesh, service) and not is_hidden
    return bool(mesh.scratch[key])
