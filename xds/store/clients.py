"""Who is connected, and whether it has what it should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from xds.protocol.acks import Rejection
from xds.protocol.status import SNAPSHOT, TypeStatus
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.store.scopes import Scope, ScopeView

_POLL_INTERVAL = 0.01
"""Seconds after which a stream is looked at again that had no turn yet since it was given something."""
_MAX_NAMES = 10
"""Of resources in one error."""
_BATCH_SIZE = 100
"""Clients that are looked at before the event loop gets its turn: a few milliseconds."""


class NackError(Exception):
    """A client rejected what it should have, and is sent nothing in its place until that is changed."""

    def __init__(self, node: Node, status: TypeStatus, rejection: Rejection) -> None:
        self.node = node
        self.type_url = status.type_url
        self.names = tuple(one.name for one in status.resources if one.error)
        """Of the resources that it means, as far as it says so; of all that came together if it does not."""
        self.message = rejection.message
        """The client's own words, without any key material that they quote."""
        self.sources = rejection.sources
        """The objects that what it rejected was made from."""
        kind = self.type_url.rpartition(".")[2]
        super().__init__(f"{node.id} rejected {kind} {', '.join(self.names[:_MAX_NAMES])}: {self.message}")


class Client(Subscriber):
    """A stream, and what it is to get."""

    def __init__(self, node: Node, stream: StreamInfo, view: ScopeView, group: str) -> None:
        super().__init__(node, stream)
        self.view = view
        self.group = group

    def is_in(self, scope: Scope) -> bool:
        """Whether it is one of those that a scope is for."""
        return scope.node in {"", self.node.id} and scope.group in {"", self.group}

    def is_synced(self) -> bool:
        """Whether the client has what it should, and said so. NackError: it rejected something."""
        if not self.session or not self.snapshot:
            return False
        if self.session.synced:
            return all(status.synced or _is_unserved(status) for status in self.session.status())
        for status in self.session.status():
            if status.last_error and not status.waiting:
                raise NackError(self.node, status, status.last_error)
        return False


def _is_unserved(status: TypeStatus) -> bool:
    return status.waiting is not None and status.waiting.reason == SNAPSHOT


class AppliedWaiter:
    """Waits until clients have what they should."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self._left = set(clients)
        self._due = set(self._left)
        """Those of them that may have it now."""
        self._wake = asyncio.Event()

    def notify(self, client: Client) -> None:
        """Something happened to a client."""
        if client in self._left:
            self._due.add(client)
            self._wake.set()

    def discard(self, client: Client) -> None:
        """AppliedWaiter for a client no more."""
        self._left.discard(client)
        self._due.discard(client)
        self._wake.set()

    async def done(self) -> None:
        """Return when all have. NackError: one will not."""
        while self._left:
            self._wake.clear()
            await asyncio.sleep(0)  # What was published is looked at by the streams first.
            for number, client in enumerate(tuple(self._due), 1):
                if not client.changed.is_set():
                    self._due.discard(client)
                    if client.is_synced():
                        self._left.discard(client)
                if number % _BATCH_SIZE == 0:
                    await asyncio.sleep(0)
            if self._due:
                await asyncio.sleep(_POLL_INTERVAL)
            elif self._left:
                await self._wake.wait()
