"""The store: resources for discovery services to serve."""

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
from xds.store.checkpoints import Checkpoint, changes_between
from xds.store.clients import AppliedWaiter, Client
from xds.store.events import Disconnected, Event, Events
from xds.store.scopes import Change, Contents, ResourceLike, Scope


class Store:
    """Resources for an XdsServer or a DiscoveryService to serve.

    A node receives the resources that are set for all nodes, for its group and for itself. Of two resources
    with the same type and name, the one with the narrower scope is served.

    Clients receive no response before the first change. Otherwise, a restarted server would make its clients
    delete everything. If there are no resources, call `store.replace([])`.

    Methods do not block. They must be called on the event loop's thread; a call from another thread raises
    RuntimeError. Before an event loop runs, any thread may call them.

    Changes are sent when the event loop continues. A node receives changes without an `await` in between, or
    in one `change()` block, in one snapshot.

    Args:
        group: Returns the group of a node. The default is the node's cluster. It may raise
            `xds.server.Refused`, which ends the node's stream.
    """

    def __init__(self, *, group: Callable[[Node], str] = lambda node: node.cluster) -> None:
        self._group = group
        self._contents = Contents()
        """What the program has set."""
        self._clients: dict[Subscriber, Client] = {}
        self._event_streams: WeakSet[Events] = WeakSet()
        self._waiters: dict[AppliedWaiter, Scope] = {}
        """Running calls of `applied`, with the nodes that each waits for."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Event loop that uses the store; None before the first call on a loop."""

    # --- resources ---

    def set(self, *resources: ResourceLike, node: str = "", group: str = "") -> None:
        """Set resources for all nodes, or for one node or group.

        See `Change.set` for arguments and errors.
        """
        with self.change() as change:
            change.set(*resources, node=node, group=group)

    @overload
    def remove(self, type_url: str, /, *names: str, node: str = "", group: str = "") -> None: ...

    @overload
    def remove(self, *resources: ResourceLike, node: str = "", group: str = "") -> None: ...

    def remove(self, *targets: str | ResourceLike, node: str = "", group: str = "") -> None:
        """Remove resources from exactly one scope. See `Change.remove` for arguments and errors."""
        with self.change() as change:
            change.remove(*targets, node=node, group=group)  # type: ignore[arg-type]

    def replace(
        self, resources: Iterable[ResourceLike], *, node: str = "", group: str = "", type_url: str = ""
    ) -> None:
        """Set the resources of a scope and remove all others.

        See `Change.replace` for arguments and errors.
        """
        with self.change() as change:
            change.replace(resources, node=node, group=group, type_url=type_url)

    def forget(self, node: str) -> None:
        """Remove all resources that are set for one node, for example after the node was deleted.

        The resources of its group and those for all nodes stay. If the node connects again, it gets these.

        Raises:
            ValueError: `node` is empty, which stands for all nodes.
        """
        if not node:
            raise ValueError("forget takes the ID of a node; to remove what all nodes get, call replace([])")
        self.replace((), node=node)

    @contextmanager
    def change(self, *, label: str = "") -> Iterator[Change]:
        """Open a block of changes. They are applied together at its end, or not at all if it raises.

        Args:
            label: Words for the version that clients report for the types that the block changes, such as
                the commit of the configuration. The version is `HASH+LABEL` until the next change.

        Raises:
            TypeError: `label` is not a str.
        """
        self._check_thread()
        if not isinstance(label, str):
            raise TypeError(f"label must be str, not {label!r}")
        change = Change(label)
        try:
            yield change
        finally:
            change.closed = True
        self._contents.apply(change)
        self._publish()

    def _publish(self) -> None:
        """Publish the views of the clients that have changed."""
        now = self._loop.time() if self._loop else None
        for client in self._clients.values():
            if client.snapshot is not client.view.snapshot:
                client.publish(client.view.snapshot, now)
                for waiter in self._waiters:
                    waiter.notify(client)

    def view(self, node: str, group: str | None = None) -> Snapshot:
        """Return the snapshot that is served to a node, whether or not the node is connected.

        Args:
            node: ID of the node.
            group: Group of the node. The default is that of the connected node, and no group if the node is
                not connected.
        """
        self._check_thread()
        if group is None:
            streams = self._streams_of(node)
            group = streams[-1].group if streams else ""
        return self._contents.view(node, group).snapshot

    # --- rollback ---

    def checkpoint(self) -> Checkpoint:
        """Return the resources that are set now, for `rollback`. This takes no copy of the resources."""
        self._check_thread()
        return Checkpoint(self, self._contents.sets())

    def rollback(self, checkpoint: Checkpoint) -> None:
        """Set the resources of a checkpoint again, and remove all others, in one change.

        Raises:
            TypeError: The argument is not a checkpoint.
            ValueError: The checkpoint is of another store.
        """
        self._check_thread()
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"{checkpoint!r} is not a checkpoint: pass the result of checkpoint()")
        if checkpoint.store is not self:
            raise ValueError("the checkpoint is of another store")
        back = changes_between(self.checkpoint(), checkpoint)
        with self.change() as change:
            change.steps += (step for each in back for step in each.steps)

    def last_good(self, node: str) -> Snapshot | None:
        """Return the newest snapshot of a connected node that it has ACKed entirely; None if there is none.

        Resources that the node does not subscribe to may differ from those it had. If the node has several
        streams, the result is that of the newest.
        """
        self._check_thread()
        streams = self._streams_of(node)
        return streams[-1].last_good if streams else None

    def _streams_of(self, node: str) -> list[Client]:
        """Return the streams of a node, oldest first."""
        return [client for client in self._clients.values() if client.node.id == node]

    # --- clients ---

    @property
    def clients(self) -> Collection[Subscriber]:
        """Streams that are open now. A node may have several."""
        return self._clients.keys()

    def events(self, *, limit: int = 4096) -> Events:
        """Return an iterator over the clients' events from now on, as pairs of a stream and an event.

        Args:
            limit: Maximum number of queued events. When the reader is slower than the clients, the oldest
                events are dropped and counted in `Events.missed`.
        """
        self._check_thread()
        events = Events(limit)
        self._event_streams.add(events)
        return events

    async def applied(self, *, node: str = "", group: str = "", at_least: int = 0) -> tuple[Subscriber, ...]:
        """Wait until all currently connected clients have ACKed all resources that they subscribe to.

        This includes resources that a client subscribes to because other resources refer to them. A client
        may still have a removed resource afterwards, as long as another resource refers to it. There is no
        timeout; use `asyncio.timeout`.

        Args:
            node: ID of the node whose streams to wait for. The default is all clients.
            group: Group of the nodes whose streams to wait for.
            at_least: Minimum number of streams. While there are fewer, wait for clients that connect. By
                default, the call returns an empty tuple at once if no such client is connected, also if no
                client has this node ID or group.

        Returns:
            The streams that have ACKed their resources, without those that have ended.

        Raises:
            NackError: A client rejected a resource, now or before an earlier call. The resource is not sent
                again until it changes, and each call raises until then.
            RuntimeError: No change was applied yet, so clients receive no response.
            TypeError: An argument has the wrong type.
            ValueError: `at_least` is negative, or both `node` and `group` are set.
        """
        self._check_thread()
        if type(at_least) is not int:
            raise TypeError(f"at_least={at_least!r} is not a number of clients")
        if at_least < 0:
            raise ValueError(f"at_least={at_least} is negative")
        if not self._contents.initialized:
            raise RuntimeError(
                "clients receive no response before the first change:"
                " call set(...) or replace([]) before applied()"
            )
        scope = Scope.of(node, group)
        clients = (client for client in self._clients.values() if client.is_in(scope))
        waiter = AppliedWaiter(clients, at_least)
        self._waiters[waiter] = scope
        try:
            return await waiter.wait()
        finally:
            del self._waiters[waiter]

    # --- calls of the discovery service (xds.server.Proxies) ---

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Register a new stream, and publish the node's snapshot to it."""
        self._check_thread()
        group = self._group(node)
        if not isinstance(group, str):
            raise TypeError(
                f"Store(group=...) returned {group!r} for {node.id}:"
                " it must return a name, or '' for no group"
            )
        client = Client(node, stream, self._contents.view(node.id, group), group)
        if self._contents.initialized:
            client.publish(client.view.snapshot)
        self._clients[client] = client
        for waiter, scope in self._waiters.items():
            if client.is_in(scope):
                waiter.add(client)
        self._emit(client, Connected(node=node))
        return client

    def disconnect(self, subscriber: Subscriber) -> None:
        """Unregister a stream."""
        client = self._clients.pop(subscriber)
        for waiter in self._waiters:
            waiter.discard(client)
        self._emit(client, Disconnected(node=client.node))

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Record an event of a stream."""
        client = self._clients[subscriber]
        if isinstance(event, Acked):
            client.record_ack()
        for waiter in self._waiters:
            waiter.notify(client)
        self._emit(client, event)

    def _check_thread(self) -> None:
        """Record the running event loop. Raise RuntimeError on any other thread than the loop's."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is None or not self._loop.is_running():
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError(
                "a store must be called on its event loop's thread:"
                " use loop.call_soon_threadsafe(store.set, ...) with that loop"
            )

    def _emit(self, client: Client, event: Event) -> None:
        for events in self._event_streams:
            events.put(client, event)
