"""DestinationRules that change: when to serve the new version, and what clients may send in the meantime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property

from xds.mesh.model.defaults import default_objects
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, DestinationRule, Ref
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.plan import UNKNOWN, RuleTransition, RuleVersion, Transition
from xds.mesh.rollout.stages import BOTH


def changed_rules(before: Mesh, after: Mesh, change: Change) -> set[Ref]:
    """Return the DestinationRules that a change replaced, including default rules."""
    refs = {fact.ref for fact in change.applied} | set(change.removed)
    if before.config != after.config:
        refs |= {fact.ref for mesh in (before, after) for fact in default_objects(mesh.config)}
    return {ref for ref in refs if ref.kind == "DestinationRule" and before.get(ref) != after.get(ref)}


def distinct(versions: Iterable[RuleVersion]) -> tuple[RuleVersion, ...]:
    """Drop all but the last of the versions that make clients send the same.

    Few versions differ in that, however often a rule changes.
    """
    kept: dict[object, RuleVersion] = {}
    for rule in versions:
        kept[(rule.host, *_sends_key(rule)) if isinstance(rule, DestinationRule) else rule] = rule
    return tuple(kept.values())


def _sends_key(rule: DestinationRule) -> tuple[frozenset[Send], frozenset[Send]]:
    return frozenset(_sends_under(rule, ())), frozenset(_sends_under(rule, tuple(Send)))


class RuleSends:
    """What clients may send under the rules of a mesh, some of which are in transition.

    Results are supersets: they do not consider which of several rules applies to a client.
    """

    def __init__(self, mesh: Mesh, rules: Mapping[Ref, RuleTransition]) -> None:
        self.rules, self._mesh = rules, mesh

    @cached_property
    def _versions(self) -> list[DestinationRule]:
        settled = (rule for rule in self._mesh.rules() if rule.ref not in self.rules)
        return [*settled, *(version for rule in self.rules.values() for version in rule.versions)]

    def under(
        self,
        ref: Ref,
        versions: Iterable[RuleVersion],
        hosts: Iterable[tuple[str, int]],
        default: Collection[Send],
    ) -> set[Send]:
        """Return what clients of services may send under some versions of a rule.

        Args:
            ref: name of the rule.
            versions: versions of the rule.
            hosts: the services.
            default: what clients send to which no rule applies.
        """
        others = (
            rule
            for rule in self._versions
            if rule.ref != ref and any(rule.is_about(host) for host, _ in hosts)
        )
        return {send for rule in (*versions, *others) for send in _sends_under(rule, default)}

    def to(self, transition: Transition, desired: Send) -> Iterator[tuple[set[Send], set[Send]]]:
        """Yield what clients may send now and in the end, for each rule in transition that affects a port."""
        hosts = transition.hosts
        for ref, rule in self.rules.items():
            if rule.affects(hosts):
                then = self.under(ref, (rule.desired,), hosts, {desired})
                yield self.under(ref, rule.rule.possible, hosts, transition.clients.possible) | then, then


def with_overlapping(held: Mapping[Ref, RuleTransition], too_early: Collection[Ref]) -> set[Ref]:
    """Return the rules that are too early, and all held rules that may apply to the same clients.

    If one were released without the other, clients could send what neither the old nor the new rules ask for.
    """
    waiting, added = set(too_early), set(too_early)
    while added:
        added = {
            ref
            for ref, rule in held.items()
            if ref not in waiting and any(_overlap(rule, held[other]) for other in waiting)
        }
        waiting |= added
    return waiting


def _overlap(one: RuleTransition, other: RuleTransition) -> bool:
    return one.affects((rule.host, 0) for rule in other.versions) or other.affects(
        (rule.host, 0) for rule in one.versions
    )


def _sends_under(rule: RuleVersion, default: Collection[Send]) -> set[Send]:
    """Return what clients send under any part of a rule; `default` applies where it does not set TLS."""
    if not isinstance(rule, DestinationRule):
        return set(BOTH if rule is UNKNOWN else default)
    sends: set[Send] = set()
    for policy in (rule.policy, *(subset.policy for subset in rule.subsets)):
        for settings in (policy, *(policy.ports.values() if policy else ())):
            if settings and settings.tls:
                sends.add(Send.MTLS if settings.tls.mode is TlsMode.ISTIO_MUTUAL else Send.PLAINTEXT)
            else:
                sends.update(default)
    return sends
