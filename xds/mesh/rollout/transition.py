"""The transition of a port, and the observed progress of proxies."""

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
    """The served listener is not active in the server's sidecar."""
    CLIENTS = "clients"
    """Clients have not ACKed the served configuration, or may have pending connections from before."""
    REPLICAS = "replicas"
    """Peers have not reported that their proxies are ready, or this replica's report was not read back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedState:
    """The progress of proxies: the generations (`Served.generation`) that are active, and rejections.

    The rollout waits only for proxies listed here.
    """

    servers: Mapping[Ref, int] = field(default_factory=dict)
    """For each pod, the active generation of its inbound listeners and the secrets that they reference."""
    rejected_listeners: Mapping[Ref, str] = field(default_factory=dict)
    """For each pod whose sidecar rejected an inbound listener, the error."""
    clients: Mapping[str, int] = field(default_factory=dict)
    """For each client (POD.NAMESPACE), the active generation of its clusters and endpoints."""
    reconnected: frozenset[str] = frozenset()
    """Clients that may have pending connections from a configuration of an earlier stream."""
    rejected_clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each client, the clusters and endpoints that it rejected, with the error."""
    peers: PeerView = field(default_factory=PeerView)
    """The reports of peers."""


@dataclass(slots=True, kw_only=True)
class Transition:
    """The transition of a pod's port from one mode to another."""

    desired_mode: Mode
    """The mode that policies ask for."""
    desired_send: Send
    """What clients send when the transition is complete."""
    immediate: bool
    """Whether the policy asks to change servers and clients at the same time."""
    served_mode: Mode
    """The mode that the listener is currently served with."""
    mode_generation: int
    """The first generation with this served mode."""
    mode_since: float
    """When this mode was first served."""
    possible_modes: set[Mode]
    """The modes that may be active in the server's sidecar."""
    served_send: Send
    """What clients are currently configured to send."""
    send_generation: int
    """The first generation with this client configuration."""
    send_since: float
    """When this client configuration was first served."""
    possible_sends: set[Send]
    """What clients may be sending."""
    next_mode: Mode
    """The mode to serve next. If peers must agree, it is reported to them first."""
    next_send: Send
    """What to configure clients to send next. If peers must agree, it is reported to them first."""
    hosts: frozenset[tuple[str, int]]
    """The services that route to the port, as hosts and service ports."""
    started_at: float
    """When the transition started."""
    blocked_since: float | None = None
    """When peers began to block the next phase; None if none do."""
    blocked_by: tuple[str, ...] = ()
    """The peers that block the next phase."""
    acked_since: float | None = None
    """When the last client was known to have ACKed; None until all have."""
    done_since: float | None = None
    """When the desired state became active on this replica; None until then."""
    is_settled: bool = False
    """Whether the desired state is active on this replica and its peers, or the timeout has passed."""
    waiting_for: WaitingFor | None = None
    """What blocks the next phase; None if nothing does."""
    lagging: tuple[str, ...] = ()
    """The clients or peers that block the next phase, or were skipped."""
    rejection: str = ""
    """The error of a sidecar that rejected its configuration; empty if none did."""

    @property
    def waiting_since(self) -> float:
        """When the current wait began."""
        if self.waiting_for is WaitingFor.REPLICAS and self.blocked_since is not None:
            return self.blocked_since
        return self.mode_since if self.waiting_for is WaitingFor.LISTENER else self.send_since

    @property
    def accepts_plaintext(self) -> bool:
        """Whether the server may still accept plaintext although policies forbid it."""
        return self.desired_mode is Mode.STRICT and (
            self.served_mode is not Mode.STRICT or len(self.possible_modes) > 1
        )

    @property
    def is_done(self) -> bool:
        """Whether the desired state is served and active, as far as this replica knows."""
        return (
            self.served_mode is self.desired_mode
            and self.served_send is self.desired_send
            and self.possible_modes == {self.served_mode}
            and self.possible_sends == {self.served_send}
        )


def other_than(send: Send) -> Send:
    """Return the other kind of traffic: PLAINTEXT for MTLS, else MTLS."""
    return Send.PLAINTEXT if send is Send.MTLS else Send.MTLS


def service_of(cluster: str) -> tuple[str, int]:
    """Return the host and port of a cluster named `outbound|PORT|SUBSET|HOST`; ("", 0) for other names."""
    direction, _, remainder = cluster.partition("|")
    port, _, subset_and_host = remainder.partition("|")
    if direction != "outbound" or not port.isdecimal():
        return "", 0
    return subset_and_host.rpartition("|")[2], int(port)
