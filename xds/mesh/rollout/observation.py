"""What replicas report about the proxies that are connected to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from xds.mesh.model.objects import Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send

if TYPE_CHECKING:
    from xds.mesh.rollout.sync import Shared

T = TypeVar("T")

MAX_LAGGING = 50
"""Maximum number of lagging servers, and of lagging clients, that a replica names to its peers."""


class Ask(NamedTuple):
    """The state of a port that a replica asks the leader to include in the plan."""

    mode: Mode
    """The mode that the port's listener may have active."""
    send: Send
    """What clients may send."""
    is_from_server: bool
    """Whether the server's sidecar reported this mode when it connected.

    If not, the replica serves this state, but policies ask for another one.
    """


@dataclass(frozen=True, slots=True)
class Generations(Generic[T]):
    """The active generations of the servers or clients that are connected to one replica."""

    named: Mapping[T, int] = field(default_factory=dict)
    """The active generation of each listed proxy."""
    others: float = inf
    """The lowest generation that any other proxy may have active; infinity if there are no others."""

    def of(self, name: T) -> float:
        """Return the lowest generation that a proxy may have active; infinity if it is not connected."""
        return self.named.get(name, self.others)

    def shared(self, generation: int) -> Generations[T]:
        """Return the generations for other replicas. They list only proxies that lag behind `generation`."""
        lagging = {name: active for name, active in self.named.items() if active < generation}
        if len(lagging) <= MAX_LAGGING:
            return Generations(lagging, generation)
        return Generations(dict(list(lagging.items())[:MAX_LAGGING]), min(lagging.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one replica reports: which generations (`Plan.generation`) its proxies have active.

    The rollout does not wait for proxies that no report counts.
    """

    generation: int = 0
    """The generation that the replica serves."""
    is_alone: bool = False
    """Whether the replica serves a plan of its own that could not be stored."""
    servers: Generations[Ref] = field(default_factory=Generations)
    """The active generations of pods' inbound listeners and of the secrets that they reference."""
    clients: Generations[str] = field(default_factory=Generations)
    """The active generations of clients' clusters and endpoints, by POD.NAMESPACE."""
    rejected_listeners: Mapping[Ref, str] = field(default_factory=dict)
    """The error of each pod whose sidecar rejected an inbound listener."""
    rejected_clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each client, the clusters or endpoints that it rejected, with the error."""
    has_earlier_connections: bool = False
    """Whether a client may have pending connections that it opened with an earlier configuration."""
    asks: Mapping[PortKey, Ask] = field(default_factory=dict)
    """Ports that the plan has to include, with the state that proxies may use."""
    unplanned_rules: frozenset[Ref] = frozenset()
    """DestinationRules in transition that the plan has to include."""

    def shared(self) -> Report:
        """Return the report for other replicas. It lists only proxies that lag behind `generation`."""
        rejected = self.rejected_clusters
        if len(rejected) > MAX_LAGGING:
            # Many clients lack the same clusters. One of them suffices for others to wait.
            rejected = _first_clients(rejected)
            if len(rejected) > MAX_LAGGING:
                return self.without_progress()
        servers, clients = self.servers.shared(self.generation), self.clients.shared(self.generation)
        return replace(self, servers=servers, clients=clients, rejected_clusters=rejected)

    def without_progress(self) -> Report:
        """Return the report as if no proxy had ACKed anything, so that the leader relies on none of them."""
        return Report(
            generation=self.generation,
            is_alone=self.is_alone,
            servers=Generations(others=-1),
            clients=Generations(others=-1),
            has_earlier_connections=True,
            asks=self.asks,
            unplanned_rules=self.unplanned_rules,
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """The reports of all replicas, at one moment."""

    own: Report = field(default_factory=Report)
    """The report of this replica, which lists every proxy."""
    peers: Mapping[str, Report] = field(default_factory=dict)
    """The reports of the other replicas, by name. Each lists only proxies that lag behind its generation."""
    shared: Shared | None = None
    """What replicas share. None: there are no other replicas."""
    _lagging: dict[int, Mapping[str, str]] = field(default_factory=dict, repr=False, compare=False)
    """Cache: the clients that lag behind a generation."""

    def __iter__(self) -> Iterator[Report]:
        """Yield all reports."""
        yield self.own
        yield from self.peers.values()

    def server_generation(self, pod: Ref) -> float:
        """Return the active generation of a pod's inbound listeners; infinity if no report counts the pod."""
        return min(report.servers.of(pod) for report in self)

    def listener_error(self, pod: Ref) -> str:
        """Return the error of a sidecar that rejected an inbound listener, or an empty string."""
        return next((error for report in self if (error := report.rejected_listeners.get(pod, ""))), "")

    @property
    def has_earlier_connections(self) -> bool:
        """Whether any client may have pending connections that it opened with an earlier configuration."""
        return any(report.has_earlier_connections for report in self)

    def lagging_servers(self, pod: Ref, generation: int) -> list[str]:
        """Return the peers that lag behind a generation, and to which the pod's sidecar may be connected."""
        return [
            name
            for name, report in self.peers.items()
            if pod not in report.servers.named and report.servers.others < generation
        ]

    def lagging_clients(
        self, generation: int, is_relevant: Callable[[tuple[str, int]], bool]
    ) -> Mapping[str, str]:
        """Return the clients that lag behind a generation or rejected a relevant cluster, with the errors.

        If clients lag that a peer does not list, the result contains the name of the peer.

        Args:
            generation: the generation that the clients have to use.
            is_relevant: whether clusters of a service, given as host and port, matter.
        """
        if generation not in self._lagging:
            names = {
                name
                for report in self
                for name, active in report.clients.named.items()
                if active < generation
            }
            names |= {name for name, report in self.peers.items() if report.clients.others < generation}
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


def _first_clients(rejected: Mapping[str, Mapping[str, str]]) -> Mapping[str, Mapping[str, str]]:
    """Return the first client that rejected each cluster, with the clusters that no earlier one rejected."""
    found: dict[str, dict[str, str]] = {}
    known: set[str] = set()
    for name, clusters in rejected.items():
        if new := {cluster: error for cluster, error in clusters.items() if cluster not in known}:
            found[name] = new
            known.update(new)
    return found


def _service_of(cluster: str) -> tuple[str, int]:
    """Return the host and port of a cluster named `outbound|PORT|SUBSET|HOST`."""
    kind, _, rest = cluster.partition("|")
    port, _, rest = rest.partition("|")
    return (rest.rpartition("|")[2], int(port)) if kind == "outbound" and port.isdecimal() else ("", 0)
