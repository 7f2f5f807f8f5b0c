"""Connected clients, and waiting for their ACKs."""

from __future__ import annotations

import asyncio
import itertools
import textwrap
from collections.abc import Iterable

from xds.protocol.acks import Rejection
from xds.protocol.status import SNAPSHOT, TypeStatus
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import Snapshot
from xds.store.scopes import Scope, ScopeView

_POLL_INTERVAL = 0.01
"""Seconds between checks of a stream that has not processed its latest snapshot yet."""
_MAX_NAMES = 10
"""Maximum number of resource names in one error."""
_MAX_MESSAGE_LENGTH = 300
"""Maximum length of each message of a client in one error, in characters. `NackError` has all of it."""
_MAX_MESSAGES = 3
"""Maximum number of a client's messages in one error."""
_BATCH_SIZE = 100
"""Number of clients to check before yielding to the event loop. Checking them takes a few milliseconds."""


class NackError(Exception):
    """A client rejected resources. The client keeps their previous versions until the resources change."""

    def __init__(self, node: Node, status: TypeStatus, rejection: Rejection) -> None:
        self.node = node
        """Node of the client."""
        self.type_url = status.type_url
        """Type URL of the rejected resources."""
        rejections = {resource.name: resource.error for resource in status.resources if resource.error}
        self.names = tuple(rejections)
        """Names of the rejected resources; all names in the response if the error message names none."""
        names_by_message: dict[str, list[str]] = {}
        for name, each in rejections.items():
            names_by_message.setdefault(each.message, []).append(name)
        names_by_message = names_by_message or {rejection.message: []}
        self.message = "\n".join(names_by_message)
        """Error message of the client, without private keys that it quotes. Resources that were rejected one
        after another have a line for each message."""
        sources = (each.sources for each in (*rejections.values(), rejection))
        self.sources = tuple(dict.fromkeys(itertools.chain.from_iterable(sources)))
        """Objects that the rejected resources were made from."""
        kind = self.type_url.rpartition(".")[2]
        problems = [
            f"{kind} {_listed(names)}: {textwrap.shorten(message, _MAX_MESSAGE_LENGTH, placeholder=' ...')}"
            for message, names in names_by_message.items()
        ]
        more = f"; and {len(problems) - _MAX_MESSAGES:,} more" if len(problems) > _MAX_MESSAGES else ""
        super().__init__(f"{node.id} rejected {'; '.join(problems[:_MAX_MESSAGES])}{more}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


class Client(Subscriber):
    """A stream and the view of the store that it receives."""

    def __init__(self, node: Node, stream: StreamInfo, view: ScopeView, group: str) -> None:
        super().__init__(node, stream)
        self.view = view
        self.group = group
        self._last_good: Snapshot | None = None

    def is_in(self, scope: Scope) -> bool:
        """Whether the client's node is in a scope."""
        return scope.includes(self.node.id, self.group)

    def is_synced(self) -> bool:
        """Whether the client has ACKed all resources that it subscribes to.

        Raise NackError if it rejected one of them.
        """
        if not self.session or not self.snapshot:
            return False
        statuses = self.session.status()
        if self.session.synced:
            return all(status.synced or _is_unserved(status) for status in statuses)
        for status in statuses:
            error = status.last_error
            if error and not status.waiting and not _is_removed(status):
                raise NackError(self.node, status, error)
        return False

    def record_ack(self) -> None:
        """Record that the client has ACKed all resources of its snapshot, if it has."""
        if self._is_up_to_date():
            self._last_good = self.snapshot

    @property
    def last_good(self) -> Snapshot | None:
        """Newest snapshot whose resources the client has all ACKed, as far as it subscribes to them."""
        if self._last_good and self._is_up_to_date():  # The last changes may not concern the client.
            self._last_good = self.snapshot
        return self._last_good

    def _is_up_to_date(self) -> bool:
        return self.session is not None and self.session.synced and not self.changed.is_set()


def _is_removed(status: TypeStatus) -> bool:
    """Whether all rejected resources were removed since. Removals are sent last."""
    rejected = status.watch.rejected
    return bool(rejected) and not any(name in status.watch.resources for name in rejected)


def _is_unserved(status: TypeStatus) -> bool:
    return status.waiting is not None and status.waiting.reason == SNAPSHOT


class AppliedWaiter:
    """Waits until a set of clients has ACKed its resources.

    Args:
        clients: Clients to wait for.
        at_least: Minimum number of clients. While there are fewer, clients that connect are waited for too.
    """

    def __init__(self, clients: Iterable[Client], at_least: int = 0) -> None:
        self._at_least = at_least
        self._applied: dict[Client, None] = {}
        """Clients that have ACKed everything, in the order in which that was found."""
        self._pending = set(clients)
        """Clients that have not ACKed everything yet."""
        self._unchecked = set(self._pending)
        """Pending clients that have changed since the last check."""
        self._wake = asyncio.Event()

    def add(self, client: Client) -> None:
        """Wait for a new client as well, if there are too few."""
        if len(self._pending) + len(self._applied) < self._at_least:
            self._pending.add(client)
            self.notify(client)

    def notify(self, client: Client) -> None:
        """Check a client again, because its snapshot or its status has changed."""
        if client in self._pending:
            self._unchecked.add(client)
            self._wake.set()

    def discard(self, client: Client) -> None:
        """Stop waiting for a client, which has disconnected."""
        self._pending.discard(client)
        self._applied.pop(client, None)
        self._unchecked.discard(client)
        self._wake.set()

    async def wait(self) -> tuple[Client, ...]:
        """Return the clients when all have ACKed their resources.

        Raise NackError if one rejects a resource.
        """
        while not self._is_done():
            self._wake.clear()
            await asyncio.sleep(0)  # Let the streams process the latest snapshots first.
            for number, client in enumerate(tuple(self._unchecked), 1):
                if not client.changed.is_set():
                    self._unchecked.discard(client)
                    if client.is_synced():
                        self._pending.discard(client)
                        self._applied[client] = None
                if number % _BATCH_SIZE == 0:
                    await asyncio.sleep(0)
            if self._unchecked:
                await asyncio.sleep(_POLL_INTERVAL)
            elif not self._is_done():
                await self._wake.wait()
        return tuple(self._applied)

    def _is_done(self) -> bool:
        return not self._pending and len(self._applied) >= self._at_least
