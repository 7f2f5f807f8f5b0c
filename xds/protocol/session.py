"""One discovery stream as a state machine without I/O.

Input is snapshots and requests. Output is responses and events:

    session = Session(Variant.DELTA)
    session.serve(snapshot)                     # whenever the client's desired state changes
    events = session.receive(request, now)      # for each request
    while (response := session.next(now)) is not None:
        ...                                     # write it; call next again by session.deadline()

Types are sent in an order that drops no traffic (Envoy's xDS protocol page, "Eventual consistency
considerations"). A route is sent after the clusters that it refers to, and a cluster is removed after the
routes that refer to it. Endpoint assignments and secrets are sent at once, because Envoy ACKs a new cluster
only after it has received them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from math import inf

from xds.protocol.acks import Rejection
from xds.protocol.delta import DeltaWatch
from xds.protocol.events import Connected, Event, Response
from xds.protocol.full_state import FullStateWatch
from xds.protocol.limits import DEFAULT_LIMITS, LimitError, Limits, RequestError
from xds.protocol.order import AFTER_CLUSTERS, ORDER, USERS, WILDCARD_TYPES
from xds.protocol.shared import assignments_of
from xds.protocol.sotw import SotwWatch
from xds.protocol.status import SNAPSHOT, ResourceStatus, TypeStatus, WaitReason, type_status, wait_reason
from xds.protocol.watch import Watch
from xds.protocol.wire import (
    DeltaRequest,
    Node,
    SotwRequest,
    parse_delta_request,
    parse_request,
)
from xds.snapshot import CLUSTER, EMPTY, ENDPOINT, LISTENER, ROUTE, SECRET, Snapshot

_COMMON_TYPES = (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE)
"""Types that nearly all clients subscribe to. Watches of other types are created on demand."""

_NO_SNAPSHOT = Snapshot()

_RESUME_TIMEOUT = 1.0
"""Seconds to wait for a reconnecting client to subscribe again. Clients do so at once."""

_MAX_REJECTED_AGE = 86400.0
"""Maximum time to keep a removed resource for a client that rejected an update, in seconds.

The client's previous configuration may still refer to the resource, so removing it could drop traffic. A day
gives an operator time to fix the update. The cost is low, because resources that were first sent after the
rejection are not kept.
"""


class Variant(Enum):
    """The two variants of the protocol."""

    SOTW = "sotw"
    """State of the world. Each request contains the whole subscription."""
    DELTA = "delta"
    """Incremental. Requests and responses contain only changes."""


class Session:
    """Protocol state of one stream.

    The session does no I/O and reads no clock: callers pass the current time as `now`, in seconds of any
    monotonic clock.

    Args:
        variant: Variant of the protocol.
        type_url: Type of the stream; empty for an aggregated stream (ADS).
        identifier: Identifier of the control plane, for responses; empty for none.
        limits: Limits of the client.
        patience: Seconds to wait for the client to ACK its clusters before listeners and routes are sent
            regardless.
        grace: Seconds to keep a removed resource while the client has not ACKed the removal of the resources
            that use it. If the client rejected that removal, the resource is kept until the client ACKs an
            update, for a day at most.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        type_url: str = "",
        identifier: str = "",
        limits: Limits = DEFAULT_LIMITS,
        patience: float = 20.0,
        grace: float = 60.0,
    ) -> None:
        self.node: Node | None = None
        """Node of the client; None before the first request."""
        self.sent: Response | None = None
        """Response that the last call of `next` returned; None if it returned none. Callers may clear it."""
        self.has_more = False
        """Whether `next` may have another response to send at once, or a deadline."""
        self._variant = variant
        self._type_url = type_url
        self._identifier = identifier
        self._limits = limits
        self._patience = patience
        self._grace = grace
        self._snapshot: Snapshot | None = None
        self.first_generation = -1
        """Generation of the first snapshot that was served; -1 if there is none."""
        self._watches: dict[str, Watch] = {type_url: self._new_watch(type_url) for type_url in _COMMON_TYPES}
        """Watches by type, in sending order."""
        self._usage: dict[str, tuple[int, int]] = {}
        """Number of names that each watch stored after its last request, and their size, by type."""
        self.name_count = 0
        """Number of names stored for the client, which `Limits.names` limits."""
        self.size = 0
        """Size in bytes of the names and versions stored for the client, which `Limits.size` limits."""
        self._nonces = 0
        self._resumed_warming = False
        """Whether the client reconnected with warming clusters and has not subscribed to clusters yet."""
        self._opened_at = inf
        """Time of the first request."""
        self._last_request_at = -inf
        self._last_response_at = inf
        self._serving_since = inf
        """Time of the first call of `next` with a snapshot."""
        self._deadline = inf

    def serve(self, snapshot: Snapshot) -> None:
        """Set the client's desired state. A previous state that was not sent yet is skipped."""
        previous, self._snapshot = self._snapshot, snapshot
        if previous is None:
            self.first_generation = snapshot.generation
        denials = (previous or _NO_SNAPSHOT).denials
        if snapshot.denials is not denials and snapshot.denials != denials:
            for watch in self._watches.values():
                watch.denied = snapshot.denied(watch.type_url)
        served = snapshot.types.get
        for type_url, watch in self._watches.items():
            # Most snapshots share most sets with the previous one.
            if (resources := served(type_url, EMPTY)) is not watch.resources:
                watch.serve(resources)
        clusters = self._watches[CLUSTER]
        if previous and clusters.lingering:
            # A lingering cluster may still be warming. Without its assignment, Envoy does not ACK the CDS
            # response.
            for type_url, name in clusters.lingering_refs():
                self._watch(type_url).linger(name, previous.of(type_url).get(name))
        if not clusters.requested:
            self._answer_missing_assignments()

    def receive(self, message: bytes, now: float) -> list[Event]:
        """Process a request, and return the resulting events.

        Args:
            message: Encoded DiscoveryRequest or DeltaDiscoveryRequest.
            now: Current time, in seconds.

        Raises:
            RequestError: The request is invalid. The stream must end.
            LimitError: The client exceeds a limit. The stream must end.
        """
        parse = parse_request if self._variant is Variant.SOTW else parse_delta_request
        request = parse(message, self._limits)
        events: list[Event] = []
        self._opened_at = min(self._opened_at, now)
        self._last_request_at = now
        if not self.node:
            if not request.node or not request.node.id:
                raise RequestError("the first request on a stream must have node.id")
            self.node = request.node
            events.append(Connected(node=request.node))
        type_url = request.type_url or self._type_url
        if not type_url:
            raise RequestError("a request on an aggregated stream must have type_url")
        if self._type_url and type_url != self._type_url:
            raise RequestError(f"this stream is for {self._type_url} only")
        if type_url not in self._watches and not self._is_known_type(type_url):
            self._check_unknown_types()
        watch = self._watch(type_url)
        resumes_warming = type_url == ENDPOINT and not watch.requested and self._resumes_warming(request)
        events += watch.receive(request, now)
        if self._usage.get(type_url) != (usage := (watch.name_count, watch.size)):
            self._usage[type_url] = usage
            self.name_count, self.size = map(sum, zip(*self._usage.values(), strict=True))
            self._limits.check(self.name_count, self.size, "this stream has")
        if type_url == ENDPOINT:
            self._answer_missing_assignments()
        if resumes_warming:
            self._resumed_warming = True
            watch.resend(tuple(watch.sent))
        elif type_url == CLUSTER:
            self._resumed_warming = False
        return events

    @property
    def is_idle(self) -> bool:
        """Whether `next` has nothing to send until a request or a snapshot arrives."""
        for watch in self._watches.values():  # noqa: SIM110 - called for each request
            if not watch.is_idle:
                return False
        return True

    def expect_no_acks(self) -> None:
        """Stop waiting for ACKs, because the client sends no more requests. Waiting responses become due."""
        self._patience = 0.0

    def next(self, now: float) -> bytes | None:
        """Return the next encoded response, and mark it as sent; return None if none is due."""
        self._deadline = inf
        self.sent, self.has_more = None, False
        if not self._snapshot:
            return None
        self._serving_since = min(self._serving_since, now)
        active = [watch for watch in self._watches.values() if not watch.is_idle]
        if not active:
            return None
        for watch in active:
            if watch.lingering:
                self._release_unused(now)
                break
        for watch in active:
            if not self._is_known_type(watch.type_url):
                continue  # Other types must not wait for a type that is not served.
            earliest = self._earliest_send(watch)
            if now < earliest:
                if watch.pending:
                    self._deadline = min(self._deadline, earliest)
                continue
            composed = watch.compose(str(self._nonces + 1), now, self._identifier, self._snapshot.generation)
            if composed:
                if watch.type_url == CLUSTER:
                    self._resend_assignments(composed[0])
                self.has_more = len(active) > 1 or not watch.is_idle or watch.type_url == CLUSTER
                return self._record_sent(*composed)
        return self._heartbeat(now)

    def deadline(self) -> float | None:
        """Return the latest time to call `next` again, after it has returned None; None for no limit."""
        return None if self._deadline == inf else self._deadline

    @property
    def synced(self) -> bool:
        """Whether the client has ACKed the current resources of all types that it subscribes to."""
        requested = (watch for watch in self._watches.values() if watch.requested)
        return all(watch.synced for watch in requested if self._is_served(watch.type_url))

    def status(self) -> tuple[TypeStatus, ...]:
        """Return the status of each type that the client has subscribed to, in sending order."""
        return tuple(
            type_status(watch, self._wait_reason(watch))
            for watch in self._watches.values()
            if watch.requested
        )

    @property
    def generation(self) -> int:
        """Generation of the served snapshot; -1 if there is none."""
        return self._snapshot.generation if self._snapshot else -1

    def answered_generation(self, type_url: str) -> int:
        """Return the last generation for which all resources of a type are ACKed or NACKed; -1 for none.

        For a type without a subscription, return the current generation, or -1 if one of the client's
        resources refers to the type, because the client is about to subscribe.
        """
        watch = self._watch(type_url)
        if not self._snapshot:
            return -1
        if watch.requested:
            return self.generation if watch.has_answered else watch.completed_generation
        refs = (ref for other in self._watches.values() for ref in other.refs())
        return -1 if any(kind == type_url for kind, _ in refs) else self.generation

    def has_answered(self, type_url: str) -> bool:
        """Whether the client has ACKed or NACKed all current resources of a type, or does not request it."""
        watch = self._watch(type_url)
        return not watch.requested or watch.has_answered

    def has_acked(self, type_url: str, names: Iterable[str]) -> bool:
        """Whether the client has ACKed the current versions of resources and of their references."""
        watch = self._watch(type_url)
        for name in names:
            if not watch.requested or not watch.has_acked(name):
                return False
            resource = watch.get(name)
            if not all(self._watch(kind).has_acked(ref) for kind, ref in (resource.refs if resource else ())):
                return False
        return True

    def is_subscribed(self, type_url: str) -> bool:
        """Whether the client has subscribed to a type."""
        return self._watch(type_url).requested

    def tagged(self, type_url: str) -> list[str]:
        """Return the sorted names of the resources of a type that have a tag."""
        return self._snapshot.of(type_url).tagged if self._snapshot else []

    def initial_versions(self, type_url: str) -> tuple[str, ...]:
        """Return the versions that the client reported: one per resource (delta), or one for all (SotW)."""
        return self._watch(type_url).initial_versions

    def rejected(self, type_url: str) -> Mapping[str, Rejection]:
        """Return the last rejection of each resource of a type, until the resource is ACKed or removed."""
        return self._watch(type_url).rejected

    def resource_status(self, type_url: str, name: str) -> ResourceStatus | None:
        """Return the status of one resource; None if the client does not subscribe to it by name."""
        watch = self._watches.get(type_url)
        if watch is None or name not in watch.subscription.names:
            return None
        return next(type_status(watch, None).resource_statuses([name]))

    def _wait_reason(self, watch: Watch) -> WaitReason | None:
        if not self._is_served(watch.type_url):
            return WaitReason(reason=SNAPSHOT, since=self._opened_at)
        since = self._opened_at if self._last_response_at == inf else self._last_response_at
        return wait_reason(
            watch,
            self._watches,
            last_response_at=since,
            last_request_at=self._last_request_at,
            aggregated=not self._type_url,
        )

    def _is_served(self, type_url: str) -> bool:
        """Whether a type is served. A known type without resources is served as empty."""
        return self._snapshot is not None and self._is_known_type(type_url)

    def _is_known_type(self, type_url: str) -> bool:
        return type_url in ORDER or (self._snapshot is not None and type_url in self._snapshot.types)

    def _check_unknown_types(self) -> None:
        """Raise LimitError if another type that the server does not know would exceed the limit."""
        unknown = sum(not self._is_known_type(type_url) for type_url in self._watches)
        if unknown >= self._limits.unknown_types:
            raise LimitError(
                f"too many types that this server does not know: the limit is {self._limits.unknown_types:,}"
                " per stream"
            )

    def _record_sent(self, response: Response, message: bytes) -> bytes:
        self.sent, self._last_response_at = response, response.sent_at
        self._nonces += 1
        return message

    def _heartbeat(self, now: float) -> bytes | None:
        """Return the next heartbeat that is due. Heartbeats are sent after all other responses."""
        for watch in self._watches.values():
            if not isinstance(watch, DeltaWatch):
                return None
            composed = watch.heartbeat(str(self._nonces + 1), now, self._identifier)
            if composed:
                self.has_more = True
                return self._record_sent(*composed)
            self._deadline = min(self._deadline, watch.next_heartbeat)
        return None

    def _new_watch(self, type_url: str) -> Watch:
        if self._variant is Variant.DELTA:
            return DeltaWatch(type_url)
        return FullStateWatch(type_url) if type_url in WILDCARD_TYPES else SotwWatch(type_url)

    def _watch(self, type_url: str) -> Watch:
        """Return the watch of a type, and create it if there is none."""
        if type_url not in self._watches:
            watch = self._watches[type_url] = self._new_watch(type_url)
            self._watches = dict(
                sorted(self._watches.items(), key=lambda item: ORDER.get(item[0], len(ORDER)))
            )
            if self._snapshot:
                watch.denied = self._snapshot.denied(type_url)
                if (resources := self._snapshot.of(type_url)) is not watch.resources:
                    watch.serve(resources)
        return self._watches[type_url]

    def _earliest_send(self, watch: Watch) -> float:
        """Return the earliest time to send a type; minus infinity if the type need not wait."""
        earliest = -inf
        if (since := watch.acks.blocked_since) is not None:
            earliest = since + self._patience
        if watch.waits_for_referrers:
            earliest = max(earliest, self._serving_since + self._patience)
        if watch.type_url in AFTER_CLUSTERS:
            if (since := self._watches[CLUSTER].acks.waiting_since) is not None:
                earliest = max(earliest, since + self._patience)
            if self._resumed_warming:
                earliest = max(earliest, self._serving_since + min(_RESUME_TIMEOUT, self._patience))
        return earliest

    def _resumes_warming(self, request: SotwRequest | DeltaRequest) -> bool:
        """Whether the first EDS request is from a client that reconnected while clusters were warming.

        Envoy sends no CDS request on the new stream until these clusters are warm. Its EDS request reports
        all assignments as received, although the warming clusters still wait for them.
        """
        reconnected = request.version if isinstance(request, SotwRequest) else request.initial_versions
        return bool(reconnected) and not self._type_url and not self._watches[CLUSTER].requested

    def _resend_assignments(self, response: Response) -> None:
        """Send the assignments of new and changed clusters again.

        Envoy does not apply earlier assignments to these clusters.
        """
        assignments, clusters = self._watches[ENDPOINT], response.fresh
        if response.shared:
            assignments.resend(response.shared.assignments)
            clusters = clusters[len(response.shared.resources) :]
        assignments.resend(assignments_of(clusters))

    def _answer_missing_assignments(self) -> None:
        """Send an empty assignment for each cluster whose assignment does not exist.

        A SotW response cannot report that a resource does not exist.
        """
        if self._variant is Variant.DELTA:
            return
        assignments, clusters = self._watches[ENDPOINT], self._watches[CLUSTER]
        if (
            not self._snapshot
            or not isinstance(assignments, SotwWatch)
            or not (missing := assignments.missing())
        ):
            return
        desired = self._snapshot.of(CLUSTER).values()
        refs = clusters.refs() if clusters.requested else (ref for cluster in desired for ref in cluster.refs)
        used = {name for type_url, name in refs if type_url == ENDPOINT}
        assignments.add_empty(name for name in missing if name in used)

    def _release_unused(self, now: float) -> None:
        """Release the lingering resources that are no longer used or have lingered for too long."""
        for watch in self._watches.values():
            if watch.type_url not in USERS:
                watch.release(tuple(watch.lingering))
        for type_url, user_types in USERS.items():
            if type_url not in self._watches:
                continue
            watch = self._watches[type_url]
            users = [self._watches[user_type] for user_type in user_types if user_type in self._watches]
            if not watch.lingering or (watch.may_have_removed_clusters and self._expects_listeners(now)):
                continue
            if all(self._is_settled(user) for user in users):
                kept = watch.named_clusters() if any(user.requested for user in users) else ()
                watch.release([name for name in watch.lingering if name not in kept])
            if watch.lingering:
                self._expire(watch, users, now)

    def _expire(self, watch: Watch, users: Sequence[Watch], now: float) -> None:
        """Release the resources of a type that have lingered for too long.

        The time starts when no lingering resource uses them.
        """
        outdated_since = max(user.states.outdated_since for user in users)
        has_outdated_users = outdated_since > -inf
        used = {ref for user in users for ref in user.lingering_refs()}
        expired = []
        for name, lingering in watch.lingering.items():
            if (watch.type_url, name) in used:
                lingering.until = None
                continue
            if not watch.covers(name):
                expired.append(name)
                continue
            if lingering.since is None:
                lingering.since = now
            end = lingering.since + _MAX_REJECTED_AGE
            if has_outdated_users and watch.acks.first_sent_at(name) <= outdated_since and now < end:
                # The client may still have an old version of a resource that uses this one.
                lingering.until = None
                self._deadline = min(self._deadline, end)
                continue
            if lingering.until is None:
                lingering.until = now + self._grace
            if lingering.until <= now:
                expired.append(name)
            else:
                self._deadline = min(self._deadline, lingering.until)
        watch.release(expired)  # All at once: each call goes through all records.

    def _is_settled(self, user: Watch) -> bool:
        """Whether the client has exactly the current resources of a type, and all resources they refer to.

        The client must also have unsubscribed from removed resources. Envoy uses the routes of a removed
        listener, and stays subscribed to them, until the listener's connections close.
        """
        is_complete = user.synced and all(self._has_arrived(*ref) for ref in user.refs())
        return is_complete and not user.keeps_removed

    def _expects_listeners(self, now: float) -> bool:
        """Whether a reconnected client may still subscribe to listeners, which may use its clusters."""
        end = self._serving_since + _RESUME_TIMEOUT
        if self._type_url or self._watches[LISTENER].requested or now >= end:
            return False
        self._deadline = min(self._deadline, end)
        return True

    def _has_arrived(self, type_url: str, name: str) -> bool:
        """Whether the client has received a resource that another resource refers to."""
        watch = self._watches.get(type_url)
        return watch is not None and watch.covers(name) and watch.synced
