"""What transitions wait for, and which of them went on without lagging proxies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.objects import PortKey, Ref
from xds.mesh.rollout.observation import Observed
from xds.mesh.rollout.plan import RuleTransition, Transition


class WaitingFor(StrEnum):
    """What blocks the next phase of a transition."""

    LISTENER = "listener"
    """The server's sidecar has not activated the listener that it was sent."""
    CLIENTS = "clients"
    """Clients have not ACKed what they were sent, or their latest connections have not sent any data."""
    REPLICAS = "replicas"
    """Other replicas of the control plane have not applied the plan, or it could not be written."""


class Wait(NamedTuple):
    """What a transition waits for, or skipped."""

    waiting_for: WaitingFor
    """What blocks the next phase."""
    generation: int
    """The generation that has to be ACKed."""
    since: float
    """When the wait began, in seconds of the event loop's clock."""
    is_for_listener: bool = False
    """Whether the listener has to be active, on any replica. Otherwise, clients have to ACK."""
    lagging: tuple[str, ...] = ()
    """The clients, or the replicas, that lag."""
    rejection: str = ""
    """The error of a sidecar that rejected its configuration; empty if none did."""


class SkippedPort(NamedTuple):
    """A transition that went on without proxies that lag. They are waited for again in the next one."""

    transition: Transition
    """The transition when the timeout passed."""
    wait: Wait
    """What it waited for."""


class SkippedRule(NamedTuple):
    """A transition of a rule that went on without clients or servers that lag."""

    transition: RuleTransition
    """The transition when the timeout passed."""
    wait: Wait
    """What it waited for."""


@dataclass(slots=True)
class Skips:
    """Transitions that go on without lagging proxies or replicas. These are waited for in the next one."""

    ports: dict[PortKey, SkippedPort] = field(default_factory=dict)
    """Ports, until the proxies have caught up."""
    rules: dict[Ref, SkippedRule] = field(default_factory=dict)
    """DestinationRules, until the clients have caught up."""

    def __len__(self) -> int:
        return len(self.ports) + len(self.rules)


def port_wait(key: PortKey, transition: Transition, observed: Observed) -> Wait:
    """Return what a port in transition waits for."""
    listener, clients = transition.listener, transition.clients
    if not listener.is_settled:
        peers = tuple(observed.lagging_servers(key[0], listener.generation))
        kind = WaitingFor.REPLICAS if peers else WaitingFor.LISTENER
        error = observed.listener_error(key[0])
        return Wait(kind, listener.generation, listener.since, True, peers, error)
    lagging = observed.lagging_clients(clients.generation, transition.hosts.__contains__)
    is_peer = bool(lagging) and lagging.keys() <= observed.peers.keys()
    return Wait(
        WaitingFor.REPLICAS if is_peer else WaitingFor.CLIENTS,
        clients.generation,
        clients.since,
        lagging=tuple(lagging),
        rejection=next(filter(None, lagging.values()), ""),
    )


def clients_lagging_on_rule(transition: RuleTransition, observed: Observed) -> Mapping[str, str]:
    """Return the clients that have not ACKed the served version of a rule, with the errors."""
    return observed.lagging_clients(
        transition.rule.generation, lambda service: transition.affects((service,))
    )


def rule_wait(transition: RuleTransition, observed: Observed) -> Wait:
    """Return what a DestinationRule in transition waits for, once it is released."""
    lagging, rule = clients_lagging_on_rule(transition, observed), transition.rule
    rejection = next(filter(None, lagging.values()), "")
    return Wait(WaitingFor.CLIENTS, rule.generation, rule.since, False, tuple(lagging), rejection)
