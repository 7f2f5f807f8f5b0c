"""What transitions wait for, and those that continued without lagging proxies or replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from xds.mesh.model.objects import PortKey, Ref
from xds.mesh.rollout.observation import Observed
from xds.mesh.rollout.plan import RuleTransition, Transition

T = TypeVar("T", Transition, RuleTransition)


class WaitingFor(StrEnum):
    """What blocks the next phase of a transition."""

    LISTENER = "listener"
    """The server's sidecar has not activated the listener that it was sent."""
    CLIENTS = "clients"
    """Clients have not ACKed what they were sent, or their last connections are not classified yet."""
    REPLICAS = "replicas"
    """Other replicas of the control plane have not ACKed the plan, or the API server has not stored it."""


class Wait(NamedTuple):
    """What a transition waits for, or what it skipped."""

    waiting_for: WaitingFor
    """What blocks the next phase."""
    generation: int
    """The generation that has to be ACKed."""
    since: float
    """When the wait began, in seconds of the event loop's clock."""
    is_for_listener: bool = False
    """Whether the server's listener has to become active. If not, clients have to ACK.

    `waiting_for` does not tell: it is REPLICAS in both cases if a peer lags but does not name the proxies.
    """
    lagging: tuple[str, ...] = ()
    """The lagging clients, as POD.NAMESPACE, or the lagging replicas."""
    rejection: str = ""
    """The error of a sidecar that rejected its configuration; empty if none did."""


class Skipped(NamedTuple, Generic[T]):
    """A transition that continued without lagging proxies or replicas, because the timeout had passed."""

    transition: T
    """The transition when the timeout passed."""
    wait: Wait
    """What it waited for."""


@dataclass(slots=True)
class Skips:
    """Transitions that continued without lagging proxies or replicas.

    This replica waits again, in the next transition of the port, for a proxy that still lags.
    """

    ports: dict[PortKey, Skipped[Transition]] = field(default_factory=dict)
    """Transitions of ports."""
    rules: dict[Ref, Skipped[RuleTransition]] = field(default_factory=dict)
    """Transitions of DestinationRules."""

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


def rule_wait(transition: RuleTransition, observed: Observed) -> Wait:
    """Return the wait for the clients that have not ACKed the served version of a rule."""
    rule = transition.rule
    lagging = observed.lagging_clients(rule.generation, lambda service: transition.affects((service,)))
    rejection = next(filter(None, lagging.values()), "")
    return Wait(WaitingFor.CLIENTS, rule.generation, rule.since, False, tuple(lagging), rejection)
