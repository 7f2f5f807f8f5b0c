"""Objects as they are after `kubectl apply`."""

from __future__ import annotations

from dataclasses import replace

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ENTRY, Fact, Pod, Ref, Service, ServiceEntry


def as_applied(mesh: Mesh, fact: Fact) -> Fact:
    """Return a fact as `kubectl apply` leaves it: fields that the API server has set are kept."""
    old = mesh.get(fact.ref)
    if old is None:
        return fact
    created, uid = fact.meta.created or old.meta.created, fact.meta.uid or old.meta.uid
    meta = replace(fact.meta, created=created, uid=uid)
    if isinstance(fact, Service) and isinstance(old, Service) and not fact.headless:
        return replace(fact, meta=meta, addresses=fact.addresses or old.addresses)
    if isinstance(fact, Pod) and isinstance(old, Pod) and not fact.address:
        status = {name: getattr(old, name) for name in ("address", "more_addresses", "ready", "ended")}
        return replace(fact, meta=meta, **status)
    if isinstance(fact, ServiceEntry):
        services = tuple(replace(service, meta=meta) for service in fact.services)
        return replace(fact, meta=meta, services=services)
    return replace(fact, meta=meta)


def running_pod(mesh: Mesh, template: Ref) -> Pod | None:
    """Return a pod of the workload that a template such as `deploy/web` stands for, if the mesh has one."""
    kind, is_template, workload = template.name.partition("/")
    pods = mesh.in_namespace(template.namespace).pods.values() if is_template and kind != ENTRY else ()
    return next((pod for pod in pods if pod.name.startswith(f"{workload}-")), None)
