"""A port that changes its mode, and what the control plane knows about the progress of proxies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import PeerView


class WaitingFor(StrEnum):
    """What blocks the next phase of a transition."""

    LISTENER = "listener"
    """The server's sidecar has not activated the listener that it was sent."""
    CLIENTS = "clients"
    """Clients have not ACKed what they were sent, or their latest connections have not sent any data."""
    REPLICAS = "replicas"
    """Other replicas of the control plane have not reported that their proxies are ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedState:
    """The generation (`Served.generation`) that each connected proxy uses.

    The rollout does not wait for proxies that are missing here.
    """

    servers: Mapping[Ref, int] = field(default_factory=dict)
    """The active generation of a pod's inbound listeners and of the secrets that they reference."""
    rejected_listeners: Mapping[Ref, str] = field(default_factory=dict)
    """The error of each pod whose sidecar rejected an inbound listener."""
    clients: Mapping[str, int] = field(default_factory=dict)
    """The active generation of a client's clusters and endpoints, by POD.NAMESPACE."""
    reconnected: frozenset[str] = frozenset()
    """Clients that may have pending connections that they opened under an earlier configuration."""
    rejected_clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each client, the clusters or endpoints that it rejected, with the error."""
    peers: PeerView = field(default_factory=PeerView)
    """What the other replicas report."""


@dataclass(slots=True, kw_only=True)
class Transition:
    """A port of a pod that moves from one mode to another."""

    desired_mode: Mode
    """The mode that policies ask for."""
    desired_send: Send
    """What clients have to send in the end."""
    immediate: bool
    """Whether the policy asks to change both sides at once."""
    served_mode: Mode
    """The mode of the listener as it was last served."""
    mode_generation: int
    """The first generation with this listener."""
    mode_since: float
    """When the listener was first served with this mode."""
    possible_modes: set[Mode]
    """The modes that may be active in the server's sidecar."""
    served_send: Send
    """What clients are configured to send, as last served."""
    send_generation: int
    """The first generation with this client configuration."""
    send_since: float
    """When clients were first served this configuration."""
    possible_sends: set[Send]
    """What clients may be sending."""
    next_mode: Mode
    """The mode to serve next, once peers have read it in a report of this replica."""
    next_send: Send
    """What to configure clients to send next, once peers have read it in a report of this replica."""
    hosts: frozenset[tuple[str, int]]
    """The services that the port belongs to, as hosts and service ports."""
    started_at: float
    """When the transition started."""
    held_since: float | None = None
    """Time when the transition began to wait only for peers; None if it does not."""
    held_by: tuple[str, ...] = ()
    """The peers that block the next phase."""
    acked_since: float | None = None
    """Time when the last client was known to have ACKed; None until all have."""
    done_since: float | None = None
    """Time when the desired state became active on this replica; None until then."""
    is_settled: bool = False
    """Whether the desired state is active on this replica and on its known peers."""
    waiting_for: WaitingFor | None = None
    """What blocks the next phase; None if nothing does."""
    lagging: tuple[str, ...] = ()
    """The clients, or the peers, that block the next phase or were skipped."""
    rejection: str = ""
    """Error of a sidecar that rejected its configuration; empty if none did."""

    @property
    def waiting_since(self) -> float:
        """When the current wait began."""
        if self.waiting_for is WaitingFor.REPLICAS and self.held_since is not None:
            return self.held_since
        return self.mode_since if self.waiting_for is WaitingFor.LISTENER else self.send_since

    @property
    def accepts_plaintext(self) -> bool:
        """Whether the server may still accept plaintext although policies forbid it."""
        return self.desired_mode is Mode.STRICT and (
            self.served_mode is not Mode.STRICT or len(self.possible_modes) > 1
        )

    @property
    def is_done(self) -> bool:
        """Whether the desired state is served and active."""
        return (
            self.served_mode is self.desired_mode
            and self.served_send is self.desired_send
            and self.possible_modes == {self.served_mode}
            and self.possible_sends == {self.served_send}
        )


def other_than(send: Send) -> Send:
    """Return PLAINTEXT for MTLS, and MTLS for anything else."""
    return Send.PLAINTEXT if send is Send.MTLS else Send.MTLS


def service_of(cluster: str) -> tuple[str, int]:
    """Return the host and port of a cluster named `outbound|PORT|SUBSET|HOST`."""
    kind, _, rest = cluster.partition("|")
    port, _, rest = rest.partition("|")
    return (rest.rpartition("|")[2], int(port)) if kind == "outbound" and port.isdecimal() else ("", 0)
