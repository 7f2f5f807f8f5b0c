"""Which proxies an object affects, which of them have ACKed it, and which transitions it caused.

An object affects a proxy that subscribes to a resource made from the object: a resource whose sources name
the object or, for an authentication policy, an assignment of a service with a port whose mode it decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import NamedTuple, TypeAlias

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.rollout_text import port_line, rule_line
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import POLICY_KINDS, PodKey, Ref
from xds.mesh.policy.authorization import rules_of
from xds.mesh.policy.mtls import effective_mode
from xds.mesh.policy.visibility import sidecar_of
from xds.mesh.rollout.progress import port_progress, ports_in_transition, rule_progress
from xds.protocol.session import Session
from xds.protocol.status import State
from xds.protocol.types import short_name
from xds.server import Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, Resource, ResourceSet, Snapshot

MAX_TRANSITIONS = 10
"""Maximum number of ports in transition that are listed."""

_ANY_PORT = 0
"""Stands for the ports of a pod of which none is known."""

_Names: TypeAlias = Mapping[str, frozenset[str]]
"""Names of resources by type URL."""


class Lagging(NamedTuple):
    """A proxy that has not ACKed what was made from an object."""

    node_id: str
    """Node ID of the proxy."""
    reason: str
    """The types that it has not ACKed, or its error message."""
    rejected: bool
    """Whether it has rejected a resource."""


@dataclass(slots=True)
class ObjectProgress:
    """How far an object is, at one moment."""

    affected: int = 0
    """Number of connected proxies that the object affects."""
    lagging: tuple[Lagging, ...] = ()
    """Those that have not ACKed: first those that rejected a resource."""
    transitions: tuple[str, ...] = ()
    """Transitions that the object may have caused, one line each. The list is not complete."""
    servers: int = 0
    """Number of pods with a sidecar that should enforce the object."""
    absent_servers: int = 0
    """Number of those whose sidecar is not connected."""


class ProgressTracker:
    """Follow one object. Results that depend only on the mesh or on a resource set are kept."""

    def __init__(self, controller: Controller, ref: Ref) -> None:
        self._controller, self._ref = controller, ref
        self._mesh: Mesh | None = None
        self._hosts: frozenset[str] = frozenset()
        """Hosts of the services with a port whose mode the object decides."""
        self._servers: frozenset[PodKey] = frozenset()
        """Pods with a sidecar that `ObjectProgress.servers` counts."""
        self._names: dict[tuple[str, str], frozenset[str]] = {}
        """Names of the resources that were made from the object, by type and version of the resource set."""
        self._made: dict[tuple[str, ...], bool] = {}
        """Whether the sources of a resource name the object, by sources."""

    async def read(self) -> ObjectProgress:
        """Return the current progress. The mesh must contain the object."""
        checkpoint = Checkpoint()
        await self._read_mesh(checkpoint)
        affected, lagging = 0, []
        for key, streams in tuple(self._controller.connections.streams.items()):
            await checkpoint()
            reports = [
                report
                for each in tuple(streams)
                if (report := await self._read_stream(key, each, checkpoint))
            ]
            affected += bool(reports)
            lagging += [report for report in reports if isinstance(report, Lagging)][:1]
        lagging.sort(key=lambda proxy: not proxy.rejected)
        absent = {(pod.namespace, pod.pod) for pod in self._controller.absences().pods}
        return ObjectProgress(
            affected,
            tuple(lagging),
            tuple(self._transitions()),
            servers=len(self._servers),
            absent_servers=len(self._servers & absent),
        )

    # --- what the object affects ---------------------------------------------------------------------------

    async def _read_mesh(self, checkpoint: Checkpoint) -> None:
        """Find the services with a port whose mode the object decides, if the mesh has changed."""
        mesh = self._controller.mesh
        if mesh is self._mesh:
            return
        self._mesh, self._names, self._made = mesh, {}, {}
        hosts, servers = set[str](), set[PodKey]()
        is_authorization = self._ref.kind == "AuthorizationPolicy"
        if self._ref.kind == "Sidecar":
            for pod in tuple(mesh.pods()):
                await checkpoint()
                found = sidecar_of(mesh, pod.namespace, pod.meta.labels)
                if pod.has_sidecar and found and found.ref == self._ref:
                    servers.add(pod.key)
        if self._ref.kind in POLICY_KINDS or is_authorization:
            for pod in tuple(mesh.pods()):
                await checkpoint()
                if not (pod.has_sidecar and self._is_in_scope(pod.ref, mesh)):
                    continue
                if is_authorization:
                    if self._ref in rules_of(mesh, pod, http=True).served:
                        servers.add(pod.key)
                    continue
                exposures = mesh.exposures(pod)
                ports = {exposure.target for exposure in exposures}.union(port.port for port in pod.ports)
                decided = {
                    port
                    for port in ports or {_ANY_PORT}
                    if effective_mode(mesh, pod, port).decided_by == self._ref
                }
                hosts.update(each.service.cluster_host for each in exposures if each.target in decided)
                if decided:
                    servers.add(pod.key)
        self._hosts, self._servers = frozenset(hosts), frozenset(servers)

    def _is_in_scope(self, pod: Ref, mesh: Mesh) -> bool:
        """Return whether a policy of the object's namespace can apply to a pod."""
        return self._ref.namespace in {"", pod.namespace, mesh.config.root_namespace}

    async def _resources(self, key: PodKey, snapshot: Snapshot, checkpoint: Checkpoint) -> _Names:
        """Return the names of a snapshot's resources that were made from the object."""
        if self._ref.kind == "Sidecar":  # It decides which resources there are.
            types = snapshot.types.items() if key in self._servers else ()
            return {kind: frozenset(resource.name for resource in each.values()) for kind, each in types}
        names = {kind: await self._in_set(kind, each, checkpoint) for kind, each in snapshot.types.items()}
        return {kind: kind_names for kind, kind_names in names.items() if kind_names}

    async def _in_set(self, type_url: str, resources: ResourceSet, checkpoint: Checkpoint) -> frozenset[str]:
        key = type_url, resources.version
        if key not in self._names:
            names = []
            for resource in resources.values():
                await checkpoint()
                if self._is_made_from(resource):
                    names.append(resource.name)
            self._names[key] = frozenset(names)
        return self._names[key]

    def _is_made_from(self, resource: Resource) -> bool:
        sources, name = resource.sources, str(self._ref)
        if sources not in self._made:
            self._made[sources] = any(s == name or s.startswith(f"{name} (") for s in sources)
        if self._made[sources]:
            return True
        # The assignments of outbound clusters are named PREFIX|PORT|SUBSET|HOST.
        return resource.type_url == ENDPOINT and resource.name.rpartition("|")[2] in self._hosts

    # --- ACKs -----------------------------------------------------------------------------------------------

    async def _read_stream(
        self, key: PodKey, subscriber: Subscriber, checkpoint: Checkpoint
    ) -> Lagging | bool:
        """Return whether the object affects a stream, or why the stream lags."""
        snapshot, node_id = subscriber.snapshot, subscriber.node.id
        made = await self._resources(key, snapshot, checkpoint) if snapshot else {}
        session = subscriber.session
        pod = self._controller.mesh.pod(*key)
        if session is None or pod is None:
            return False
        if self._ref.kind == "Sidecar" and not self._is_in_scope(pod.ref, self._controller.mesh):
            return False
        publisher = self._controller.publisher
        if error := publisher.error_of(key):
            return Lagging(node_id, error, rejected=False)
        # The snapshot may have changed at a checkpoint.
        if publisher.is_pending(key) or snapshot is None or snapshot is not subscriber.snapshot:
            return Lagging(node_id, "waiting for its configuration", rejected=False)
        return self._compare(node_id, session, snapshot, made)

    def _compare(self, node_id: str, session: Session, snapshot: Snapshot, made: _Names) -> Lagging | bool:
        """Compare what a proxy has ACKed with its snapshot, of which `made` was made from the object."""
        is_affected, unacked = False, []
        for kind in session.status():
            desired = snapshot.of(kind.type_url)
            names = [name for name in made.get(kind.type_url, ()) if kind.watch.covers(name)]
            is_affected |= bool(names)
            is_current = kind.synced and kind.watch.resources == desired
            if self._ref.kind == "Sidecar" and kind.type_url in {CLUSTER, LISTENER} and not is_current:
                unacked.append(kind.type_url)  # It may have removed resources.
            if kind.type_url != CLUSTER and is_current:
                continue  # Clusters refer to assignments, which the proxy may not have subscribed to.
            for status in kind.resource_statuses(names):
                is_latest = status.resource and status.resource.version == desired[status.name].version
                is_final = not kind.unanswered and not kind.watch.pending
                if is_latest and is_final and status.state is State.ERROR and status.error:
                    return Lagging(node_id, status.error.message, rejected=True)
                if not is_latest or status.state is not State.SYNCED:
                    unacked.append(kind.type_url)
                unacked += _unacked_references(session, snapshot, status.resource)
        if unacked:
            types = ", ".join(map(short_name, dict.fromkeys(unacked)))
            return Lagging(node_id, f"waiting for {types}", rejected=False)
        return is_affected

    # --- transitions ----------------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether an earlier version of the DestinationRule is still served."""
        return self._ref in self._controller.mesh.served.rules

    def _transitions(self) -> Iterator[str]:
        """Yield transitions that the object may have caused.

        An edit may cause transitions of ports whose mode the object no longer decides. Therefore, all ports
        count to which a policy of its namespace can apply.
        """
        rollouts, mesh = self._controller.rollouts, self._controller.mesh
        if self._ref.kind in POLICY_KINDS:
            keys = [key for key in ports_in_transition(rollouts.rollout) if self._is_in_scope(key[0], mesh)]
            first = nsmallest(MAX_TRANSITIONS, keys)
            yield from map(port_line, port_progress(mesh, rollouts, first))
        elif self._ref.kind == "AuthorizationPolicy":
            pods = (
                pod
                for pod, stages in mesh.served.allow.items()
                if any(policy.ref == self._ref for stage in stages for policy in stage.policies)
            )
            for pod in nsmallest(MAX_TRANSITIONS, pods):
                yield f"{pod.name}.{pod.namespace} applies earlier ALLOW policies to clients in transition"
        else:
            for rule in rule_progress(rollouts):
                if self._ref == ("DestinationRule", rule.namespace, rule.name) and not rule.skipped:
                    yield rule_line(rule)
        if rollouts.rollout.has_unplanned_changes:
            yield "waiting for the next plan of the rollout"


def _unacked_references(session: Session, snapshot: Snapshot, resource: Resource | None) -> Iterator[str]:
    """Yield the types of the resources that a resource refers to and that the proxy has not ACKed.

    A sidecar subscribes to the assignment of a new cluster only after it has received the cluster.
    """
    for type_url, name in resource.refs if resource else ():
        if name in snapshot.of(type_url) and not session.has_acked(type_url, [name]):
            yield type_url
