"""State of one type on one stream: the subscription, and the desired and sent resources.

A watch has no queue of responses. It stores the names that may have to be sent (`States.due`), and looks up
the resources when it composes a response. Superseded versions are therefore never sent, and a slow client
costs little memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import takewhile
from typing import Any

from xds.protocol.acks import AckTracker, Rejection
from xds.protocol.events import Acked, Event, Nacked, Response, Subscribed, acked, nacked
from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.responses import count_fitting, first_part, removal_size
from xds.protocol.states import Lingering, States
from xds.protocol.subscription import Subscription, SubscriptionChange, collection
from xds.protocol.wire import ErrorDetail
from xds.snapshot import CLUSTER, EMPTY, VIRTUAL_HOST, Resource, ResourceKey, ResourceSet, difference

RESPONSE_BUDGET = 3 * 1024 * 1024 - 4096
"""Maximum size of a response's resources, in bytes.

A response stays below 3 MiB, because many clients reject messages larger than 4 MiB.
"""


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
        self.states = States()
        self._response_due = False
        """Whether the client must receive a response even if it is empty."""
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
        return not (self.states.due or self._response_due or self.lingering)

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return self._response_due or (bool(self.states.due) and bool(self._collect_due()))

    @property
    def synced(self) -> bool:
        """Whether the client has ACKed all its current resources."""
        return not self.acks.unanswered and not self.states.blocked and not self.pending

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
            and not self.must_resend(name)
            and name not in self.acks.unacked
            and not self.states.of(name).error
        )

    @property
    def lingering(self) -> dict[str, Lingering]:
        """Removed resources that the client keeps for now, by name."""
        records = self.states.records
        return (
            {name: kept for name, record in records.items() if (kept := record.lingering)} if records else {}
        )

    @property
    def rejected(self) -> dict[str, Rejection]:
        """Last rejection of each resource, until the resource is ACKed or removed."""
        return {name: record.error for name, record in self.states.records.items() if record.error}

    @property
    def keeps_removed(self) -> bool:
        """Whether the client may still use removed resources: they linger, or it still subscribes to them."""
        return any(record.lingering or record.is_still_subscribed for record in self.states.records.values())

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

    def get(self, name: str) -> Resource | None:
        """Return the desired or lingering resource with this name; None if there is none."""
        resource = self.resources.get(name)
        if resource is None and (lingering := self.states.of(name).lingering):
            return lingering.resource
        return resource

    def must_resend(self, name: str) -> bool:
        """Whether a resource, AWAITED or FORCED, is sent even if the client has the current version."""
        return bool(self.states.due.get(name))

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
        if self.states.records:
            self.states.restore(name for name in names if name in resources)
        # `difference` lists removed names last.
        for name in takewhile(lambda name: name not in resources, reversed(names)):
            if name in self.sent:
                self.states.linger(name, previous[name])
        if not self.subscription:
            return
        covered = names if self._covers_all(names) else [name for name in names if self.covers(name)]
        if self.states.records:
            covered = [name for name in covered if not self._is_rejected(name)]
        self.states.change(covered, self._exists)

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
            self.states.linger(name, resource)

    def release(self, names: Collection[str]) -> None:
        """Stop serving lingering resources."""
        if names:
            self.states.release(names, self._is_in_use, self._exists)

    def named_clusters(self) -> set[str]:
        """Return the lingering clusters that the client unsubscribes from once it no longer uses them.

        gRPC subscribes to clusters by name. Calls that started before it ACKed a route still use the clusters
        of the previous one, and fail if these are removed. The content of a cluster that the client has from
        an earlier stream is not known, so a SotW response cannot keep it.
        """
        if self.type_url != CLUSTER or self.subscription.wildcard:
            return set()
        return {
            name for name, item in self.lingering.items() if item.resource and name in self.subscription.names
        }

    def _is_in_use(self, name: str) -> bool:
        """Whether the client may use a resource although it was removed."""
        return self.type_url not in WILDCARD_TYPES and name in self.sent and name in self.subscription.names

    def resend(self, names: Collection[str]) -> None:
        """Send resources again, because the client waits for them although it already has them."""
        sent = []
        for name in names:
            if self.states.of(name).causes is not None:
                continue
            if name not in self.resources and not self.get(name) and self.subscription.covers(name):
                self._send_absence(name)
            elif name in self.sent:
                sent.append(name)
        self.states.wait(sent)

    def _is_rejected(self, name: str) -> bool:
        """Whether the client rejected the current version of a resource."""
        resource = self.resources.get(name)
        is_sent = resource is not None and self.sent.get(name) == resource.version
        return is_sent and bool(self.states.of(name).causes)

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
            self._check_all()
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
        for name in [name for name in self.sent if not self.covers(name)]:
            del self.sent[name]
        self.states.unsubscribe(self.covers, self.subscription.names, self._exists)
        self.acks.forget_unsubscribed(self.covers)

    def _exists(self, name: str) -> bool:
        return name in self.resources

    def _check_all(self) -> None:
        """Check all desired resources when the next response is composed."""
        self.states.check(self.resources)

    def _collect_due(self) -> list[tuple[str, Resource | None]]:
        """Return what to send: resources first, then removed names.

        As a side effect, remove names that need not be sent from `States.due`.
        """
        if not self.states.due:
            return []
        present: list[tuple[str, Resource | None]] = []
        absent: list[tuple[str, Resource | None]] = []
        unchanged = []
        desired, sent = self.resources.get, self.sent.get
        for name in self.states.due:
            resource = desired(name)
            if resource and sent(name) != resource.version:
                present.append((name, resource))  # Nearly all names take this path, so it calls nothing else.
                continue
            resource = self.get(name)
            if resource and (self.must_resend(name) or self._is_outdated(resource)):
                present.append((name, resource))
            elif not resource and self._needs_removal(name):
                absent.append((name, None))
            else:
                unchanged.append(name)
                if resource and name in self.states.records:
                    self.states.records[name].is_still_subscribed = False
        self.states.skip(unchanged)
        return present + absent

    def _is_outdated(self, resource: Resource) -> bool:
        """Whether the client needs the current version.

        A lingering resource is sent only if the client has no version of it.
        """
        sent = self.sent.get(resource.name)
        return sent != resource.version and not (sent and self.states.of(resource.name).lingering)

    @abstractmethod
    def _needs_removal(self, name: str) -> bool:
        """Whether the client must be notified that a resource does not exist."""

    def _send_absence(self, name: str) -> None:
        """Notify a waiting client that a resource does not exist."""
        self.states.force((name,))

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

    def _expect(self, response: Response) -> None:
        """Expect an answer to a response; see `AckTracker.expect`."""
        if abandoned := self.acks.expect(response, self.sent):
            self.states.abandon(abandoned)

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        """Record that resources were sent."""
        sent = {resource.name: resource.version for resource in resources}
        self.sent.update(sent)
        self.states.send(sent, self.resources)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Process the ACK or NACK of a response, and return the resulting event."""
        unanswered = self.acks.unanswered
        if nonce not in unanswered:
            return []
        if nonce == next(iter(unanswered)):
            self.completed_generation = max(self.completed_generation, unanswered[nonce].generation)
        never_acked = self.acks.never_acked if error else ()
        response, self.acks.is_initial = self.acks.pop(nonce), False
        if not error:
            self._handle_ack(response, now)
            return [acked(response, now)]
        event = nacked(response, error, now)
        self.states.reject(event, now, never_acked)
        self._handle_nack(event)
        if unsubscribed := [suspect.name for suspect in event.suspects if not self.covers(suspect.name)]:
            self.states.ack(unsubscribed)
        return [event]

    def _handle_ack(self, response: Response, now: float) -> None:
        """Record that the client uses the resources of a response."""
        self.acks.acked_at, self.acks.version = now, response.version
        if self.states.records or self.states.last_error:
            for record in self.states.records.values():
                record.retried = ""
            self.states.ack((*(resource.name for resource in response.fresh), *response.removed))

    def _handle_nack(self, event: Nacked) -> None:
        """Record the rejected resources, so that they are not sent again unchanged.

        If some of them have changed since, retry the others.
        """
        retried = self._bystanders(event)
        rejected = event.culprits or (event.resources if retried is None else event.suspects)
        names = frozenset(resource.name for resource in rejected if self._is_current(resource))
        if event.culprits:
            for name in names:
                self.states.block(frozenset({name}))
        elif len(names) == len(rejected):
            self.states.block(names)
        else:
            retried = names
        self.states.force(retried or ())

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
        of = self.states.of
        if bystanders and all(of(name).retried == version for name, version in bystanders.items()):
            return None
        for name, version in bystanders.items():
            self.states.edit(name).retried = version
        return frozenset(bystanders)
