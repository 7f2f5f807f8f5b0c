"""The delta variant. Requests and responses contain only changes, and clients answer each response."""

from __future__ import annotations

from collections.abc import Collection
from itertools import filterfalse
from math import inf

from xds.protocol.events import Event, Nacked, Response
from xds.protocol.heartbeats import Heartbeats
from xds.protocol.limits import size_of
from xds.protocol.order import NEVER_REMOVED
from xds.protocol.responses import encode_delta_response, encoded_size, removal_size
from xds.protocol.shared import SentVersions, SharedChange, shared_change
from xds.protocol.states import Due
from xds.protocol.watch import Watch
from xds.protocol.wire import DeltaRequest
from xds.snapshot import CLUSTER, EMPTY, SECRET, VIRTUAL_HOST, Resource, ResourceSet, differing


class DeltaWatch(Watch):
    """A watch of one type on a delta stream."""

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._deferred_resends: Collection[str] = ()
        """Names to send again once the client's first request has reported the client's resources."""
        self._heartbeats = Heartbeats()
        self._has_ttl = False
        """Whether a resource with a TTL was ever served."""
        self.sent: SentVersions = SentVersions()
        self._answers_shared = False
        """Whether all names in the shared change are FORCED, because the client subscribed to them."""
        self._resent_shared: Collection[str] = ()
        """Names in the shared change that are AWAITED."""

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return self.sent.behind is not None or super().pending

    def serve(self, resources: ResourceSet) -> None:
        """Set the desired resources of the client. If it needs the same change as others, share it."""
        self._has_ttl |= resources.has_ttl
        if self.type_url == SECRET:
            super().serve(resources)  # Each client has its own, and a change would keep old private keys.
            return
        if not (self.sent.has_root or self.resources) and self._has_reported(resources):
            # Only the resources of the client's own layer may be new to it.
            self._replace(resources, differing(self.resources, resources, resources.layered_names()))
            return
        self._spread()
        before = self.resources.root
        if not self.sent.has_root:
            self.sent.compact(before)
        change = shared_change(self.type_url, before, resources.root)
        names = {*change.removed, *self.resources.layered_names(), *resources.layered_names()}
        if self.sent.has_root and self._can_share(change, names):
            self.sent.move(change.after, names, change)
            self._replace(resources, differing(self.resources, resources, names) if names else ())
        else:
            if self.sent:
                self.sent.move(resources.root, names.union(change.before))
            else:
                self.sent.forget_root()
            super().serve(resources)

    def _has_reported(self, resources: ResourceSet) -> bool:
        """Whether a client that reconnected has reported the whole root of the first snapshot.

        The root is then treated as in `_resume`, which is called before the first snapshot if the server has
        just started.
        """
        root = resources.root
        if self._has_ttl or self.sent.has_root or not 0 < len(root) <= len(self.sent):
            return False
        if self.states.blocked or any(name in root for name in resources.layered_names()):
            return False
        if not self.sent.resume(root, self.sent):
            return False
        self.states.restore(name for name in self.lingering if name in root)
        self.states.skip([name for name in self.states.due if name in root and not self.must_resend(name)])
        return True

    def _can_share(self, change: SharedChange, others: Collection[str]) -> bool:
        """Whether the client needs all resources of a change and has all previous versions.

        Args:
            change: Change of the root.
            others: Names of other resources that may change.
        """
        states = self.states
        if not change.resources or states.blocked or any(states.due.values()):
            return False
        for names in (others, states.due, self.lingering):
            if names and not change.before.keys().isdisjoint(names):
                return False
        if self.sent.conflicts_with(change):
            return False
        return self.subscription.wildcard or change.is_covered_by(self.subscription.names)

    def _spread(self) -> None:
        """Send the resources of a shared change one by one."""
        if change := self.sent.spread():
            self.states.check(change.before)
            self.states.wait(self._resent_shared)
            if self._answers_shared:
                self.states.force(change.before)
            self._answers_shared, self._resent_shared = False, ()

    def receive(self, request: DeltaRequest, now: float) -> list[Event]:
        """Process a request. Its subscription changes apply even if it answers an older response."""
        answered: list[Event] = [*self._handle_answer(request.nonce, request.error, now)]
        if self.requested and not (request.subscribe or request.unsubscribe):
            return answered
        previous_names = self.subscription.names
        unsubscribed = [resource for name in request.unsubscribe if (resource := self.get(name))]
        aliases = [alias for resource in unsubscribed for alias in resource.aliases]
        change = self.subscription.change(request.subscribe, (*request.unsubscribe, *aliases))
        if self.subscription.names is not previous_names:
            self.subscription.share(self._share_strings)
        if not self.requested:
            self.initial_versions = tuple(version for _, version in request.initial_versions)
            self._initial_name_count = len(self.initial_versions)
            self._initial_size = size_of(self.initial_versions) + size_of(
                [name for name, _ in request.initial_versions]
            )
        reported = self._resume(request.initial_versions, now) if not self.requested else frozenset()
        if not self.requested and not reported:
            self._start()
        if change.adds_wildcard and not reported:
            self._response_due = True
        names = change.names_to_answer
        if shared := self.sent.behind:
            names = (
                () if shared.contains_all(names) else tuple(filterfalse(shared.before.__contains__, names))
            )
            self._answers_shared |= len(names) < len(change.names_to_answer)
        resumed = self.resources.root if reported and self.sent.has_root else {}
        for name in names:
            if name in resumed:
                continue
            self._response_due |= name in self.subscription.collections and not reported
            for resolved in self._resolve(name):
                (self.states.check if resolved in reported else self.states.force)((resolved,))
        self.requested = True
        deferred, self._deferred_resends = self._deferred_resends, ()
        self.resend(deferred)
        return [*answered, *self._subscribe(change)]

    def _start(self) -> None:
        """Share the root if a client without resources subscribes to all of it."""
        if self.type_url == SECRET:
            return
        change = shared_change(self.type_url, EMPTY, self.resources.root)
        # Without resources, the first snapshot may follow.
        if not self.resources or self._can_share(change, {*self.resources.layered_names()}):
            self.sent.start(change)

    def _share_sent_names(self) -> None:
        if not self.sent.has_root:  # The names of a root are the server's.
            super()._share_sent_names()

    def _check_all(self) -> None:
        if not self.sent.has_root:
            super()._check_all()
            return
        # The client has all other resources of the root, or is about to be sent them.
        names = (*self.resources.layered_names(), *self.sent.own_names())
        self.states.check(name for name in names if name in self.resources)

    def resend(self, names: Collection[str]) -> None:
        """Send resources again, but not before the first request reports which ones the client has."""
        if not names:
            return
        if not self.requested:
            self._deferred_resends = {*self._deferred_resends, *names} if self._deferred_resends else names
        elif (shared := self.sent.behind) and not self.states.blocked and shared.contains_all(names):
            self._resent_shared = (*self._resent_shared, *names) if self._resent_shared else names
        else:
            super().resend(names)

    def compose(
        self, nonce: str, now: float, identifier: str, generation: int
    ) -> tuple[Response, bytes] | None:
        """Make the next response, and mark it as sent. A large response is split."""
        due = self._collect_due()
        if (change := self.sent.behind) and not self._can_send_with(change, due):
            self._spread()
            change, due = None, self._collect_due()
        self._answers_shared, self._resent_shared = False, ()
        if not due and not change and not self._response_due:
            return None
        resources: tuple[Resource, ...] = ()
        joined, new = b"", frozenset[str]()
        absent: list[str] = []
        unknown: list[str] = []
        if due:
            resources, joined, absent = self._take_part(due)
            unknown = [name for name in absent if self.type_url == VIRTUAL_HOST and name not in self.sent]
            new = frozenset(resource.name for resource in resources if resource.name not in self.sent)
            self._mark_sent(resources)
        removed = [name for name in absent if name not in unknown] if unknown else absent
        if change:
            if self.states.records:
                self.states.send(change.added, self.resources)
            self.sent.catch_up()
            resources = (*change.resources, *resources) if resources else change.resources
        if absent:
            for name in absent:
                self.sent.pop(name, None)
            self.states.remove(absent)
            self._heartbeats.retain(self.sent.__contains__)
        self._response_due = False
        response = Response(
            type_url=self.type_url,
            nonce=nonce,
            version=self.resources.version,
            resources=resources,
            removed=tuple(absent),
            fresh=resources,
            new=new,
            shared=change,
            sent_at=now,
            generation=-1 if self.states.due and self.pending else generation,
        )
        self._expect(response)
        if change and not absent:
            return response, change.response(
                version=response.version, nonce=nonce, others=joined, identifier=identifier
            )
        return response, encode_delta_response(
            type_url=self.type_url,
            version=response.version,
            nonce=nonce,
            joined=(change.encoded, joined) if change else (joined,),
            removed=removed,
            unknown=unknown,
            errors=[(name, self.denied[name]) for name in removed if name in self.denied],
            identifier=identifier,
        )

    def _can_send_with(self, change: SharedChange, due: list[tuple[str, Resource | None]]) -> bool:
        """Whether one response can contain a shared change and everything else that is due."""
        if not change.before.keys().isdisjoint(self.states.due):
            return False
        size = change.size
        for name, resource in due:
            size += encoded_size(resource) if resource else removal_size(name)
        return self._fits(size)

    @property
    def is_idle(self) -> bool:
        """Whether the time has no effect: nothing may have to be sent, and no resource is kept or renewed."""
        # Called several times for each response, so without `super`.
        if self.states.due or self._response_due or self.sent.behind or self.lingering:
            return False
        return not (self._has_ttl and self._heartbeats)

    def heartbeat(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the next heartbeat response, and mark it as sent; return None if no heartbeat is due."""
        if not self._heartbeats or self.acks.blocked_since is not None:
            return None
        resources = self._take_fitting(self._heartbeats.due(self.acks.unacked, now))
        if not resources:
            return None
        self._heartbeats.start(resources, now)
        response = Response(
            type_url=self.type_url, nonce=nonce, version=self.resources.version, resources=(), sent_at=now
        )
        self._expect(response)
        return response, encode_delta_response(
            type_url=self.type_url,
            version=response.version,
            nonce=nonce,
            heartbeats=resources,
            identifier=identifier,
        )

    @property
    def next_heartbeat(self) -> float:
        """Time when the next heartbeat is due; infinity if there is none."""
        if not self._heartbeats or self.acks.blocked_since is not None:
            return inf
        return self._heartbeats.next(self.acks.unacked)

    def _handle_ack(self, response: Response, now: float) -> None:
        """Process the ACK of a response. The TTL of its resources starts now."""
        super()._handle_ack(response, now)
        if self._has_ttl or self._heartbeats:
            self._heartbeats.start(
                (item for item in response.resources if item.ttl is None or item.name in self.sent), now
            )

    def _forget_unsubscribed(self) -> None:
        self._spread()
        super()._forget_unsubscribed()
        self._heartbeats.retain(self.covers)

    def _resume(self, versions: tuple[tuple[str, str], ...], now: float) -> frozenset[str]:
        """Record the resources that a reconnecting client has, so that only changed ones are sent.

        Secrets are always sent. A cluster that changed while the client was disconnected waits for its
        secret, and Envoy does not always subscribe to that secret again. Return the recorded names.
        """
        if self.type_url == SECRET:
            return frozenset()
        reported = {name: version for name, version in versions if self.covers(name)}
        self.acks.is_initial = not reported
        self.may_have_removed_clusters = bool(reported) and self.type_url == CLUSTER
        root = self.resources.root
        if not self._has_ttl and not any(name in root for name in self.resources.layered_names()):
            self.sent.resume(root, reported)
        for name, version in reported.items():
            if self.sent.has_root and name in root:
                continue  # Unchanged.
            self.sent[name] = version
            if resource := self.get(name):
                self._heartbeats.resume(resource, version, now)
            else:
                self.states.linger(name, None)
            self.states.check((name,))
        return frozenset(reported)

    def _handle_nack(self, event: Nacked) -> None:
        """Record the rejected resources, and retry the removals of the same response without them."""
        self._spread()
        super()._handle_nack(event)
        if event.resources and not event.culprits:
            self.states.force(name for name in event.removed if self.covers(name) and not self.get(name))

    def _needs_removal(self, name: str) -> bool:
        if self.states.due.get(name) is Due.FORCED:
            # Not an alias whose virtual host has appeared since the client asked for it.
            return self.type_url != VIRTUAL_HOST or self.resources.resolve(name) == name
        return name in self.sent and not self.states.of(name).lingering and self.type_url not in NEVER_REMOVED
