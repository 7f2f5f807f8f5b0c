"""The state-of-the-world variant: a request lists all that the client wants, a response answers the latest list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from xds.protocol.events import Acked, Event, Nacked, Response
from xds.protocol.limits import size_of
from xds.protocol.responses import encode_response, encode_string
from xds.protocol.subscription import SubscriptionChange
from xds.protocol.watch import Watch
from xds.protocol.wire import ErrorDetail, Request
from xds.snapshot import ENDPOINT, Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What goes into a response."""

    resources: list[Resource]
    version: str
    fresh: list[Resource]
    """Those that may be news to the client."""
    removed: tuple[str, ...] = ()


class SotwWatch(Watch):
    """A watch of one type on a state-of-the-world stream.

    A response says nothing about what it leaves out, so that only what is new is sent, and nothing can be deleted.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._nonce = ""
        self._empty: set[str] = set()
        """Assignments that do not exist, of clusters that do."""

    def receive(self, request: Request, now: float) -> list[Event]:
        """Take a request. If it answers an older response than the last, what it asks for is void.

        The client will ask again when it answers the last.
        """
        stale = request.nonce and self._nonce and request.nonce != self._nonce
        if not self.requested and request.version:
            self.initial_versions = (request.version,)
            self._initial_size = size_of(self.initial_versions)
        self.requested = True
        answered = self._handle_answer(request.nonce, request.error, now)
        return [
            *answered,
            *(
                ()
                if stale
                else self._subscribe(self.subscription.replace(self._share_strings(request.names)))
            ),
        ]

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due."""
        due = self._due()
        if not due and not self._response_due:
            return None
        content = self._content(due)
        new = [each.name for each in content.resources if each.name not in self.sent]
        if self.initial_versions and self.acks.acked_at is None:
            new = []  # The client may have it from an earlier stream.
        self._mark_sent(content.resources)
        self._response_due = False
        self._nonce = nonce
        composed = Response(
            type_url=self.type_url,
            nonce=nonce,
            version=content.version,
            resources=tuple(content.resources),
            removed=content.removed,
            fresh=tuple(content.fresh),
            sent_at=now,
            generation=-1 if self.pending else self.generation,
        )
        self.acks.expect(composed, new)
        return composed, encode_response(
            type_url=self.type_url,
            version=content.version,
            nonce=nonce,
            resources=content.resources,
            identifier=identifier,
        )

    def get(self, name: str) -> Resource | None:
        """Return the resource that the client should have now."""
        resource = super().get(name)
        return empty_assignment(name) if resource is None and name in self._empty else resource

    def missing(self) -> list[str]:
        """Return what the client asked for by name, never got and cannot get, as there is none."""
        return [name for name in self.subscription.names if name not in self.sent and not self.get(name)]

    def add_empty(self, names: Iterable[str]) -> None:
        """Answer for assignments that do not exist that they have no endpoints.

        Otherwise a cluster waits for its assignment until a time-out of 15 s, and the client with the acknowledgement.
        """
        for name in names:
            self._empty.add(name)
            self._mark_dirty(name)

    def release(self, names: Iterable[str]) -> None:
        """Let the client lose what lingered. It has nothing of what it rejected, and may still wait for it."""
        names, said = tuple(names), self.acks.rejected
        rejected = [name for name in names if (name in self.rejections or name in said) and self.covers(name)]
        super().release(names)
        if self.type_url == ENDPOINT:
            self.add_empty(rejected)

    def _content(self, due: list[tuple[str, Resource | None]]) -> Content:
        resources = self._take_fitting([resource for _, resource in due if resource])
        return Content(resources=resources, fresh=resources, version=self.resources.version)

    def _subscribe(self, difference: SubscriptionChange) -> list[Event]:
        self._response_due |= difference.entered
        self._ask(difference.asked)
        return super()._subscribe(difference)

    def _ask(self, names: Iterable[str]) -> None:
        for name in names:
            self._response_due |= name in self.subscription.collections
            for meant in self._resolve(name):
                self._mark_dirty(meant, force=meant in self.sent)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Take the answer to a response. Older ones without one will not get any, and may have been rejected."""
        for skipped in self.acks.skip(nonce):
            self._skip(skipped)
        return super()._handle_answer(nonce, error, now)

    def _skip(self, skipped: Response) -> None:
        self.resend(resource.name for resource in skipped.resources if self._is_wanted(resource))

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        super()._mark_sent(resources)
        if self._empty:
            self._empty.difference_update(each.name for each in resources if each.name in self.resources)

    def _exists(self, name: str) -> bool:
        return name in self._empty or super()._exists(name)

    def _forget(self) -> None:
        super()._forget()
        self._empty.intersection_update(self.subscription.names)

    def _needs_removal(self, name: str) -> bool:  # noqa: ARG002
        return False

    def _answer_absence(self, name: str) -> None:
        self.add_empty((name,))
        self._pushed.add(name)


@lru_cache(maxsize=1 << 12)
def empty_assignment(name: str) -> Resource:
    """Return the assignment of a cluster that has no endpoints."""
    return Resource.of(ENDPOINT, name, encode_string(1, name))
