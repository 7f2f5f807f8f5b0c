"""What is wanted of each port of a pod with a sidecar: the mode in force, and what its clients are going to send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ROLLOUT, Mode, Pod, PortKey, Service
from xds.mesh.policy.mtls import Send, endpoint_mode


class Want(NamedTuple):
    """What is wanted of one port."""

    mode: Mode
    will: Send
    uid: str
    """Of the pod."""
    immediate: bool
    """Whether the policy says that nobody is to be waited for."""


def wanted_of(mesh: Mesh, service: Service) -> Iterator[tuple[PortKey, Want]]:
    """Yield what is wanted of each endpoint of a service that has a sidecar."""
    for port in service.ports:
        for endpoint in mesh.endpoints(service, port):
            server = endpoint_mode(mesh, endpoint)
            if server and endpoint.pod:
                mtls = mesh.config.enable_auto_mtls and server.mode is not Mode.DISABLE
                policy = mesh.get(server.decided_by)
                immediate = bool(policy) and policy.meta.annotations.get(ROLLOUT) == "immediate"  # type: ignore[union-attr]
                want = Want(
                    server.mode,
                    Send.MTLS if mtls else Send.PLAINTEXT,
                    endpoint.pod.meta.uid,
                    immediate,
                )
                yield (endpoint.pod.ref, endpoint.port), want


def is_there(mesh: Mesh, key: PortKey) -> bool:
    """Whether a port's pod is there, with a sidecar."""
    pod = mesh.get(key[0])
    return isinstance(pod, Pod) and pod.has_sidecar and not pod.ended


def services_at(mesh: Mesh, key: PortKey) -> frozenset[tuple[str, int]]:
    """Return the services, and ports of them, that lead to a port of a pod."""
    pod = mesh.get(key[0])
    found = mesh.exposures(pod) if isinstance(pod, Pod) else ()
    return frozenset((each.service.host, each.port.port) for each in found if each.target == key[1])
