"""A store of resources that discovery services serve from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import overload
from weakref import WeakSet

from xds.protocol.events import Acked, Connected, Nacked, Subscribed
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import Snapshot
from xds.store.clients import AppliedWaiter, Client
from xds.store.events import Disconnected, Event, Events
from xds.store.scopes import Change, Contents, ResourceLike, Scope


class Store:
    """Resources for those who connect, for a DiscoveryService or XdsServer to serve.

    `group` says which group a node is in; by default its cluster is. It may raise Refused, and its stream ends with that.

    Until the first change nobody is told anything: a server that starts must not say that everything is gone, only
    because it has not been filled. `store.replace([])` says that there is nothing.

    Everything is to be called on the event loop's thread (before there is one, on any), and nothing waits: a change is
    in force when the call returns, and on its way when the event loop goes on. What is changed with no `await` in
    between, or in one `change()`, reaches each node in one snapshot. RuntimeError: it is called from another thread.
    """

    def __init__(self, *, group: Callable[[Node], str] = lambda node: node.cluster) -> None:
        self._group = group
        self._contents = Contents()
        self._clients: dict[Subscriber, Client] = {}
        self._event_streams: WeakSet[Events] = WeakSet()
        self._waits: set[AppliedWaiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it is used; None as long as that is before any loop."""

    # --- what is served ----------------------------------------------------------------------------------------------

    def set(self, *resources: ResourceLike, node: str = "", group: str = "") -> None:
        """Set resources for everybody, or for one node or group, as Change.set does."""
        with self.change() as change:
            change.set(*resources, node=node, group=group)

    @overload
    def remove(self, type_url: str, /, *names: str, node: str = "", group: str = "") -> None: ...

    @overload
    def remove(self, *resources: ResourceLike, node: str = "", group: str = "") -> None: ...

    def remove(self, *what: str | ResourceLike, node: str = "", group: str = "") -> None:
        """Take away what is set in exactly this scope, as Change.remove does."""
        with self.change() as change:
            change.remove(*what, node=node, group=group)  # type: ignore[arg-type]

    def replace(
        self, resources: Iterable[ResourceLike], *, node: str = "", group: str = "", type_url: str = ""
    ) -> None:
        """Set these and nothing else in a scope, as Change.replace does."""
        with self.change() as change:
            change.replace(resources, node=node, group=group, type_url=type_url)

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Make several changes together: all of them when the block ends, none if it raises."""
        self._check_thread()
        change = Change()
        try:
            yield change
        finally:
            change.closed = True
        self._contents.apply(change)
        now = self._loop.time() if self._loop else None
        for client in self._clients.values():
            if client.snapshot is not client.view.snapshot:
                client.publish(client.view.snapshot, now)
                for wait in self._waits:
                    wait.notify(client)

    def view(self, node: str, group: str = "") -> Snapshot:
        """Return what a node of a group gets, whether or not it is connected."""
        self._check_thread()
        return self._contents.view(node, group).snapshot

    # --- who gets it -------------------------------------------------------------------------------------------------

    @property
    def clients(self) -> Collection[Subscriber]:
        """The streams that there are now; a node may have several."""
        return self._clients.keys()

    def events(self, *, limit: int = 4096) -> Events:
        """Return what happens from now on, to iterate over: pairs of a stream and what it did."""
        self._check_thread()
        events = Events(limit)
        self._event_streams.add(events)
        return events

    async def applied(self, *, node: str = "", group: str = "") -> None:
        """AppliedWaiter until every client that is connected now (of a node or group) has what it should, and said so.

        What is meant is all that it asks for, and what that makes it ask for; what is removed may outlast this, for as
        long as something uses it. There is no time limit but the caller's.

        NackError: a client rejected something, and so will not have it until it is changed.
        RuntimeError: nothing was ever set, so that nobody is told anything and there is nothing to wait for.
        """
        self._check_thread()
        if not self._contents.initialized:
            raise RuntimeError(
                "nothing is told to clients before the first change: set something, or say replace([]), before applied()"
            )
        scope = Scope.of(node, group)
        wait = AppliedWaiter(client for client in self._clients.values() if client.is_in(scope))
        self._waits.add(wait)
        try:
            await wait.done()
        finally:
            self._waits.discard(wait)

    # --- what a discovery service tells (xds.server.Proxies) ---------------------------------------------------------

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Let a stream in."""
        self._check_thread()
        group = self._group(node)
        if not isinstance(group, str):
            raise TypeError(
                f"Store(group=...) says that {node.id} is in group {group!r}: it must return a name, or '' for none"
            )
        client = Client(node, stream, self._contents.view(node.id, group), group)
        if self._contents.initialized:
            client.publish(client.view.snapshot)
        self._clients[client] = client
        self._emit(client, Connected(node=node))
        return client

    def disconnect(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended."""
        client = self._clients.pop(subscriber)
        for wait in self._waits:
            wait.discard(client)
        self._emit(client, Disconnected(node=client.node))

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Take note of what a node wants, took or rejected."""
        client = self._clients[subscriber]
        for wait in self._waits:
            wait.notify(client)
        self._emit(client, event)

    def _check_thread(self) -> None:
        """Remember the event loop. RuntimeError: it is another thread's."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if self._loop is None or not self._loop.is_running():
            self._loop = here
        elif self._loop is not here:
            raise RuntimeError(
                "a store is not to be called from another thread than its event loop's:"
                " say loop.call_soon_threadsafe(store.set, ...), with that loop"
            )

    def _emit(self, client: Client, event: Event) -> None:
        for events in self._event_streams:
            events.put(client, event)
