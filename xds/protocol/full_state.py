"""State of the world in the literal sense: types that are always sent in full, as what a response leaves out is deleted."""

from __future__ import annotations

from collections.abc import Iterable

from xds.protocol.events import Acked, Event, Nacked, Response
from xds.protocol.sotw import Content, SotwWatch
from xds.protocol.watch import Lingering
from xds.protocol.wire import ErrorDetail, Request
from xds.snapshot import CLUSTER, Resource, ResourceSet


class FullStateWatch(SotwWatch):
    """A watch of a type that is sent in full.

    What the client rejected by itself is not sent again until it changes. It must not be left out either, or the client
    would lose what it had before; so that goes out again in its place.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._held: dict[str, str] = {}
        """Name and version of what the client rejected by itself."""
        self._taken: dict[str, Resource] = {}
        """What the client has where that is not what it should have: a newer one is due, on its way, or rejected."""
        self._unknown: set[str] = set()
        """What the client may have in a version that nobody here knows, because it was here before."""
        self._was_here = False

    def receive(self, request: Request, now: float) -> list[Event]:
        """Take a request. One that begins with a version comes from a client that has something already."""
        first = not self.requested
        if first:
            self._was_here = bool(request.version)
        events = super().receive(request, now)
        if first and self._was_here and self.type_url == CLUSTER:
            gone = [name for name in self.subscription.names if name not in self.resources]
            self.lingering.update((name, Lingering(None)) for name in gone)
            self.resumed = bool(gone)
        return events

    @property
    def withheld(self) -> bool:
        """Whether any response would leave out what the client has from an earlier stream and may still use."""
        return any(not item.resource and self.covers(name) for name, item in self.lingering.items())

    def serve(self, resources: ResourceSet) -> None:
        """From now on the client should have these; what it has is remembered until it takes the new ones."""
        if resources is self.resources:
            return
        before, unacked = self.resources, self.acks.unacked.union(self.rejections.names())
        lingering = {name: item.resource for name, item in self.lingering.items()}
        super().serve(resources)
        for name in self._dirty:
            old = before.get(name) or lingering.get(name)
            if old and self.sent.get(name) == old.version and name not in unacked:
                self._taken[name] = old
        self._reject_held()
        over = [name for name in self._held if self._has(name) or not self.get(name)]
        self.acks.clear_rejections(over)
        for name in over:
            del self._held[name]
            self.rejections.discard(name)

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due."""
        composed = super().compose(nonce, now, identifier)
        if composed:
            self._reject_held()
        return composed

    def _content(self, due: list[tuple[str, Resource | None]]) -> Content:  # noqa: ARG002
        resources, version = self._full_state()
        names = {resource.name for resource in resources}
        if not self._nonce and self._was_here:
            self._unknown = names
        content = Content(
            resources=resources,
            version=version,
            fresh=self._news(resources),
            removed=tuple(self.sent.keys() - names - self._held.keys()),
        )
        self._unknown &= names
        self._taken = {name: resource for name, resource in self._taken.items() if name in names}
        self.lingering = {name: item for name, item in self.lingering.items() if item.resource}
        self.sent = {name: version for name, version in self.sent.items() if name in names}
        self.rejections.clear()
        self._dirty.clear()
        return content

    def _full_state(self) -> tuple[list[Resource], str]:
        """Return all that the client should have, and the version of that."""
        covers = self.covers
        resources = [resource for name, resource in self.resources.items() if covers(name)]
        lingering = [item.resource for name, item in self.lingering.items() if item.resource and covers(name)]
        self._held = {name: version for name, version in self._held.items() if self._is_held(name)}
        if not lingering and not self._held:
            return resources, self.resources.version
        resources = [each for resource in resources + lingering if (each := self._replacement(resource))]
        return resources, ResourceSet(resources).version

    def _replacement(self, resource: Resource) -> Resource | None:
        """Return what to send for a resource: what the client had before, if it rejected this."""
        name = resource.name
        if name not in self._held or (name in self._unknown and name not in self._taken):
            return resource
        return self._taken.get(name)

    def _has(self, name: str) -> bool:
        """Whether a client that rejected something has what it should again, as that is what it had before."""
        resource, taken = self.get(name), self._taken.get(name)
        return (
            resource is not None
            and taken is not None
            and resource.version == taken.version == self.sent.get(name)
        )

    def _is_held(self, name: str) -> bool:
        resource = self.get(name)
        return resource is not None and self._held.get(name) == resource.version

    def _reject_held(self) -> None:
        """Keep in mind that the client goes on with what it had."""
        for name in self._held:
            if self._is_held(name):
                self.rejections.add(frozenset({name}))

    def _news(self, resources: list[Resource]) -> list[Resource]:
        """Return those that the client may not have as they are: new, changed, rejected, or not acknowledged yet."""
        unacked = self.acks.unacked.union(self.rejections.names())
        return [
            resource
            for resource in resources
            if not (resource.name in self._held and resource is self._taken.get(resource.name))
            and (self.sent.get(resource.name) != resource.version or resource.name in unacked)
        ]

    def _ask(self, names: Iterable[str]) -> None:
        self._response_due |= any(True for _ in names)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Take the answer to a response."""
        answered = self.acks.unanswered.get(nonce)
        events = super()._handle_answer(nonce, error, now)
        fresh = answered.fresh if answered else ()
        for event in events:
            if isinstance(event, Acked):
                self._take(fresh)
                self.rejections.clear()
                self._reject_held()
            elif event.culprits:
                rejected = {culprit.name for culprit in event.culprits}
                self._take(resource for resource in fresh if resource.name not in rejected)
        return events

    def _take(self, resources: Iterable[Resource]) -> None:
        """The client has these."""
        for resource in resources:
            now = self.get(resource.name)
            self._unknown.discard(resource.name)
            if self._held.get(resource.name) == resource.version:
                del self._held[resource.name]
            if now and now.version == resource.version:
                self._taken.pop(resource.name, None)
            else:
                self._taken[resource.name] = resource

    def _handle_nack(self, event: Nacked) -> None:
        """Keep what was rejected by itself from being sent again. If it was rejected together, it goes together."""
        others = self._bystanders(event)
        held = event.culprits if others is None else event.suspects
        self._held.update((each.name, each.version) for each in held if self._is_wanted(each))
        if not event.culprits:
            together = event.fresh or event.resources
            self.rejections.replace(frozenset(each.name for each in together if self._is_wanted(each)))
        for name in others or ():
            self._mark_dirty(name, force=True)
        self._reject_held()

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return nothing if what the client rejected cannot be left out, as it may have it in an unknown version."""
        if any(suspect.name in self._unknown.difference(self._taken) for suspect in event.suspects):
            return None
        return super()._bystanders(event)

    def _forget(self) -> None:
        super()._forget()
        for known in (self._held, self._taken):
            for name in [name for name in known if not self.covers(name)]:
                del known[name]

    def _skip(self, skipped: Response) -> None:
        """All that was in it is in the later one, too; but what the client rejects of that, it may have as it was in this one."""
        for resource in skipped.fresh:
            now = self.get(resource.name)
            if now is None or now.version != resource.version:
                self._taken[resource.name] = resource

    def _is_rejected(self, name: str) -> bool:
        return self._is_held(name) or (super()._is_rejected(name) and not self._has(name))

    def _is_outdated(self, resource: Resource) -> bool:
        return not self._is_held(resource.name) and super()._is_outdated(resource)

    def _needs_removal(self, name: str) -> bool:
        return name in self.sent
