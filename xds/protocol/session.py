"""One discovery stream as a state machine without I/O.

It takes snapshots and requests, and returns responses:

    session = Session(Variant.DELTA)
    session.serve(snapshot)                     # whenever the client's desired state changes
    events = session.receive(request, now)      # for each request
    while (response := session.next(now)) is not None:
        ...                                     # write it; call next again by session.deadline()

Types are sent in an order that drops no traffic (Envoy's xDS protocol page, "Eventual consistency
considerations"): a route is sent after the clusters that it refers to, and a cluster is removed after the
routes that refer to it. Assignments and secrets are sent at once, because Envoy ACKs a new cluster only after
it has received them.
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
from xds.protocol.sotw import SotwWatch
from xds.protocol.status import SNAPSHOT, ResourceStatus, TypeStatus, WaitReason, type_status, wait_reason
from xds.protocol.watch import Watch
from xds.protocol.wire import (
    DeltaRequest,
    Node,
    Request,
    parse_delta_request,
    parse_request,
)
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, Snapshot

_COMMON_TYPES = (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE)
"""Types that nearly all clients subscribe to. Watches of other types are created when they are needed."""

_RESUME_TIMEOUT = 1.0
"""Seconds to wait for a client that reconnects to send its subscriptions again. Clients do so at once."""

_MAX_REJECTED_AGE = 86400.0
"""Seconds for which a removed resource is served to a client that may use it because it rejected the change.

Removing it drops traffic, so an operator needs time to fix the change, also overnight. The cost is low,
because resources that were first sent after the rejection are not kept.
"""


class Variant(Enum):
    """The two variants of the protocol."""

    SOTW = "sotw"
    """State of the world. Each request has the whole subscription."""
    DELTA = "delta"
    """Incremental. Requests and responses have only changes."""


class Session:
    """One stream, from its first request to its end.

    The session does no I/O and reads no clock: callers pass the current time as `now`, in seconds of any
    monotonic clock.

    Args:
        variant: Variant of the protocol.
        type_url: Type of the stream; empty for an aggregated stream (ADS).
        identifier: Identifier of the control plane, for responses; empty for none.
        limits: Limits of the client.
        patience: Seconds to wait for the client to ACK its clusters before listeners and routes are sent
            regardless.
        grace: Seconds for which a removed resource is served while the client has not ACKed the removal of
            its users. If the client rejected that change, the resource is served until it ACKs one, for a day
            at most.
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
        """Response that the last call of `next` returned; None if it returned none."""
        self._variant = variant
        self._type_url = type_url
        self._identifier = identifier
        self._limits = limits
        self._patience = patience
        self._grace = grace
        self._snapshot: Snapshot | None = None
        self._watches: dict[str, Watch] = {type_url: self._new_watch(type_url) for type_url in _COMMON_TYPES}
        """Watches by type, in sending order."""
        self._nonces = 0
        self._left_warming = False
        """Whether the client has warming clusters from an earlier stream and has not subscribed to clusters
        yet.
        """
        self._opened_at = inf
        self._last_request_at = -inf
        self._last_response_at = inf
        self._started_at = inf
        self._deadline = inf

    def serve(self, snapshot: Snapshot) -> None:
        """Set the client's desired state. Earlier states that were not sent yet are skipped."""
        previous, self._snapshot = self._snapshot, snapshot
        for watch in self._watches.values():
            self._serve(watch, snapshot)
        if previous:
            # A cluster that was sent may not have its assignment yet, and Envoy does not ACK it without one.
            for type_url, name in self._watches[CLUSTER].lingering_refs():
                self._watch(type_url).linger(name, previous.of(type_url).get(name))
        if not self._watches[CLUSTER].requested:
            self._answer_missing_assignments()

    def receive(self, message: bytes, now: float) -> list[Event]:
        """Process a request, and return its events.

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
                raise RequestError("the first request of a stream must have node.id")
            self.node = request.node
            events.append(Connected(node=request.node))
        type_url = request.type_url or self._type_url
        if not type_url:
            raise RequestError("a request of an aggregated stream must have type_url")
        if self._type_url and type_url != self._type_url:
            raise RequestError(f"this stream is for {self._type_url} only")
        if type_url not in self._watches and not self._knows(type_url):
            self._check_unknown_types()
        watch = self._watch(type_url)
        left_warming = type_url == ENDPOINT and not watch.requested and self._lost_while_warming(request)
        events += watch.receive(request, now)
        self._limits.check(self.names, self.size, "this stream has")
        if type_url == ENDPOINT:
            self._answer_missing_assignments()
        if left_warming:
            self._left_warming = True
            watch.resend(tuple(watch.sent))
        elif type_url == CLUSTER:
            self._left_warming = False
        return events

    @property
    def names(self) -> int:
        """Number of names that are stored because the client sent them."""
        return sum(watch.names for watch in self._watches.values())

    @property
    def size(self) -> int:
        """Size of these names and of the versions sent with them, in bytes."""
        return sum(watch.size for watch in self._watches.values())

    def expect_no_acks(self) -> None:
        """Stop waiting for ACKs, because the client sends no more requests.

        Responses that wait for one are due.
        """
        self._patience = 0.0

    def next(self, now: float) -> bytes | None:
        """Return the next encoded response; None if none is due. The response counts as sent."""
        self._deadline = inf
        self.sent = None
        if not self._snapshot:
            return None
        self._started_at = min(self._started_at, now)
        self._release_unused(now)
        for watch in self._watches.values():
            if not self._serves(watch.type_url):
                continue  # There is nothing to serve for this type; other types must not wait for it.
            earliest = self._earliest_send(watch)
            if now < earliest:
                if watch.pending:
                    self._deadline = min(self._deadline, earliest)
                continue
            composed = watch.compose(str(self._nonces + 1), now, self._identifier)
            if composed:
                if watch.type_url == CLUSTER:
                    self._resend_assignments(composed[0].fresh)
                return self._hand_out(*composed)
        return self._heartbeat(now)

    def deadline(self) -> float | None:
        """Return the latest time to call `next` again, after it has returned None; None if there is none."""
        return None if self._deadline == inf else self._deadline

    @property
    def synced(self) -> bool:
        """Whether the client has ACKed the current resources of all types that it subscribes to."""
        requested = (watch for watch in self._watches.values() if watch.requested)
        return all(watch.synced for watch in requested if self._serves(watch.type_url))

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
        """Return the last generation whose resources of a type are all ACKed or NACKed; -1 for none.

        A client that has not subscribed to the type does not use it, unless one of its resources refers to
        the type.
        """
        watch = self._watch(type_url)
        if watch.requested or not self._snapshot:
            return watch.answered_generation if self._snapshot else -1
        refs = (ref for other in self._watches.values() for ref in other.refs())
        return -1 if any(kind == type_url for kind, _ in refs) else self.generation

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
        """Return the names of the served resources of a type that have a tag."""
        return self._snapshot.of(type_url).tagged if self._snapshot else []

    def initial_versions(self, type_url: str) -> tuple[str, ...]:
        """Return the versions that the client reported: one per resource (delta), or one for all (SotW)."""
        return self._watch(type_url).initial_versions

    def rejected(self, type_url: str) -> Mapping[str, Rejection]:
        """Return the last rejection of each resource of a type, until the resource is ACKed or removed."""
        return self._watch(type_url).acks.rejected

    def resource_status(self, type_url: str, name: str) -> ResourceStatus | None:
        """Return the status of one resource; None if the client does not subscribe to it by name.

        This is cheap.
        """
        watch = self._watches.get(type_url)
        if watch is None or name not in watch.subscription.names:
            return None
        return next(type_status(watch, None).resource_statuses([name]))

    def _wait_reason(self, watch: Watch) -> WaitReason | None:
        if not self._serves(watch.type_url):
            return WaitReason(reason=SNAPSHOT, since=self._opened_at)
        since = self._opened_at if self._last_response_at == inf else self._last_response_at
        return wait_reason(
            watch,
            self._watches,
            last_response_at=since,
            last_request_at=self._last_request_at,
            aggregated=not self._type_url,
        )

    def _serves(self, type_url: str) -> bool:
        """Whether a type can be served. Known types can be served without any resources."""
        return self._snapshot is not None and self._knows(type_url)

    def _knows(self, type_url: str) -> bool:
        return type_url in ORDER or (self._snapshot is not None and type_url in self._snapshot.types)

    def _check_unknown_types(self) -> None:
        """Raise LimitError if the stream has too many types that the server does not know."""
        if sum(not self._knows(requested) for requested in self._watches) >= self._limits.unknown_types:
            raise LimitError(
                f"the limit is {self._limits.unknown_types:,} types per stream that this server does not know"
            )

    def _hand_out(self, response: Response, message: bytes) -> bytes:
        self.sent, self._last_response_at = response, response.sent_at
        self._nonces += 1
        return message

    def _heartbeat(self, now: float) -> bytes | None:
        """Return the next heartbeat that is due, once no other response is."""
        for watch in self._watches.values():
            composed = watch.heartbeat(str(self._nonces + 1), now, self._identifier)
            if composed:
                return self._hand_out(*composed)
            self._deadline = min(self._deadline, watch.next_heartbeat)
        return None

    def _new_watch(self, type_url: str) -> Watch:
        if self._variant is Variant.DELTA:
            return DeltaWatch(type_url)
        return FullStateWatch(type_url) if type_url in WILDCARD_TYPES else SotwWatch(type_url)

    def _watch(self, type_url: str) -> Watch:
        if type_url not in self._watches:
            watch = self._watches[type_url] = self._new_watch(type_url)
            self._watches = dict(
                sorted(self._watches.items(), key=lambda item: ORDER.get(item[0], len(ORDER)))
            )
            if self._snapshot:
                self._serve(watch, self._snapshot)
        return self._watches[type_url]

    @staticmethod
    def _serve(watch: Watch, snapshot: Snapshot) -> None:
        watch.refused = snapshot.refused(watch.type_url)
        watch.generation = snapshot.generation
        watch.serve(snapshot.of(watch.type_url))

    def _earliest_send(self, watch: Watch) -> float:
        """Return the earliest time at which a type may be sent; minus infinity if it need not wait."""
        waits = [watch.acks.blocked_since]
        if watch.type_url in AFTER_CLUSTERS:
            waits.append(self._watches[CLUSTER].acks.waiting_since)
        times = [since + self._patience for since in waits if since is not None]
        if watch.withheld:
            times.append(self._started_at + self._patience)
        if watch.type_url in AFTER_CLUSTERS and self._left_warming:
            times.append(self._started_at + min(_RESUME_TIMEOUT, self._patience))
        return max(times, default=-inf)

    def _lost_while_warming(self, request: Request | DeltaRequest) -> bool:
        """Whether a first request for assignments is from a client that reconnects while clusters warm.

        Envoy then sends no request for clusters on the new stream until they are warm, and it reports that it
        has all assignments, although its clusters wait for them.
        """
        reconnected = request.version if isinstance(request, Request) else request.initial_versions
        return bool(reconnected) and not self._type_url and not self._watches[CLUSTER].requested

    def _resend_assignments(self, clusters: Iterable[Resource]) -> None:
        """Send the assignments of new and changed clusters again.

        Such clusters do not use earlier assignments.
        """
        self._watches[ENDPOINT].resend(
            name for cluster in clusters for type_url, name in cluster.refs if type_url == ENDPOINT
        )

    def _answer_missing_assignments(self) -> None:
        """Send empty assignments to clusters whose assignments do not exist.

        SotW cannot express their absence.
        """
        assignments, clusters = self._watches[ENDPOINT], self._watches[CLUSTER]
        if (
            not self._snapshot
            or not isinstance(assignments, SotwWatch)
            or not (missing := assignments.missing())
        ):
            return
        served = self._snapshot.of(CLUSTER).values()
        refs = clusters.refs() if clusters.requested else (ref for cluster in served for ref in cluster.refs)
        used = {name for type_url, name in refs if type_url == ENDPOINT}
        assignments.add_empty(name for name in missing if name in used)

    def _release_unused(self, now: float) -> None:
        """Release the lingering resources that are not used any more, or have lingered for too long."""
        for watch in self._watches.values():
            if watch.type_url not in USERS:
                watch.release(tuple(watch.lingering))
        for type_url, by in USERS.items():
            if type_url not in self._watches:
                continue
            watch = self._watches[type_url]
            users = [self._watches[user] for user in by if user in self._watches]
            if not watch.lingering or (watch.resumed and self._expects_listeners(now)):
                continue
            if all(self._is_settled(user) for user in users):
                watch.release(tuple(watch.lingering))
            else:
                self._expire(watch, users, now)

    def _expire(self, watch: Watch, users: Sequence[Watch], now: float) -> None:
        """Release resources that have lingered for too long.

        The time starts when no lingering resource uses them.
        """
        outdated_since = max(user.acks.outdated_since for user in users)
        is_outdated = outdated_since > -inf
        used = {ref for user in users for ref in user.lingering_refs()}
        for name, lingering in tuple(watch.lingering.items()):
            if (watch.type_url, name) in used:
                lingering.until = None
                continue
            if not watch.covers(name):
                watch.release((name,))
                continue
            if lingering.since is None:
                lingering.since = now
            end = lingering.since + _MAX_REJECTED_AGE
            if is_outdated and watch.acks.first_sent_at(name) <= outdated_since and now < end:
                lingering.until = (
                    None  # The client may still have a user of it, because it rejected the change.
                )
                self._deadline = min(self._deadline, end)
                continue
            if lingering.until is None:
                lingering.until = now + self._grace
            if lingering.until <= now:
                watch.release((name,))
            else:
                self._deadline = min(self._deadline, lingering.until)

    def _is_settled(self, user: Watch) -> bool:
        """Whether a client has exactly the current resources of a type, and all resources that they refer to.

        Envoy uses the routes of a removed listener, and subscribes to them, until the listener's connections
        close.
        """
        is_complete = user.synced and all(self._has_arrived(*ref) for ref in user.refs())
        return is_complete and not user.lingering and not user.gone

    def _expects_listeners(self, now: float) -> bool:
        """Whether a client that reconnected may still subscribe to listeners, which use its clusters."""
        end = self._started_at + _RESUME_TIMEOUT
        if self._type_url or self._watches[LISTENER].requested or now >= end:
            return False
        self._deadline = min(self._deadline, end)
        return True

    def _has_arrived(self, type_url: str, name: str) -> bool:
        """Whether the client has a resource that another one refers to."""
        watch = self._watches.get(type_url)
        return watch is not None and watch.covers(name) and watch.synced
