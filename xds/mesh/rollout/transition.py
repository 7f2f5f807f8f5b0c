"""Ports and DestinationRules that are on their way to what is wanted, and what is known of how far proxies are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import Elsewhere


class Stage(StrEnum):
    """What a port waits for."""

    LISTENER = "listener"
    """The server's sidecar, to have the listener that it was given in force;"""
    CLIENTS = "clients"
    """or clients, to have taken what they are to send, and to have said something on connections that they just opened;"""
    REPLICAS = "replicas"
    """or other replicas of the control plane, to say that theirs are as far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How far proxies are: which generation (`Served.generation`) of what was served is in force."""

    servers: Mapping[Ref, int] = field(default_factory=dict)
    """By pod, of its inbound listeners with the secrets that these name. Who is not connected is not waited for."""
    rejected: Mapping[Ref, str] = field(default_factory=dict)
    """By pod, why its sidecar does not take the listener."""
    clients: Mapping[str, int] = field(default_factory=dict)
    """By name, of its clusters and endpoints."""
    returned: frozenset[str] = frozenset()
    """The clients that go on with what they had when they came, whatever that is: they have taken nothing yet."""
    refusing: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By client, which clusters or endpoints it rejected, and why."""
    elsewhere: Elsewhere = field(default_factory=Elsewhere)


@dataclass(slots=True, kw_only=True)
class Crossing:
    """A port of a pod on its way to another mode."""

    wanted: Mode
    will: Send
    """What clients are going to send."""
    immediate: bool
    serves: Mode
    """What its listener accepts, as it was last served; from which generation on, and what may be in force meanwhile."""
    serves_at: int
    may_serve: set[Mode]
    tells: Send
    """What clients were last told to send; from which generation on, and what they may still be sending."""
    tells_at: int
    may_tell: set[Send]
    hosts: frozenset[tuple[str, int]]
    """The services, and ports of them, that it belongs to."""
    began: float
    served_since: float
    told_since: float
    to_serve: Mode
    """What its listener will accept next, and clients will be told, as soon as other replicas know it."""
    to_tell: Send
    held_since: float | None = None
    """Since when only other replicas are in the way of that, and which."""
    held_by: tuple[str, ...] = ()
    heard_at: float | None = None
    """Since when all clients are known to have taken what they were told."""
    done_since: float | None = None
    settled: bool = False
    """Whether nothing is on its way here, nor known to be elsewhere."""
    stage: Stage | None = None
    """What it waits for now; None: for nothing."""
    laggards: tuple[str, ...] = ()
    """The clients, or replicas, that it waits for, or did not wait for any longer."""
    rejection: str = ""
    """Why it cannot go on: what a sidecar said."""

    @property
    def since(self) -> float:
        """Since when it waits."""
        if self.stage is Stage.REPLICAS and self.held_since is not None:
            return self.held_since
        return self.served_since if self.stage is Stage.LISTENER else self.told_since

    @property
    def awaits_lock(self) -> bool:
        """Whether plaintext is still accepted though policy forbids it."""
        return self.wanted is Mode.STRICT and (self.serves is not Mode.STRICT or len(self.may_serve) > 1)

    @property
    def done(self) -> bool:
        """Whether what is wanted is in force."""
        there = self.serves is self.wanted and self.tells is self.will
        return there and self.may_serve == {self.serves} and self.may_tell == {self.tells}


def other_than(send: Send) -> Send:
    """Return what else may be sent."""
    return Send.PLAINTEXT if send is Send.MTLS else Send.MTLS


def service_of(cluster: str) -> tuple[str, int]:
    """Return the host and port that a cluster `outbound|PORT|SUBSET|HOST` leads to."""
    kind, _, rest = cluster.partition("|")
    port, _, rest = rest.partition("|")
    return (rest.rpartition("|")[2], int(port)) if kind == "outbound" and port.isdecimal() else ("", 0)
