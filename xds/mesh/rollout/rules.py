"""DestinationRules that change: when to serve the new version, and what clients may send in the meantime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from xds.mesh.model.defaults import default_objects
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, MeshConfig, PortKey, Ref
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import ACCEPTED_SENDS, PeerView
from xds.mesh.rollout.transition import Transition


@dataclass(slots=True, kw_only=True)
class RuleTransition:
    """The transition of a DestinationRule that was added, changed or deleted.

    Clients may use either version.
    """

    old: DestinationRule | None
    """The version that was served before. None: there was none."""
    new: DestinationRule | None
    """The desired version. None: the rule was deleted."""
    other_rules: tuple[DestinationRule, ...]
    """The rules that may apply to a client instead of this one."""
    since: float
    """When the current wait began: for servers while the rule is held, then for clients."""
    generation: int | None = None
    """The first generation with the new version. None: the rule is held, and the old version is served."""
    lagging_since: float | None = None
    """When clients began to lag behind this rule, possibly behind an earlier change of it."""
    acked_since: float | None = None
    """When the last client was known to have ACKed; None until all have."""
    lagging: tuple[str, ...] = ()
    """The clients that have not ACKed."""
    rejection: str = ""
    """The error of one of these clients that rejected the change. Empty: none did."""

    @property
    def versions(self) -> list[DestinationRule]:
        """The versions that exist: the old, the new, or both."""
        return [rule for rule in (self.old, self.new) if rule]

    def affects(self, hosts: Iterable[tuple[str, int]]) -> bool:
        """Return whether the change may affect clients of any of these services."""
        versions = self.versions
        return any(rule.is_about(host) for host, _ in hosts for rule in versions)

    def possible_sends(
        self, rule: DestinationRule | None, hosts: Iterable[tuple[str, int]], default: Collection[Send]
    ) -> set[Send]:
        """Return what clients of these services may send under one version of the rule.

        The result is a superset: it does not consider which of several rules applies to a client.

        Args:
            rule: the old or the new version; None if there is none.
            hosts: the services.
            default: what clients send if no rule sets TLS.
        """
        sends = _sends_under(rule, default) if rule else set(default)
        for other in self.other_rules:
            if any(other.is_about(host) for host, _ in hosts):
                sends |= _sends_under(other, default)
        return sends


def _sends_under(rule: DestinationRule, default: Collection[Send]) -> set[Send]:
    """Return what clients may send under a rule; `default` is for parts of the rule that do not set TLS."""
    sends: set[Send] = set()
    for policy in (rule.policy, *(subset.policy for subset in rule.subsets)):
        for settings in (policy, *(policy.ports.values() if policy else ())):
            if settings and settings.tls:
                sends.add(Send.MTLS if settings.tls.mode is TlsMode.ISTIO_MUTUAL else Send.PLAINTEXT)
            else:
                sends.update(default)
    return sends


def _relevant_content(rule: DestinationRule) -> tuple[str, frozenset[Send], frozenset[Send]]:
    """Return the key to deduplicate earlier versions, so that their number is bounded.

    Versions with the same key have the same effect on a rollout.
    """
    return rule.host, frozenset(_sends_under(rule, ())), frozenset(_sends_under(rule, tuple(Send)))


def default_rules(config: MeshConfig) -> dict[Ref, DestinationRule]:
    """Return the default DestinationRules for some settings."""
    return {fact.ref: fact for fact in default_objects(config) if isinstance(fact, DestinationRule)}


def placeholder_for(rule: DestinationRule) -> DestinationRule:
    """Return a copy of a rule without settings, to serve while the rule is held."""
    return replace(rule, policy=None, subsets=())


def begin_transition(
    mesh: Mesh, previous: RuleTransition | None, ref: Ref, new: DestinationRule | None, now: float
) -> RuleTransition:
    """Start the transition of a rule from its version in the mesh to `new`.

    `previous` is the rule's last transition, if clients have not ACKed it.
    """
    old = mesh.get(ref)
    # Clients that have not ACKed the previous change may still use an earlier version.
    earlier = (*previous.other_rules, previous.old) if previous and previous.generation is not None else ()
    other_rules = [rule for rule in mesh.rules() if rule.ref != ref]
    other_rules += {
        _relevant_content(rule): rule for rule in earlier if rule and rule not in other_rules
    }.values()
    return RuleTransition(
        old=old if isinstance(old, DestinationRule) else None,
        new=new,
        other_rules=tuple(other_rules),
        # A rule that changes again while it is held keeps its deadline, and lagging clients keep theirs.
        since=previous.since if previous and previous.generation is None else now,
        lagging_since=previous.lagging_since if previous else None,
    )


def is_too_early(rule: RuleTransition, transitions: Mapping[PortKey, Transition], peers: PeerView) -> bool:
    """Return whether a server may still refuse traffic that the new version causes and policies allow."""
    return not peers.rules_are_shared or any(
        any(send not in ACCEPTED_SENDS[mode] for mode in transition.possible_modes)
        or not peers.knows_send(key, send)
        or peers.may_refuse(key, send)
        for key, transition in transitions.items()
        if rule.affects(transition.hosts) and not transition.immediate
        for send in rule.possible_sends(rule.new, transition.hosts, {transition.served_send})
        & ACCEPTED_SENDS[transition.desired_mode]
    )


def with_overlapping(held: Mapping[Ref, RuleTransition], too_early: Collection[Ref]) -> set[Ref]:
    """Return the rules that are too early, and all held rules that may apply to the same clients.

    Overlapping rules must be released together. Otherwise, clients could send what neither the old rules nor
    the new rules ask for.
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


def _overlap(first: RuleTransition, second: RuleTransition) -> bool:
    return first.affects((rule.host, 0) for rule in second.versions) or second.affects(
        (rule.host, 0) for rule in first.versions
    )


def sends_under_rules(
    rules: Mapping[Ref, RuleTransition], transition: Transition
) -> Iterator[tuple[set[Send], set[Send]]]:
    """Yield what clients may send now and under the new version, for each changing rule of a port."""
    for rule in rules.values():
        if rule.affects(transition.hosts):
            new = rule.possible_sends(rule.new, transition.hosts, {transition.desired_send})
            yield rule.possible_sends(rule.old, transition.hosts, transition.possible_sends) | new, new
