"""The state-of-the-world variant: a request lists all that the client wants, a response answers the latest list."""

from __future__ import annotations

from xds.protocol.events import Acked, Event, Nacked, Response
from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.responses import response
from xds.protocol.subscription import Difference
from xds.protocol.watch import Watch
from xds.protocol.wire import ErrorDetail, Request
from xds.snapshot import Resource, ResourceSet


class SotwWatch(Watch):
    """A watch of one type on a state-of-the-world stream.

    Listeners and clusters are always sent in full, as what a response leaves out is deleted. Of the other types a
    response says nothing about what it leaves out, so that only what is new is sent, and nothing can be deleted.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._full = type_url in WILDCARD_TYPES
        self._nonce = ""

    def receive(self, request: Request, now: float) -> list[Event]:
        """Take a request. If it answers an older response than the last, what it asks for is void.

        The client will ask again when it answers the last.
        """
        stale = request.nonce and self._nonce and request.nonce != self._nonce
        self.begun = True
        answered = self._answer(request.nonce, request.error, now)
        return [*answered, *(() if stale else self._subscribe(self.subscription.replace(request.names)))]

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due."""
        due = self._due()
        if not due and not self._owed:
            return None
        if self._full:
            resources, version = self._world()
            fresh = self._news(resources)
            removed = tuple(self.sent.keys() - {resource.name for resource in resources})
            self.sent.clear()
            self.rejections.clear()
            self._dirty.clear()
        else:
            resources = fresh = [resource for _, resource in self._batch(due) if resource]
            version, removed = self.resources.version, ()
        for resource in resources:
            self._sent(resource)
        self._owed = False
        self._nonce = nonce
        composed = Response(
            type_url=self.type_url,
            nonce=nonce,
            version=version,
            resources=tuple(resources),
            removed=removed,
            fresh=tuple(fresh),
            sent_at=now,
        )
        self.answers.expect(composed)
        return composed, response(
            type_url=self.type_url, version=version, nonce=nonce, resources=resources, identifier=identifier
        )

    def _news(self, resources: list[Resource]) -> list[Resource]:
        """Return those that the client may not have as they are: new, changed, rejected, or not acknowledged yet."""
        unsure = self.answers.unsure.union(self.rejections.names())
        return [
            resource
            for resource in resources
            if self.sent.get(resource.name) != resource.version or resource.name in unsure
        ]

    def _world(self) -> tuple[list[Resource], str]:
        """Return all that the client should have, and the version of that."""
        covers = self.covers
        resources = [resource for name, resource in self.resources.items() if covers(name)]
        lingering = [item.resource for name, item in self.lingering.items() if item.resource and covers(name)]
        if not lingering:
            return resources, self.resources.version
        resources += lingering
        return resources, ResourceSet(resources).version

    def _subscribe(self, difference: Difference) -> list[Event]:
        if difference.entered or (self._full and difference.asked):
            self._owed = True
        if not self._full:
            for name in difference.asked:
                self._owed |= name in self.subscription.collections
                for meant in self._meant(name):
                    self._touch(meant)
        return super()._subscribe(difference)

    def _answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Take the answer to a response. Older ones without one will not get any, and may have been rejected."""
        for skipped in self.answers.skip(nonce):
            if not self._full:
                self.push_again(resource.name for resource in skipped.resources if self._is_wanted(resource))
        events = super()._answer(nonce, error, now)
        if self._full and events and not error:
            self.rejections.clear()
        return events

    def _reject(self, resources: tuple[Resource, ...]) -> None:
        if self._full:  # What was rejected together goes together anyway, with everything else.
            self.rejections.add_each(
                frozenset(resource.name for resource in resources if self._is_wanted(resource))
            )
        else:
            super()._reject(resources)

    def _tells_absence(self, name: str) -> bool:
        return self._full and name in self.sent
