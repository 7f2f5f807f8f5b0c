"""The desired state of each port of a pod with a sidecar: the listener's mode, and what clients send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ROLLOUT, DestinationRule, Mode, Pod, PortKey, Ref, Service
from xds.mesh.policy.mtls import Send, endpoint_mode


class Desired(NamedTuple):
    """The desired state of one port."""

    mode: Mode
    """The mode of the listener."""
    send: Send
    """What clients without a DestinationRule send."""
    uid: str
    """The UID of the pod."""
    immediate: bool
    """Whether the policy asks to change servers and clients at the same time."""


def desired_ports(mesh: Mesh, service: Service) -> Iterator[tuple[PortKey, Desired]]:
    """Yield the desired state of each endpoint of a service that has a sidecar."""
    for port in service.ports:
        for endpoint in mesh.endpoints(service, port):
            decision = endpoint_mode(mesh, endpoint)
            # A workload that only a ServiceEntry lists has no proxy of ours to wait for.
            if decision and endpoint.pod and mesh.get(endpoint.pod.ref):
                sends_mtls = mesh.config.enable_auto_mtls and decision.mode is not Mode.DISABLE
                policy = mesh.get(decision.decided_by)
                immediate = policy is not None and policy.meta.annotations.get(ROLLOUT) == "immediate"
                desired = Desired(
                    decision.mode,
                    Send.MTLS if sends_mtls else Send.PLAINTEXT,
                    endpoint.pod.meta.uid,
                    immediate,
                )
                yield (endpoint.pod.ref, endpoint.port), desired


def has_running_sidecar(mesh: Mesh, key: PortKey) -> bool:
    """Return whether the pod of a port exists, has a sidecar, and has not ended."""
    pod = mesh.get(key[0])
    return isinstance(pod, Pod) and pod.has_sidecar and not pod.ended


def services_at(mesh: Mesh, key: PortKey) -> frozenset[tuple[str, int]]:
    """Return the hosts (as in names of clusters) and ports of the services that route to a port of a pod."""
    pod = mesh.get(key[0])
    exposures = mesh.exposures(pod) if isinstance(pod, Pod) else ()
    return frozenset(
        (exposure.service.cluster_host, exposure.port.port)
        for exposure in exposures
        if exposure.target == key[1]
    )


def rule_in(mesh: Mesh, ref: Ref) -> DestinationRule | None:
    """Return the desired version of a DestinationRule, or None."""
    rule = mesh.get(ref)
    return rule if isinstance(rule, DestinationRule) else None
