"""The desired state of each port of a pod with a sidecar: its mode, and what clients have to send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ROLLOUT, Mode, Pod, PortKey, Service
from xds.mesh.policy.mtls import Send, endpoint_mode


class Desired(NamedTuple):
    """The desired state of one port."""

    mode: Mode
    """The mode of the listener."""
    send: Send
    """What clients send, unless a DestinationRule says otherwise."""
    uid: str
    """The UID of the pod."""
    immediate: bool
    """Whether the policy asks to change both sides at once."""


def desired_ports(mesh: Mesh, service: Service) -> Iterator[tuple[PortKey, Desired]]:
    """Yield the desired state of each endpoint of a service that has a sidecar."""
    for port in service.ports:
        for endpoint in mesh.endpoints(service, port):
            server = endpoint_mode(mesh, endpoint)
            if server and endpoint.pod:
                mtls = mesh.config.enable_auto_mtls and server.mode is not Mode.DISABLE
                policy = mesh.get(server.decided_by)
                immediate = bool(policy) and policy.meta.annotations.get(ROLLOUT) == "immediate"  # type: ignore[union-attr]
                desired = Desired(
                    server.mode,
                    Send.MTLS if mtls else Send.PLAINTEXT,
                    endpoint.pod.meta.uid,
                    immediate,
                )
                yield (endpoint.pod.ref, endpoint.port), desired


def has_running_sidecar(mesh: Mesh, key: PortKey) -> bool:
    """Return whether the pod of a port exists, has a sidecar, and has not ended."""
    pod = mesh.get(key[0])
    return isinstance(pod, Pod) and pod.has_sidecar and not pod.ended


def services_at(mesh: Mesh, key: PortKey) -> frozenset[tuple[str, int]]:
    """Return the hosts and service ports of the services that lead to a port of a pod."""
    pod = mesh.get(key[0])
    exposures = mesh.exposures(pod) if isinstance(pod, Pod) else ()
    return frozenset(
        (exposure.service.host, exposure.port.port) for exposure in exposures if exposure.target == key[1]
    )
