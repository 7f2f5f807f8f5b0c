"""Observed traffic of all replicas: reads what the sidecars of other replicas reported, and merges it.

Each replica reads from each other replica on one stream (`xds.mesh.controlplane.replicas_service`). What a
stopped replica has sent is kept, and sent to replicas that start later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.identity.keys import IdentityError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.objects import PodKey, printable
from xds.mesh.observe.edges import MAX_DENIALS
from xds.mesh.observe.merged import MAX_REPLICAS, MergedTraffic, Missing, PeerTraffic
from xds.mesh.observe.replica_codec import decode_edge
from xds.mesh.v1 import replicas_pb2 as pb

log = structlog.get_logger(__name__)

SERVICE = "xds.mesh.v1.Replicas"
WATCH = f"/{SERVICE}/WatchTraffic"

MAX_SILENCE = 15.0
"""Seconds without a message after which a replica counts as missing. A replica sends one every 2 s."""
POLL_INTERVAL = 1.0
"""Seconds between two checks for replicas that have started or stopped."""
RETRY_DELAYS = (0.5, 30.0)
"""Seconds before a failed stream is opened again: at first, and at most. They double with each failure."""
MAX_ABSENCE = 60.0
"""Seconds for which a sidecar can be disconnected without counting as absent."""
MAX_RETURNED = 20_000
"""Maximum number of sidecars whose absence is remembered."""
_MAX_REASON = 200


class ReplicaAccess(Protocol):
    """How this replica finds and reaches the others: `xds.mesh.kube.peers.Peers`."""

    @property
    def name(self) -> str:
        """The name of this replica."""

    def addresses(self) -> Mapping[str, str]:
        """Return the address of each other running replica, as IP:PORT; empty if it is not known."""

    def is_isolated(self) -> bool:
        """Return whether it is not known which replicas are running."""

    def connect(self, address: str) -> grpc.aio.Channel:
        """Open a channel to a replica. Raises IdentityError."""


class _PeerError(Exception):
    """A replica sent something that cannot be used."""


@dataclass(slots=True)
class _Peer:
    """The stream from one replica."""

    address: str
    task: asyncio.Task[None] | None = None
    problem: str = "it has not answered yet"
    updated_at: float = -inf
    """When the last complete update arrived, in seconds of the event loop's clock."""
    since: float = inf
    """Since when the replica observes, by this replica's clock, as a Unix time in seconds."""
    dropped: int = 0
    """Number of reports that the replica left out."""
    last_dropped: float = 0.0
    """When it last left one out, by this replica's clock, as a Unix time in seconds; 0 if it never did."""
    incomplete: Mapping[str, float] = field(default_factory=dict)
    """When something of a sidecar's reports was last left out, by namespace, as a Unix time in seconds."""
    connected: frozenset[PodKey] = frozenset()
    """Pods whose sidecars are connected to the replica."""


@dataclass(slots=True)
class ReplicaTraffic:
    """The traffic of this replica and of its peers. `run` reads from the peers.

    Args:
        reports: what the sidecars of this replica report.
        access: reaches the other replicas; None if there are none, or if they do not know each other.
    """

    reports: TrafficReports
    access: ReplicaAccess | None = None
    own_connected: Callable[[], Collection[PodKey]] = tuple
    """Returns the pods whose sidecars are connected to this replica."""
    peers: PeerTraffic = field(default_factory=PeerTraffic)
    """The edges of other replicas."""
    peer_denials: PeerTraffic = field(default_factory=lambda: PeerTraffic(MAX_DENIALS))
    """The edges of denied requests of other replicas."""
    _peers: dict[str, _Peer] = field(default_factory=dict)
    _since: float = inf
    """Since when replicas that have stopped observed, as a Unix time in seconds."""
    _complete_since: float = -inf
    """When a replica stopped whose traffic was missing, as a Unix time in seconds."""
    _dropped: int = 0
    """Number of reports that stopped replicas left out, and of malformed messages and edges."""
    _last_dropped: float = 0.0
    """When one was last left out, as a Unix time in seconds; 0 if none was."""
    _incomplete: Mapping[str, float] = field(default_factory=dict)
    """When something of a sidecar's reports was last left out by a replica that has stopped."""
    returned: dict[PodKey, float] = field(default_factory=dict)
    """When sidecars that had been disconnected for longer than MAX_ABSENCE came back (Unix time)."""
    _absent_since: dict[PodKey, float] = field(default_factory=dict)
    """When the sidecars that are disconnected were last connected (Unix time)."""
    _last_connected: frozenset[PodKey] = frozenset()
    _log_problem: OnceLogger = field(
        default_factory=lambda: OnceLogger(log, "failed to read traffic of replica")
    )
    _log_malformed: OnceLogger = field(
        default_factory=lambda: OnceLogger(log, "dropped malformed edges of replica")
    )

    @property
    def merged(self) -> MergedTraffic:
        """The edges of all replicas."""
        return MergedTraffic(self.reports.traffic, self.peers)

    @property
    def denials(self) -> MergedTraffic:
        """The edges of denied requests of all replicas."""
        return MergedTraffic(self.reports.denials, self.peer_denials)

    # --- what is known --------------------------------------------------------------------------------------

    @property
    def own_since(self) -> float:
        """Since when the traffic of this replica and of stopped ones is known, as a Unix time in seconds."""
        return max(min(self.reports.since, self._since), self._complete_since)

    @property
    def own_dropped(self) -> int:
        """Number of reports and edges that this replica and stopped ones left out."""
        evicted = self.peers.evicted + self.peer_denials.evicted
        return self.reports.dropped_total() + evicted + self._dropped

    @property
    def since(self) -> float:
        """Since when the traffic of the included replicas is known, as a Unix time in seconds."""
        return min([self.own_since, *(peer.since for peer in self._peers.values())])

    @property
    def dropped(self) -> int:
        """Number of reports and edges that replicas left out."""
        return self.own_dropped + sum(peer.dropped for peer in self._peers.values())

    @property
    def own_last_dropped(self) -> float:
        """When this replica or a stopped one last left something out, in Unix seconds; 0 if none did."""
        evicted = self.reports.traffic.last_evicted, self.peers.last_evicted
        return max(self.reports.last_dropped, self._last_dropped, *evicted)

    @property
    def last_dropped(self) -> float:
        """When a replica last left something out, as a Unix time in seconds; 0 if none did."""
        return max([self.own_last_dropped, *(peer.last_dropped for peer in self._peers.values())])

    @property
    def own_incomplete(self) -> dict[str, float]:
        """When this replica or a stopped one last left out something of a sidecar's reports, by namespace."""
        return _latest(self.reports.incomplete, self._incomplete)

    @property
    def incomplete(self) -> dict[str, float]:
        """When a replica last left out something of a sidecar's reports, by namespace."""
        return _latest(self.own_incomplete, *(peer.incomplete for peer in self._peers.values()))

    @property
    def connected(self) -> frozenset[PodKey]:
        """Pods whose sidecars are connected to this replica, or to one that is not missing."""
        others = (peer.connected for peer in self._peers.values() if not self._is_stale(peer))
        return frozenset(self.own_connected()).union(*others)

    def missing(self) -> list[Missing]:
        """Return the replicas whose traffic is missing."""
        if self.access is None:
            return []
        found = [
            Missing(name, peer.problem) for name, peer in sorted(self._peers.items()) if self._is_stale(peer)
        ]
        if self.access.is_isolated():
            reason = "this replica cannot renew its Lease, and does not know which replicas are running"
            found.append(Missing("", reason))
        return found

    # --- streams from other replicas ------------------------------------------------------------------------

    async def run(self) -> None:
        """Read from all other replicas until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                if self.access:
                    self._update(self.access, tasks)
                self.track_absences(time.time())
                await asyncio.sleep(POLL_INTERVAL)

    def track_absences(self, now: float) -> None:
        """Update `returned` at a Unix time. A sidecar that moves to another replica is not absent."""
        connected = self.connected
        for pod in self._last_connected - connected:
            self._absent_since[pod] = now
        for pod in connected & self._absent_since.keys():
            if now - self._absent_since.pop(pod) > MAX_ABSENCE:
                self.returned[pod] = now
        self._last_connected = connected
        for times in (self._absent_since, self.returned):
            while len(times) > MAX_RETURNED:
                del times[next(iter(times))]

    def _update(self, access: ReplicaAccess, tasks: asyncio.TaskGroup) -> None:
        """Follow the replicas that are running now."""
        addresses = access.addresses()
        self.peers.live = self.peer_denials.live = addresses.keys()
        for name in self._peers.keys() - addresses.keys():
            self._forget(name)
        for name, address in addresses.items():
            peer = self._peers.setdefault(name, _Peer(address=""))
            if address and address != peer.address:
                if peer.task:
                    peer.task.cancel()
                peer.address, peer.task = address, None
            if not peer.address:
                peer.problem = "it has not published its address (xds serve --advertise-address)"
            elif (
                peer.task is None
                and sum(other.task is not None for other in self._peers.values()) < MAX_REPLICAS
            ):
                peer.task = tasks.create_task(self._follow(access, name, peer))
            elif peer.task is None:
                peer.problem = f"traffic of at most {MAX_REPLICAS} other replicas is read"

    def _forget(self, name: str) -> None:
        """Stop reading from a replica that has stopped. Its edges are kept."""
        peer = self._peers.pop(name)
        if peer.task:
            peer.task.cancel()
        for logger in (self._log_problem, self._log_malformed):
            logger("", replica=name)
        # A Lease expires MAX_SILENCE after the last renewal.
        if asyncio.get_running_loop().time() > peer.updated_at + 2 * MAX_SILENCE:
            log.warning("replica stopped before its traffic was read", replica=name)
            self._complete_since = time.time()
            return
        self._since = min(self._since, peer.since)
        self._dropped += peer.dropped
        self._last_dropped = max(self._last_dropped, peer.last_dropped)
        self._incomplete = _latest(self._incomplete, peer.incomplete)

    def _is_stale(self, peer: _Peer) -> bool:
        return asyncio.get_running_loop().time() > peer.updated_at + MAX_SILENCE

    async def _follow(self, access: ReplicaAccess, name: str, peer: _Peer) -> None:
        """Read from a replica until cancelled."""
        delay = RETRY_DELAYS[0]
        while True:
            updated_at = peer.updated_at
            try:
                await self._read(access, name, peer)
                peer.problem = "it ended the stream"
            except grpc.aio.AioRpcError as error:
                peer.problem = f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self._note_drop()  # The message may have been too large.
            except TimeoutError:
                peer.problem = f"no update arrived within {MAX_SILENCE:g} s"
            except (_PeerError, IdentityError) as error:
                peer.problem = str(error)
            peer.problem = printable(peer.problem[:_MAX_REASON])
            if self._is_stale(peer):
                self._log_problem(peer.problem, replica=name)
            if peer.updated_at != updated_at:
                delay = RETRY_DELAYS[0]
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311
            delay = min(2 * delay, RETRY_DELAYS[1])

    async def _read(self, access: ReplicaAccess, name: str, peer: _Peer) -> None:
        """Read from a replica until it ends the stream."""
        async with access.connect(peer.address) as channel:
            call = channel.unary_stream(WATCH)(pb.WatchReplicaTrafficRequest().SerializeToString())
            while True:
                async with asyncio.timeout(MAX_SILENCE):
                    data = await call.read()
                if data is grpc.aio.EOF:
                    return
                await self._receive(name, peer, data)

    def _note_drop(self) -> None:
        self._dropped += 1
        self._last_dropped = time.time()

    async def _receive(self, name: str, peer: _Peer, data: bytes) -> None:
        now, checkpoint = time.time(), Checkpoint()
        try:
            message = pb.ReplicaTraffic.FromString(data)
        except DecodeError:
            self._note_drop()
            raise _PeerError("it sent a malformed message") from None
        if message.replica != name:
            raise _PeerError(f"another replica answers at its address {peer.address}")
        sent_at = message.time.ToMilliseconds() / 1000
        for edge_message in (*message.edges, *message.denials):
            try:
                replica, key, edge = decode_edge(edge_message, sent_at, now)
            except ValueError as error:
                self._note_drop()
                self._log_malformed(str(error), replica=name)
                continue
            if replica != self.name:
                peers = self.peer_denials if key.denial else self.peers
                peers.put(replica, key, edge, is_copy=replica != name, now=now)
            await checkpoint()

        def local(at: Timestamp) -> float:
            """Return a time by this replica's clock, as a Unix time in seconds."""
            return min(now + at.ToMilliseconds() / 1000 - sent_at, now)

        if message.complete:
            self._log_problem("", replica=name)
            peer.updated_at = asyncio.get_running_loop().time()
            peer.since = local(message.since)
            peer.dropped = message.dropped
            if message.HasField("last_dropped"):
                peer.last_dropped = local(message.last_dropped)
            peer.incomplete = {namespace: local(at) for namespace, at in message.incomplete.items()}
            for name_of_pod, at in message.returned.items():
                pod = _pod_name(name_of_pod)
                self.returned[pod] = max(local(at), self.returned.get(pod, 0.0))
            if message.HasField("sidecars"):
                peer.connected = frozenset(_pod_name(pod) for pod in message.sidecars.pods)

    @property
    def name(self) -> str:
        """The name of this replica; empty if it has none."""
        return self.access.name if self.access else ""


def _latest(*times: Mapping[str, float]) -> dict[str, float]:
    """Merge times, and keep the latest of each namespace."""
    merged: dict[str, float] = {}
    for each in times:
        for namespace, at in each.items():
            merged[namespace] = max(at, merged.get(namespace, at))
    return merged


def _pod_name(text: str) -> PodKey:
    namespace, _, name = text.partition("/")
    return namespace, name
