"""Resolve the addresses and cluster names in reports to workloads and services of the mesh."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

from xds.mesh.envoy import names
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import service_key
from xds.mesh.model.objects import Pod, Ref, Service
from xds.mesh.observe.edges import Client, Target

REMEMBERED_SECONDS = 60.0
"""Time for which the addresses of a deleted pod stay known, because reports about it arrive later."""
MAX_REMEMBERED = 10_000
"""Maximum number of remembered addresses."""
_POD = "pod/"
_MAX_ADDRESS_LENGTH = 64
"""Maximum number of characters of an address. An IPv6 address with a zone has about 60."""


class Destination(NamedTuple):
    """Destination of a sidecar's outbound cluster."""

    service: Service
    """Service that it belongs to."""
    target: Target
    """Port of that service."""
    subset: str
    """Name of a subset, or address of a single endpoint; empty for the whole service."""


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
    pods: dict[str, Client] = mesh.scratch.setdefault("observed clients", {})
    if client := pods.get(address):
        return client
    text = _canonical(address) if len(address) <= _MAX_ADDRESS_LENGTH else ""
    if not text:
        return None
    if pod := mesh.pod_at(text):
        return pods.setdefault(text, workload(pod))
    return deleted.get(text, now) or Client("", text)


@lru_cache(MAX_REMEMBERED)
def _canonical(address: str) -> str:
    """Return the canonical form of an address, IPv4 if it is an IPv4 address; empty if it is not one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


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


def destination(mesh: Mesh, cluster: str) -> Destination | None:
    """Return the destination of a cluster with this name; None if it is no service port of the mesh."""
    cache: dict[str, Destination] = mesh.scratch.setdefault("observed destinations", {})
    if found := cache.get(cluster):
        return found
    port, subset, host = names.parse_outbound(cluster)
    namespace, name = service_key(host)
    service = mesh.service(namespace, name)
    for each in service.ports if service else ():
        if service and str(each.port) == port:
            result = Destination(service, Target(namespace, name, each.port), subset)
            if not subset:  # A report can contain any subset.
                cache[cluster] = result
            return result
    return None
