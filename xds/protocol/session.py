"""One stream of discovery as a state machine without I/O: give it snapshots and requests, take responses.

    session = Session(Variant.DELTA)
    session.serve(snapshot)                     # whenever what the proxy should have has changed
    events = session.receive(request, now)      # whenever it said something
    while (response := session.next(now)) is not None:
        ...                                     # write it; ask again at session.deadline() if not before

The order in which types go out is what keeps traffic flowing while a proxy changes over: a route is sent when the
clusters it names are in place, and a cluster goes away when no route names it any more. Assignments and secrets wait
for nothing, because they are what a new cluster waits for before it acknowledges.
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
"""Types that nearly every client asks for; the others take no room on streams without them."""

_RESUME_TIMEOUT = 1.0
"""Seconds that a client which was here before has to ask again for all that it wants: it does so at once."""

_MAX_REJECTED_AGE = 86400.0
"""Seconds for which what is gone is kept for a client that may go on using it because it rejected the change.

Taking it away breaks traffic, so there must be time for somebody to mend the change, in the morning too. It costs little: what
came after the rejection is not kept.
"""


class Variant(Enum):
    """The two forms of the protocol."""

    SOTW = "sotw"
    DELTA = "delta"


class Session:
    """One stream, from its first request to its end.

    `type_url` is the only type of a stream that is not aggregated. `limits` say how much the client may ask for. `patience` is how long the client's answer to
    clusters is waited for before listeners and routes are sent all the same, and `grace` how long something that is
    gone is served at most while what used it has not been acknowledged, in seconds. What a client may go on using
    because it rejected the change is served until it takes one, for a day at most.
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
        self.sent: Response | None = None
        """What the last call of `next` handed out; None if there was nothing."""
        self._variant = variant
        self._type_url = type_url
        self._identifier = identifier
        self._limits = limits
        self._patience = patience
        self._grace = grace
        self._snapshot: Snapshot | None = None
        self._watches: dict[str, Watch] = {known: self._new_watch(known) for known in _COMMON_TYPES}
        """By type, in the order in which they are sent."""
        self._nonces = 0
        self._left_warming = False
        """Whether clusters are warming that the client has not asked for yet."""
        self._opened_at = inf
        self._last_request_at = -inf
        self._last_response_at = inf
        self._started_at = inf
        self._deadline = inf

    def serve(self, snapshot: Snapshot) -> None:
        """From now on the client should have this; what was served before and not sent yet is forgotten."""
        before, self._snapshot = self._snapshot, snapshot
        for watch in self._watches.values():
            self._serve(watch, snapshot)
        if before:
            # A cluster that has been sent may not have its assignment yet, and is not acknowledged without it.
            for type_url, name in self._watches[CLUSTER].lingering_refs():
                self._watch(type_url).keep(name, before.of(type_url).get(name))
        if not self._watches[CLUSTER].requested:
            self._answer_missing_assignments()

    def receive(self, message: bytes, now: float) -> list[Event]:
        """Take a request and say what it meant. RequestError, LimitError: the stream must end."""
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
        """How many names are kept because the client said them."""
        return sum(watch.names for watch in self._watches.values())

    @property
    def size(self) -> int:
        """How many bytes these names take, and the versions that came with them."""
        return sum(watch.size for watch in self._watches.values())

    def expect_no_acks(self) -> None:
        """The client says nothing more: what waits for its answers goes out at once."""
        self._patience = 0.0

    def next(self, now: float) -> bytes | None:
        """Return the response to write now, which counts as sent; None if there is nothing to send yet."""
        self._deadline = inf
        self.sent = None
        if not self._snapshot:
            return None
        self._started_at = min(self._started_at, now)
        self._release_unused(now)
        for watch in self._watches.values():
            if not self._serves(watch.type_url):
                continue  # The client may wait, but the others must not suffer.
            opens = self._earliest_send(watch)
            if now < opens:
                if watch.pending:
                    self._deadline = min(self._deadline, opens)
                continue
            composed = watch.compose(str(self._nonces + 1), now, self._identifier)
            if composed:
                if watch.type_url == CLUSTER:
                    self._resend_assignments(composed[0].fresh)
                return self._hand_out(*composed)
        return self._heartbeat(now)

    def deadline(self) -> float | None:
        """When to call `next` again although nothing happened, after it returned None."""
        return None if self._deadline == inf else self._deadline

    @property
    def synced(self) -> bool:
        """Whether the client has what it should have of all that it asked for, and said so."""
        requested = (watch for watch in self._watches.values() if watch.requested)
        return all(watch.synced for watch in requested if self._serves(watch.type_url))

    def status(self) -> tuple[TypeStatus, ...]:
        """Say how far the client is with each type that it asked for, in the order in which they are sent."""
        return tuple(
            type_status(watch, self._wait_reason(watch))
            for watch in self._watches.values()
            if watch.requested
        )

    @property
    def generation(self) -> int:
        """Of the snapshot that is served; -1: none is."""
        return self._snapshot.generation if self._snapshot else -1

    def answered_generation(self, type_url: str) -> int:
        """Return the generation of the last snapshot of which the client has answered all that there is of a type; -1: of none.

        What it has not asked for it cannot be using, unless something that it has names it.
        """
        watch = self._watch(type_url)
        if watch.requested or not self._snapshot:
            return watch.answered_generation if self._snapshot else -1
        named = (ref for each in self._watches.values() for ref in each.refs())
        return -1 if any(kind == type_url for kind, _ in named) else self.generation

    def has_acked(self, type_url: str, names: Iterable[str]) -> bool:
        """Whether the client took these as they should be now, and all that they name."""
        watch = self._watch(type_url)
        for name in names:
            if not watch.requested or not watch.has_acked(name):
                return False
            resource = watch.get(name)
            if not all(self._watch(kind).has_acked(ref) for kind, ref in (resource.refs if resource else ())):
                return False
        return True

    def is_subscribed(self, type_url: str) -> bool:
        """Whether the client has asked for anything of a type."""
        return self._watch(type_url).requested

    def tagged(self, type_url: str) -> list[str]:
        """Return the names of what the client should have of a type that has a tag."""
        return self._snapshot.of(type_url).tagged if self._snapshot else []

    def initial_versions(self, type_url: str) -> tuple[str, ...]:
        """Return the versions of what the client had of a type when it came: each resource's, or (SotW) that of all."""
        return self._watch(type_url).initial_versions

    def rejected(self, type_url: str) -> Mapping[str, Rejection]:
        """Return what the client last rejected of a type, by name, until it is taken or goes away."""
        return self._watch(type_url).acks.rejected

    def resource_status(self, type_url: str, name: str) -> ResourceStatus | None:
        """Say how one resource stands with the client; None: it did not ask for that by name. Costs next to nothing."""
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
        """Whether anything can be said of a type: also that there is nothing, of one that has its place here."""
        return self._snapshot is not None and self._knows(type_url)

    def _knows(self, type_url: str) -> bool:
        return type_url in ORDER or (self._snapshot is not None and type_url in self._snapshot.types)

    def _check_unknown_types(self) -> None:
        """Raise LimitError if there is no room for another type that the server does not know."""
        if sum(not self._knows(known) for known in self._watches) >= self._limits.unknown_types:
            raise LimitError(
                f"the limit is {self._limits.unknown_types:,} types per stream that this server does not know"
            )

    def _hand_out(self, response: Response, message: bytes) -> bytes:
        self.sent, self._last_response_at = response, response.sent_at
        self._nonces += 1
        return message

    def _heartbeat(self, now: float) -> bytes | None:
        """Say what is still good, now that nothing else is to be said."""
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
        """Return from when on a type may be sent."""
        waits = [watch.acks.blocked_since]
        if watch.type_url in AFTER_CLUSTERS:
            waits.append(self._watches[CLUSTER].acks.waiting_since)
        opens = [since + self._patience for since in waits if since is not None]
        if watch.withheld:
            opens.append(self._started_at + self._patience)
        if watch.type_url in AFTER_CLUSTERS and self._left_warming:
            opens.append(self._started_at + min(_RESUME_TIMEOUT, self._patience))
        return max(opens, default=-inf)

    def _lost_while_warming(self, request: Request | DeltaRequest) -> bool:
        """Whether a first request for assignments is of a client that lost its last stream while clusters were warming.

        Envoy then says nothing of clusters on the new stream either, until they are warm: not that it has them, nor that
        they wait for their assignments, all of which it says it has.
        """
        was_here = request.version if isinstance(request, Request) else request.initial_versions
        return bool(was_here) and not self._type_url and not self._watches[CLUSTER].requested

    def _resend_assignments(self, clusters: Iterable[Resource]) -> None:
        """Send the assignments of clusters again: a cluster that is new or changed does not use what was there."""
        self._watches[ENDPOINT].resend(
            name for cluster in clusters for type_url, name in cluster.refs if type_url == ENDPOINT
        )

    def _answer_missing_assignments(self) -> None:
        """Answer for the assignments that clusters have not got, where it cannot be said that there is none."""
        assignments, clusters = self._watches[ENDPOINT], self._watches[CLUSTER]
        if (
            not self._snapshot
            or not isinstance(assignments, SotwWatch)
            or not (missing := assignments.missing())
        ):
            return
        served = self._snapshot.of(CLUSTER).values()
        refs = clusters.refs() if clusters.requested else (ref for each in served for ref in each.refs)
        used = {name for type_url, name in refs if type_url == ENDPOINT}
        assignments.add_empty(name for name in missing if name in used)

    def _release_unused(self, now: float) -> None:
        """Release what lingers and is used no more, or has been there for too long."""
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
        """Release what has lingered for too long, which is counted from when nobody is known to use it."""
        outdated_since = max(user.acks.outdated_since for user in users)
        behind = outdated_since > -inf
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
            if behind and watch.acks.first_sent_at(name) <= outdated_since and now < end:
                lingering.until = None  # The client may go on with what uses it.
                self._deadline = min(self._deadline, end)
                continue
            if lingering.until is None:
                lingering.until = now + self._grace
            if lingering.until <= now:
                watch.release((name,))
            else:
                self._deadline = min(self._deadline, lingering.until)

    def _is_settled(self, user: Watch) -> bool:
        """Whether a client has what it should have of a type, to the last resource that it waits for, and no more.

        Envoy goes on with the routes of a listener that is gone, and keeps their names, until its connections are.
        """
        has_it = user.synced and all(self._has_arrived(*ref) for ref in user.refs())
        return has_it and not user.lingering and not user.gone

    def _expects_listeners(self, now: float) -> bool:
        """Whether a client that takes up its subscriptions again may be about to say that it uses clusters."""
        end = self._started_at + _RESUME_TIMEOUT
        if self._type_url or self._watches[LISTENER].requested or now >= end:
            return False
        self._deadline = min(self._deadline, end)
        return True

    def _has_arrived(self, type_url: str, name: str) -> bool:
        """Whether a resource that another one refers to is with the client."""
        watch = self._watches.get(type_url)
        return watch is not None and watch.covers(name) and watch.synced
