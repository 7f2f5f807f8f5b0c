"""The AuthorizationPolicies that allow what was observed, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import join_names, natural_key
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Mode, Pod, spiffe_id
from xds.mesh.model.workload import NAME_LABELS, Workload, owner_name, workloads_of
from xds.mesh.observe.edges import Target, TrafficMode
from xds.mesh.observe.record import MAX_NAMES, Flow, Record
from xds.mesh.observe.workloads import pod_of_target
from xds.mesh.policy.access import permission, port_rules
from xds.mesh.policy.authorization import Access, allow_policies_of
from xds.mesh.policy.mtls import effective_mode

_GENERATED_LABELS = {
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
}
"""Labels that Kubernetes adds, and changes when it replaces pods."""


FlowsByTarget: TypeAlias = dict[tuple[str, str], dict[int, list[Flow]]]
"""Traffic by namespace and name, and port, of its target."""


class AllowRule(NamedTuple):
    """Clients that may call ports."""

    ports: tuple[int, ...]
    """Ports of the workload."""
    principals: tuple[str, ...]
    """Identities of the clients, without `spiffe://`; empty for all clients, also without an identity."""
    without_identity: tuple[str, ...] = ()
    """Clients that were seen without an identity, because of which all clients are allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPolicy:
    """An AuthorizationPolicy for a workload."""

    namespace: str
    """Namespace of the workload."""
    name: str
    """Name of the policy: that of the workload, unless another policy has it."""
    selector: Mapping[str, str]
    """Labels that exactly the pods of the workload have."""
    rules: tuple[AllowRule, ...]
    """The rules, ordered by ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastPrivilege:
    """The policies for what was observed."""

    policies: tuple[WorkloadPolicy, ...]
    """The policies, by namespace and name."""
    omitted: tuple[tuple[str, str], ...]
    """Workloads (WORKLOAD.NAMESPACE) without a policy, and why."""


def least_privilege(mesh: Mesh, flows: Iterable[Flow], namespaces: Collection[str] = ()) -> LeastPrivilege:
    """Return the policies that allow recorded traffic, for the workloads with a sidecar.

    Traffic that servers refused, or that today's policies and modes refuse, is not allowed. A workload that
    nobody called gets no policy, because nothing says that nobody may call it.

    Args:
        mesh: the mesh, with today's policies.
        flows: the traffic.
        namespaces: namespaces of the workloads; empty for all.
    """
    by_target = flows_by_target(mesh, flows)
    pods: dict[str, list[Pod]] = {}
    for pod in mesh.pods():
        pods.setdefault(pod.namespace, []).append(pod)
    policies, omitted = list[WorkloadPolicy](), list[tuple[str, str]]()
    for workload in workloads_of(mesh.pods()).values():
        if not workload.sidecars or (namespaces and workload.namespace not in namespaces):
            continue
        ports = _allowed(mesh, workload, by_target)
        selector, existing = _selector(workload, pods[workload.namespace]), _existing(mesh, workload)
        if existing:
            omitted.append((_name(workload), f"already restricted by {existing}"))
        elif not ports:
            omitted.append((_name(workload), "no traffic to it was observed"))
        elif selector is None:
            omitted.append((_name(workload), "other pods have all of its labels"))
        else:
            taken = {policy.name for policy in mesh.in_namespace(workload.namespace).authorization_policies}
            taken.update(policy.name for policy in policies if policy.namespace == workload.namespace)
            policies.append(
                WorkloadPolicy(
                    namespace=workload.namespace,
                    name=_unique(workload.name, taken),
                    selector=selector,
                    rules=_rules(ports),
                )
            )
    return LeastPrivilege(policies=tuple(policies), omitted=tuple(omitted))


def _name(workload: Workload) -> str:
    return f"{workload.name}.{workload.namespace}"


def _unique(workload: str, taken: Collection[str]) -> str:
    """Return a name for a workload's policy. A label names the workload, so its name may be no valid one."""
    name = re.sub("[^a-z0-9-]+", "-", workload.lower()).strip("-")
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if each not in taken)


def gaps(mesh: Mesh, record: Record) -> list[str]:
    """Return why traffic to the servers of a mesh may be missing in a record, in words."""
    known = {(service.key, port.port) for service in mesh.services() for port in service.ports}
    owners = {(pod.namespace, owner_name(pod.name)) for pod in mesh.pods()}
    unknown = [
        f"{target.name}.{target.namespace}:{target.port}"
        for target in dict.fromkeys(flow.target for flow in record.flows)
        if ((name := pod_of_target(target)) and (target.namespace, owner_name(name)) not in owners)
        or (not name and (target[:2], target.port) not in known)
    ]
    found = list(record.gaps)
    if unknown:
        found.append(f"traffic was sent to ports that no longer exist: {join_names(unknown, MAX_NAMES)}")
    return found


def flows_by_target(mesh: Mesh, flows: Iterable[Flow]) -> FlowsByTarget:
    """Index traffic that servers did not refuse by its target."""
    found: FlowsByTarget = {}
    for flow in flows:
        if flow.mode is not TrafficMode.REFUSED:
            target = without_pod(mesh, flow.target)
            found.setdefault(target[:2], {}).setdefault(target.port, []).append(flow)
    return found


def received(mesh: Mesh, pod: Pod, flows: FlowsByTarget) -> Iterator[tuple[int, Flow]]:
    """Yield the traffic to a pod with a sidecar, and the pod's port."""
    exposed = [(each.target, each.service.key, each.port.port) for each in mesh.exposures(pod)]
    called = [(target, flows.get(key, {}).get(port, [])) for target, key, port in exposed]
    for name in dict.fromkeys((pod.name, owner_name(pod.name))):
        called += flows.get((pod.namespace, f"pod/{name}"), {}).items()
    for port, found in called:
        # Plaintext that only clients reported went to endpoints without a sidecar.
        yield from ((port, flow) for flow in found if flow.mode is TrafficMode.MTLS or flow.by_server)


def without_pod(mesh: Mesh, target: Target) -> Target:
    """Return a target with the name of a pod that was replaced since as that of its workload."""
    pod = pod_of_target(target)
    is_gone = bool(pod) and mesh.pod(target.namespace, pod) is None
    return target._replace(name=f"pod/{owner_name(pod)}") if is_gone else target


class _Allowed(NamedTuple):
    """The clients of a port."""

    principals: set[str]
    """Identities."""
    without_identity: set[str]
    """Clients without an identity."""


def _allowed(mesh: Mesh, workload: Workload, flows: FlowsByTarget) -> Mapping[int, _Allowed]:
    """Return the clients of each port of a workload that today's policies do not deny."""
    found: dict[int, _Allowed] = {}
    for pod in workload.pods:
        if pod.has_sidecar:
            for port, flow in received(mesh, pod, flows):
                _add(mesh, pod, port, flow, found)
    return found


def _add(mesh: Mesh, pod: Pod, port: int, flow: Flow, found: dict[int, _Allowed]) -> None:
    client, config = flow.client, mesh.config
    has_identity = flow.mode is TrafficMode.MTLS and bool(client.namespace)
    identity = spiffe_id(config.trust_domain, *client) if has_identity else ""
    rules = port_rules(mesh, pod, port)
    if rules and permission(config, rules, identity).access is Access.DENIED:
        return
    if not identity and effective_mode(mesh, pod, port).mode is Mode.STRICT:
        return
    allowed = found.setdefault(port, _Allowed(set(), set()))
    if identity:
        allowed.principals.add(identity.removeprefix("spiffe://"))
    else:
        allowed.without_identity.add("/".join(filter(None, client)))


def _rules(ports: Mapping[int, _Allowed]) -> tuple[AllowRule, ...]:
    """Return one rule for the ports that have the same clients."""
    merged: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for port, (principals, without_identity) in sorted(ports.items()):
        named = () if without_identity else tuple(sorted(principals))
        clients = named, tuple(sorted(without_identity, key=natural_key))
        merged.setdefault(clients, []).append(port)
    return tuple(AllowRule(tuple(numbers), *clients) for clients, numbers in merged.items())


def _existing(mesh: Mesh, workload: Workload) -> str:
    """Return the ALLOW policies of a workload: another one would allow more."""
    found = (allow_policies_of(mesh, pod) for pod in workload.pods if pod.has_sidecar)
    names = dict.fromkeys(str(policy.ref) for policies in found for policy in policies)
    return ", ".join(names)


def _selector(workload: Workload, pods: Iterable[Pod]) -> Mapping[str, str] | None:
    """Return as few labels as possible that only the pods of a workload have; None if there are none.

    `pods` are those of its namespace. Policies do not concern pods without a sidecar.
    """
    common = set.intersection(*(set(pod.meta.labels.items()) for pod in workload.pods))
    stable = {key: value for key, value in sorted(common) if key not in _GENERATED_LABELS}
    own = {pod.key for pod in workload.pods}
    others = [pod.meta.labels for pod in pods if pod.has_sidecar and pod.key not in own]
    named = [key for key in NAME_LABELS[::-1] if key in stable]
    candidates = [{key: stable[key]} for key in dict.fromkeys((*named, *stable))]
    for selector in (*candidates, stable):
        if selector and not any(covers(selector, labels) for labels in others):
            return selector
    return None
