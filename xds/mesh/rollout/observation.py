"""What replicas report about the proxies that are connected to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from xds.mesh.model.objects import Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send

if TYPE_CHECKING:
    from xds.mesh.rollout.sync import Shared

T = TypeVar("T")

MAX_LAGGING = 50
"""Lagging proxies that a replica names to its peers, of servers and of clients."""


class Ask(NamedTuple):
    """A port that the plan has to include, because proxies of a replica may use another state."""

    mode: Mode
    """The mode that its listener may have."""
    send: Send
    """What clients may send."""
    is_active: bool
    """Whether the server's sidecar connected with this mode. Otherwise, the replica serves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The generations (`Plan.generation`) that the proxies of one replica use.

    The rollout does not wait for proxies that no report counts.
    """

    generation: int = 0
    """The generation that the replica serves."""
    is_alone: bool = False
    """Whether the replica serves a plan of its own that could not be stored."""
    servers: Mapping[Ref, int] = field(default_factory=dict)
    """The active generation of a pod's inbound listeners and of the secrets that they reference."""
    other_servers: float = inf
    """The lowest active generation of all other pods' listeners; infinity if there are none."""
    clients: Mapping[str, int] = field(default_factory=dict)
    """The active generation of a client's clusters and endpoints, by POD.NAMESPACE."""
    other_clients: float = inf
    """The lowest active generation of all other clients; infinity if there are none."""
    rejected_listeners: Mapping[Ref, str] = field(default_factory=dict)
    """The error of each pod whose sidecar rejected an inbound listener."""
    rejected_clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each client, the clusters or endpoints that it rejected, with the error."""
    has_returned: bool = False
    """Whether a client may have pending connections that it opened under an earlier configuration."""
    asks: Mapping[PortKey, Ask] = field(default_factory=dict)
    """Ports that the plan has to include."""
    held_rules: frozenset[Ref] = frozenset()
    """DestinationRules that the plan has to include, because the replica serves an earlier version."""

    def shared(self) -> Report:
        """Return the report for other replicas. It lists only proxies that lag behind its generation."""
        if len(self.rejected_clusters) > MAX_LAGGING:
            return self.unknown()
        servers, other_servers = _lagging(self.servers, self.generation)
        clients, other_clients = _lagging(self.clients, self.generation)
        return replace(
            self, servers=servers, other_servers=other_servers, clients=clients, other_clients=other_clients
        )

    def unknown(self) -> Report:
        """Return the report without the progress of proxies, so that nothing can rely on it."""
        return Report(
            generation=self.generation,
            is_alone=self.is_alone,
            other_servers=-1,
            other_clients=-1,
            has_returned=True,
            asks=self.asks,
            held_rules=self.held_rules,
        )


def _lagging(active: Mapping[T, int], generation: int) -> tuple[Mapping[T, int], int]:
    """Return the proxies that lag, and the lowest generation of all others."""
    lagging = {name: number for name, number in active.items() if number < generation}
    if len(lagging) <= MAX_LAGGING:
        return lagging, generation
    named = dict(list(lagging.items())[:MAX_LAGGING])
    return named, min(lagging.values())


@dataclass(frozen=True, slots=True)
class Observed:
    """The reports of all replicas."""

    own: Report = field(default_factory=Report)
    """The report of this replica, which lists every proxy."""
    peers: Mapping[str, Report] = field(default_factory=dict)
    """The reports of the other replicas, by name. They list only proxies that lag behind their generation."""
    shared: Shared | None = None
    """What replicas share. None: there are no other replicas."""
    _lagging: dict[int, Mapping[str, str]] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Report]:
        """Yield all reports."""
        yield self.own
        yield from self.peers.values()

    def server_generation(self, pod: Ref) -> float:
        """Return the active generation of a pod's inbound listeners."""
        return min(report.servers.get(pod, report.other_servers) for report in self)

    def listener_error(self, pod: Ref) -> str:
        """Return the error of a sidecar that rejected an inbound listener, or an empty string."""
        return next((error for report in self if (error := report.rejected_listeners.get(pod, ""))), "")

    @property
    def has_returned(self) -> bool:
        """Whether any client may have pending connections that it opened under an earlier configuration."""
        return any(report.has_returned for report in self)

    def lagging_servers(self, pod: Ref, generation: int) -> list[str]:
        """Return the peers that have not applied a generation, and may have the pod's sidecar."""
        return [
            name
            for name, report in self.peers.items()
            if pod not in report.servers and report.other_servers < generation
        ]

    def lagging_clients(
        self, generation: int, is_relevant: Callable[[tuple[str, int]], bool]
    ) -> Mapping[str, str]:
        """Return the clients that lag behind a generation or rejected a relevant cluster, with the errors.

        A peer with unlisted clients that lag is listed by its own name.

        Args:
            generation: the generation that the clients have to use.
            is_relevant: whether clusters of a service, given as host and port, matter.
        """
        if generation not in self._lagging:
            names = {
                name for report in self for name, active in report.clients.items() if active < generation
            }
            names |= {name for name, report in self.peers.items() if report.other_clients < generation}
            self._lagging[generation] = dict.fromkeys(sorted(names), "")
        if not any(report.rejected_clusters for report in self):
            return self._lagging[generation]
        lagging = dict(self._lagging[generation])
        for report in self:
            for name, clusters in report.rejected_clusters.items():
                for cluster, error in clusters.items():
                    if is_relevant(_service_of(cluster)):
                        lagging[name] = error
        return dict(sorted(lagging.items()))


def _service_of(cluster: str) -> tuple[str, int]:
    """Return the host and port of a cluster named `outbound|PORT|SUBSET|HOST`."""
    kind, _, rest = cluster.partition("|")
    port, _, rest = rest.partition("|")
    return (rest.rpartition("|")[2], int(port)) if kind == "outbound" and port.isdecimal() else ("", 0)
