"""Predict how a change of the mesh changes the results of connections.

`predict_change` compares two meshes for classes of clients and endpoints that cannot differ, as `hops` does.
It also finds clients outside the mesh that objects prove, and that a STRICT sidecar would refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from xds.mesh.model.applied import running_pod
from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import CallerFact, Change, Pod, Service, ServicePort
from xds.mesh.policy.direct import Refusal, RefusalKey, call_steps, group_refusals, refused_traffic
from xds.mesh.policy.hops import (
    Answers,
    Clients,
    Grouping,
    SenderKey,
    answer_steps,
    clients_of,
    sender_key,
    targets_of,
)
from xds.mesh.policy.listeners import ready_endpoints
from xds.mesh.policy.reach import OUTSIDE, Answer, Failure, Result, rank
from xds.mesh.policy.steps import Steps, finish
from xds.mesh.policy.visibility import limits_visibility


class Effect(StrEnum):
    """How a change affects connections, worst first."""

    BREAKS = "breaks"
    """Connections that worked fail."""
    MAY_BREAK = "may break"
    """Connections whose result depends on the application fail for certain."""
    PLAINTEXT = "plaintext"
    """Connections lose mutual TLS, and use plaintext."""
    REPAIRED = "repaired"
    """Connections that failed work."""
    ENCRYPTED = "encrypted"
    """Plaintext connections use mutual TLS."""

    @property
    def worsens(self) -> bool:
        """Whether connections fail or lose mutual TLS."""
        return self in {Effect.BREAKS, Effect.MAY_BREAK, Effect.PLAINTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class HopChange:
    """Clients and endpoints of a service port whose answer changes in the same way."""

    effect: Effect
    """How the change affects the connections."""
    clients: tuple[Clients, ...]
    """Client pods, in natural order of their namespaces."""
    service: Service
    """Service that the clients call."""
    port: ServicePort
    """Port of the Service."""
    before: Answer
    """Answer before the change; for a new endpoint, the best answer of the service port."""
    after: Answer
    """Answer after the change."""
    endpoints: tuple[Endpoint, ...]
    """Endpoints after the change; empty if the service port then has no ready endpoint."""
    ready: int
    """Number of ready endpoints of the service port after the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted effects of a change."""

    hops: tuple[HopChange, ...]
    """Changed hops, worst effect first, then in natural order of their services."""
    refusals: tuple[Refusal, ...]
    """Direct traffic that is refused."""

    @property
    def breaks(self) -> bool:
        """Whether something that worked fails after the change."""
        return Effect.BREAKS in self.effects

    @property
    def effects(self) -> Counter[Effect]:
        """Number of hops and of direct traffic with each effect."""
        return Counter(hop.effect for hop in self.hops) + Counter(map(_refusal_effect, self.refusals))


def _refusal_effect(refusal: Refusal) -> Effect:
    return Effect.BREAKS if refusal.breaks else Effect.MAY_BREAK


class Scope(NamedTuple):
    """What a change may affect; everything else need not be compared."""

    services: frozenset[ServiceKey]
    """Services to which connections may change."""
    namespaces: frozenset[str] | None
    """Namespaces with pods whose modes may change; None for all."""


def scope_of(change: Change, before: Mesh, after: Mesh) -> Scope | None:
    """Return the scope of a change; None if it may affect everything.

    Args:
        change: the change.
        before: the mesh without the change.
        after: the mesh that `Mesh.apply` has returned for the change.
    """
    refs = (*(fact.ref for fact in change.applied), *change.removed)
    if after.touched is None or any(ref.kind == "Pod" for ref in refs):
        return None  # Pods are clients too, and may call every service.
    if any(isinstance(mesh.get(ref), CallerFact) for mesh in (before, after) for ref in refs):
        return None  # It may call pods of other namespaces.
    changes_services = any(ref.kind in {"Namespace", "Service", "ServiceEntry"} for ref in refs)
    if changes_services and any(map(limits_visibility, (before, after))):
        return None  # The HTTP ports that clients see decide about connections to hidden services.
    namespaces = frozenset(ref.namespace for ref in refs if ref.kind != "DestinationRule")
    is_mesh_wide = not namespaces.isdisjoint(("", after.config.root_namespace))
    # Connections to a Service may go to the listener of another Service with the same address.
    beside = (key for mesh in (before, after) for key in mesh.services_beside(after.touched or ()))
    return Scope(after.touched.union(beside), None if is_mesh_wide else namespaces)


def unready_services(mesh: Mesh, scope: Scope | None) -> Iterator[Service]:
    """Yield the Services of a scope that have pods, but none that is ready: they are not compared."""
    for service in mesh.services():
        if scope is None or service.key in scope.services:
            pods = mesh.in_namespace(service.namespace).selected(service.selector)
            is_ready = any(ready_endpoints(mesh, service, port) for port in service.ports)
            if not is_ready and any(not pod.ended for pod in pods):
                yield service


def predict_change(before: Mesh, after: Mesh, scope: Scope | None = None) -> Prediction:
    """Predict the effects of a change.

    Hops of clients and service ports that exist only after the change are left out: nothing that worked can
    break there. A new endpoint is compared with the best answer that its service port gave to the client.

    Args:
        before: the mesh without the change.
        after: the mesh with the change.
        scope: what the change may affect (`scope_of`); None for everything.
    """
    return finish(predict_change_steps(before, after, scope))


def predict_change_steps(before: Mesh, after: Mesh, scope: Scope | None = None) -> Steps[Prediction]:
    """Compute `predict_change` in steps. The meshes may be in use meanwhile."""
    changes = yield from _hop_changes(before, after, scope, clients_of(before))
    refusals = yield from _refusals(before, after, scope)
    ranks = list(Effect)
    return Prediction(
        hops=tuple(sorted(changes, key=lambda change: ranks.index(change.effect))), refusals=tuple(refusals)
    )


Senders: TypeAlias = tuple[SenderKey, SenderKey]
"""Class of clients before and after the change."""


def outside_changes(before: Mesh, after: Mesh, scope: Scope | None = None) -> list[HopChange]:
    """Return the changed hops of clients outside the mesh (`OUTSIDE`), as `predict_change` does of pods."""
    return finish(_hop_changes(before, after, scope, [OUTSIDE]))


def _hop_changes(
    before: Mesh, after: Mesh, scope: Scope | None, clients: Iterable[Pod]
) -> Steps[list[HopChange]]:
    targets = targets_of(
        service for service in before.services() if scope is None or service.key in scope.services
    )
    if not targets:
        return []
    classes = yield from classify(before, after, clients)
    grouping = Grouping(classes.pods)
    changes = []
    for service, port in targets:
        old = yield from answer_steps(before, classes.old, service, port)
        new = yield from answers_after(after, classes.new, service, port)
        ready = sum(map(len, new.endpoints))
        for transition, endpoints, senders in _compare(old, new, classes.pods):
            yield
            change = HopChange(
                effect=transition.effect,
                clients=grouping.merge(senders),
                service=service,
                port=port,
                before=transition.before,
                after=transition.after,
                endpoints=endpoints,
                ready=ready,
            )
            changes.append(change)
    return changes


class Classes(NamedTuple):
    """Classes of clients that exist before and after a change."""

    pods: dict[Senders, list[Pod]]
    """Pods of each class, after the change."""
    old: dict[SenderKey, Pod]
    """A pod of each class before the change."""
    new: dict[SenderKey, Pod]
    """A pod of each class after the change."""


def classify(before: Mesh, after: Mesh, clients: Iterable[Pod]) -> Steps[Classes]:
    """Return the classes of clients, in steps; `OUTSIDE` is the same client before and after the change."""
    classes = Classes({}, {}, {})
    for old_pod in clients:
        new_pod = OUTSIDE if old_pod is OUTSIDE else after.pod(old_pod.namespace, old_pod.name)
        if new_pod and not new_pod.ended:
            old_key, new_key = sender_key(before, old_pod), sender_key(after, new_pod)
            classes.pods.setdefault((old_key, new_key), []).append(new_pod)
            classes.old.setdefault(old_key, old_pod)
            classes.new.setdefault(new_key, new_pod)
        yield
    return classes


def answers_after(
    after: Mesh, senders: Mapping[SenderKey, Pod], service: Service, port: ServicePort
) -> Steps[Answers]:
    """Return the answers of a service port after a change, which may have deleted it, in steps."""
    new_service = after.service(service.namespace, service.name)
    new_ports = new_service.ports if new_service else ()
    new_port = next((item for item in new_ports if item.port == port.port), None)
    if new_service and new_port:
        return (yield from answer_steps(after, senders, new_service, new_port))
    deleted = Answer(Result.FAILS, Failure.SERVICE_DELETED)
    return Answers([()], {key: [deleted] for key in senders})


class _Transition(NamedTuple):
    """How an answer changes."""

    effect: Effect
    before: Answer
    after: Answer


EndpointPair: TypeAlias = tuple[int | None, int]
"""Class of an endpoint before the change (None if it is new) and after it."""


def _compare(
    old: Answers, new: Answers, senders: Iterable[Senders]
) -> Iterator[tuple[_Transition, tuple[Endpoint, ...], list[Senders]]]:
    """Yield each way in which answers of a service port change, with its endpoints and clients."""
    pairs = pairs_of(old, new)
    found: dict[tuple[_Transition, tuple[EndpointPair, ...]], list[Senders]] = {}
    for old_key, new_key in senders:
        by_transition: dict[_Transition, list[EndpointPair]] = {}
        for pair in pairs:
            before = answer_before(old.by_sender[old_key], pair[0])
            after = new.by_sender[new_key][pair[1]]
            if effect := effect_of(before, after):
                by_transition.setdefault(_Transition(effect, before, after), []).append(pair)
        for transition, changed in by_transition.items():
            found.setdefault((transition, tuple(changed)), []).append((old_key, new_key))
    for (transition, changed_pairs), keys in found.items():
        yield transition, tuple(endpoint for pair in changed_pairs for endpoint in pairs[pair]), keys


def pairs_of(old: Answers, new: Answers) -> dict[EndpointPair, list[Endpoint]]:
    """Return the endpoints after the change, by their classes before and after it."""
    old_classes = {
        (endpoint.address, endpoint.port): index
        for index, endpoints in enumerate(old.endpoints)
        for endpoint in endpoints
    }
    pairs: dict[EndpointPair, list[Endpoint]] = {}
    for index, endpoints in enumerate(new.endpoints):
        if not endpoints:
            pairs[None, index] = []
        for endpoint in endpoints:
            old_index = old_classes.get((endpoint.address, endpoint.port))
            pairs.setdefault((old_index, index), []).append(endpoint)
    return pairs


def answer_before(by_class: Iterable[Answer], index: int | None) -> Answer:
    """Return the answer of a class of endpoints before the change; the best one if they are new (None)."""
    by_class = list(by_class)
    return max(by_class, key=rank) if index is None else by_class[index]


def effect_of(before: Answer, after: Answer) -> Effect | None:
    """Return how the change of an answer affects connections; None if it does not."""
    # Which requests clients send is unknown: other conditions than before may deny some of them.
    is_limited = bool(after.conditions) and before.basis != after.basis
    if before.result is after.result:
        # Whether TLS that is left to the application works is unknown. All other failures are certain.
        was_unknown = before.reason is Failure.TLS_LEFT_TO_APPLICATION
        if was_unknown and before.reason is not after.reason:
            return Effect.MAY_BREAK
        return Effect.MAY_BREAK if is_limited else None
    if after.result is Result.FAILS:
        return Effect.BREAKS
    if before.result is Result.FAILS:
        return Effect.REPAIRED
    if is_limited:
        return Effect.MAY_BREAK
    return Effect.PLAINTEXT if after.result is Result.PLAINTEXT else Effect.ENCRYPTED


# --- direct traffic -------------------------------------------------------------------------------


def _refusals(before: Mesh, after: Mesh, scope: Scope | None) -> Steps[list[Refusal]]:
    """Return the direct traffic that is refused after the change, and was not before."""
    found: dict[RefusalKey, list[Pod]] = {}
    namespaces = scope.namespaces if scope else None
    calls = yield from call_steps(after)
    for pod in clients_of(after):
        if namespaces is not None and pod.namespace not in namespaces:
            continue
        yield
        if not (refused := list(refused_traffic(after, pod, calls))):
            continue
        old_pod = before.pod(pod.namespace, pod.name) or running_pod(before, pod.ref)
        old_calls = yield from call_steps(before)
        old = refused_traffic(before, old_pod, old_calls) if old_pod else ()
        was_refused = {(key.traffic, key.port, key.source) for key in old}
        for key in refused:
            if (key.traffic, key.port, key.source) not in was_refused:
                found.setdefault(key, []).append(pod)
    return (yield from group_refusals(found))
