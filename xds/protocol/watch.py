"""One stream's view of one type: what it should have, what it was sent, and what it said to that.

There is no queue. A watch knows the names that may need sending (`_dirty`), and looks up what they are at the moment
it sends: what was overtaken is never sent, and a slow client costs no more than the names it has yet to hear of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
"""Bytes of what is in a response that can be split, which is below 3 MiB as a whole: many clients refuse more than 4 MiB."""


@dataclass(slots=True)
class Lingering:
    """A resource that the client has and should lose, but not before what uses it is gone."""

    resource: Resource | None
    """None: the client brought it from an earlier stream, and only its name is known."""
    since: float | None = None
    """When it was first seen to be used by nothing else that lingers;"""
    until: float | None = None
    """and when it goes whatever happens. Both are set by who keeps the time."""


class Watch(ABC):
    """What is common to both variants of the protocol."""

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.requested = False
        """Whether the client has asked for anything of this type."""
        self.resources: ResourceSet = EMPTY
        self.refused: Mapping[str, str] = {}
        """Names of which there is no resource for this client, and why; only a delta response can say that."""
        self.subscription = Subscription(legacy=type_url in WILDCARD_TYPES, globs=type_url != VIRTUAL_HOST)
        self.sent: dict[str, str] = {}
        """Name and version of what the client has been sent, or had before."""
        self.resumed = False
        """Whether the client has clusters from an earlier stream that may be gone."""
        self.lingering: dict[str, Lingering] = {}
        self.gone: set[str] = set()
        """What the client had and may still use, for it has not given up the name. Clusters and listeners just go."""
        self.rejections = RejectionTracker()
        self._dirty: dict[str, None] = {}
        self._forced: set[str] = set()
        """What to send although the client has been sent it: because it asked, or may not have taken it,"""
        self._pushed: set[str] = set()
        """or because it waits for it, unless it turns out to have rejected it."""
        self._response_due = False
        self._retried: dict[str, str] = {}
        """Name and version of what was sent again without what its response was rejected for."""
        self.acks = AckTracker()
        self.generation = 0
        """Of the snapshot that the resources are from."""
        self.initial_versions: tuple[str, ...] = ()
        """Versions of what the client had when it came: of each resource in the delta variant, of them all in the other."""
        self._answered_generation = -1
        self._initial_names = self._initial_size = 0

    @abstractmethod
    def receive(self, request: Any, now: float) -> list[Event]:
        """Take a request of the variant's own kind, and say what it meant."""

    @abstractmethod
    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due, and take it as sent; None if there is nothing to send."""

    @property
    def names(self) -> int:
        """How many names are kept because the client said them."""
        return len(self.subscription.names) + self._initial_names + self.acks.names

    @property
    def size(self) -> int:
        """How many bytes these names take, and the versions that came with them."""
        return self.subscription.size + self._initial_size + self.acks.size

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return self._response_due or bool(self._due())

    @property
    def synced(self) -> bool:
        """Whether the client has all that it should have, and said so."""
        return not self.acks.unanswered and not self.rejections and not self.pending

    @property
    def answered_generation(self) -> int:
        """The generation of the last snapshot of which the client has answered everything; -1: of none."""
        return self._answered_generation if self.acks.unanswered or self.pending else self.generation

    def has_acked(self, name: str) -> bool:
        """Whether the client has, and took, a resource as it should be."""
        resource = self.get(name)
        taken = resource is not None and self.covers(name) and self.sent.get(name) == resource.version
        return (
            taken
            and not self.is_due(name)
            and name not in self.acks.unacked
            and name not in self.acks.rejected
        )

    @property
    def withheld(self) -> bool:
        """Whether any response would take something from the client that it may still use."""
        return False

    def covers(self, name: str) -> bool:
        """Whether the client wants the resource of this name, if there is one: it may have asked by an alias."""
        if self.subscription.covers(name):
            return True
        resource = self.get(name)
        return resource is not None and not self.subscription.names.isdisjoint(resource.aliases)

    def _covers_all(self, names: Sequence[str]) -> bool:
        """Whether the client is known, without a look at each of many names, to want them all."""
        return self.subscription.wildcard or self.subscription.names.issuperset(names)

    def heartbeat(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:  # noqa: ARG002
        """Make the response, if it is due, that says what is still good."""
        return None

    @property
    def next_heartbeat(self) -> float:
        """When that is due; infinity if it never is."""
        return inf

    def get(self, name: str) -> Resource | None:
        """Return the resource that the client should have now."""
        resource = self.resources.get(name)
        if resource is None and name in self.lingering:
            return self.lingering[name].resource
        return resource

    def is_due(self, name: str) -> bool:
        """Whether something is to be sent again although the client may have it."""
        return name in self._forced or name in self._pushed

    def known(self) -> list[str]:
        """Return the names of all that the client should have, has or asked for."""
        names = {meant for name in self.subscription.names for meant in self._resolve(name)}
        if self.subscription.wildcard:
            names.update(self.resources, self.lingering, self.sent)
        return sorted(names)

    def refs(self) -> Iterator[ResourceKey]:
        """Go through what the client subscribes to because of what it has."""
        for name in self.sent:
            resource = self.get(name)
            if resource:
                yield from resource.refs

    def lingering_refs(self) -> Iterator[ResourceKey]:
        """Go through what is used by resources that should be gone but are not yet."""
        for lingering in self.lingering.values():
            if lingering.resource:
                yield from lingering.resource.refs

    def serve(self, resources: ResourceSet) -> None:
        """From now on the client should have these; what it loses lingers until released."""
        if resources is self.resources:
            return
        before, self.resources = self.resources, resources
        if before is EMPTY and self.requested:
            self._share_names()
        names = difference(before, resources)
        if self.lingering:
            for name in names:
                if name in resources:
                    self.lingering.pop(name, None)
        for name in takewhile(lambda name: name not in resources, reversed(names)):
            if name in self.sent:
                self.lingering[name] = Lingering(before[name])
        wanted = names if self._covers_all(names) else [name for name in names if self.covers(name)]
        if self.rejections:
            for name in wanted:
                if not self._is_rejected(name):
                    self._change(name)
        else:
            self._dirty.update(dict.fromkeys(wanted))

    def _share_names(self) -> None:
        """Replace the client's copies of names and versions by those of the server, which many clients share."""
        self.subscription.share(self._share_strings)
        for name, version in tuple(self.sent.items()):
            known = self.resources.get(name)
            if known is not None:
                del self.sent[name]
                self.sent[known.name] = known.version if known.version == version else version

    def _share_strings(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names from a request, as the server's own strings where it knows them.

        A thousand clients name the same resources. Interning would share the strings too, but since Python 3.12 an interned
        string is never freed, so a client could fill the memory with names.
        """
        get = self.resources.get
        return tuple(name if (known := get(name)) is None else known.name for name in names)

    def keep(self, name: str, resource: Resource | None) -> None:
        """Let a resource linger though the client does not have it, for it may yet ask for it."""
        if resource and not self.get(name):
            self.lingering[name] = Lingering(resource)

    def release(self, names: Iterable[str]) -> None:
        """Let the client lose what lingered."""
        for name in names:
            del self.lingering[name]
            if self.type_url not in WILDCARD_TYPES and name in self.sent and name in self.subscription.names:
                self.gone.add(name)
            self._change(name)
            self.rejections.discard(name)
            self.acks.clear_rejections((name,))

    def resend(self, names: Iterable[str]) -> None:
        """Send resources although the client has them, because it now waits for them anew."""
        for name in names:
            if name in self.rejections:
                continue
            if not self.get(name) and self.subscription.covers(name):
                self._answer_absence(name)
            elif name in self.sent:
                self._mark_dirty(name)
                self._pushed.add(name)

    def _is_rejected(self, name: str) -> bool:
        """Whether a resource is what the client rejected, so that nothing has changed for it."""
        resource = self.resources.get(name)
        same = resource is not None and self.sent.get(name) == resource.version
        return same and self.rejections.is_known(name)

    def _is_wanted(self, resource: Resource) -> bool:
        """Whether the client should still have exactly this."""
        now = self.get(resource.name)
        return now is not None and now.version == resource.version and self.covers(resource.name)

    def _subscribe(self, difference: SubscriptionChange) -> list[Event]:
        """Follow a change of the subscription."""
        if not difference:
            return []
        if difference.dropped:
            self._forget()
        if difference.entered:
            for name in self.resources:
                self._mark_dirty(name)
        return [
            Subscribed(
                type_url=self.type_url, names=self.subscription.names, wildcard=self.subscription.wildcard
            )
        ]

    def _resolve(self, name: str) -> Iterable[str]:
        """Return the names of what a client asks for by a name."""
        if self.subscription.is_collection(name):
            return [each for each in (*self.resources, *self.lingering) if collection(each) == name]
        return (self.resources.resolve(name) if self.type_url == VIRTUAL_HOST else name,)

    def _forget(self) -> None:
        """Drop everything about names that the client no longer wants: it is free to forget them too."""
        covers = self.covers
        for name in self.rejections.names():
            if not covers(name):
                self._change(name)  # What else was rejected with it may have been good.
                self.rejections.discard(name)
        for names in (self.sent, self._dirty):
            for name in [name for name in names if not covers(name)]:
                del names[name]
        for forced in (self._forced, self._pushed):
            forced.difference_update([name for name in forced if not covers(name)])
        self.gone.intersection_update(self.subscription.names)
        self.acks.forget(covers)

    def _change(self, name: str) -> None:
        """Look at a name again because it is not what it was, and at what was rejected with it."""
        self._mark_dirty(name)
        for other in self.rejections.change(name, self._exists):
            self._mark_dirty(other, force=True)

    def _exists(self, name: str) -> bool:
        return name in self.resources

    def _mark_dirty(self, name: str, *, force: bool = False) -> None:
        """Look at a name before the next response, and `force`: send it in any case."""
        self._dirty[name] = None
        if force:
            self._forced.add(name)

    def _due(self) -> list[tuple[str, Resource | None]]:
        """List what to send, first resources, then the names of those that are gone."""
        present: list[tuple[str, Resource | None]] = []
        absent: list[tuple[str, Resource | None]] = []
        idle = []
        for name in self._dirty:
            resource = self.get(name)
            forced = name in self._forced or name in self._pushed
            if resource and (forced or self._is_outdated(resource)):
                present.append((name, resource))
            elif not resource and self._needs_removal(name):
                absent.append((name, None))
            else:
                idle.append(name)
                if resource:
                    self.gone.discard(name)
        self._clear_dirty(idle)
        return present + absent

    def _is_outdated(self, resource: Resource) -> bool:
        """Whether the client has to get a resource; not if it will lose it soon and has it in some form."""
        sent = self.sent.get(resource.name)
        return sent != resource.version and not (sent and resource.name in self.lingering)

    @abstractmethod
    def _needs_removal(self, name: str) -> bool:
        """Whether the client has yet to learn that there is no resource of this name."""

    def _answer_absence(self, name: str) -> None:
        """Say that there is no resource of this name to a client that waits for one."""
        self._mark_dirty(name, force=True)

    @staticmethod
    def _take_fitting(resources: list[Resource]) -> list[Resource]:
        """Take as many as fit into one response, and at least one."""
        return resources[: count_fitting(resources, RESPONSE_BUDGET)]

    @staticmethod
    def _take_part(due: list[tuple[str, Resource | None]]) -> tuple[tuple[Resource, ...], bytes, list[str]]:
        """Take as much as fits into one response, and at least something: resources, joined, and names of what is gone."""
        resources = tuple(resource for _, resource in due if resource)
        taken, joined = first_part(resources, RESPONSE_BUDGET)
        absent: list[str] = []
        room = RESPONSE_BUDGET - len(joined)
        for name, _ in due[len(resources) :] if len(taken) == len(resources) else ():
            room -= removal_size(name)
            if room < 0 and (taken or absent):
                break
            absent.append(name)
        return taken, joined, absent

    def _mark_sent(self, resources: Iterable[Resource]) -> None:
        """The client gets these, and another chance to take them if it had rejected them."""
        sent = {resource.name: resource.version for resource in resources}
        self.sent.update(sent)
        self.gone.difference_update(sent)
        if self.rejections:
            for name in sent:
                self.rejections.discard(name)
        self._clear_dirty(sent)

    def _clear_dirty(self, names: Iterable[str]) -> None:
        for name in names:
            self._dirty.pop(name, None)
        for forced in (self._forced, self._pushed):
            if forced:
                forced.difference_update(names)

    def _handle_answer(self, nonce: str, error: ErrorDetail | None, now: float) -> list[Acked | Nacked]:
        """Take the answer to a response."""
        answered = self.acks.unanswered.get(nonce)
        if answered and answered is next(iter(self.acks.unanswered.values())):
            self._answered_generation = max(self._answered_generation, answered.generation)
        event = self.acks.receive(nonce, error, now)
        if isinstance(event, Nacked):
            self._handle_nack(event)
            if given_up := [each.name for each in event.suspects if not self.covers(each.name)]:
                self.acks.clear_rejections(given_up)
        elif event:
            self._retried.clear()
        return [event] if event else []

    def _handle_nack(self, event: Nacked) -> None:
        """Keep what was rejected from being sent as it was; if some of it has changed, the rest goes out again."""
        others = self._bystanders(event)
        rejected = event.culprits or (event.resources if others is None else event.suspects)
        names = frozenset(resource.name for resource in rejected if self._is_wanted(resource))
        if event.culprits:
            for name in names:
                self.rejections.add(frozenset({name}))
            self._pushed -= names
        elif len(names) == len(rejected):
            self.rejections.add(names)
            self._pushed -= names
        else:
            others = names
        for name in others or ():
            self._mark_dirty(name, force=True)

    def _bystanders(self, event: Nacked) -> frozenset[str] | None:
        """Return what a client did not take because of others that it names, and may take without these: try that once.

        None: it does not say so, or was tried. Envoy takes nothing of a response if a resource in it breaks a constraint
        of its proto.
        """
        suspects = {suspect.name for suspect in event.suspects}
        if event.culprits or len(suspects) == len(event.resources):
            return None
        if not all(self._is_wanted(suspect) for suspect in event.suspects):
            return None
        others = {
            each.name: each.version
            for each in event.fresh
            if each.name not in suspects and self._is_wanted(each)
        }
        if others and others.items() <= self._retried.items():
            return None
        self._retried.update(others)
        return frozenset(others)
