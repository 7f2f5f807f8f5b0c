"""Rolling out a change to some clients first, and rolling it back when clients reject it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from xds.store.clients import AppliedWaiter, Client, NackError, RejectedVersion
from xds.store.scopes import Contents, Scope

_MAX_CLIENTS = 3
"""Maximum number of clients in one error message."""
_MAX_GROUPS = 10
"""Maximum number of groups in one error message."""


class RolledBackError(Exception):
    """A rollout was rolled back, because too many clients failed. All clients get the previous state again.

    A client fails if it rejects a resource, or if it does not ACK everything before the timeout.
    """

    def __init__(
        self,
        group: str,
        total: int,
        rejections: Iterable[NackError],
        lagging: Iterable[str],
        *,
        missing: int,
        groups: Sequence[str],
    ) -> None:
        self.group = group
        """Group of the canaries if they failed; empty if the change failed at all clients."""
        self.rejections = tuple(rejections)
        """First rejection of each client that rejected a resource."""
        self.lagging = tuple(lagging)
        """IDs of the nodes that did not ACK everything before the timeout, or disconnected."""
        self.total = total
        """Number of nodes that were sent the change, including those that failed."""
        reasons = [str(rejection) for rejection in self.rejections[:_MAX_CLIENTS]]
        if self.lagging:
            reasons.append(f"no ACK of {', '.join(self.lagging[:_MAX_CLIENTS])}")
        where = f" of group {group}" if group else ""
        if missing and not total:
            more = ", ..." if len(groups) > _MAX_GROUPS else ""
            connected = ", ".join(groups[:_MAX_GROUPS]) + more or "none"
            super().__init__(
                f"no client{where} is connected, but {missing} must be (connected groups: {connected})"
            )
            return
        if missing:
            reasons.append(f"{missing} more must be connected")
        failed = len(self.rejections) + len(self.lagging)
        super().__init__(f"{failed} of {total} clients{where} failed: {'; '.join(reasons)}")


class Trial:
    """The contents of a store with a change that is being rolled out, and the clients that get them."""

    def __init__(self, contents: Contents, scope: Scope) -> None:
        self.contents = contents.copy()
        self.scope = scope


class RolloutWaiter(AppliedWaiter):
    """Waits until the clients of a rollout have ACKed their resources, or too many have failed.

    Args:
        clients: Clients to wait for.
        at_least: Minimum number of clients.
        max_rejected: Maximum share of the nodes that may fail, from 0 to 1.
        known: Versions of resources that were rejected before the rollout, by node ID.
    """

    def __init__(
        self,
        clients: Iterable[Client],
        at_least: int,
        max_rejected: float,
        known: Mapping[str, AbstractSet[RejectedVersion]],
    ) -> None:
        clients = tuple(clients)
        super().__init__(clients, at_least)
        self._max_rejected, self._known = max_rejected, known
        self._at_least = at_least
        self._nodes = {client.node.id for client in clients}
        self._streams = Counter(client.node.id for client in clients)
        """Number of open streams of each node."""
        self._disconnected: set[str] = set()
        self.rejections: dict[str, NackError] = {}
        """First rejection of each node."""

    @property
    def total(self) -> int:
        """Number of nodes that were sent the change."""
        return len(self._nodes)

    @property
    def lagging(self) -> list[str]:
        """Sorted IDs of the nodes that have not ACKed everything."""
        pending = {client.node.id for client in self._pending} | self._disconnected
        return sorted(pending - self.rejections.keys())

    @property
    def missing(self) -> int:
        """Number of nodes that must connect in addition."""
        return max(self._at_least - self.total, 0)

    def failure(self, group: str, groups: Sequence[str], *, in_time: bool) -> RolledBackError | None:
        """Return the error if too many nodes have failed; None if not.

        Args:
            group: Group of the canaries; empty for all clients.
            groups: Groups of the connected clients.
            in_time: Whether `wait` has returned. Otherwise, nodes that lag have failed too.
        """
        lagging = [] if in_time else self.lagging
        failed = len(self.rejections) + len(lagging)
        if not self.missing and failed <= self._max_rejected * self.total:
            return None
        rejections = self.rejections.values()
        return RolledBackError(group, self.total, rejections, lagging, missing=self.missing, groups=groups)

    def add(self, client: Client) -> None:
        """Wait for a client that has reconnected, or for a new one if there are too few."""
        node = client.node.id
        if node in self._nodes or self.missing:
            self._nodes.add(node)
            self._streams[node] += 1
            self._disconnected.discard(node)
            self._pending.add(client)
            self.notify(client)

    def discard(self, client: Client) -> None:
        """Wait until a node that has disconnected reconnects. Envoy may have crashed."""
        if client in self._pending or client in self._applied:
            node = client.node.id
            self._streams[node] -= 1
            if not self._streams[node]:  # Otherwise, its new stream connected before the old one ended.
                self._disconnected.add(node)
        super().discard(client)

    def _is_done(self) -> bool:
        waits = self._pending or self._disconnected or self.missing
        return not waits or len(self.rejections) > self._max_rejected * self.total

    def _check(self, client: Client) -> bool:
        try:
            return client.is_synced(self._known.get(client.node.id, frozenset()))
        except NackError as error:
            self.rejections.setdefault(client.node.id, error)
            return True
