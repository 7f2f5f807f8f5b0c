"""Tracking of one type's responses, and of the client's ACKs and NACKs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from xds.protocol.events import Acked, Nacked, Response, acked, nacked
from xds.protocol.limits import size_of
from xds.protocol.wire import ErrorDetail

MAX_UNANSWERED = 64
"""Maximum number of unanswered responses of one type.

Each response is kept in memory. At this limit, sending pauses until the client answers or the session's
patience ends.
"""

_MAX_SHARED = 8
"""Maximum number of shared changes that are stored with the time when they were sent."""

_MIN_SHARED = 8
"""Minimum number of names in such a change. The names of smaller changes are stored one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A client's rejection of a resource or of a response."""

    version: str
    """Rejected version of the resource, or of the type for a whole response."""
    code: int
    """Status code of the NACK (google.rpc.Code)."""
    message: str
    """Error message of the client, without private keys that it quotes."""
    at: float
    """Time of the NACK, in seconds of the clock that the session uses."""
    sources: tuple[str, ...] = field(default=(), repr=False)
    """Objects that the rejected resources were made from."""


class AckTracker:
    """Tracks the unanswered responses of one type, and the results of the answered ones.

    Its memory is proportional to the unanswered responses, the rejected resources, and the resources that
    have changed since the first answer.
    """

    __slots__ = (
        "_first_sent",
        "_initially_sent_at",
        "_last_sent",
        "_never_acked",
        "_never_acked_shared",
        "_outdated",
        "_shared_sent",
        "acked_at",
        "last_error",
        "name_count",
        "rejected",
        "resumed",
        "sent_at",
        "size",
        "unanswered",
        "version",
    )

    def __init__(self) -> None:
        self.unanswered: dict[str, Response] = {}
        """Unanswered responses by nonce, oldest first."""
        self.name_count = 0
        """Number of removed names in the unanswered responses."""
        self.size = 0
        """Size of these names, in bytes."""
        self.sent_at: float | None = None
        """Time of the last response."""
        self.acked_at: float | None = None
        """Time of the last ACK."""
        self.version = ""
        """Version of the type in the last ACKed response."""
        self.rejected: dict[str, Rejection] = {}
        """Last rejection of each resource, until the resource is ACKed or removed."""
        self.last_error: Rejection | None = None
        """Last rejection; None once all rejected resources are ACKed or removed."""
        self.resumed = False
        """Whether the client has resources from an earlier stream."""
        self._outdated: dict[str, float] = {}
        """Time of the first rejection of each resource that the client still has in an older version."""
        self._never_acked: set[str] = set()
        """Names of resources that the client was sent and has not ACKed in any version."""
        self._never_acked_shared: frozenset[str] = frozenset()
        """More such names, which were in shared changes. Clients that need the same change share this set."""
        self._first_sent: dict[str, float] = {}
        """Time when each resource was first sent, unless it was in the initial responses."""
        self._initially_sent_at: float | None = None
        """Time of the last response before the first answer."""
        self._last_sent: dict[str, float] = {}
        """Time when each resource was last sent after the first answer, unless it was in a large change."""
        self._shared_sent: list[tuple[frozenset[str], float]] = []
        """Names of large shared changes, each with the time when it was sent."""

    @property
    def waiting_since(self) -> float | None:
        """Time when the oldest unanswered response was sent; None if all are answered."""
        return next((response.sent_at for response in self.unanswered.values()), None)

    @property
    def blocked_since(self) -> float | None:
        """Same as `waiting_since` if so many responses are unanswered that sending pauses; otherwise None."""
        return self.waiting_since if len(self.unanswered) >= MAX_UNANSWERED else None

    @property
    def unacked(self) -> set[str]:
        """Names of resources in unanswered responses that may be new to the client."""
        return {resource.name for response in self.unanswered.values() for resource in response.fresh}

    def updated_at(self, name: str) -> float | None:
        """Return when a new version of a resource was last sent; None if that was on an earlier stream.

        For resources sent before the first answer, this is the time of the last response before that answer.
        """
        times = [at for names, at in self._shared_sent if name in names]
        if name in self._last_sent:
            times.append(self._last_sent[name])
        return max(times, default=self._initially_sent_at)

    def first_sent_at(self, name: str) -> float:
        """Return when a resource was first sent; minus infinity if it was in the initial responses."""
        return self._first_sent.get(name, -inf)

    @property
    def outdated_since(self) -> float:
        """Time when the last resource became outdated; minus infinity if none is.

        A resource is outdated if the client rejected an update and uses an older version. The older version
        cannot refer to resources that were first sent after this time. Resources that the client has never
        ACKed are not outdated, because the client has no version of them.
        """
        return max(self._outdated.values(), default=-inf)

    def expect(self, response: Response, new: Sequence[str] = (), sent: Container[str] = ()) -> None:
        """Expect an answer to a response. At `MAX_UNANSWERED`, stop expecting one to the oldest response.

        Args:
            response: Response that was sent.
            new: Names of resources that the client does not have in any version, except for those that the
                shared change adds.
            sent: Names of the resources that the client has.
        """
        if len(self.unanswered) >= MAX_UNANSWERED:
            self._abandon(next(iter(self.unanswered)))
        self.unanswered[response.nonce] = response
        if response.removed:
            self.name_count += len(response.removed)
            self.size += size_of(response.removed)
        self.sent_at = response.sent_at
        added = response.shared.added if response.shared else frozenset()
        if self.acked_at is None and not self.last_error and not self.resumed:
            self._initially_sent_at = response.sent_at
        else:
            fresh = response.fresh
            if response.shared and len(response.shared.resources) >= _MIN_SHARED:
                self._record_shared(response.shared.names, response.sent_at, sent)
                fresh = fresh[len(response.shared.resources) :]
            for resource in fresh:
                self._last_sent[resource.name] = response.sent_at
            if new or added:
                self._first_sent.update(dict.fromkeys((*new, *added), response.sent_at))
        if new:
            self._never_acked.update(new)
        if added:
            unacked = self._never_acked_shared
            self._never_acked_shared = unacked.union(added) if unacked else added
        for name in response.removed:
            self._last_sent.pop(name, None)
            self._first_sent.pop(name, None)

    def _record_shared(self, names: frozenset[str], at: float, sent: Container[str]) -> None:
        """Record when a large shared change was sent. It replaces earlier changes of the same resources."""
        kept = [item for item in self._shared_sent if item[0] is not names and not item[0] <= names]
        if len(kept) >= _MAX_SHARED:
            smallest, sent_at = min(kept, key=lambda item: len(item[0]))
            kept.remove((smallest, sent_at))
            for name in smallest:
                if name in sent:
                    self._last_sent[name] = max(sent_at, self._last_sent.get(name, sent_at))
        self._shared_sent = [*kept, (names, at)]

    def skip(self, nonce: str) -> list[Response]:
        """Stop expecting answers to the responses before `nonce`, and return these responses."""
        skipped = []
        while nonce in self.unanswered and (oldest := next(iter(self.unanswered))) != nonce:
            skipped.append(self._abandon(oldest))
        return skipped

    def receive(self, nonce: str, error: ErrorDetail | None, now: float) -> Acked | Nacked | None:
        """Process an ACK, or a NACK with its error.

        Return None if no response with this nonce is unanswered.
        """
        if nonce not in self.unanswered:
            return None
        response = self._pop(nonce)
        if error:
            event = nacked(response, error, now)
            self._record_nack(event, now)
            return event
        self.acked_at, self.version = now, response.version
        fresh = response.fresh
        if response.shared and not (self.rejected or self._outdated):
            self._forget_unacked(response.shared.names)
            fresh = fresh[len(response.shared.resources) :]
        if self.last_error or self._never_acked or self._never_acked_shared or self._outdated:
            self.clear_rejections((*(resource.name for resource in fresh), *response.removed))
        return acked(response, now)

    def clear_rejections(self, names: Iterable[str]) -> None:
        """Forget the rejections of resources that are ACKed or removed now."""
        names = tuple(names)
        self._forget_unacked(names)
        for tracked in (self.rejected, self._outdated):
            for name in names if tracked else ():
                tracked.pop(name, None)
        if not self.rejected:
            self.last_error = None

    def forget_unsubscribed(self, covers: Callable[[str], bool]) -> None:
        """Forget the resources that the client no longer subscribes to."""
        tracked = self.rejected.keys() | self._outdated.keys() | self._never_acked | self._never_acked_shared
        self.clear_rejections([name for name in tracked if not covers(name)])
        for times in (self._last_sent, self._first_sent):
            for name in [name for name in times if not covers(name)]:
                del times[name]

    def _abandon(self, nonce: str) -> Response:
        """Stop expecting an answer to a response. The client may have accepted it."""
        response = self._pop(nonce)
        self._forget_unacked([resource.name for resource in response.fresh])
        return response

    def _forget_unacked(self, names: Collection[str]) -> None:
        """Forget that the client has not ACKed resources."""
        if self._never_acked:
            self._never_acked.difference_update(names)
        if self._never_acked_shared is names:
            self._never_acked_shared = frozenset()
        elif self._never_acked_shared and not self._never_acked_shared.isdisjoint(names):
            self._never_acked_shared = self._never_acked_shared.difference(names)

    def _pop(self, nonce: str) -> Response:
        response = self.unanswered.pop(nonce)
        if response.removed:
            self.name_count -= len(response.removed)
            self.size -= size_of(response.removed)
        return response

    def _record_nack(self, event: Nacked, now: float) -> None:
        suspects = {resource.name for resource in event.suspects}
        bystanders = {resource.name for resource in event.fresh} - suspects
        self._forget_unacked(bystanders)
        if event.culprits:
            self.clear_rejections(bystanders)
        for resource in event.culprits or event.fresh:
            if resource.name not in self._never_acked and resource.name not in self._never_acked_shared:
                self._outdated.setdefault(resource.name, now)
        self.last_error = Rejection(
            version=event.version, code=event.code, message=event.message, at=now, sources=event.sources
        )
        for resource in event.suspects:
            self.rejected[resource.name] = Rejection(
                version=resource.version,
                code=event.code,
                message=event.message,
                at=now,
                sources=resource.sources,
            )
