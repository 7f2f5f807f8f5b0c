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

    A resource that the client rejected individually is withheld until it changes. A response cannot omit the
    resource, because the client would delete its previous version. That version is therefore sent instead.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._withheld: dict[str, str] = {}
        """Version of each resource that the client rejected individually, by name."""
        self._previous: dict[str, Resource] = {}
        """Resource that the client uses, by name, if the desired version is due, unanswered or rejected."""
        self._unknown: set[str] = set()
        """Names of resources that the client may have from an earlier stream, in an unknown version."""
        self._was_connected = False
        """Whether the client had an earlier stream."""

    def receive(self, request: Request, now: float) -> list[Event]:
        """Process a request. If the first one has a version, the client had an earlier stream."""
        is_first = not self.requested
        if is_first:
            self._was_connected = bool(request.version)
        events = super().receive(request, now)
        if is_first and self._was_connected and self.type_url == CLUSTER:
            removed = [name for name in self.subscription.names if name not in self.resources]
            self.lingering.update((name, Lingering(None)) for name in removed)
            self.may_have_removed_clusters = bool(removed)
        return events

    @property
    def waits_for_referrers(self) -> bool:
        """Whether a response would omit resources from an earlier stream that the client may still use."""
        return any(not item.resource and self.covers(name) for name, item in self.lingering.items())

    def serve(self, resources: ResourceSet) -> None:
        """Set the desired resources of the client. Remember the previous ones until it ACKs the new ones."""
        previous_set, unacked = self.resources, self.acks.unacked.union(self.rejections.names())
        lingering = {name: item.resource for name, item in self.lingering.items()}
        super().serve(resources)
        for name in self._dirty:
            previous = previous_set.get(name) or lingering.get(name)
            if previous and self.sent.get(name) == previous.version and name not in unacked:
                self._previous[name] = previous
        self._record_withheld()
        obsolete = [name for name in self._withheld if self._is_reverted(name) or not self.get(name)]
        self.acks.clear_rejections(obsolete)
        for name in obsolete:
            del self._withheld[name]
            self.rejections.discard(name)

    def compose(
        self, nonce: str, now: float, identifier: str, generation: int
    ) -> tuple[Response, bytes] | None:
        """Make the next response, and mark it as sent."""
        composed = super().compose(nonce, now, identifier, generation)
        if composed:
            self._record_withheld()
        return composed

    def _content(self, due: list[tuple[str, Resource | None]]) -> Content:  # noqa: ARG002
        resources, version = self._full_state()
        names = {resource.name for resource in resources}
        if not self._nonce and self._was_connected:
            self._unknown = names
        content = Content(
            resources=resources,
            version=version,
            fresh=self._fresh(resources),
            removed=tuple(self.sent.keys() - names - self._withheld.keys()),
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
        self._withheld = {
            name: version for name, version in self._withheld.items() if self._is_withheld(name)
        }
        if not lingering and not self._withheld:
            return resources, self.resources.version
        resources = [
            replacement for resource in resources + lingering if (replacement := self._replacement(resource))
        ]
        return resources, ResourceSet(resources, label=self.resources.label).version

    def _replacement(self, resource: Resource) -> Resource | None:
        """Return what to send for a resource: the client's previous version if it rejected this one."""
        name = resource.name
        if name not in self._withheld or (name in self._unknown and name not in self._previous):
            return resource
        return self._previous.get(name)

    def _is_reverted(self, name: str) -> bool:
        """Whether a rejected change was reverted, so that the client has the desired version."""
        resource, previous = self.get(name), self._previous.get(name)
        return (
            resource is not None
            and previous is not None
            and resource.version == previous.version == self.sent.get(name)
        )

    def _is_withheld(self, name: str) -> bool:
        resource = self.get(name)
        return resource is not None and self._withheld.get(name) == resource.version

    def _record_withheld(self) -> None:
        """Mark the withheld resources as rejected. The client keeps their previous versions."""
        for name in self._withheld:
            if self._is_withheld(name):
                self.rejections.add(frozenset({name}))

    def _fresh(self, resources: list[Resource]) -> list[Resource]:
        """Return the resources that may be new to the client: new, changed, rejected or unanswered ones."""
        unacked = self.acks.unacked.union(self.rejections.names())
        return [
            resource
            for resource in resources
            if not (resource.name in self._withheld and resource is self._previous.get(resource.name))
            and (self.sent.get(resource.name) != resource.version or resource.name in unacked)
        ]

    def _answer_names(self, names: Iterable[str]) -> None:
        self._response_due |= any(True for _ in names)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the ACK or NACK of a response."""
        answered = self.acks.unanswered.get(nonce)
        events = super()._handle_answer(nonce, error, now)
        fresh = answered.fresh if answered else ()
        for event in events:
            if isinstance(event, Acked):
                self._accept(fresh)
                self.rejections.clear()
                self._record_withheld()
            elif event.culprits:
                rejected = {culprit.name for culprit in event.culprits}
                self._accept(resource for resource in fresh if resource.name not in rejected)
        return events

    def _accept(self, resources: Iterable[Resource]) -> None:
        """Record that the client has accepted resources."""
        for resource in resources:
            current = self.get(resource.name)
            self._unknown.discard(resource.name)
            if self._withheld.get(resource.name) == resource.version:
                del self._withheld[resource.name]
            if current and current.version == resource.version:
                self._previous.pop(resource.name, None)
            else:
                self._previous[resource.name] = resource

    def _handle_nack(self, event: Nacked) -> None:
        """Withhold individually rejected resources.

        Resources that were rejected together are sent together again.
        """
        bystanders = self._bystanders(event)
        withheld = event.culprits if bystanders is None else event.suspects
        self._withheld.update(
            (resource.name, resource.version) for resource in withheld if self._is_current(resource)
        )
        if not event.culprits:
            suspects = event.fresh or event.resources
            self.rejections.replace(
                frozenset(resource.name for resource in suspects if self._is_current(resource))
            )
        for name in bystanders or ():
            self._mark_dirty(name, force=True)
        self._record_withheld()

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return the bystanders, or None if the client may have an unknown version of a suspect.

        A response must not omit such a suspect.
        """
        if any(suspect.name in self._unknown.difference(self._previous) for suspect in event.suspects):
            return None
        return super()._bystanders(event)

    def _forget_unsubscribed(self) -> None:
        count = len(self.rejections.names())
        super()._forget_unsubscribed()
        # Without the unsubscribed resources, the client may accept the others.
        self._response_due |= 0 < len(self.rejections.names()) < count
        for names in (self._withheld, self._previous):
            for name in [name for name in names if not self.covers(name)]:
                del names[name]

    def _handle_skipped(self, skipped: Response) -> None:
        """Remember the resources of a response that was never answered, because the client may use them.

        They need not be sent again, because the later response contains all resources.
        """
        for resource in skipped.fresh:
            current = self.get(resource.name)
            if current is None or current.version != resource.version:
                self._previous[resource.name] = resource

    def _is_rejected(self, name: str) -> bool:
        return self._is_withheld(name) or (super()._is_rejected(name) and not self._is_reverted(name))

    def _is_outdated(self, resource: Resource) -> bool:
        return not self._is_withheld(resource.name) and super()._is_outdated(resource)

    def _needs_removal(self, name: str) -> bool:
        return name in self.sent
