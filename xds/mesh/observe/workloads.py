"""Resolve the addresses and cluster names in reports to workloads and services of the mesh."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import CLUSTER_DOMAIN, Pod, Ref, Service, ServicePort
from xds.mesh.observe.edges import Client, Target

REMEMBERED_SECONDS = 60.0
"""Time for which the addresses of a deleted pod stay known, because reports about it arrive later."""
MAX_REMEMBERED = 10_000
"""Maximum number of remembered addresses."""
_POD = "pod/"
_SUFFIX = f".svc.{CLUSTER_DOMAIN}"


class DeletedPods:
    """The addresses of pods that were deleted recently. All times are in seconds of the same clock."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, tuple[float, Client]] = OrderedDict()

    def add(self, pod: Pod, now: float) -> None:
        """Remember a deleted pod."""
        for address in pod.addresses:
            self._clients.pop(address, None)
            self._clients[address] = now + REMEMBERED_SECONDS, workload(pod)
        while self._clients and (self._is_expired(now) or len(self._clients) > MAX_REMEMBERED):
            self._clients.popitem(last=False)

    def get(self, address: str, now: float) -> Client | None:
        """Return the workload that had an address until recently."""
        until, client = self._clients.get(address, (0.0, None))
        return client if now <= until else None

    def _is_expired(self, now: float) -> bool:
        return next(iter(self._clients.values()))[0] < now


def workload(pod: Pod) -> Client:
    """Return the workload of a pod: its namespace and service account."""
    return Client(pod.namespace, pod.service_account)


def pod_target(pod: Pod) -> str:
    """Return the name of a pod as the target of traffic to ports that belong to no service."""
    return f"{_POD}{pod.name}"


def pod_of_target(target: Target) -> str:
    """Return the name of the pod that a target belongs to; empty for a service."""
    return target.name.removeprefix(_POD) if target.name.startswith(_POD) else ""


def client_at(mesh: Mesh, deleted: DeletedPods, address: str, now: float) -> Client | None:
    """Return the client at an address: a workload, or the address itself; None if it is not an address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    text = str(mapped or parsed)
    if pod := mesh.pod_at(text):
        return workload(pod)
    return deleted.get(text, now) or Client("", text)


def target_of(mesh: Mesh, pod: Pod, port: int) -> Target:
    """Return the service port that a pod's port belongs to, or else the port of the pod itself."""
    cache: dict[tuple[Ref, int], Target] = mesh.scratch.setdefault("observed ports", {})
    if target := cache.get((pod.ref, port)):
        return target
    if exposure := mesh.exposure(pod, port):
        target = Target(exposure.service.namespace, exposure.service.name, exposure.port.port)
    else:
        target = Target(pod.namespace, pod_target(pod), port)
    if len(cache) < MAX_REMEMBERED:
        cache[pod.ref, port] = target
    return target


def service_port(mesh: Mesh, host: str, port: str) -> tuple[Service, ServicePort] | None:
    """Return the service port with a full DNS name and a port number; None if there is none."""
    cache: dict[tuple[str, str], tuple[Service, ServicePort]]
    cache = mesh.scratch.setdefault("observed service ports", {})
    if found := cache.get((host, port)):
        return found
    name, _, namespace = host.removesuffix(_SUFFIX).partition(".")
    service = mesh.service(namespace, name) if host.endswith(_SUFFIX) else None
    for each in service.ports if service else ():
        if service and str(each.port) == port:
            cache[host, port] = service, each
            return service, each
    return None
