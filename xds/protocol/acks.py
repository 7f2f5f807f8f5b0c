"""Tracking of one type's unanswered responses, and of the times when its resources were sent."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from math import inf

from xds.protocol.events import Response
from xds.protocol.limits import size_of

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
    """Tracks the unanswered responses of one type.

    Its memory is proportional to the unanswered responses, and to the resources that have changed since the
    first answer.
    """

    __slots__ = (
        "_first_sent",
        "_initially_sent_at",
        "_last_sent",
        "_shared_sent",
        "acked_at",
        "is_initial",
        "name_count",
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
        self.is_initial = True
        """Whether the client has neither answered a response nor reported resources of an earlier stream."""
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
    def never_acked(self) -> set[str]:
        """Names in the unanswered responses of which the client has not ACKed any version."""
        return {name for response in self.unanswered.values() for name in response.new_names()}

    def expect(self, response: Response, sent: Container[str] = ()) -> Response | None:
        """Expect an answer to a response. `sent` are the names of the resources that the client has.

        At `MAX_UNANSWERED`, stop expecting one to the oldest response, and return that response.
        """
        abandoned = None
        if len(self.unanswered) >= MAX_UNANSWERED:
            abandoned = self.pop(next(iter(self.unanswered)))
        self.unanswered[response.nonce] = response
        if response.removed:
            self.name_count += len(response.removed)
            self.size += size_of(response.removed)
        self.sent_at = response.sent_at
        if self.is_initial:
            self._initially_sent_at = response.sent_at
        else:
            fresh = response.fresh
            if response.shared and len(response.shared.resources) >= _MIN_SHARED:
                self._record_shared(response.shared.names, response.sent_at, sent)
                fresh = fresh[len(response.shared.resources) :]
            for resource in fresh:
                self._last_sent[resource.name] = response.sent_at
            self._first_sent.update(dict.fromkeys(response.new_names(), response.sent_at))
        for name in response.removed:
            self._last_sent.pop(name, None)
            self._first_sent.pop(name, None)
        return abandoned

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

    def pop(self, nonce: str) -> Response:
        """Stop expecting an answer to a response, and return the response."""
        response = self.unanswered.pop(nonce)
        if response.removed:
            self.name_count -= len(response.removed)
            self.size -= size_of(response.removed)
        return response

    def pop_before(self, nonce: str) -> list[Response]:
        """Stop expecting answers to the responses before an unanswered one, and return these responses."""
        skipped = []
        while nonce in self.unanswered and (oldest := next(iter(self.unanswered))) != nonce:
            skipped.append(self.pop(oldest))
        return skipped

    def forget_unsubscribed(self, covers: Callable[[str], bool]) -> None:
        """Forget the resources that the client no longer subscribes to."""
        for times in (self._last_sent, self._first_sent):
            for name in [name for name in times if not covers(name)]:
                del times[name]
