"""What a change means for plaintext: ports that it makes STRICT or opens, and the traffic observed there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from xds.mesh.model.applied import running_pod
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Mode, ModePolicy, Pod, Ref
from xds.mesh.model.workload import owner_name
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.workloads import pod_of_target, pod_target, target_of
from xds.mesh.policy.direct import mode_at
from xds.mesh.policy.hops import Clients, Grouping
from xds.mesh.policy.mtls import enforced_mode, ports_with_own_mode
from xds.mesh.policy.prediction import HopChange, Scope

PodPort: TypeAlias = tuple[Ref, int]
"""A port of a pod."""


class SeenTraffic(NamedTuple):
    """Plaintext or refused traffic that was observed."""

    client: Client
    """Client workload, or an address."""
    target: Target
    """Port that it called."""
    mode: TrafficMode
    """PLAINTEXT or REFUSED."""
    first_seen: float
    """Unix time of the first report, in seconds."""
    last_seen: float
    """Unix time of the last report, in seconds."""
    by_server: bool
    """Whether the server's sidecar has reported it, not only the client's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradictions:
    """The ports that a change makes STRICT or opens, and the traffic that was observed there."""

    locked: frozenset[PodPort]
    """Ports that become STRICT."""
    opened: frozenset[PodPort]
    """Ports that were STRICT and accept plaintext after the change."""
    refused: tuple[SeenTraffic, ...]
    """Traffic to ports that become STRICT, last seen first. The change would stop it."""
    admitted: tuple[SeenTraffic, ...]
    """Refused traffic to ports that are opened, last seen first. The change would let it pass."""
    unknown_services: frozenset[str] = frozenset()
    """Services (NAME.NAMESPACE) that no longer exist, in namespaces with ports that become STRICT.

    Traffic to them may have gone to the same pods.
    """


def find_contradictions(
    before: Mesh, after: Mesh, scope: Scope | None, seen: Iterable[SeenTraffic]
) -> Contradictions:
    """Return what was observed at the ports that a change makes STRICT or opens.

    Args:
        before: the mesh without the change.
        after: the mesh with the change.
        scope: what the change may affect (`scope_of`); None for everything.
        seen: the observed traffic.
    """
    seen = sorted(seen, key=lambda each: (-each.last_seen, each))
    ports = _ChangedPorts()
    observed_ports = _observed_pod_ports(seen)
    for pod in after.pods():
        if pod.has_sidecar and not pod.ended and (scope is None or _may_change(pod, scope)):
            _compare(before, after, pod, observed_ports, ports)
    namespaces = {ref.namespace for ref, _ in ports.locked}
    unknown_services = (
        f"{each.target.name}.{each.target.namespace}"
        for each in seen
        if each.target.namespace in namespaces
        and not pod_of_target(each.target)
        and before.service(each.target.namespace, each.target.name) is None
    )
    return Contradictions(
        locked=frozenset(ports.locked),
        unknown_services=frozenset(unknown_services),
        opened=frozenset(ports.opened),
        refused=tuple(
            each
            for each in seen
            if _canonical(each.target) in ports.locked_targets and not _is_explained(before, each)
        ),
        admitted=tuple(
            each
            for each in seen
            if each.mode is TrafficMode.REFUSED and _canonical(each.target) in ports.opened_targets
        ),
    )


@dataclass(slots=True)
class _ChangedPorts:
    """Ports that become STRICT (locked) or stop being STRICT (opened), and the targets that lead to them."""

    locked: set[PodPort] = field(default_factory=set)
    opened: set[PodPort] = field(default_factory=set)
    locked_targets: set[Target] = field(default_factory=set)
    opened_targets: set[Target] = field(default_factory=set)


def _may_change(pod: Pod, scope: Scope) -> bool:
    return scope.namespaces is None or pod.namespace in scope.namespaces


def _observed_pod_ports(seen: Iterable[SeenTraffic]) -> Mapping[Target, set[int]]:
    """Return the observed ports that belong to no service, by workload (a canonical target with port 0)."""
    ports: dict[Target, set[int]] = {}
    for each in seen:
        if pod_of_target(each.target):
            ports.setdefault(_canonical(each.target)._replace(port=0), set()).add(each.target.port)
    return ports


def _canonical(target: Target) -> Target:
    """Return a target with its pod's name replaced by its workload's: pods may have been replaced since."""
    pod = pod_of_target(target)
    return target._replace(name=f"workload/{owner_name(pod)}") if pod else target


def _compare(
    before: Mesh, after: Mesh, pod: Pod, observed: Mapping[Target, set[int]], changed: _ChangedPorts
) -> None:
    """Add the ports of a pod that a change makes STRICT or opens."""
    own = _canonical(Target(pod.namespace, pod_target(pod), 0))
    targets: dict[int, list[Target]] = {port: [] for port in observed.get(own, ())}
    for port in ports_of(after, pod):
        targets.setdefault(port, [])
    for exposure in after.exposures(pod):
        service = Target(exposure.service.namespace, exposure.service.name, exposure.port.port)
        targets.setdefault(exposure.target, []).append(service)
    old_pod = before.pod(pod.namespace, pod.name) or running_pod(before, pod.ref)
    for port, services in targets.items():
        was_strict = old_pod is not None and _is_strict(before, old_pod, port)
        is_strict = _is_strict(after, pod, port)
        if is_strict and not was_strict:
            changed.locked.add((pod.ref, port))
            changed.locked_targets.update((*services, own._replace(port=port)))
        elif was_strict and not is_strict:
            changed.opened.add((pod.ref, port))
            changed.opened_targets.update((*services, own._replace(port=port)))


def _is_strict(mesh: Mesh, pod: Pod, port: int) -> bool:
    mode = mode_at(mesh, pod, port)
    return mode is not None and mode[0] is Mode.STRICT


def _is_explained(mesh: Mesh, seen: SeenTraffic) -> bool:
    """Whether traffic may have gone to endpoints without a sidecar, which stay as they are.

    Such traffic is reported by clients only. Servers with a sidecar report what they receive.
    """
    if seen.by_server:
        return False
    service = mesh.service(seen.target.namespace, seen.target.name)
    return service is not None and any(
        enforced_mode(mesh, endpoint) is None
        for port in service.ports
        if port.port == seen.target.port
        for endpoint in mesh.endpoints(service, port)
    )


def ports_of(mesh: Mesh, pod: Pod) -> set[int]:
    """Return the ports of a pod that Services forward to, that it declares, or that have their own mode."""
    declared = {port.port for port in pod.ports}
    exposed = {exposure.target for exposure in mesh.exposures(pod)}
    return declared | exposed | set(ports_with_own_mode(mesh, pod))


def times_by_target(seen: Iterable[SeenTraffic]) -> dict[Target, dict[Client, float]]:
    """Return when the traffic of each client to each target was last observed (Unix time)."""
    times: dict[Target, dict[Client, float]] = {}
    for each in seen:
        clients = times.setdefault(each.target, {})
        clients[each.client] = max(each.last_seen, clients.get(each.client, 0.0))
    return times


def last_seen(change: HopChange, times: Mapping[Target, Mapping[Client, float]], mesh: Mesh) -> float | None:
    """Return when traffic of a hop's clients to its target was last observed; None if it was not.

    Args:
        change: the hop.
        times: the traffic (`times_by_target`).
        mesh: the mesh with the change.
    """
    clients = {Client(item.namespace, account) for item in change.clients for account in item.accounts}
    found = (
        time
        for target in observed_targets(change, mesh)
        for client, time in times.get(target, {}).items()
        if client in clients
    )
    return max(found, default=None)


def observed_targets(change: HopChange, mesh: Mesh) -> set[Target]:
    """Return the targets under which sidecars report the traffic of a hop.

    Args:
        change: the hop.
        mesh: the mesh with the change.
    """
    # Servers report the oldest service of a port.
    servers = {target_of(mesh, endpoint.pod, endpoint.port) for endpoint in change.endpoints if endpoint.pod}
    return {Target(change.service.namespace, change.service.name, change.port.port), *servers}


# --- ports that accept plaintext ----------------------------------------------------------------------------


class PlaintextPort(NamedTuple):
    """A port that still accepts plaintext after a change, on pods that a changed policy selects."""

    port: int
    """Port of the pods; 0 for all ports of pods without a sidecar."""
    mode: Mode | None
    """Mode of the port; None if no sidecar intercepts it."""
    decided_by: Ref | None
    """Object that sets the mode."""
    was_strict: bool
    """Whether the port was STRICT before the change."""
    clients: tuple[Clients, ...]
    """The pods, by service account."""


class PolicyPorts(NamedTuple):
    """The ports of the pods that PeerAuthentications apply to."""

    strict: int
    """Number of pods' ports that are STRICT."""
    plaintext: tuple[PlaintextPort, ...]
    """Ports that accept plaintext."""


def policy_ports(before: Mesh, after: Mesh, refs: Iterable[Ref]) -> PolicyPorts:
    """Return the ports, after a change, of the pods that its PeerAuthentications apply to.

    Args:
        before: the mesh without the change.
        after: the mesh with the change.
        refs: the objects that the change applies.
    """
    found: dict[tuple[int, Mode | None, Ref | None, bool], list[Pod]] = {}
    facts = (fact for ref in refs if isinstance(fact := after.get(ref), ModePolicy))
    policies = [policy for policy in facts if policy.is_peer_authentication]
    strict = 0
    for pod in after.pods():
        if pod.ended or not any(_applies(after, policy, pod) for policy in policies):
            continue
        if not pod.has_sidecar:
            found.setdefault((0, None, None, False), []).append(pod)
            continue
        old_pod = before.pod(pod.namespace, pod.name) or running_pod(before, pod.ref)
        for port in ports_of(after, pod):
            mode, decided_by = mode_at(after, pod, port) or (None, None)
            if mode is Mode.STRICT:
                strict += 1
            else:
                was_strict = old_pod is not None and _is_strict(before, old_pod, port)
                found.setdefault((port, mode, decided_by, was_strict), []).append(pod)
    grouping = Grouping(found)
    keys = sorted(found, key=lambda key: (key[0], str(key[1]), natural_key(str(key[2])), key[3]))
    return PolicyPorts(strict, tuple(PlaintextPort(*key, clients=grouping.merge([key])) for key in keys))


def _applies(mesh: Mesh, policy: ModePolicy, pod: Pod) -> bool:
    """Whether a pod is in the scope of a policy."""
    if pod.namespace == policy.namespace and policy.selector:
        return covers(policy.selector, pod.meta.labels)
    return policy.namespace in {pod.namespace, mesh.config.root_namespace} and not policy.selector
