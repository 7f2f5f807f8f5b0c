"""The delta variant: requests change the subscription, responses say what changed, each is answered on its own."""

from __future__ import annotations

from collections.abc import Iterable

from xds.protocol.events import Event, Response
from xds.protocol.watch import Lingering, Watch
from xds.protocol.wire import DeltaRequest, delta_response
from xds.snapshot import CLUSTER, SECRET


class DeltaWatch(Watch):
    """A watch of one type on a delta stream."""

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._awaited: set[str] = set()
        """What to push again once the client has said what it brought."""

    def receive(self, request: DeltaRequest, now: float) -> list[Event]:
        """Take a request. What it says of the subscription counts whatever it answers."""
        answered = self._answer(request.nonce, request.error, now)
        difference = self.subscription.change(request.subscribe, request.unsubscribe)
        brought = self._resume(request.initial_versions) if not self.begun else frozenset()
        if difference.entered and not brought:
            self._owed = True
        for name in difference.asked:
            self._touch(name, force=name not in brought)
        self.begun = True
        self.push_again(self._awaited)
        self._awaited.clear()
        return [*answered, *self._subscribe(difference)]

    def push_again(self, names: Iterable[str]) -> None:
        """Send resources although the client has them, because it now waits for them anew."""
        if self.begun:
            super().push_again(names)
        else:
            self._awaited.update(names)

    def compose(self, nonce: str, now: float, identifier: str) -> tuple[Response, bytes] | None:
        """Make the response that is due, or the first part of it if it is large."""
        due = self._due()
        if not due and not self._owed:
            return None
        batch = self._batch(due)
        resources = tuple(resource for _, resource in batch if resource)
        removed = tuple(name for name, resource in batch if not resource)
        for resource in resources:
            self._sent(resource)
        for name in removed:
            self.sent.pop(name, None)
            self.lingering.pop(name, None)
            self._done(name)
        self._owed = False
        composed = Response(
            type_url=self.type_url,
            nonce=nonce,
            version=self.resources.version,
            resources=resources,
            removed=removed,
            fresh=resources,
            sent_at=now,
        )
        self.answers.expect(composed)
        return composed, delta_response(
            type_url=self.type_url,
            version=composed.version,
            nonce=nonce,
            resources=resources,
            removed=removed,
            identifier=identifier,
        )

    def _resume(self, versions: tuple[tuple[str, str], ...]) -> frozenset[str]:
        """Take what a client that was here before has, so that it gets only what differs.

        Not for secrets: a cluster that changed while the client was away waits for its secret, and the client has
        been seen not to ask for it again.
        """
        if self.type_url == SECRET:
            return frozenset()
        brought = {name: version for name, version in versions if self.subscription.covers(name)}
        self.answers.brought = bool(brought)
        self.resumed = bool(brought) and self.type_url == CLUSTER
        for name, version in brought.items():
            self.sent[name] = version
            if not self.get(name):
                self.lingering[name] = Lingering(None)
            self._touch(name)
        return frozenset(brought)

    def _tells_absence(self, name: str) -> bool:
        return name in self._forced or (name in self.sent and name not in self.lingering)
