"""DestinationRules that change: when a new one may be in force, and what clients may be sending meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from xds.mesh.model.defaults import installed
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, MeshConfig, PortKey, Ref
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import TAKES, Elsewhere
from xds.mesh.rollout.transition import Crossing


@dataclass(slots=True, kw_only=True)
class RuleChange:
    """A DestinationRule that is another one, or gone: its clients may be sending what the old one said, and will the new one's."""

    old: DestinationRule | None
    new: DestinationRule | None
    others: tuple[DestinationRule, ...]
    """Those that may speak where this one does not."""
    since: float
    """Since when it is held back, or waited for."""
    at: int | None = None
    """The generation that it is in force from; None: the old one is in force still."""
    told_since: float | None = None
    """Since when there are clients that have not taken what they were told of it, be it an earlier change."""
    heard_at: float | None = None
    """Since when all have taken it."""
    laggards: tuple[str, ...] = ()
    """These clients, and what one of them said if it rejected it."""
    rejection: str = ""

    @property
    def rules(self) -> list[DestinationRule]:
        """The old one and the new one, as far as there are."""
        return [rule for rule in (self.old, self.new) if rule]

    def is_about(self, hosts: Iterable[tuple[str, int]]) -> bool:
        """Whether it may concern clients of any of these services."""
        rules = self.rules
        return any(rule.is_about(host) for host, _ in hosts for rule in rules)

    def said_by(
        self, rule: DestinationRule | None, hosts: Iterable[tuple[str, int]], otherwise: Collection[Send]
    ) -> set[Send]:
        """Return what clients of these services may send while a rule is the old or the new one, or there is none.

        Which of several rules speaks for a client is not asked: too much is waited for, if anything.
        """
        found = _says(rule, otherwise) if rule else set(otherwise)
        for other in self.others:
            if any(other.is_about(host) for host, _ in hosts):
                found |= _says(other, otherwise)
        return found


def _says(rule: DestinationRule, otherwise: Collection[Send]) -> set[Send]:
    """Return what clients send by any part of a rule; `otherwise`: what those send that it leaves alone."""
    found: set[Send] = set()
    for policy in (rule.policy, *(subset.policy for subset in rule.subsets)):
        for each in (policy, *(policy.ports.values() if policy else ())):
            if each and each.tls:
                found.add(Send.MTLS if each.tls.mode is TlsMode.ISTIO_MUTUAL else Send.PLAINTEXT)
            else:
                found.update(otherwise)
    return found


def _meaning(rule: DestinationRule) -> tuple[str, frozenset[Send], frozenset[Send]]:
    """Return all that is asked of a rule that was: however often it changes, few of them differ in that."""
    return rule.host, frozenset(_says(rule, ())), frozenset(_says(rule, tuple(Send)))


def of_installation(config: MeshConfig) -> dict[Ref, DestinationRule]:
    """Return the rules that installing creates."""
    return {fact.ref: fact for fact in installed(config) if isinstance(fact, DestinationRule)}


def silent(rule: DestinationRule) -> DestinationRule:
    """Return what stands for a rule that says nothing yet."""
    return replace(rule, policy=None, subsets=())


def change(
    mesh: Mesh, before: RuleChange | None, ref: Ref, new: DestinationRule | None, now: float
) -> RuleChange:
    """Begin the change of a rule from what a mesh has to `new`; `before` is the change that it may be in the middle of."""
    old = mesh.get(ref)
    # Clients may not even have taken the change before.
    earlier = (*before.others, before.old) if before and before.at is not None else ()
    others = [rule for rule in mesh.rules() if rule.ref != ref]
    others += {_meaning(rule): rule for rule in earlier if rule and rule not in others}.values()
    return RuleChange(
        old=old if isinstance(old, DestinationRule) else None,
        new=new,
        others=tuple(others),
        # While it is held back it may change again, and is not waited for anew; what was told is waited for by itself.
        since=before.since if before and before.at is None else now,
        told_since=before.told_since if before else None,
    )


def is_too_early(rule: RuleChange, crossings: Mapping[PortKey, Crossing], others: Elsewhere) -> bool:
    """Whether a server may refuse what a new rule has clients send, though policy means it to take that."""
    return not others.rules_said or any(
        any(send not in TAKES[mode] for mode in crossing.may_serve)
        or not others.may_tell(key, send)
        or others.refusing(key, send)
        for key, crossing in crossings.items()
        if rule.is_about(crossing.hosts) and not crossing.immediate
        for send in rule.said_by(rule.new, crossing.hosts, {crossing.tells}) & TAKES[crossing.wanted]
    )


def together(held: Mapping[Ref, RuleChange], early: Collection[Ref]) -> set[Ref]:
    """Return what has to wait where some are too early: these, and others that may speak for the same clients.

    One without the other could have clients send what neither the old rules say nor the new ones.
    """
    waiting, added = set(early), set(early)
    while added:
        added = {
            ref
            for ref, rule in held.items()
            if ref not in waiting and any(_overlap(rule, held[each]) for each in waiting)
        }
        waiting |= added
    return waiting


def _overlap(one: RuleChange, other: RuleChange) -> bool:
    return one.is_about((rule.host, 0) for rule in other.rules) or other.is_about(
        (rule.host, 0) for rule in one.rules
    )


def users(rules: Mapping[Ref, RuleChange], crossing: Crossing) -> Iterator[tuple[set[Send], set[Send]]]:
    """Yield, for each change that is about a port, what its clients may be sending and what they will send."""
    for rule in rules.values():
        if rule.is_about(crossing.hosts):
            wants = rule.said_by(rule.new, crossing.hosts, {crossing.will})
            yield rule.said_by(rule.old, crossing.hosts, crossing.may_tell) | wants, wants
