"""The state-of-the-world variant. A request has the client's whole subscription to a type."""

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
    """Content of a response."""

    resources: list[Resource]
    """Resources of the response."""
    version: str
    """Version of the type."""
    fresh: list[Resource]
    """Resources that may be new to the client."""
    removed: tuple[str, ...] = ()
    """Names that the client deletes because the response omits them."""


class SotwWatch(Watch):
    """A watch of a type whose responses need not be complete, such as assignments, routes and secrets.

    Clients keep the resources that a response omits. Responses therefore have only new and changed resources,
    and cannot remove any (Envoy's xDS protocol page, "Deleting resources").
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._nonce = ""
        self._empty: set[str] = set()
        """Names of assignments that do not exist and are served without endpoints, because a cluster uses
        them.
        """

    def receive(self, request: Request, now: float) -> list[Event]:
        """Process a request. The subscription in a request with an older nonce than the last one is ignored.

        The client sends its subscription again when it answers the last response.
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
        """Make the next response, and mark it as sent."""
        due = self._due()
        if not due and not self._response_due:
            return None
        content = self._content(due)
        new = [resource.name for resource in content.resources if resource.name not in self.sent]
        if self.initial_versions and self.acks.acked_at is None:
            new = []  # The client may have these resources from an earlier stream.
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
        """Return the resource that the client should have now; None if there is none."""
        resource = super().get(name)
        return empty_assignment(name) if resource is None and name in self._empty else resource

    def missing(self) -> list[str]:
        """Return subscribed names that were never sent and for which there is no resource."""
        return [name for name in self.subscription.names if name not in self.sent and not self.get(name)]

    def add_empty(self, names: Iterable[str]) -> None:
        """Serve assignments that do not exist as assignments without endpoints.

        Otherwise Envoy waits for the assignment, and with its ACK of the cluster, until a timeout of 15 s.
        """
        for name in names:
            self._empty.add(name)
            self._mark_dirty(name)

    def release(self, names: Iterable[str]) -> None:
        """Remove lingering resources.

        A client that rejected one does not have it, and may still wait for it.
        """
        names = tuple(names)
        rejected = [
            name
            for name in names
            if (name in self.rejections or name in self.acks.rejected) and self.covers(name)
        ]
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
            for resolved in self._resolve(name):
                self._mark_dirty(resolved, force=resolved in self.sent)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the answer to a response.

        Older unanswered responses get none, and may have been rejected.
        """
        for skipped in self.acks.skip(nonce):
            self._skip(skipped)
        return super()._handle_answer(nonce, error, now)

    def _skip(self, skipped: Response) -> None:
        self.resend(resource.name for resource in skipped.resources if self._is_current(resource))

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        super()._mark_sent(resources)
        if self._empty:
            self._empty.difference_update(
                resource.name for resource in resources if resource.name in self.resources
            )

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
    """Return an assignment without endpoints."""
    return Resource.of(ENDPOINT, name, encode_string(1, name))
