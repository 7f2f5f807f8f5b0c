"""The time from a change to its ACK, for one stream."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import inf
from weakref import ref

from xds.protocol.events import Acked, Nacked, Response, Subscribed
from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.session import Variant
from xds.protocol.subscription import collection
from xds.server import Stream
from xds.snapshot import EMPTY, Snapshot, difference

_MAX_PENDING = 64
"""Maximum number of unsent changes of a type, and of unanswered responses, that are tracked."""

_MAX_QUEUED = 4
"""Maximum number of responses to process later. Each keeps a snapshot in memory."""


class ConvergenceTracker:
    """Tracks the changes that the client of one stream has not ACKed.

    A measurement starts when a source reports a change. It ends when the client ACKs the first response that
    contains part of the change, and is discarded if the client NACKs that response. Resources without a
    subscription do not count.
    """

    __slots__ = ("_queue", "_sent", "_snapshot", "_subscribed", "_unsent")

    def __init__(self) -> None:
        self._queue: list[tuple[Response | None, Snapshot | None, float | None]] = []
        """Responses to process, each with its snapshot and the time of the oldest change in that.

        They are processed when the client answers, so that a push to many clients does not wait for it. An
        item without a response adds only the snapshot.
        """
        self._snapshot = Snapshot()
        """Snapshot that was processed last."""
        self._subscribed: dict[str, Subscribed] = {}
        self._unsent: dict[str, list[tuple[float, frozenset[str]]]] = {}
        """For each type, the unsent changes: time of the change and names of the resources."""
        self._sent: dict[str, float] = {}
        """For each unanswered response, by nonce, the time of the oldest change that it contains."""

    def sent(self, stream: Stream, response: Response) -> None:
        """Record a response, which was built from the stream's current snapshot."""
        self._enqueue(stream, response)
        if len(self._queue) > _MAX_QUEUED:
            self._process(stream)

    def _enqueue(self, stream: Stream, response: Response | None) -> None:
        subscriber = stream.subscriber
        self._queue.append((response, subscriber.snapshot, subscriber.changed_at))
        subscriber.changed_at = None

    def _process(self, stream: Stream) -> None:
        """Process the queue."""
        for response, snapshot, changed_at in self._queue:
            self._record_changes(stream, snapshot, changed_at)
            if response:
                self._match(response)
        self._queue.clear()

    def _match(self, response: Response) -> None:
        """Find the changes that a response contains."""
        unsent = self._unsent.get(response.type_url)
        if not unsent:
            return
        waiting = []
        oldest = inf
        for change in unsent:
            if _contains_any(response, change[1]):
                oldest = min(oldest, change[0])
            else:
                waiting.append(change)
        self._unsent[response.type_url] = waiting
        if oldest < inf:
            self._sent[response.nonce] = oldest
            if len(self._sent) > _MAX_PENDING:
                del self._sent[next(iter(self._sent))]

    def answered(self, stream: Stream, event: Acked | Nacked) -> float | None:
        """Return the time of the oldest change in an ACKed or NACKed response; None if it contains none."""
        self._process(stream)
        return self._sent.pop(event.nonce, None)

    def oldest_change(self, stream: Stream) -> float:
        """Return the time of the oldest change that the client has not ACKed; infinity if there is none."""
        self._enqueue(stream, None)
        self._process(stream)
        unsent = (changed_at for changes in self._unsent.values() for changed_at, _ in changes)
        return min((*unsent, *self._sent.values()), default=inf)

    def subscribed(self, stream: Stream, event: Subscribed) -> None:
        """Record a new subscription."""
        self._enqueue(stream, None)
        self._process(stream)  # Changes before the subscription do not count.
        self._subscribed[event.type_url] = event
        unsent = self._unsent.get(event.type_url)
        if unsent:
            selected = ((changed_at, _compute(event, names)) for changed_at, names in unsent)
            self._unsent[event.type_url] = [change for change in selected if change[1]]

    def _record_changes(self, stream: Stream, snapshot: Snapshot | None, changed_at: float | None) -> None:
        """Record the difference between the snapshot at the last call and this one."""
        if snapshot is None or snapshot is self._snapshot:
            return
        previous, self._snapshot = self._snapshot, snapshot
        if changed_at is None:
            return
        before, after = previous.types.get, snapshot.types.get
        for type_url, subscription in self._subscribed.items():
            # Most snapshots share most sets with the previous one.
            if (current := after(type_url, EMPTY)) is (earlier := before(type_url, EMPTY)):
                continue
            names = _select(subscription, difference(earlier, current))
            if stream.info.variant is Variant.SOTW and type_url not in WILDCARD_TYPES:
                # SotW cannot express these removals.
                names = frozenset(name for name in names if name in current)
            if names:
                unsent = self._unsent.setdefault(type_url, [])
                unsent.append((changed_at, names))
                del unsent[:-_MAX_PENDING]


def _contains_any(response: Response, names: frozenset[str]) -> bool:
    """Whether a response contains or removes one of several resources."""
    for resource in response.resources:
        if resource.name in names:
            return True
    return not names.isdisjoint(response.removed)


def _select(subscription: Subscribed, names: tuple[str, ...]) -> frozenset[str]:
    """Return the names that a subscription selects. Many clients with equal subscriptions get one change."""
    if subscription.wildcard:
        return _all(names)
    if len(names) <= _MAX_COMPUTED:
        return _compute(subscription, names)
    # The key has no set of names: to look one up, an equal set is compared name by name.
    key = id(names), id(subscription.names)
    last = _selected.get(key)
    if last is None or last[0] is not names or last[1]() is not subscription.names:
        if len(_selected) >= _MAX_SELECTED:
            _selected.clear()
        last = _selected[key] = names, ref(subscription.names), _compute(subscription, names)
    return last[2]


_MAX_COMPUTED = 4
"""Number of names that are selected for each client."""
_MAX_SELECTED = 16
_selected: dict[tuple[int, int], tuple[tuple[str, ...], ref[frozenset[str]], frozenset[str]]] = {}
"""Changed names, those of a subscription, and those of both, by the identity of the first two.

A client could otherwise keep the names of its subscription in memory after it has disconnected.
"""


def _compute(subscription: Subscribed, names: Iterable[str]) -> frozenset[str]:
    if subscription.wildcard:
        return frozenset(names)
    subscribed = subscription.names
    return frozenset([name for name in names if name in subscribed or collection(name) in subscribed])


@lru_cache(maxsize=4)
def _all(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)
