"""Which policies decide nothing, though they speak: whoever wrote one of these wants to know who decides instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, PeerAuthentication, Pod, Ref
from xds.mesh.policy.mtls import in_force, ports_with_own_mode


class Overruled(NamedTuple):
    """An object of which something has no effect."""

    by: tuple[Ref, ...]
    """Who decides instead."""
    what: str
    """What has no effect: in words, or empty for all of it."""


def overruled(mesh: Mesh) -> Mapping[Ref, Overruled]:
    """Return the policies that decide at no port of any pod, though they speak about some, and the DestinationRules that lost."""
    return {**_authentication(mesh), **dict(_rules(mesh))}


def _authentication(mesh: Mesh) -> dict[Ref, Overruled]:
    deciding: set[Ref] = set()
    lost: dict[Ref, dict[Ref, None]] = {}
    for pod in mesh.pods():
        for port in _ports(mesh, pod):
            found = in_force(mesh, pod, port)
            deciding.add(found.because)
            for ref in found.overruled:
                lost.setdefault(ref, {})[found.because] = None
    return {
        ref: Overruled(tuple(by), "")
        for ref, by in lost.items()
        if ref not in deciding and not _leaves_it_to_others(mesh, ref)
    }


def _ports(mesh: Mesh, pod: Pod) -> set[int]:
    """Ports whose modes may differ; 0 stands for all others."""
    if pod.ended or not pod.has_sidecar:
        return set()
    return {0, *ports_with_own_mode(mesh, pod), *(exposed.target for exposed in mesh.exposures(pod))}


def _leaves_it_to_others(mesh: Mesh, ref: Ref) -> bool:
    found = mesh.get(ref)
    return isinstance(found, PeerAuthentication) and found.mode is None and not found.ports


def _rules(mesh: Mesh) -> Iterator[tuple[Ref, Overruled]]:
    """Those for the same host and clients in a namespace are merged, the oldest having the last word."""
    rules = [fact for fact in mesh.facts() if isinstance(fact, DestinationRule)]
    policies: dict[object, Ref] = {}
    subsets: dict[object, Ref] = {}
    for rule in sorted(rules, key=lambda rule: rule.meta.age_key):
        selector = None if rule.selector is None else tuple(sorted(rule.selector.items()))
        key = (rule.namespace, rule.host, frozenset(rule.export_to), selector)
        said = [
            *([("its trafficPolicy", policies, key)] if rule.policy else []),
            *((f"its subset {each.name}", subsets, (*key, each.name)) for each in rule.subsets),
        ]
        lost = [
            (what, known[key]) for what, known, key in said if known.setdefault(key, rule.ref) != rule.ref
        ]
        if lost:
            by = tuple(dict.fromkeys(ref for _, ref in lost))
            yield (
                rule.ref,
                Overruled(by, "" if len(lost) == len(said) else ", ".join(what for what, _ in lost)),
            )
