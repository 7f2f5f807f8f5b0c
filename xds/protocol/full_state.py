"""State-of-the-world watches of the types whose responses are always complete.

Clients delete the clusters, listeners and scoped routes that a response omits (Envoy's xDS protocol page,
"Deleting resources").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from xds.protocol.events import Event, Nacked, Response
from xds.protocol.sotw import SotwWatch
from xds.protocol.wire import SotwRequest
from xds.snapshot import CLUSTER, Resource, ResourceSet


class FullStateWatch(SotwWatch):
    """A watch of a type whose responses are always complete.

    A resource that the client rejected individually is withheld until it changes. A response cannot omit the
    resource, because the client would delete its previous version. That version is therefore sent instead.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._accepted: Mapping[str, Resource] = {}
        """Resources that the client uses, by name, as far as known."""
        self._reported: Mapping[str, Resource] = {}
        """First response to a client that had an earlier stream, until an ACK, by name.

        The client may have these resources in an unknown version.
        """

    def receive(self, request: SotwRequest, now: float) -> list[Event]:
        """Process a request. If the first one has a version, the client had an earlier stream."""
        is_first = not self.requested
        events = super().receive(request, now)
        if is_first and self.initial_versions and self.type_url == CLUSTER:
            removed = [name for name in self.subscription.names if name not in self.resources]
            for name in removed:
                self.states.linger(name, None)
            self.may_have_removed_clusters = bool(removed)
        return events

    @property
    def waits_for_referrers(self) -> bool:
        """Whether a response would omit resources from an earlier stream that the client may still use."""
        return any(not item.resource and self.covers(name) for name, item in self.lingering.items())

    def serve(self, resources: ResourceSet) -> None:
        """Set the desired resources of the client. Forget withheld ones that were reverted or removed."""
        super().serve(resources)
        self._set_blocked({*self.states.blocked})
        obsolete = []
        for name, record in self.states.records.items():
            if record.withheld and (self._is_reverted(name) or not self.get(name)):
                record.withheld, record.causes = "", None
                obsolete.append(name)
        self.states.ack(obsolete)

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        super()._mark_sent(resources)
        self._set_blocked()

    def _response(
        self,
        due: list[tuple[str, Resource | None]],  # noqa: ARG002
        nonce: str,
        now: float,
    ) -> Response:
        records = self.states.records
        for name, record in records.items():
            if not self._is_withheld(name):
                record.withheld = ""
        content, version = self._full_state()
        if not self._nonce and self.initial_versions:
            self._reported = content
        kept = content.keys() | {name for name, record in records.items() if record.withheld}
        response = Response(
            type_url=self.type_url,
            nonce=nonce,
            version=version,
            resources=tuple(content.values()),
            removed=tuple(self.sent.keys() - kept),
            fresh=tuple(self._fresh(content.values())),
            content=content,
            sent_at=now,
        )
        self.states.restore([name for name, item in self.lingering.items() if not item.resource])
        self.states.due.clear()
        self.sent = {name: version for name, version in self.sent.items() if name in content}
        return response

    def _full_state(self) -> tuple[Mapping[str, Resource], str]:
        """Return all resources that the client should have, by name, and the version of their set."""
        content: Mapping[str, Resource] = self.resources
        if not self.subscription.wildcard:
            content = {name: resource for name, resource in content.items() if self.covers(name)}
        lingering = [item.resource for name, item in self.lingering.items() if self.covers(name)]
        if not any(lingering) and not any(record.withheld for record in self.states.records.values()):
            return content, self.resources.version
        desired = (*content.values(), *filter(None, lingering))
        full = ResourceSet(filter(None, map(self._replacement, desired)), label=self.resources.label)
        return full, full.version

    def _replacement(self, resource: Resource) -> Resource | None:
        """Return what to send for a resource: the client's previous version if it rejected this one.

        If the client may have an unknown version, the response must not omit the resource.
        """
        name = resource.name
        if not self._is_withheld(name) or self._is_unknown(name):
            return resource
        return self._accepted.get(name)

    def _is_unknown(self, name: str) -> bool:
        """Whether the client may have an unknown version of a resource from an earlier stream."""
        return name in self._reported and name not in self._accepted

    def _is_used(self, resource: Resource) -> bool:
        """Whether the client uses this version of a resource."""
        accepted = self._accepted.get(resource.name)
        return accepted is not None and accepted.version == resource.version

    def _is_reverted(self, name: str) -> bool:
        """Whether a rejected change was reverted, so that the client has the desired version."""
        resource = self.get(name)
        return resource is not None and self._is_used(resource) and resource.version == self.sent.get(name)

    def _is_withheld(self, name: str) -> bool:
        """Whether the client rejected the desired version of a resource individually."""
        withheld, resource = self.states.of(name).withheld, self.get(name)
        return bool(withheld) and resource is not None and withheld == resource.version

    def _set_blocked(self, names: Collection[str] = ()) -> None:
        """Block some resources and the withheld ones, each on its own, and no others."""
        for name in names:
            self.states.edit(name)
        for name, record in self.states.records.items():
            record.causes = frozenset({name}) if name in names or self._is_withheld(name) else None
        self.states.tidy()

    def _fresh(self, resources: Iterable[Resource]) -> Iterator[Resource]:
        """Yield the resources that may be new to the client: new, changed, rejected or unanswered ones."""
        unacked = self.acks.unacked.union(self.states.blocked)
        for resource in resources:
            name = resource.name
            if self.states.of(name).withheld and resource is self._accepted.get(name):
                continue
            if self.sent.get(name) != resource.version or name in unacked:
                yield resource

    def _answer_names(self, names: Iterable[str]) -> None:
        self._response_due |= any(True for _ in names)

    def _handle_ack(self, response: Response, now: float) -> None:
        super()._handle_ack(response, now)
        self._accept(response.fresh)
        self._accepted, self._reported = response.content or {}, {}
        self._set_blocked()

    def _accept(self, resources: Iterable[Resource]) -> None:
        """Do not withhold resources that the client has accepted."""
        for resource in resources:
            if self.states.of(resource.name).withheld == resource.version:
                self.states.edit(resource.name).withheld = ""

    def _handle_nack(self, event: Nacked) -> None:
        """Withhold individually rejected resources.

        Resources that were rejected together are sent together again.
        """
        bystanders = self._bystanders(event)
        withheld = event.culprits if bystanders is None else event.suspects
        for resource in filter(self._is_current, withheld):
            self.states.edit(resource.name).withheld = resource.version
        if event.culprits:
            rejected = {culprit.name: culprit.version for culprit in event.culprits}
            self._accept(resource for resource in event.fresh if resource.name not in rejected)
            accepted = [resource for resource in event.resources if resource.name not in rejected]
            # The client keeps its version of a rejected resource, unless it rejected that one.
            used = (self._accepted.get(name) for name in rejected)
            accepted += [item for item in used if item and item.version != rejected[item.name]]
            self._accepted = {resource.name: resource for resource in accepted}
            self._set_blocked({*self.states.blocked})
        else:
            suspects = filter(self._is_current, event.fresh or event.resources)
            self._set_blocked({resource.name for resource in suspects})
        self.states.force(bystanders or ())

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return the bystanders, or None if the client may have an unknown version of a suspect.

        A response must not omit such a suspect, and without the suspects that the client already uses, it
        would be the same.
        """
        suspects = event.suspects
        if any(self._is_unknown(suspect.name) for suspect in suspects) or all(map(self._is_used, suspects)):
            return None
        return super()._bystanders(event)

    def _forget_unsubscribed(self) -> None:
        count = len(self.states.blocked)
        super()._forget_unsubscribed()
        # Without the unsubscribed resources, the client may accept the others.
        self._response_due |= 0 < len(self.states.blocked) < count
        self._accepted = {name: resource for name, resource in self._accepted.items() if self.covers(name)}

    def _handle_skipped(self, skipped: Response) -> None:
        """Remember the resources of a response that was never answered, because the client may use them.

        They need not be sent again, because the later response contains all resources.
        """
        kept = {name: item for name, item in self._accepted.items() if name not in skipped.removed}
        self._accepted = kept | {item.name: item for item in skipped.fresh if not self._is_current(item)}

    def _is_rejected(self, name: str) -> bool:
        return self._is_withheld(name) or (super()._is_rejected(name) and not self._is_reverted(name))

    def _is_outdated(self, resource: Resource) -> bool:
        return not self._is_withheld(resource.name) and super()._is_outdated(resource)

    def _needs_removal(self, name: str) -> bool:
        return name in self.sent
