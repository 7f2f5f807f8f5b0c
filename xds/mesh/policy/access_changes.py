"""Compare what the servers of two meshes accept: access that clients gain and lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.policy.acceptance import (
    ClientClass,
    Enforcement,
    accepted,
    clients_by_result,
    enforcement,
    service_endpoints,
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
    conditions: frozenset[tuple[tuple[str, ...], int]]
    """On what that depends."""
    why: str
    """Why they are accepted."""


_Endpoints: TypeAlias = tuple[Enforcement, ...]
"""What the sidecars of a service port's endpoints enforce."""
_RANKS = (Access.DENIED, Access.DEPENDS, Access.ALLOWED)
_REFUSED = _Accepted(Access.DENIED, frozenset(), "")


def access_changes(before: Mesh, after: Mesh) -> list[AccessChange]:
    """Return the access to service ports that clients gain and lose, worst effect first.

    All clients that could exist are compared. A service port that exists only in one of the meshes refuses
    all clients in the other one.
    """
    old, new = _service_ports(before), _service_ports(after)
    by_enforcement: dict[tuple[_Endpoints, _Endpoints], list[str]] = {}
    for label in dict.fromkeys((*old, *new)):
        key = old.get(label, ()), new.get(label, ())
        by_enforcement.setdefault(key, []).append(label)
    found: dict[AccessChange, list[str]] = {}
    for key, labels in by_enforcement.items():
        for change in _changes(before, after, *key):
            found.setdefault(change, []).extend(labels)
    changes = [change._replace(servers=tuple(labels)) for change, labels in found.items()]
    return sorted(changes, key=lambda change: [*AccessEffect].index(change.effect))


def _service_ports(mesh: Mesh) -> dict[str, _Endpoints]:
    return {
        format_target(*target): tuple(
            dict.fromkeys(enforcement(mesh, endpoint) for endpoint in service_endpoints(mesh, *target))
        )
        for target in all_targets(mesh)
    }


def _changes(before: Mesh, after: Mesh, old: _Endpoints, new: _Endpoints) -> Iterator[AccessChange]:
    if old == new and before.config == after.config:
        return
    sends_plaintext = _accepted(after, new, [""])
    plaintext = _compare(_accepted(before, old, [""]), sends_plaintext)
    if plaintext:
        yield AccessChange(plaintext[0], ClientClass(""), plaintext[1])
    gains_plaintext = plaintext is not None and plaintext[0] is AccessEffect.GAINED

    def result(identity: str) -> tuple[AccessEffect, str] | None:
        # A client with an identity can send plaintext as well, so it gains what plaintext gains.
        sent = (identity, "")
        current = _accepted(after, new, sent)
        change = _compare(_accepted(before, old, sent), current)
        is_reported = gains_plaintext and current.access is sends_plaintext.access
        return None if is_reported and change and change[0] is AccessEffect.GAINED else change

    rules = (enforced.rules for enforced in (*old, *new) if enforced.rules)
    patterns = {pattern for each in rules for pattern in patterns_of(each)}
    for (effect, why), clients in clients_by_result(after, patterns, result):
        yield AccessChange(effect, clients, why)


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
    conditions = frozenset((allowed.conditions, allowed.basis) for *_, allowed in found)
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
