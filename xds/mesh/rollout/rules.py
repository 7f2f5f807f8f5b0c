"""What clients may send while DestinationRules change, and which rules have to change together."""

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
    """Return the DestinationRules that a change added, changed or deleted, including default rules."""
    refs = {fact.ref for fact in change.applied} | set(change.removed)
    if before.config != after.config:
        refs |= {fact.ref for mesh in (before, after) for fact in default_objects(mesh.config)}
    return {ref for ref in refs if ref.kind == "DestinationRule" and before.get(ref) != after.get(ref)}


def distinct(versions: Iterable[RuleVersion]) -> tuple[RuleVersion, ...]:
    """Return the versions without those that make clients send the same as a later one.

    This limits the number of versions, however often a rule changes during a rollout.
    """
    kept: dict[object, RuleVersion] = {}
    for rule in versions:
        kept[(rule.host, *_sends_key(rule)) if isinstance(rule, DestinationRule) else rule] = rule
    return tuple(kept.values())


def _sends_key(rule: DestinationRule) -> tuple[frozenset[Send], frozenset[Send]]:
    """Return what clients send under a rule, without and with the parts that do not set TLS."""
    return frozenset(sends_under(rule, ())), frozenset(sends_under(rule, tuple(Send)))


class RuleSends:
    """What clients may send under the rules of a mesh, some of which are in transition.

    Results are upper bounds: if several rules are about a host, they contain what clients send under any.
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
        """Return what clients may send under some versions of a rule, and under the other rules of the mesh.

        Args:
            ref: the reference to the rule.
            versions: versions of the rule.
            hosts: the services that clients send to, as hosts and ports.
            default: what clients send if no rule sets TLS for them.
        """
        others = (
            rule
            for rule in self._versions
            if rule.ref != ref and any(rule.is_about(host) for host, _ in hosts)
        )
        return {send for rule in (*versions, *others) for send in sends_under(rule, default)}

    def to(self, transition: Transition, desired: Send) -> Iterator[tuple[set[Send], set[Send]]]:
        """For each rule in transition that affects a port, yield two sets of what clients may send.

        The first is for the whole transition, the second for its end, when clients follow the desired version
        and send `desired` by default.
        """
        hosts = transition.hosts
        for ref, rule in self.rules.items():
            if rule.affects(hosts):
                at_end = self.under(ref, (rule.desired,), hosts, {desired})
                yield self.under(ref, rule.rule.possible, hosts, transition.clients.possible) | at_end, at_end


def with_overlapping(pending: Mapping[Ref, RuleTransition], too_early: Collection[Ref]) -> set[Ref]:
    """Return the rules that are too early, and all pending rules that may apply to the same clients.

    If one were served without the other, clients could send what neither the old nor the new rules set.
    """
    waiting, added = set(too_early), set(too_early)
    while added:
        added = {
            ref
            for ref, rule in pending.items()
            if ref not in waiting and any(_overlap(rule, pending[other]) for other in waiting)
        }
        waiting |= added
    return waiting


def _overlap(one: RuleTransition, other: RuleTransition) -> bool:
    """Return whether any version of one rule is about the host of a version of the other."""
    return one.affects((rule.host, 0) for rule in other.versions) or other.affects(
        (rule.host, 0) for rule in one.versions
    )


def sends_under(rule: RuleVersion, default: Collection[Send]) -> set[Send]:
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
