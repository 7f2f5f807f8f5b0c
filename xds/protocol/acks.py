"""What a client was sent of one type, when, and what it said to that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from xds.protocol.events import Acked, Nacked, Response, acked, nacked
from xds.protocol.limits import size_of
from xds.protocol.wire import ErrorDetail

MAX_UNANSWERED = 64
"""Responses of a type that a client may leave unanswered before it is held: each has to be remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a client did not take a resource, or a response."""

    version: str
    """What was rejected: the version of the resource, or of the type as the response said it."""
    code: int
    message: str
    """The client's own words, without any key material that they quote."""
    at: float
    sources: tuple[str, ...] = field(default=(), repr=False)
    """The objects that what was rejected was made from."""


class AckTracker:
    """The responses of one type that are not answered yet, and what is known from the answers to the others.

    What it costs is in proportion to what is unanswered, rejected, or has changed since the first answer.
    """

    __slots__ = (
        "_first",
        "_first_sent",
        "_never_acked",
        "_outdated",
        "_times",
        "acked_at",
        "last_error",
        "names",
        "rejected",
        "resumed",
        "sent_at",
        "size",
        "unanswered",
        "version",
    )

    def __init__(self) -> None:
        self.unanswered: dict[str, Response] = {}
        """By nonce, oldest first."""
        self.names = self.size = 0
        """How many names of what is gone the unanswered responses have, and how many bytes these take."""
        self.sent_at: float | None = None
        self.acked_at: float | None = None
        self.version = ""
        """Of the type, as the last response that was taken said it."""
        self.rejected: dict[str, Rejection] = {}
        """By name, until it is taken or goes away."""
        self.last_error: Rejection | None = None
        """The last one; None once all that was rejected is taken or gone."""
        self.resumed = False
        """Whether the client has some of what it has from an earlier stream."""
        self._outdated: dict[str, float] = {}
        """Since when the client goes on with an older version of what it rejected, by name."""
        self._never_acked: set[str] = set()
        """What the client was sent and never took, in any version."""
        self._first_sent: dict[str, float] = {}
        """When the client was first sent what it did not get at the beginning."""
        self._first: float | None = None
        self._times: dict[str, float] = {}

    @property
    def waiting_since(self) -> float | None:
        """Since when the client owes an answer; None if it does not."""
        return next((response.sent_at for response in self.unanswered.values()), None)

    @property
    def blocked_since(self) -> float | None:
        """Since when the client owes so many answers that it gets nothing more; None if it does not."""
        return self.waiting_since if len(self.unanswered) >= MAX_UNANSWERED else None

    @property
    def unacked(self) -> set[str]:
        """What may have been news to the client in a response that it has not answered."""
        return {resource.name for response in self.unanswered.values() for resource in response.fresh}

    def updated_at(self, name: str) -> float | None:
        """Return when something that the client has was last sent, as news; None if that was on an earlier stream.

        What it got before it had answered anything of the type counts as sent with the last of that.
        """
        return self._times.get(name, self._first)

    def first_sent_at(self, name: str) -> float:
        """Return when the client was first sent something; minus infinity if it has had it from the beginning."""
        return self._first_sent.get(name, -inf)

    @property
    def outdated_since(self) -> float:
        """When the client last began to go on with an older version of something; minus infinity if it does not.

        What it was first sent after that is used by none of these. It does not go on with what it never took.
        """
        return max(self._outdated.values(), default=-inf)

    def expect(self, response: Response, new: Iterable[str] = ()) -> None:
        """Expect an answer to a response, and no longer to the oldest if there are too many.

        `new` are the names of what the client does not have in any version.
        """
        if len(self.unanswered) >= MAX_UNANSWERED:
            self._give_up(next(iter(self.unanswered)))
        self.unanswered[response.nonce] = response
        self.names += len(response.removed)
        self.size += size_of(response.removed)
        self.sent_at = response.sent_at
        if self.acked_at is None and not self.last_error and not self.resumed:
            self._first = response.sent_at
        else:
            self._times.update(dict.fromkeys((each.name for each in response.fresh), response.sent_at))
            self._first_sent.update(dict.fromkeys(new, response.sent_at))
        self._never_acked.update(new)
        for name in response.removed:
            self._times.pop(name, None)
            self._first_sent.pop(name, None)

    def skip(self, nonce: str) -> list[Response]:
        """Give up on answers to what was sent before a response; return that."""
        skipped = []
        while nonce in self.unanswered and (oldest := next(iter(self.unanswered))) != nonce:
            skipped.append(self._give_up(oldest))
        return skipped

    def take(self, nonce: str, error: ErrorDetail | None, now: float) -> Acked | Nacked | None:
        """Take the answer to a response; an answer to anything else says nothing."""
        if nonce not in self.unanswered:
            return None
        response = self._pop(nonce)
        if error:
            event = nacked(response, error, now)
            self._handle_nack(event, now)
            return event
        self.acked_at, self.version = now, response.version
        if self.last_error or self._never_acked or self._outdated:
            self.forgive((*(resource.name for resource in response.fresh), *response.removed))
        return acked(response, now)

    def forgive(self, names: Iterable[str]) -> None:
        """Forget that these were rejected: they were taken, or are gone."""
        for name in names:
            self.rejected.pop(name, None)
            self._outdated.pop(name, None)
            self._never_acked.discard(name)
        if not self.rejected:
            self.last_error = None

    def forget(self, covers: Callable[[str], bool]) -> None:
        """Forget what the client has given up."""
        doubted = self.rejected.keys() | self._outdated.keys() | self._never_acked
        self.forgive([name for name in doubted if not covers(name)])
        for times in (self._times, self._first_sent):
            for name in [name for name in times if not covers(name)]:
                del times[name]

    def _give_up(self, nonce: str) -> Response:
        """Expect no answer to a response any more. The client may have taken it."""
        response = self._pop(nonce)
        self._never_acked.difference_update(resource.name for resource in response.fresh)
        return response

    def _pop(self, nonce: str) -> Response:
        response = self.unanswered.pop(nonce)
        self.names -= len(response.removed)
        self.size -= size_of(response.removed)
        return response

    def _handle_nack(self, event: Nacked, now: float) -> None:
        suspects = {resource.name for resource in event.suspects}
        others = {resource.name for resource in event.fresh} - suspects
        self._never_acked -= others
        if event.culprits:
            self.forgive(others)
        for resource in event.culprits or event.fresh:
            if resource.name not in self._never_acked:
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
