"""State-of-the-world watches of the types whose responses are always complete.

Clients delete the clusters, listeners and scoped routes that a response omits (Envoy's xDS protocol page,
"Deleting resources").
"""

from __future__ import annotations

from collections.abc import Iterable

from xds.protocol.events import Acked, Event, Nacked, Response
from xds.protocol.sotw import Content, SotwWatch
from xds.protocol.watch import Lingering
from xds.protocol.wire import ErrorDetail, Request
from xds.snapshot import CLUSTER, Resource, ResourceSet


class FullStateWatch(SotwWatch):
    """A watch of a type whose responses are always complete.

    A resource that the client rejected individually is not sent again until it changes. It cannot be omitted
    either, because the client would delete its previous version. The previous version is therefore sent in
    its place.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._held: dict[str, str] = {}
        """Version of each resource that the client rejected individually, by name."""
        self._previous: dict[str, Resource] = {}
        """Resource that the client has, where it differs from the desired one: that is due, unanswered or
        rejected.
        """
        self._unknown: set[str] = set()
        """Names of resources that the client may have in an unknown version, from an earlier stream."""
        self._was_connected = False
        """Whether the client had an earlier stream."""

    def receive(self, request: Request, now: float) -> list[Event]:
        """Process a request.

        If the first one has a version, the client has resources from an earlier stream.
        """
        first = not self.requested
        if first:
            self._was_connected = bool(request.version)
        events = super().receive(request, now)
        if first and self._was_connected and self.type_url == CLUSTER:
            gone = [name for name in self.subscription.names if name not in self.resources]
            self.lingering.update((name, Lingering(None)) for name in gone)
            self.resumed = bool(gone)
        return events

    @property
    def withheld(self) -> bool:
        """Whether a response would omit resources of an earlier stream that the client may still use."""
        return any(not item.resource and self.covers(name) for name, item in self.lingering.items())

    def serve(self, resources: ResourceSet) -> None:
        """Set the desired resources of the client. Its previous ones are kept until it ACKs the new ones."""
        if resources is self.resources:
            return
        served, unacked = self.resources, self.acks.unacked.union(self.rejections.names())
        lingering = {name: item.resource for name, item in self.lingering.items()}
        super().serve(resources)
        for name in self._dirty:
            previous = served.get(name) or lingering.get(name)
            if previous and self.sent.get(name) == previous.version and name not in unacked:
                self._previous[name] = previous
        self._record_held()
        resolved = [name for name in self._held if self._has_current(name) or not self.get(name)]
        self.acks.clear_rejections(resolved)
        for name in resolved:
            del self._held[name]
            self.rejections.discard(name)

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the next response, and mark it as sent."""
        composed = super().compose(nonce, now, identifier)
        if composed:
            self._record_held()
        return composed

    def _content(self, due: list[tuple[str, Resource | None]]) -> Content:  # noqa: ARG002
        resources, version = self._full_state()
        names = {resource.name for resource in resources}
        if not self._nonce and self._was_connected:
            self._unknown = names
        content = Content(
            resources=resources,
            version=version,
            fresh=self._news(resources),
            removed=tuple(self.sent.keys() - names - self._held.keys()),
        )
        self._unknown &= names
        self._previous = {name: resource for name, resource in self._previous.items() if name in names}
        self.lingering = {name: item for name, item in self.lingering.items() if item.resource}
        self.sent = {name: version for name, version in self.sent.items() if name in names}
        self.rejections.clear()
        self._dirty.clear()
        return content

    def _full_state(self) -> tuple[list[Resource], str]:
        """Return all resources that the client should have, and the version of their set."""
        covers = self.covers
        resources = [resource for name, resource in self.resources.items() if covers(name)]
        lingering = [item.resource for name, item in self.lingering.items() if item.resource and covers(name)]
        self._held = {name: version for name, version in self._held.items() if self._is_held(name)}
        if not lingering and not self._held:
            return resources, self.resources.version
        resources = [
            replacement for resource in resources + lingering if (replacement := self._replacement(resource))
        ]
        return resources, ResourceSet(resources).version

    def _replacement(self, resource: Resource) -> Resource | None:
        """Return what to send for a resource: the client's previous version if it rejected this one."""
        name = resource.name
        if name not in self._held or (name in self._unknown and name not in self._previous):
            return resource
        return self._previous.get(name)

    def _has_current(self, name: str) -> bool:
        """Whether the desired resource is again the one that the client kept when it rejected another."""
        resource, previous = self.get(name), self._previous.get(name)
        return (
            resource is not None
            and previous is not None
            and resource.version == previous.version == self.sent.get(name)
        )

    def _is_held(self, name: str) -> bool:
        resource = self.get(name)
        return resource is not None and self._held.get(name) == resource.version

    def _record_held(self) -> None:
        """Record that the held resources are rejected, while the client keeps their previous versions."""
        for name in self._held:
            if self._is_held(name):
                self.rejections.add(frozenset({name}))

    def _news(self, resources: list[Resource]) -> list[Resource]:
        """Return the resources that the client may not have: new, changed, rejected or unanswered ones."""
        unacked = self.acks.unacked.union(self.rejections.names())
        return [
            resource
            for resource in resources
            if not (resource.name in self._held and resource is self._previous.get(resource.name))
            and (self.sent.get(resource.name) != resource.version or resource.name in unacked)
        ]

    def _ask(self, names: Iterable[str]) -> None:
        self._response_due |= any(True for _ in names)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the answer to a response."""
        answered = self.acks.unanswered.get(nonce)
        events = super()._handle_answer(nonce, error, now)
        fresh = answered.fresh if answered else ()
        for event in events:
            if isinstance(event, Acked):
                self._accept(fresh)
                self.rejections.clear()
                self._record_held()
            elif event.culprits:
                rejected = {culprit.name for culprit in event.culprits}
                self._accept(resource for resource in fresh if resource.name not in rejected)
        return events

    def _accept(self, resources: Iterable[Resource]) -> None:
        """Record that the client has accepted resources."""
        for resource in resources:
            current = self.get(resource.name)
            self._unknown.discard(resource.name)
            if self._held.get(resource.name) == resource.version:
                del self._held[resource.name]
            if current and current.version == resource.version:
                self._previous.pop(resource.name, None)
            else:
                self._previous[resource.name] = resource

    def _handle_nack(self, event: Nacked) -> None:
        """Hold individually rejected resources back.

        Resources that were rejected together are sent together again.
        """
        others = self._bystanders(event)
        held = event.culprits if others is None else event.suspects
        self._held.update(
            (resource.name, resource.version) for resource in held if self._is_current(resource)
        )
        if not event.culprits:
            suspects = event.fresh or event.resources
            self.rejections.replace(
                frozenset(resource.name for resource in suspects if self._is_current(resource))
            )
        for name in others or ():
            self._mark_dirty(name, force=True)
        self._record_held()

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return None if the client may have an unknown version of a suspect: a response must not omit it."""
        if any(suspect.name in self._unknown.difference(self._previous) for suspect in event.suspects):
            return None
        return super()._bystanders(event)

    def _forget(self) -> None:
        count = len(self.rejections.names())
        super()._forget()
        # Without the resources that are forgotten, the client may accept the others.
        self._response_due |= 0 < len(self.rejections.names()) < count
        for names in (self._held, self._previous):
            for name in [name for name in names if not self.covers(name)]:
                del names[name]

    def _skip(self, skipped: Response) -> None:
        """Keep the resources of a skipped response as previous versions: the client may have accepted them.

        They need not be sent again: the later response has all of them.
        """
        for resource in skipped.fresh:
            current = self.get(resource.name)
            if current is None or current.version != resource.version:
                self._previous[resource.name] = resource

    def _is_rejected(self, name: str) -> bool:
        return self._is_held(name) or (super()._is_rejected(name) and not self._has_current(name))

    def _is_outdated(self, resource: Resource) -> bool:
        return not self._is_held(resource.name) and super()._is_outdated(resource)

    def _needs_removal(self, name: str) -> bool:
        return name in self.sent
