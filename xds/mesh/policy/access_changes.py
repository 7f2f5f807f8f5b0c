"""Compare what the servers of two meshes accept: access that clients gain and lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain, product
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.workload import WorkloadKey, owner_name
from xds.mesh.policy.acceptance import (
    ClientClass,
    Enforcement,
    accepted,
    clients_by_result,
    enforcement,
    service_endpoints,
    unknown_pods,
    why_accepted,
)
from xds.mesh.policy.access import Permission, patterns_of
from xds.mesh.policy.authorization import Access
from xds.mesh.policy.hop_text import format_target
from xds.mesh.policy.hops import all_targets


class AccessEffect(StrEnum):
    """How the access of clients to a service port changes, worst first."""

    GAINED = "gained"
    """Clients that were refused can connect, or more of their requests are allowed."""
    MAY_BE_GAINED = "may be gained"
    """Other requests are allowed than before."""
    LOST = "lost"
    """Clients that could connect are refused, or fewer of their requests are allowed."""

    @property
    def is_gain(self) -> bool:
        """Whether clients may be able to do more."""
        return self is not AccessEffect.LOST


class AccessChange(NamedTuple):
    """A change of the access of clients to service ports."""

    effect: AccessEffect
    """How it changes."""
    clients: ClientClass
    """The clients. If they gain access to a server that accepts plaintext, they are those that send it."""
    why: str
    """Why servers accept the connections: after the change, or before it if access is lost."""
    servers: tuple[str, ...] = ()
    """The service ports, as SERVICE.NAMESPACE:PORT."""


class _Accepted(NamedTuple):
    """Connections that one of several endpoints accepts."""

    access: Access
    """Whether they are allowed: DEPENDS for only some requests."""
    conditions: frozenset[int]
    """Hashes of the rules on which that depends (`Permission.basis`)."""
    why: str
    """Why they are accepted."""


_Endpoints: TypeAlias = tuple[Enforcement, ...]
"""What the sidecars of several endpoints enforce. Clients can choose the one that allows most."""
_ServicePort: TypeAlias = dict[tuple[WorkloadKey, ...], _Endpoints]
"""Endpoints of a service port, by names that they could have in the other mesh, most specific first."""
_Pair: TypeAlias = tuple[tuple[_Endpoints, ...], tuple[_Endpoints, ...]]
"""Endpoints before and after: each of the first are compared with each of the second."""
_ANY: WorkloadKey = ("", "")
_RANKS = (Access.DENIED, Access.DEPENDS, Access.ALLOWED)
_REFUSED = _Accepted(Access.DENIED, frozenset(), "")


def access_changes(before: Mesh, after: Mesh) -> list[AccessChange]:
    """Return the access to service ports that clients gain and lose, worst effect first.

    All clients that could exist are compared. Each endpoint of a service port is compared with the same pod
    before, because it can open beside one that is open. If there is none, it is compared with the same
    workload or with all endpoints. If an endpoint is removed, the whole port is compared as well. A service
    port that exists only in one of the meshes refuses all clients in the other one.
    """
    old, new = _service_ports(before), _service_ports(after)
    by_pair: dict[_Pair, dict[str, None]] = {}
    for label in dict.fromkeys((*old, *new)):
        for pair in _pairs(old.get(label, {}), new.get(label, {})):
            by_pair.setdefault(pair, {})[label] = None
    found: dict[AccessChange, dict[str, None]] = {}
    for pair, labels in by_pair.items():
        for change in _changes(before, after, pair):
            found.setdefault(change, {}).update(labels)
    changes = [change._replace(servers=tuple(labels)) for change, labels in found.items()]
    return sorted(changes, key=_rank)


def unknown_servers(mesh: Mesh) -> Iterator[str]:
    """Yield what is not known of the endpoints of service ports, which are left out: noun phrases.

    Hosts outside the mesh are not among them, because no sidecar is in front of them.
    """
    for service, port in all_targets(mesh):
        if service.selector or not service.entry_host:
            yield from unknown_pods(mesh, service, port)


def _service_ports(mesh: Mesh) -> dict[str, _ServicePort]:
    found: dict[str, _ServicePort] = {}
    for target in all_targets(mesh):
        port = found.setdefault(format_target(*target), {})
        for endpoint in service_endpoints(mesh, *target):
            names = _names(endpoint)
            port[names] = (*port.get(names, ()), enforcement(mesh, endpoint))
    return found


def _names(endpoint: Endpoint) -> tuple[WorkloadKey, ...]:
    if (pod := endpoint.pod) is None:
        return ("", endpoint.address), _ANY
    return (pod.namespace, pod.name), (pod.namespace, owner_name(pod.name)), _ANY


def _pairs(old: _ServicePort, new: _ServicePort) -> Iterator[_Pair]:
    by_name: dict[WorkloadKey, dict[_Endpoints, None]] = {}
    for names, endpoints in old.items():
        for name in names:
            by_name.setdefault(name, {}).update(dict.fromkeys(zip(endpoints)))
    for names, endpoints in new.items():
        compared = next((by_name[name] for name in names if name in by_name), [()])
        yield tuple(compared), tuple(dict.fromkeys(zip(endpoints)))
    if not old.keys() <= new.keys():
        yield (_all(old),), (_all(new),)


def _all(port: _ServicePort) -> _Endpoints:
    return tuple(dict.fromkeys(chain.from_iterable(port.values())))


def _changes(before: Mesh, after: Mesh, pair: _Pair) -> Iterator[AccessChange]:
    if pair[0] == pair[1] and before.config == after.config:
        return
    compared = [
        (old, new, _accepted(before, old, [""]), _accepted(after, new, [""])) for old, new in product(*pair)
    ]
    if plaintext := _worst(_compare(old, new) for *_, old, new in compared):
        yield AccessChange(plaintext[0], ClientClass(""), plaintext[1])

    def result(identity: str) -> tuple[AccessEffect, str] | None:
        return _worst(changes(identity))

    def changes(identity: str) -> Iterator[tuple[AccessEffect, str] | None]:
        # A client with an identity can send plaintext as well, so it gains what plaintext gains.
        for old, new, *plaintext in compared:
            current = _accepted(after, new, (identity, ""))
            change = _compare(_accepted(before, old, (identity, "")), current)
            if not (change and change[0] is AccessEffect.GAINED and current.access is plaintext[1].access):
                yield change

    patterns = {each for enforced in chain(*pair[0], *pair[1]) for each in patterns_of(enforced.rules)}
    for (effect, why), clients in clients_by_result(after, patterns, result):
        yield AccessChange(effect, clients, why)


def _worst(changes: Iterable[tuple[AccessEffect, str] | None]) -> tuple[AccessEffect, str] | None:
    return min(filter(None, changes), key=_rank, default=None)


def _rank(change: AccessChange | tuple[AccessEffect, str]) -> int:
    return [*AccessEffect].index(change[0])


def _accepted(mesh: Mesh, endpoints: Iterable[Enforcement], sent: Iterable[str]) -> _Accepted:
    """Return what endpoints accept from clients that send mutual TLS with an identity, or plaintext."""
    found: list[tuple[Enforcement, str, Permission]] = [
        (enforced, identity, allowed)
        for identity in sent
        for enforced in endpoints
        if (allowed := accepted(mesh.config, enforced, identity))
    ]
    if not found:
        return _REFUSED
    best = max(found, key=lambda each: _RANKS.index(each[2].access))
    access = best[2].access
    conditions = frozenset(allowed.basis for *_, allowed in found)
    why, _ = why_accepted(*best)
    return _Accepted(access, conditions if access is Access.DEPENDS else frozenset(), why)


def _compare(old: _Accepted, new: _Accepted) -> tuple[AccessEffect, str] | None:
    """Return how access changes, and why it is or was accepted; None if it does not."""
    if old.access is new.access:
        is_same = old.conditions == new.conditions
        return None if is_same else (AccessEffect.MAY_BE_GAINED, f"{new.why}; before: {old.why}")
    if _RANKS.index(new.access) > _RANKS.index(old.access):
        return AccessEffect.GAINED, new.why
    return AccessEffect.LOST, f"before: {old.why}"
