"""State of one type on one stream: the subscription, and the desired and sent resources.

A watch has no queue of responses. It stores the names that may have to be sent (`_dirty`), and looks up the
resources when it composes a response. Superseded versions are therefore never sent, and a slow client costs
little memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Any

from xds.protocol.acks import AckTracker
from xds.protocol.events import Acked, Event, Nacked, Response, Subscribed
from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.rejections import RejectionTracker
from xds.protocol.responses import count_fitting, first_part, removal_size
from xds.protocol.subscription import Subscription, SubscriptionChange, collection
from xds.protocol.wire import ErrorDetail
from xds.snapshot import EMPTY, VIRTUAL_HOST, Resource, ResourceKey, ResourceSet, difference

RESPONSE_BUDGET = 3 * 1024 * 1024 - 4096
"""Maximum size of a response's resources, in bytes.

A response stays below 3 MiB, because many clients reject messages larger than 4 MiB.
"""


@dataclass(slots=True)
class Lingering:
    """A removed resource that the client keeps until the resources that use it are removed."""

    resource: Resource | None
    """Resource; None if the client has it from an earlier stream and only its name is known."""
    since: float | None = None
    """Time when the session found that no other lingering resource uses this resource."""
    until: float | None = None
    """Time when the session releases the resource even if it is still used; None if not scheduled."""


class Watch(ABC):
    """State of one type on one stream, for both variants of the protocol."""

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.requested = False
        """Whether the client has sent a request for the type."""
        self.resources: ResourceSet = EMPTY
        """Desired resources of the client."""
        self.denied: Mapping[str, str] = {}
        """Reason for each name that the client is not allowed to have. Only delta responses report it."""
        self.subscription = Subscription(legacy=type_url in WILDCARD_TYPES, globs=type_url != VIRTUAL_HOST)
        self.sent: MutableMapping[str, str] = {}
        """Version of each resource that the client was sent, or has from an earlier stream, by name."""
        self.may_have_removed_clusters = False
        """CLUSTER only: whether the client may still have removed clusters from an earlier stream."""
        self.lingering: dict[str, Lingering] = {}
        """Removed resources that the client keeps for now, by name."""
        self.still_subscribed: set[str] = set()
        """Names of removed resources that the client still subscribes to, and may therefore still use.

        Empty for wildcard types.
        """
        self.rejections = RejectionTracker()
        self._dirty: dict[str, None] = {}
        """Names that may have to be sent, in order."""
        self._forced: set[str] = set()
        """Names to send even if unchanged, because the client subscribed again or may have rejected them."""
        self._forced_until_nack: set[str] = set()
        """Names to send even if unchanged, because the client waits for them.

        A NACK removes the names that it rejects.
        """
        self._response_due = False
        """Whether the client must receive a response even if it is empty."""
        self._retried: dict[str, str] = {}
        """Version of each bystander that was sent again, by name; see `_bystanders`."""
        self.acks = AckTracker()
        self.initial_versions: tuple[str, ...] = ()
        """Versions that the client reported: one per resource (delta), or one for all (SotW)."""
        self.completed_generation = -1
        """Last generation that a response has completed and the client has answered; -1 for none."""
        self._initial_name_count = self._initial_size = 0
        """Number of resources that the first request reported, and size of their names and versions."""

    @abstractmethod
    def receive(self, request: Any, now: float) -> list[Event]:
        """Process a request of the variant, and return the resulting events."""

    @abstractmethod
    def compose(
        self, nonce: str, now: float, identifier: str, generation: int
    ) -> tuple[Response, bytes] | None:
        """Make the next response, and mark it as sent; return None if there is nothing to send.

        Args:
            nonce: Nonce of the response.
            now: Current time, in seconds.
            identifier: Identifier of the control plane; empty for none.
            generation: Generation of the snapshot that the resources are from.
        """

    @property
    def name_count(self) -> int:
        """Number of names stored for the client, which `Limits.names` limits."""
        return len(self.subscription.names) + self._initial_name_count + self.acks.name_count

    @property
    def size(self) -> int:
        """Size in bytes of the names and versions stored for the client, which `Limits.size` limits."""
        return self.subscription.size + self._initial_size + self.acks.size

    @property
    def is_idle(self) -> bool:
        """Whether the time has no effect: nothing may have to be sent, and no removed resource is kept."""
        return not (self._dirty or self._response_due or self.lingering)

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return self._response_due or (bool(self._dirty) and bool(self._collect_due()))

    @property
    def synced(self) -> bool:
        """Whether the client has ACKed all its current resources."""
        return not self.acks.unanswered and not self.rejections and not self.pending

    @property
    def has_answered(self) -> bool:
        """Whether the client has ACKed or NACKed all current resources."""
        return not (self.acks.unanswered or self.pending)

    def has_acked(self, name: str) -> bool:
        """Whether the client has ACKed the current version of a resource."""
        resource = self.get(name)
        is_sent = resource is not None and self.covers(name) and self.sent.get(name) == resource.version
        return (
            is_sent
            and not self.is_forced(name)
            and name not in self.acks.unacked
            and name not in self.acks.rejected
        )

    @property
    def waits_for_referrers(self) -> bool:
        """Whether a removal is held back because the client may still use the resources.

        The client got the resources on an earlier stream. The removal waits until the client has the current
        versions of the resources that refer to them.
        """
        return False

    def covers(self, name: str) -> bool:
        """Whether the client subscribes to a resource name, or to an alias of the resource."""
        if self.subscription.covers(name):
            return True
        resource = self.get(name)
        return resource is not None and not self.subscription.names.isdisjoint(resource.aliases)

    def _covers_all(self, names: Collection[str]) -> bool:
        """Whether the client is known to subscribe to all names, without checking each one."""
        return self.subscription.wildcard or self.subscription.names.issuperset(names)

    def heartbeat(
        self,
        nonce: str,  # noqa: ARG002
        now: float,  # noqa: ARG002
        identifier: str,  # noqa: ARG002
    ) -> tuple[Response, bytes] | None:
        """Make the next heartbeat response, and mark it as sent; return None if no heartbeat is due."""
        return None

    @property
    def next_heartbeat(self) -> float:
        """Time when the next heartbeat is due; infinity if there is none."""
        return inf

    def get(self, name: str) -> Resource | None:
        """Return the desired or lingering resource with this name; None if there is none."""
        resource = self.resources.get(name)
        if resource is None and name in self.lingering:
            return self.lingering[name].resource
        return resource

    def is_forced(self, name: str) -> bool:
        """Whether a resource will be sent even if the client has the current version."""
        return name in self._forced or name in self._forced_until_nack

    def known_names(self) -> list[str]:
        """Return the sorted names of all resources that the client should have, has or subscribes to."""
        names = {resolved for name in self.subscription.names for resolved in self._resolve(name)}
        if self.subscription.wildcard:
            names.update(self.resources, self.lingering, self.sent)
        return sorted(names)

    def refs(self) -> Iterator[ResourceKey]:
        """Yield the references of the resources that the client was sent."""
        for name in self.sent:
            resource = self.get(name)
            if resource:
                yield from resource.refs

    def lingering_refs(self) -> Iterator[ResourceKey]:
        """Yield the references of the lingering resources."""
        for lingering in self.lingering.values():
            if lingering.resource:
                yield from lingering.resource.refs

    def serve(self, resources: ResourceSet) -> None:
        """Replace the desired resources of the client. Removed resources linger until `release`."""
        self._replace(resources, difference(self.resources, resources))

    def _replace(self, resources: ResourceSet, names: Sequence[str]) -> None:
        """Replace the desired resources. `names` are those that differ, as from `difference`."""
        previous, self.resources = self.resources, resources
        if previous is EMPTY and self.requested:
            self._share_names()
        if not names:
            return
        if self.lingering:
            for name in names:
                if name in resources:
                    self.lingering.pop(name, None)
        # `difference` lists removed names last.
        for name in takewhile(lambda name: name not in resources, reversed(names)):
            if name in self.sent:
                self.lingering[name] = Lingering(previous[name])
        if not self.subscription:
            return
        covered = names if self._covers_all(names) else [name for name in names if self.covers(name)]
        if self.rejections:
            for name in covered:
                if not self._is_rejected(name):
                    self._mark_changed(name)
        else:
            self._dirty.update(dict.fromkeys(covered))

    def _share_names(self) -> None:
        """Replace names and versions with the server's equal strings, which all clients share."""
        if self._has_own_strings():
            self.subscription.share(self._share_strings)
        self._share_sent_names()

    def _share_sent_names(self) -> None:
        for name, version in tuple(self.sent.items()):
            resource = self.resources.get(name)
            if resource is not None:
                del self.sent[name]
                self.sent[resource.name] = resource.version if resource.version == version else version

    def _has_own_strings(self) -> bool:
        """Whether the names of the subscription are not the server's strings yet."""
        resources = ((name, self.resources.get(name)) for name in self.subscription.names)
        return next((resource.name is not name for name, resource in resources if resource), False)

    def _share_strings(self, names: Iterable[str]) -> tuple[str, ...]:
        """Replace names from a request with the server's equal strings, for names of existing resources.

        Many clients subscribe to the same names. `sys.intern` would share the strings as well. But since
        Python 3.12, interned strings are never freed, so a client could exhaust the memory.
        """
        get = self.resources.get
        return tuple(name if (resource := get(name)) is None else resource.name for name in names)

    def linger(self, name: str, resource: Resource | None) -> None:
        """Keep serving a removed resource, because the client may still subscribe to it."""
        if resource and not self.get(name):
            self.lingering[name] = Lingering(resource)

    def release(self, names: Iterable[str]) -> None:
        """Stop serving lingering resources."""
        for name in names:
            del self.lingering[name]
            if self.type_url not in WILDCARD_TYPES and name in self.sent and name in self.subscription.names:
                self.still_subscribed.add(name)
            self._mark_changed(name)
            self.rejections.discard(name)
        if names:
            self.acks.clear_rejections(names)

    def resend(self, names: Collection[str]) -> None:
        """Send resources again, because the client waits for them although it already has them."""
        sent = []
        for name in names:
            if name in self.rejections:
                continue
            if name not in self.resources and not self.get(name) and self.subscription.covers(name):
                self._send_absence(name)
            elif name in self.sent:
                sent.append(name)
        self._dirty.update(dict.fromkeys(sent))
        self._forced_until_nack.update(sent)

    def _is_rejected(self, name: str) -> bool:
        """Whether the client rejected the current version of a resource."""
        resource = self.resources.get(name)
        is_sent = resource is not None and self.sent.get(name) == resource.version
        return is_sent and self.rejections.blocks(name)

    def _is_current(self, resource: Resource) -> bool:
        """Whether the client should still have exactly this version of a resource."""
        current = self.get(resource.name)
        return current is not None and current.version == resource.version and self.covers(resource.name)

    def _subscribe(self, change: SubscriptionChange) -> list[Event]:
        """Process a change of the subscription, and return the resulting event."""
        if not change:
            return []
        if change.has_unsubscribed:
            self._forget_unsubscribed()
        if change.adds_wildcard:
            self._mark_all_dirty()
        return [
            Subscribed(
                type_url=self.type_url, names=self.subscription.names, wildcard=self.subscription.wildcard
            )
        ]

    def _resolve(self, name: str) -> Iterable[str]:
        """Return the names of the resources that a subscribed name, collection or alias refers to."""
        if self.subscription.is_collection(name):
            return [member for member in (*self.resources, *self.lingering) if collection(member) == name]
        return (self.resources.resolve(name) if self.type_url == VIRTUAL_HOST else name,)

    def _forget_unsubscribed(self) -> None:
        """Forget all names that the client no longer subscribes to.

        The client may have deleted their resources.
        """
        covers = self.covers
        for name in self.rejections.names():
            if not covers(name):
                self._mark_changed(name)  # The resources that were rejected with it may be valid.
                self.rejections.discard(name)
        for names in (self.sent, self._dirty):
            for name in [name for name in names if not covers(name)]:
                del names[name]
        for forced in (self._forced, self._forced_until_nack):
            forced.difference_update([name for name in forced if not covers(name)])
        self.still_subscribed.intersection_update(self.subscription.names)
        self.acks.forget_unsubscribed(covers)

    def _mark_changed(self, name: str) -> None:
        """Mark a changed name as dirty, and retry the resources that were rejected with it."""
        self._mark_dirty(name)
        for other in self.rejections.record_change(name, self._exists):
            self._mark_dirty(other, force=True)

    def _exists(self, name: str) -> bool:
        return name in self.resources

    def _mark_dirty(self, name: str, *, force: bool = False) -> None:
        """Mark a name for a check when the next response is composed.

        With `force`, send the resource even if the client has the current version.
        """
        self._dirty[name] = None
        if force:
            self._forced.add(name)

    def _mark_all_dirty(self) -> None:
        """Mark all desired resources as dirty."""
        self._dirty.update(dict.fromkeys(self.resources))

    def _collect_due(self) -> list[tuple[str, Resource | None]]:
        """Return what to send: resources first, then removed names.

        As a side effect, remove names that need not be sent from `_dirty`.
        """
        if not self._dirty:
            return []
        present: list[tuple[str, Resource | None]] = []
        absent: list[tuple[str, Resource | None]] = []
        unchanged = []
        desired, sent = self.resources.get, self.sent.get
        for name in self._dirty:
            resource = desired(name)
            if resource and sent(name) != resource.version:
                present.append((name, resource))  # Nearly all names take this path, so it calls nothing else.
                continue
            resource = self.get(name)
            if resource and (self.is_forced(name) or self._is_outdated(resource)):
                present.append((name, resource))
            elif not resource and self._needs_removal(name):
                absent.append((name, None))
            else:
                unchanged.append(name)
                if resource:
                    self.still_subscribed.discard(name)
        self._clear_dirty(unchanged)
        return present + absent

    def _is_outdated(self, resource: Resource) -> bool:
        """Whether the client needs the current version.

        A lingering resource is sent only if the client has no version of it.
        """
        sent = self.sent.get(resource.name)
        return sent != resource.version and not (sent and resource.name in self.lingering)

    @abstractmethod
    def _needs_removal(self, name: str) -> bool:
        """Whether the client must be notified that a resource does not exist."""

    def _send_absence(self, name: str) -> None:
        """Notify a waiting client that a resource does not exist."""
        self._mark_dirty(name, force=True)

    @staticmethod
    def _fits(size: int) -> bool:
        """Whether resources of a size in bytes fit into one response."""
        return size <= RESPONSE_BUDGET

    @staticmethod
    def _take_fitting(resources: list[Resource]) -> list[Resource]:
        """Return the first resources that fit into one response: at least one, if there is any."""
        return resources[: count_fitting(resources, RESPONSE_BUDGET)]

    @staticmethod
    def _take_part(due: list[tuple[str, Resource | None]]) -> tuple[tuple[Resource, ...], bytes, list[str]]:
        """Return what fits into one response: the resources, their encoding, and the removed names."""
        resources = tuple(resource for _, resource in due if resource)
        part, joined = first_part(resources, RESPONSE_BUDGET)
        absent: list[str] = []
        remaining = RESPONSE_BUDGET - len(joined)
        for name, _ in due[len(resources) :] if len(part) == len(resources) else ():
            remaining -= removal_size(name)
            if remaining < 0 and (part or absent):
                break
            absent.append(name)
        return part, joined, absent

    def _expect(self, response: Response, new: Sequence[str] = ()) -> None:
        """Expect an answer to a response; see `AckTracker.expect`."""
        self.acks.expect(response, new, self.sent)

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        """Record that resources were sent, and forget their earlier rejections."""
        sent = {resource.name: resource.version for resource in resources}
        self.sent.update(sent)
        self.still_subscribed.difference_update(sent)
        if self.rejections:
            for name in sent:
                self.rejections.discard(name)
        self._clear_dirty(sent)

    def _clear_dirty(self, names: Iterable[str]) -> None:
        for name in names:
            self._dirty.pop(name, None)
        for forced in (self._forced, self._forced_until_nack):
            if forced:
                forced.difference_update(names)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the ACK or NACK of a response, and return the resulting event."""
        answered = self.acks.unanswered.get(nonce)
        if answered and answered is next(iter(self.acks.unanswered.values())):
            self.completed_generation = max(self.completed_generation, answered.generation)
        event = self.acks.receive(nonce, error, now)
        if isinstance(event, Nacked):
            self._handle_nack(event)
            if unsubscribed := [suspect.name for suspect in event.suspects if not self.covers(suspect.name)]:
                self.acks.clear_rejections(unsubscribed)
        elif event:
            self._retried.clear()
        return [event] if event else []

    def _handle_nack(self, event: Nacked) -> None:
        """Record the rejected resources, so that they are not sent again unchanged.

        If some of them have changed since, retry the others.
        """
        retried = self._bystanders(event)
        rejected = event.culprits or (event.resources if retried is None else event.suspects)
        names = frozenset(resource.name for resource in rejected if self._is_current(resource))
        if event.culprits:
            for name in names:
                self.rejections.add(frozenset({name}))
            self._forced_until_nack -= names
        elif len(names) == len(rejected):
            self.rejections.add(names)
            self._forced_until_nack -= names
        else:
            retried = names
        for name in retried or ():
            self._mark_dirty(name, force=True)

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return the names of resources that were rejected only because of others in the same response.

        Envoy rejects a whole response if one resource violates a constraint of its proto. The bystanders are
        retried once, without the suspects.

        Return None if the client rejected resources individually, if its error message named none of the
        resources (or all), if a suspect has changed since, or if the retry was rejected as well.
        """
        suspects = {suspect.name for suspect in event.suspects}
        if event.culprits or len(suspects) == len(event.resources):
            return None
        if not all(self._is_current(suspect) for suspect in event.suspects):
            return None
        bystanders = {
            resource.name: resource.version
            for resource in event.fresh
            if resource.name not in suspects and self._is_current(resource)
        }
        if bystanders and bystanders.items() <= self._retried.items():
            return None
        self._retried.update(bystanders)
        return frozenset(bystanders)
