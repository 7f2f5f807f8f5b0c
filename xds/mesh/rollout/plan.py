"""The plan of a rollout: for each port and DestinationRule in transition, what every replica serves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum
from hashlib import sha256
from math import inf
from typing import Final, NamedTuple, TypeAlias

from xds.mesh.model.objects import DestinationRule, Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.stages import ACCEPTED_SENDS, Staged


class Phase(StrEnum):
    """The phase of a transition."""

    EXPAND = "expand"
    """The listener is about to accept what clients have to send."""
    MIGRATE = "migrate"
    """Clients change what they send."""
    CONTRACT = "contract"
    """The listener stops accepting what policies forbid."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A port of a pod that moves from one mode to another."""

    listener: Staged[Mode]
    """The mode of the listener."""
    clients: Staged[Send]
    """What clients without a DestinationRule send."""
    hosts: frozenset[tuple[str, int]] = field(default=frozenset(), compare=False)
    """The services that the port belongs to, as hosts and service ports."""
    started_at: float = field(default=0.0, compare=False)
    """When the transition started, in seconds of the event loop's clock."""
    uid: str = field(default="", compare=False)
    """The UID of the pod; empty if it is not known."""

    def with_stages(self, listener: Staged[Mode], clients: Staged[Send]) -> Transition:
        """Return the transition with other stages."""
        if listener is self.listener and clients is self.clients:
            return self
        return Transition(listener, clients, self.hosts, self.started_at, self.uid)

    @property
    def phase(self) -> Phase:
        """The phase. A listener that changes accepts either more than before (expand) or less (contract)."""
        if self.listener.is_settled and not self.clients.is_settled:
            return Phase.MIGRATE
        accepts = [ACCEPTED_SENDS[mode] for mode in self.listener.possible]
        is_narrowed = any(sends > ACCEPTED_SENDS[self.listener.current] for sends in accepts)
        return Phase.CONTRACT if is_narrowed else Phase.EXPAND

    @property
    def is_settled(self) -> bool:
        """Whether only the served state can be active."""
        return self.listener.is_settled and self.clients.is_settled


class Unknown(Enum):
    """A version of a DestinationRule that this replica has never read."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
RuleVersion: TypeAlias = DestinationRule | Unknown | None
"""A version of a DestinationRule; None if there is no rule."""


@dataclass(frozen=True, slots=True)
class RuleTransition:
    """A DestinationRule that was added, changed or deleted."""

    rule: Staged[RuleVersion]
    """The version that clients are served, and those that they may still follow."""
    desired: DestinationRule | None
    """The version in the mesh; None if the rule was deleted."""
    pending_since: float = field(default=inf, compare=False)
    """When the change to `desired` became pending, in seconds of the event loop's clock."""

    @property
    def served(self) -> DestinationRule | None:
        """The version that clients are served; None if there is none."""
        return self.rule.current if isinstance(self.rule.current, DestinationRule) else None

    @property
    def is_pending(self) -> bool:
        """Whether clients are not served the desired version yet.

        A change is pending until all servers accept what the new version makes clients send.
        """
        return self.desired != self.rule.current

    @property
    def is_unknown(self) -> bool:
        """Whether clients may follow a version that this replica has never read."""
        return UNKNOWN in self.rule.possible

    @property
    def versions(self) -> list[DestinationRule]:
        """All known versions that clients may follow, now or later."""
        return [rule for rule in (*self.rule.possible, self.desired) if isinstance(rule, DestinationRule)]

    def affects(self, hosts: Iterable[tuple[str, int]]) -> bool:
        """Return whether the change may affect clients of any of these services."""
        return self.is_unknown or any(rule.is_about(host) for host, _ in hosts for rule in self.versions)


@dataclass(frozen=True, slots=True)
class Plan:
    """What all replicas serve for the ports and rules in transition.

    One replica, the leader, makes the plan. It takes a step of a transition once the proxies of all replicas
    have ACKed the generation of the previous step.
    """

    generation: int = 1
    """Number of the served state. It grows with each plan that serves another state."""
    ports: Mapping[PortKey, Transition] = field(default_factory=dict)
    """Ports in transition. All other ports stay as they are."""
    rules: Mapping[Ref, RuleTransition] = field(default_factory=dict)
    """DestinationRules in transition. All other rules stay as they are."""

    def stored(self, members: Iterable[str]) -> StoredPlan:
        """Return what replicas store of the plan. `members`: the replicas whose reports it considers."""
        return StoredPlan(
            self.generation,
            {key: (port.listener, port.clients) for key, port in self.ports.items()},
            {
                ref: StoredRule(
                    rule_hash(rule.rule.current),
                    rule_hash(rule.desired),
                    rule.rule.generation,
                    rule.rule.is_settled,
                )
                for ref, rule in self.rules.items()
            },
            frozenset(members),
        )


class StoredRule(NamedTuple):
    """A DestinationRule in a stored plan."""

    content: str
    """The `rule_hash` of the version that clients are served."""
    desired: str
    """The `rule_hash` of the version that the leader has read."""
    generation: int
    """Like `Staged.generation`."""
    is_settled: bool
    """Like `Staged.is_settled`."""


class StoredPlan(NamedTuple):
    """A plan as replicas share it."""

    generation: int = 0
    """Like `Plan.generation`."""
    ports: Mapping[PortKey, tuple[Staged[Mode], Staged[Send]]] = {}
    """The listener and the clients of each port in transition."""
    rules: Mapping[Ref, StoredRule] = {}
    """DestinationRules in transition."""
    members: frozenset[str] = frozenset()
    """The replicas whose reports the plan considers."""


def rule_hash(rule: RuleVersion) -> str:
    """Return a hash of a rule's content, which is the same on all replicas; an empty string for no rule."""
    if not isinstance(rule, DestinationRule):
        return ""
    fields = asdict(rule)
    del fields["meta"]
    content = json.dumps([str(rule.ref), rule.meta.age_key, fields], sort_keys=True, default=str)
    return sha256(content.encode()).hexdigest()[:16]
