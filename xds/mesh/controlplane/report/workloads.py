"""The workloads in a report: what their ports enforce and since when, who may call them, and who did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.controlplane.explanation import MODES, object_message
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Mode, Pod, PodKey, PortKey
from xds.mesh.model.workload import Workload, owner_name
from xds.mesh.observe.edges import Target
from xds.mesh.observe.least_privilege import without_pod
from xds.mesh.observe.workloads import pod_of_target, pod_target
from xds.mesh.policy.acceptance import (
    ClientClass,
    Enforcement,
    accepted,
    clients_by_result,
    enforcement,
    pod_endpoints,
    why_accepted,
)
from xds.mesh.policy.access import Permission, patterns_of
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.mtls import served_mode
from xds.mesh.v1 import reports_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge

if TYPE_CHECKING:
    from xds.mesh.controlplane.certificates import Certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a report is made of."""

    mesh: Mesh
    """The objects, and the modes that are served."""
    certificates: Certificates
    """When the certificates of pods expire."""
    edges: Sequence[TrafficEdge] = ()
    """The observed traffic of the period."""
    connected: frozenset[PodKey] = frozenset()
    """Pods whose sidecars are connected to any replica."""
    listeners: Mapping[PodKey, Timestamp | None]
    """Pods whose sidecars are connected to this replica: since when they have ACKed the listener that is
    served, or None if they have not."""
    changes: Mapping[PortKey, tuple[Mode, Timestamp]]
    """The mode that the last rollout of a port has led to, and when."""


class WorkloadReports:
    """Make the parts of a report about workloads."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._mesh = facts, facts.mesh
        self._allowed: dict[Enforcement, list[pb.AllowedClients]] = {}
        self._edges: dict[tuple[str, str], list[tuple[int, TrafficEdge]]] = {}
        for edge in facts.edges:
            target = without_pod(self._mesh, Target(edge.namespace, edge.service, edge.port))
            self._edges.setdefault(target[:2], []).append((target.port, edge))

    def describe(self, workload: Workload) -> pb.ReportedWorkload:
        """Return what is known of a workload."""
        exposures = [exposure for pod in workload.pods for exposure in self._mesh.exposures(pod)]
        services = dict.fromkeys((each.service.namespace, each.service.name) for each in exposures)
        return pb.ReportedWorkload(
            namespace=workload.namespace,
            name=workload.name,
            pods=len(workload.pods),
            sidecars=workload.sidecars,
            connected=sum(pod.key in self._facts.connected for pod in workload.pods if pod.has_sidecar),
            services=[f"{name}.{namespace}" for namespace, name in services],
            ports=self._ports(workload),
            observed=self._observed(
                workload, {(*each.service.key, each.port.port): None for each in exposures}
            ),
            certificates=self._certificates(workload),
        )

    # --- what is enforced -----------------------------------------------------------------------------------

    def _ports(self, workload: Workload) -> Iterator[pb.ReportedPort]:
        groups: dict[tuple[int, Mode | None, Enforcement], list[Pod]] = {}
        for pod in workload.pods:
            for endpoint in pod_endpoints(self._mesh, pod) if pod.has_sidecar else ():
                enforced = enforcement(self._mesh, endpoint)
                served = served_mode(self._mesh, pod, endpoint.port).mode if enforced.mode else None
                groups.setdefault((endpoint.port, served, enforced), []).append(pod)
        # The ports that are not listed come last.
        for (port, served, enforced), pods in sorted(
            groups.items(), key=lambda group: (group[0][0] == OTHER_PORTS, group[0][0])
        ):
            message = pb.ReportedPort(port=port, pods=len(pods), allowed=self._clients(enforced))
            if enforced.mode and served:
                message.mode, message.desired_mode = MODES[served], MODES[enforced.mode.mode]
                message.decided_by.CopyFrom(object_message(self._mesh, enforced.mode.decided_by))
                message.acked = sum(self._facts.listeners.get(pod.key) is not None for pod in pods)
                self._add_since(message, pods, served)
            yield message

    def _add_since(self, message: pb.ReportedPort, pods: Iterable[Pod], served: Mode) -> None:
        """Add since when all pods have enforced a mode, or why that is not known."""
        times, unknown = list[tuple[float, bool, Timestamp]](), Counter[str]()
        for pod in pods:
            acked_at = self._facts.listeners.get(pod.key)
            mode, changed_at = self._facts.changes.get((pod.ref, message.port), (None, None))
            if acked_at is None:
                unknown[self._why_unknown(pod)] += 1
            elif changed_at and mode is served:
                times.append((changed_at.ToMilliseconds(), True, changed_at))
            else:
                times.append((acked_at.ToMilliseconds(), False, acked_at))
        if unknown:
            message.unknown_since = ", ".join(f"{why}: {count}" for why, count in unknown.items())
        else:
            _, message.since_change, since = max(times, key=lambda each: each[:2])
            message.since.CopyFrom(since)

    def _why_unknown(self, pod: Pod) -> str:
        if pod.key in self._facts.listeners:
            return "sidecars that have not ACKed their listener"
        is_elsewhere = pod.key in self._facts.connected
        return "sidecars connected to other replicas" if is_elsewhere else "sidecars that are not connected"

    def _clients(self, enforced: Enforcement) -> list[pb.AllowedClients]:
        """Return the clients that a port accepts."""
        if enforced not in self._allowed:
            self._allowed[enforced] = [*self._find_clients(enforced)]
        return self._allowed[enforced]

    def _find_clients(self, enforced: Enforcement) -> Iterator[pb.AllowedClients]:
        config = self._mesh.config
        if plaintext := accepted(config, enforced, ""):
            yield _allowed(enforced, ClientClass(""), plaintext)
        if enforced.mode is None:
            return
        found = clients_by_result(
            self._mesh, patterns_of(enforced.rules), lambda identity: accepted(config, enforced, identity)
        )
        for permission, clients in found:
            yield _allowed(enforced, clients, permission)

    # --- what was observed, and certificates ----------------------------------------------------------------

    def _observed(
        self, workload: Workload, targets: dict[tuple[str, str, int], None]
    ) -> Iterator[pb.ReportedTraffic]:
        """Yield the traffic to service ports, and to ports of the pods."""
        names = (name for pod in workload.pods for name in (pod_target(pod), f"pod/{owner_name(pod.name)}"))
        keys = dict.fromkeys([*(target[:2] for target in targets), *((workload.namespace, n) for n in names)])
        for key in keys:
            for port, edge in self._edges.get(key, ()):
                if (*key, port) in targets or pod_of_target(Target(*key, port)):
                    yield _traffic(edge)

    def _certificates(self, workload: Workload) -> pb.WorkloadCertificates:
        certificates, domain = self._facts.certificates, self._mesh.config.trust_domain
        pods = [pod for pod in workload.pods if pod.has_sidecar]
        expiries = [expiry for pod in pods if (expiry := certificates.expires_at(pod))]
        renewals = [at for pod in pods if (at := certificates.renew_at(pod))]
        message = pb.WorkloadCertificates(
            identities=sorted({pod.identity(domain) for pod in pods}), known=len(expiries)
        )
        if expiries:
            message.first_expiry.FromDatetime(min(expiries))
            message.last_expiry.FromDatetime(max(expiries))
        if renewals:
            message.first_renewal.FromDatetime(min(renewals))
        return message


def _traffic(edge: TrafficEdge) -> pb.ReportedTraffic:
    return pb.ReportedTraffic(
        client_namespace=edge.client_namespace,
        client=edge.client,
        service=f"{edge.service}.{edge.namespace}:{edge.port}",
        mode=edge.mode,
        requests=edge.requests_per_day,
        first_seen=edge.first_seen,
        last_seen=edge.last_seen,
    )


def _allowed(enforced: Enforcement, clients: ClientClass, found: Permission) -> pb.AllowedClients:
    why, _ = why_accepted(enforced, clients.identity, found)
    is_named = bool(clients.identity) and not clients.is_everyone
    return pb.AllowedClients(
        send=clients.mode,
        clients=str(clients),
        accounts=clients.accounts if is_named else (),
        more_accounts=clients.more_accounts if is_named else 0,
        why=why,
    )
