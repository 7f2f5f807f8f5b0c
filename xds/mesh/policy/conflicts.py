"""Objects that have no effect because other objects override them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, PeerAuthentication, Pod, Ref
from xds.mesh.policy.mtls import effective_mode, ports_with_own_mode


class Overridden(NamedTuple):
    """Why an object, or part of it, has no effect."""

    by: tuple[Ref, ...]
    """Objects that decide instead."""
    what: str
    """Part that has no effect, as text for users; empty for the whole object."""


def overridden(mesh: Mesh) -> Mapping[Ref, Overridden]:
    """Return the policies that decide for no port that they apply to, and overridden DestinationRules."""
    return {**_authentication(mesh), **dict(_rules(mesh))}


def _authentication(mesh: Mesh) -> dict[Ref, Overridden]:
    deciding: set[Ref] = set()
    lost: dict[Ref, dict[Ref, None]] = {}
    for pod in mesh.pods():
        for port in _ports(mesh, pod):
            decision = effective_mode(mesh, pod, port)
            deciding.add(decision.decided_by)
            for ref in decision.overridden:
                lost.setdefault(ref, {})[decision.decided_by] = None
    return {
        ref: Overridden(tuple(by), "")
        for ref, by in lost.items()
        if ref not in deciding and not _only_inherits(mesh, ref)
    }


def _ports(mesh: Mesh, pod: Pod) -> set[int]:
    """Return the ports whose modes may differ; 0 stands for all other ports."""
    if pod.ended or not pod.has_sidecar:
        return set()
    return {0, *ports_with_own_mode(mesh, pod), *(exposed.target for exposed in mesh.exposures(pod))}


def _only_inherits(mesh: Mesh, ref: Ref) -> bool:
    policy = mesh.get(ref)
    return isinstance(policy, PeerAuthentication) and policy.mode is None and not policy.ports


def _rules(mesh: Mesh) -> Iterator[tuple[Ref, Overridden]]:
    """Yield overridden rules.

    Rules for the same host and clients in a namespace are merged; the oldest wins.
    """
    rules = [fact for fact in mesh.facts() if isinstance(fact, DestinationRule)]
    policies: dict[object, Ref] = {}
    subsets: dict[object, Ref] = {}
    for rule in sorted(rules, key=lambda rule: rule.meta.age_key):
        selector = None if rule.selector is None else tuple(sorted(rule.selector.items()))
        key = (rule.namespace, rule.host, frozenset(rule.export_to), selector)
        parts = [
            *([("its trafficPolicy", policies, key)] if rule.policy else []),
            *((f"its subset {each.name}", subsets, (*key, each.name)) for each in rule.subsets),
        ]
        lost = [
            (what, known[key]) for what, known, key in parts if known.setdefault(key, rule.ref) != rule.ref
        ]
        if lost:
            by = tuple(dict.fromkeys(ref for _, ref in lost))
            yield (
                rule.ref,
                Overridden(by, "" if len(lost) == len(parts) else ", ".join(what for what, _ in lost)),
            )
