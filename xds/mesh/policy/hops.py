"""Group the predicted results of connections: which clients get which answer from which service port.

`xds.mesh.policy.reach` defines the answer for one client and one endpoint. This module computes it once for
all clients and endpoints that cannot differ, so the cost does not depend on the number of pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Interception, Pod, Service, ServicePort
from xds.mesh.model.redirection import Redirection
from xds.mesh.policy.access import IdentityPattern, identity_class, patterns_of
from xds.mesh.policy.destination import RuleKey, distinguished_namespaces, rule_key
from xds.mesh.policy.reach import RANKS, Answer, Outcome, Server, answer_for, sender_of, server_of
from xds.mesh.policy.steps import Steps, finish

_Path: TypeAlias = tuple[RuleKey, Redirection, Interception]
"""What decides how a client's sidecar connects."""


@dataclass(frozen=True, slots=True, eq=False)
class SenderKey:
    """A class of clients whose answers cannot differ. A mesh has one object for each class."""

    path: _Path | None
    """What decides how their sidecars connect; None without one. Equal ones are one object."""
    identity: frozenset[IdentityPattern] = frozenset()
    """Patterns of authorization rules that match their identities."""


K = TypeVar("K", bound=Hashable)

Target: TypeAlias = tuple[Service, ServicePort]
"""A service port that clients call."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clients:
    """Client pods of one namespace."""

    namespace: str
    """Namespace of the pods."""
    accounts: Mapping[str, tuple[Pod, ...]]
    """Pods by the name of their service account, in natural order."""

    @property
    def pods(self) -> Iterator[Pod]:
        """The pods, by service account."""
        return (pod for pods in self.accounts.values() for pod in pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Clients that get the same answer from the same endpoints of a service port."""

    clients: tuple[Clients, ...]
    """Client pods, in natural order of their namespaces."""
    service: Service
    """Service that the clients call."""
    port: ServicePort
    """Port of the Service."""
    answer: Answer
    """Result of the connections, and why."""
    endpoints: tuple[Endpoint, ...]
    """Endpoints that give this answer; empty if the service port has no ready endpoint."""
    ready: int
    """Number of ready endpoints of the service port."""

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome for each client and endpoint."""
        for client in (pod for clients in self.clients for pod in clients.pods):
            for endpoint in self.endpoints or (None,):
                yield Outcome(
                    client=client,
                    service=self.service,
                    port=self.port,
                    endpoint=endpoint,
                    result=self.answer.result,
                    reason=self.answer.reason,
                    decided_by=self.answer.decided_by,
                    conditions=self.answer.conditions,
                )


def hops(
    mesh: Mesh, clients: Iterable[Pod] | None = None, targets: Iterable[Target] | None = None
) -> Iterator[Hop]:
    """Yield the hops of each service port, failing hops first.

    Together, the hops have one outcome for each client, service port and ready endpoint. A service port
    without a ready endpoint has one outcome for each client.

    Args:
        mesh: the facts.
        clients: client pods; default: all pods that have not ended.
        targets: service ports that the clients call; default: all.
    """
    pods_by_key: dict[SenderKey, list[Pod]] = {}
    for pod in clients_of(mesh) if clients is None else clients:
        pods_by_key.setdefault(sender_key(mesh, pod), []).append(pod)
    senders = {key: pods[0] for key, pods in pods_by_key.items()}
    grouping = Grouping(pods_by_key)
    for service, port in all_targets(mesh) if targets is None else targets:
        found = answers(mesh, senders, service, port)
        ready = sum(map(len, found.endpoints))
        keys_by_answer: dict[tuple[Answer, tuple[int, ...]], list[SenderKey]] = {}
        groups: dict[int, list[list[SenderKey]]] = {}
        for key, by_class in found.by_sender.items():
            # Most classes of clients share one sequence of answers.
            if id(by_class) not in groups:
                groups[id(by_class)] = [
                    keys_by_answer.setdefault((answer, _indexes(by_class, answer)), [])
                    for answer in dict.fromkeys(by_class)
                ]
            for keys in groups[id(by_class)]:
                keys.append(key)
        ranked = sorted(keys_by_answer.items(), key=lambda item: RANKS[item[0][0].result])
        for (answer, classes), keys in ranked:
            yield Hop(
                clients=grouping.merge(keys),
                service=service,
                port=port,
                answer=answer,
                endpoints=tuple(endpoint for index in classes for endpoint in found.endpoints[index]),
                ready=ready,
            )


def _indexes(by_class: Sequence[Answer], answer: Answer) -> tuple[int, ...]:
    return tuple(index for index, other in enumerate(by_class) if other == answer)


def clients_of(mesh: Mesh) -> Iterator[Pod]:
    """Yield the pods that can open connections: those that have not ended."""
    return (pod for pod in mesh.pods() if not pod.ended)


def all_targets(mesh: Mesh) -> list[Target]:
    """Return all service ports, in natural order of namespace, service and port."""
    return targets_of(mesh.services())


def targets_of(services: Iterable[Service]) -> list[Target]:
    """Return the ports of services, in natural order of namespace, service and port."""
    services = sorted(services, key=lambda service: natural_key(service.namespace, service.name))
    return [
        (service, port) for service in services for port in sorted(service.ports, key=lambda item: item.port)
    ]


# --- classes of clients and endpoints -------------------------------------------------------------


def sender_key(mesh: Mesh, client: Pod) -> SenderKey:
    """Return a key for a client: clients with equal keys get the same answer from each endpoint."""
    path, identity = None, frozenset[IdentityPattern]()
    if client.has_sidecar:
        path = rule_key(mesh, client.namespace, client.meta.labels), client.redirection, client.interception
        identity = identity_class(mesh, client)
    # A mesh can have a thousand classes, which are compared for each service.
    paths: dict[_Path | None, _Path | None] = mesh.scratch.setdefault("paths of senders", {})
    path = paths.setdefault(path, path)
    keys: dict[object, SenderKey] = mesh.scratch.setdefault("senders", {})
    return keys.setdefault((path, identity), SenderKey(path, identity))


class Answers(NamedTuple):
    """The answers of a service port."""

    endpoints: Sequence[Sequence[Endpoint]]
    """Classes of ready endpoints with equal answers; one empty class if no endpoint is ready."""
    by_sender: Mapping[SenderKey, Sequence[Answer]]
    """The answer of each class of endpoints to each class of clients."""


def answers(mesh: Mesh, senders: Mapping[SenderKey, Pod], service: Service, port: ServicePort) -> Answers:
    """Return the answers of a service port.

    Args:
        mesh: the facts.
        senders: one pod of each class of clients.
        service: Service that the clients call.
        port: port of the Service.
    """
    return finish(answer_steps(mesh, senders, service, port))


def answer_steps(
    mesh: Mesh, senders: Mapping[SenderKey, Pod], service: Service, port: ServicePort
) -> Steps[Answers]:
    """Compute `answers` in steps."""
    redirections = {pod.redirection for pod in senders.values()}
    classes: dict[Server | None, list[Endpoint]] = {}
    for endpoint in mesh.endpoints(service, port):
        if endpoint.ready:
            server = server_of(mesh, service, port, endpoint, redirections)
            classes.setdefault(server, []).append(endpoint)
            yield
    if not classes:
        classes[None] = []
    # Where an address is contested, answers also depend on the rules for other Services.
    is_contested = any(server and server.contest for server in classes)
    namespaces = None if is_contested else distinguished_namespaces(mesh, service)
    ruled = (server.rules for server in classes if server and server.rules)
    patterns = frozenset[IdentityPattern]().union(*map(patterns_of, ruled))
    known: dict[object, dict[frozenset[IdentityPattern], Sequence[Answer]]] = {}
    by_path: dict[int, dict[frozenset[IdentityPattern], Sequence[Answer]]] = {}
    by_sender: dict[SenderKey, Sequence[Answer]] = {}
    for key, client in senders.items():
        if id(key.path) not in by_path:
            path = key.path if namespaces is None else _path_for(key.path, namespaces)
            by_path[id(key.path)] = known.setdefault(path, {})
        by_identity = by_path[id(key.path)]
        identity = key.identity if is_contested else key.identity & patterns
        if identity not in by_identity:
            sender = sender_of(mesh, client, service)
            by_identity[identity] = [answer_for(mesh, sender, service, port, server) for server in classes]
            yield
        by_sender[key] = by_identity[identity]
    return Answers(list(classes.values()), by_sender)


def _path_for(path: _Path | None, namespaces: Collection[str]) -> _Path | None:
    """Return the same for the clients of a service in all but some namespaces."""
    if path is None or path[0][0] in namespaces:
        return path
    return ("", (), None), *path[1:]


class Grouping(Generic[K]):
    """Pods in classes, which `merge` groups by namespace and service account."""

    def __init__(self, pods_by_key: Mapping[K, Iterable[Pod]]) -> None:
        self._pods = pods_by_key
        self._merged: dict[tuple[K, ...], tuple[Clients, ...]] = {}
        pods = (pod for each in pods_by_key.values() for pod in each)
        in_order = sorted(pods, key=lambda pod: natural_key(pod.namespace, pod.service_account, pod.name))
        self._ranks = {pod.ref: rank for rank, pod in enumerate(in_order)}

    def merge(self, keys: Iterable[K]) -> tuple[Clients, ...]:
        """Return the pods of some classes. Equal keys return the same objects."""
        key = tuple(keys)
        if key not in self._merged:
            pods = (pod for item in key for pod in self._pods[item])
            self._merged[key] = _by_account(sorted(pods, key=lambda pod: self._ranks[pod.ref]))
        return self._merged[key]


def _by_account(pods: Iterable[Pod]) -> tuple[Clients, ...]:
    """Return pods in natural order by namespace and service account."""
    namespaces: dict[str, dict[str, list[Pod]]] = {}
    for pod in pods:
        namespaces.setdefault(pod.namespace, {}).setdefault(pod.service_account, []).append(pod)
    return tuple(
        Clients(namespace=name, accounts={account: tuple(pods) for account, pods in accounts.items()})
        for name, accounts in namespaces.items()
    )
