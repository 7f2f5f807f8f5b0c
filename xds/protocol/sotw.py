"""The state-of-the-world variant: a request lists all that the client wants, a response answers the latest list."""

from __future__ import annotations

from xds.protocol.events import Event, Response
from xds.protocol.subscription import Difference
from xds.protocol.watch import WILDCARD_TYPES, Watch
from xds.protocol.wire import Request, response
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
        """Take a request; one that answers an older response than the last is void, the client will repeat itself."""
        if request.nonce and self._nonce and request.nonce != self._nonce:
            return []
        self.begun = True
        answered = self._answer(request.nonce, request.error, now)
        return [*answered, *self._subscribe(self.subscription.replace(request.names))]

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due; it takes the place of an unanswered one."""
        due = self._due()
        if not due and not self._owed:
            return None
        if self._full:
            resources, version = self._world()
            fresh = [resource for resource in resources if self._is_news(resource)]
            self.sent.clear()
            self.parked.clear()
            self._dirty.clear()
        else:
            resources = fresh = [resource for _, resource in self._batch(due) if resource]
            version = self.resources.version
        for resource in resources:
            self.sent[resource.name] = resource.version
            self._done(resource.name)
        self._owed = False
        self._nonce = nonce
        since = self.waiting_since
        composed = Response(
            nonce=nonce,
            version=version,
            resources=tuple(resources),
            fresh=tuple(fresh),
            sent_at=now,
            waiting_since=now if since is None else since,
        )
        self._unanswered = {nonce: composed}
        return composed, response(
            type_url=self.type_url, version=version, nonce=nonce, resources=resources, identifier=identifier
        )

    def _is_news(self, resource: Resource) -> bool:
        """Whether the client may not have a resource as it is: new, changed, or in what it rejected."""
        name = resource.name
        return self.sent.get(name) != resource.version or name in self.parked

    def _world(self) -> tuple[list[Resource], str]:
        """Return all that the client should have, and the version of that."""
        covers = self.subscription.covers
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
                self._touch(name)
        return super()._subscribe(difference)

    def _park(self, resources: tuple[Resource, ...]) -> None:
        if self._full:  # What was rejected together goes together anyway, with everything else.
            self.parked = {resource.name: frozenset({resource.name}) for resource in resources}
        else:
            super()._park(resources)

    def _tells_absence(self, name: str) -> bool:
        return self._full and name in self.sent
