"""The time from a change to its ACK, for one stream."""

from __future__ import annotations

from collections.abc import Iterator

from xds.protocol.events import Acked, Nacked, Response, Subscribed
from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.session import Variant
from xds.protocol.subscription import collection
from xds.server import Stream
from xds.snapshot import Snapshot, difference

_MAX_PENDING = 64
"""Maximum number of remembered changes of a type, and of remembered responses."""


class ConvergenceTracker:
    """Tracks the changes that one stream has not acknowledged.

    The time of a change starts when its source reports it, and ends at the ACK of the first response that
    contains any part of it. Resources without a subscription do not count, and a NACK discards the
    measurement.
    """

    __slots__ = ("_sent", "_snapshot", "_subscribed", "_unsent")

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._subscribed: dict[str, Subscribed] = {}
        self._unsent: dict[str, list[tuple[float, frozenset[str]]]] = {}
        """By type, the changes that were not sent yet: time of the change and names of the resources."""
        self._sent: dict[str, float] = {}
        """By nonce of a response, the time of the oldest change that it contains."""

    def sent(self, stream: Stream, response: Response) -> None:
        """Record a response, which contains what the snapshot of the stream has now."""
        self._record_changes(stream)
        due = self._unsent.get(response.type_url)
        if not due:
            return
        names = {resource.name for resource in response.resources}
        names.update(response.removed)
        carried = [change for change in due if not change[1].isdisjoint(names)]
        if carried:
            self._unsent[response.type_url] = [change for change in due if change not in carried]
            self._sent[response.nonce] = min(since for since, _ in carried)
            if len(self._sent) > _MAX_PENDING:
                del self._sent[next(iter(self._sent))]

    def answered(self, event: Acked | Nacked) -> float | None:
        """Return the time of the change that an answered response contains; None if it contains no change."""
        return self._sent.pop(event.nonce, None)

    def subscribed(self, stream: Stream, event: Subscribed) -> None:
        """Record a new subscription."""
        self._record_changes(stream)  # Changes from before the subscription do not count.
        self._subscribed[event.type_url] = event
        due = self._unsent.get(event.type_url)
        if due:
            pending = ((since, frozenset(_select(event, names))) for since, names in due)
            self._unsent[event.type_url] = [change for change in pending if change[1]]

    def _record_changes(self, stream: Stream) -> None:
        """Record what changed since the last call."""
        snapshot = stream.subscriber.snapshot
        if snapshot is None or snapshot is self._snapshot:
            return
        previous, self._snapshot = self._snapshot, snapshot
        since, stream.subscriber.changed_at = stream.subscriber.changed_at, None
        if since is None:
            return
        for type_url, subscription in self._subscribed.items():
            current = snapshot.of(type_url)
            changed = _select(subscription, difference(previous.of(type_url), current))
            if stream.info.variant is Variant.SOTW and type_url not in WILDCARD_TYPES:
                changed = (name for name in changed if name in current)  # SotW cannot express these removals.
            names = frozenset(changed)
            if names:
                due = self._unsent.setdefault(type_url, [])
                due.append((since, names))
                del due[:-_MAX_PENDING]


def _select(subscription: Subscribed, names: tuple[str, ...] | frozenset[str]) -> Iterator[str]:
    if subscription.wildcard:
        return iter(names)
    wanted = subscription.names
    return (name for name in names if name in wanted or collection(name) in wanted)
