"""Find objects that have no effect because other objects override them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import POLICY_KINDS, DestinationRule, ModePolicy, Pod, Ref
from xds.mesh.policy.mtls import effective_mode, ports_with_own_mode
from xds.mesh.policy.steps import Steps, finish
from xds.mesh.policy.visibility import namespaces_with_sidecars


class Overridden(NamedTuple):
    """The objects that override an object, in full or in part."""

    by: tuple[Ref, ...]
    """Objects that override it."""
    what: str
    """Overridden parts, as text for users; empty for the whole object."""


def overridden(mesh: Mesh) -> Mapping[Ref, Overridden]:
    """Return overridden authentication policies, DestinationRules and Sidecars, without default objects.

    An authentication policy is overridden if other policies decide the mode on every port that it applies to.
    """
    return finish(overridden_steps(mesh))


def overridden_steps(mesh: Mesh, refs: Collection[Ref] | None = None) -> Steps[Mapping[Ref, Overridden]]:
    """Compute `overridden` in steps.

    Args:
        mesh: the facts.
        refs: objects that matter; None for all. The result is incomplete for other objects.
    """
    authentication = yield from _authentication(mesh, refs)
    return {**authentication, **dict(_rules(mesh)), **dict(_sidecars(mesh))}


def _authentication(mesh: Mesh, refs: Collection[Ref] | None) -> Steps[dict[Ref, Overridden]]:
    overridden_by: dict[Ref, dict[Ref, None]] = {}
    if refs is None:
        refs = [fact.ref for fact in mesh.facts(with_defaults=False)]
    undecided = {ref for ref in refs if ref.kind in POLICY_KINDS and not _only_inherits(mesh, ref)}
    namespaces = {ref.namespace for ref in undecided}
    for pod in mesh.pods():
        if not undecided:
            break
        if namespaces.isdisjoint((pod.namespace, mesh.config.root_namespace, "")):
            continue
        yield
        for port in _ports(mesh, pod):
            decision = effective_mode(mesh, pod, port)
            if decision.decided_by in undecided:
                undecided.discard(decision.decided_by)
                namespaces = {ref.namespace for ref in undecided}
            for ref in decision.overridden:
                overridden_by.setdefault(ref, {})[decision.decided_by] = None
    return {ref: Overridden(tuple(by), "") for ref, by in overridden_by.items() if ref in undecided}


def _ports(mesh: Mesh, pod: Pod) -> set[int]:
    """Return the ports of a pod whose modes may differ; 0 represents all other ports."""
    if pod.ended or not pod.has_sidecar:
        return set()
    return {0, *ports_with_own_mode(mesh, pod), *(exposure.target for exposure in mesh.exposures(pod))}


def _only_inherits(mesh: Mesh, ref: Ref) -> bool:
    policy = mesh.get(ref)
    return isinstance(policy, ModePolicy) and policy.mode is None and not policy.ports


def _sidecars(mesh: Mesh) -> Iterator[tuple[Ref, Overridden]]:
    """Yield Sidecars whose clients an older one applies to."""
    for namespace in namespaces_with_sidecars(mesh):
        first: dict[object, Ref] = {}
        for sidecar in mesh.in_namespace(namespace).sidecars:
            by = first.setdefault(tuple(sorted(sidecar.selector.items())), sidecar.ref)
            if by != sidecar.ref:
                yield sidecar.ref, Overridden((by,), "")


def _rules(mesh: Mesh) -> Iterator[tuple[Ref, Overridden]]:
    """Yield rules that an older rule overrides, in full or in part.

    Rules in one namespace for the same host and the same clients are merged. If several rules define the same
    part, the oldest rule applies.
    """
    rules = [fact for fact in mesh.facts(with_defaults=False) if isinstance(fact, DestinationRule)]
    policies: dict[object, Ref] = {}
    subsets: dict[object, Ref] = {}
    for rule in sorted(rules, key=lambda rule: rule.meta.age_key):
        selector = None if rule.selector is None else tuple(sorted(rule.selector.items()))
        key = (rule.namespace, rule.host, frozenset(rule.export_to), selector)
        parts = [
            *([("its trafficPolicy", policies, key)] if rule.policy else []),
            *((f"its subset {subset.name}", subsets, (*key, subset.name)) for subset in rule.subsets),
        ]
        conflicts = [
            (what, owners[key]) for what, owners, key in parts if owners.setdefault(key, rule.ref) != rule.ref
        ]
        if conflicts:
            by = tuple(dict.fromkeys(ref for _, ref in conflicts))
            what = "" if len(conflicts) == len(parts) else ", ".join(what for what, _ in conflicts)
            yield rule.ref, Overridden(by, what)
