"""The state-of-the-world variant. Each request contains the client's whole subscription to a type."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from xds.protocol.events import Acked, Event, Nacked, Response
from xds.protocol.limits import size_of
from xds.protocol.responses import encode_response, encode_string
from xds.protocol.subscription import SubscriptionChange
from xds.protocol.watch import Watch
from xds.protocol.wire import ErrorDetail, SotwRequest
from xds.snapshot import ENDPOINT, Resource


class SotwWatch(Watch):
    """A watch of a type whose responses need not be complete, such as assignments, routes and secrets.

    Clients keep the resources that a response omits (Envoy's xDS protocol page, "Deleting resources").
    Responses therefore contain only new and changed resources, and cannot remove any.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._nonce = ""

    def receive(self, request: SotwRequest, now: float) -> list[Event]:
        """Process a request. If it answers an older response than the last, ignore its subscription.

        The client sends its subscription again when it answers the last response.
        """
        is_stale = request.nonce and self._nonce and request.nonce != self._nonce
        if not self.requested and request.version:
            self.initial_versions = (request.version,)
            self._initial_size = size_of(self.initial_versions)
        self.requested = True
        events: list[Event] = [*self._handle_answer(request.nonce, request.error, now)]
        if not is_stale:
            events += self._subscribe(self.subscription.replace(self._share_strings(request.names)))
        return events

    def compose(
        self, nonce: str, now: float, identifier: str, generation: int
    ) -> tuple[Response, bytes] | None:
        """Make the next response, and mark it as sent."""
        due = self._collect_due()
        if not due and not self._response_due:
            return None
        response = self._response(due, nonce, now)
        # A client that reports a version may have these resources from an earlier stream.
        if not self.initial_versions or self.acks.acked_at is not None:
            response.new = frozenset(item.name for item in response.resources if item.name not in self.sent)
        self._mark_sent(response.resources)
        self._response_due = False
        self._nonce = nonce
        if not self.pending:
            response.generation = generation
        self._expect(response)
        return response, encode_response(
            type_url=self.type_url,
            version=response.version,
            nonce=nonce,
            resources=response.resources,
            identifier=identifier,
        )

    def get(self, name: str) -> Resource | None:
        """Return the desired, lingering or empty resource with a name; None if there is none."""
        resource = super().get(name)
        return empty_assignment(name) if resource is None and self.states.of(name).is_empty else resource

    def missing(self) -> list[str]:
        """Return subscribed names that do not exist and were never sent."""
        return [name for name in self.subscription.names if name not in self.sent and not self.get(name)]

    def add_empty(self, names: Iterable[str]) -> None:
        """Serve empty assignments for names that do not exist.

        Otherwise Envoy waits up to 15 s for the assignment before it ACKs the cluster.
        """
        for name in names:
            self.states.edit(name).is_empty = True
            self.states.check((name,))

    def release(self, names: Iterable[str]) -> None:
        """Stop serving lingering resources.

        A client that rejected an assignment may still wait for it, so it is sent an empty one.
        """
        names = tuple(names)
        rejected = [
            name
            for name in names
            if ((record := self.states.of(name)).error or record.causes is not None) and self.covers(name)
        ]
        super().release(names)
        if self.type_url == ENDPOINT:
            self.add_empty(rejected)

    def _response(self, due: list[tuple[str, Resource | None]], nonce: str, now: float) -> Response:
        """Make a response with what is due."""
        resources = tuple(self._take_fitting([resource for _, resource in due if resource]))
        return Response(
            type_url=self.type_url,
            nonce=nonce,
            version=self.resources.version,
            resources=resources,
            fresh=resources,
            sent_at=now,
        )

    def _subscribe(self, change: SubscriptionChange) -> list[Event]:
        self._response_due |= change.adds_wildcard
        self._answer_names(change.names_to_answer)
        return super()._subscribe(change)

    def _answer_names(self, names: Iterable[str]) -> None:
        for name in names:
            self._response_due |= name in self.subscription.collections
            for resolved in self._resolve(name):
                (self.states.force if resolved in self.sent else self.states.check)((resolved,))

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the ACK or NACK of a response.

        The client will not answer older responses, and may have rejected them.
        """
        for skipped in self.acks.pop_before(nonce):
            self.states.abandon(skipped)
            self._handle_skipped(skipped)
        return super()._handle_answer(nonce, error, now)

    def _handle_skipped(self, skipped: Response) -> None:
        """Resend the resources of a response that was never answered."""
        self.resend([resource.name for resource in skipped.resources if self._is_current(resource)])

    def _exists(self, name: str) -> bool:
        return self.states.of(name).is_empty or super()._exists(name)

    def _needs_removal(self, name: str) -> bool:  # noqa: ARG002
        return False

    def _send_absence(self, name: str) -> None:
        self.add_empty((name,))
        self.states.wait((name,))


@lru_cache(maxsize=1 << 12)
def empty_assignment(name: str) -> Resource:
    """Return an assignment without endpoints."""
    return Resource.of(ENDPOINT, name, encode_string(1, name))
