"""Status of a client by type: its subscription, ACKs and rejections, and what the type waits for.

The status is computed on request from the watches of a stream. Times are in seconds of the clock that the
session's caller uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from xds.protocol.acks import Rejection
from xds.protocol.order import AFTER_CLUSTERS
from xds.protocol.watch import Watch
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, VIRTUAL_HOST, Resource

ACK = "ACK"
"""Waiting for the client to answer a response."""

READ = "READ"
"""Waiting for the client to read. A response is due, and the previous one is not written yet."""

SNAPSHOT = "SNAPSHOT"
"""Waiting for the server to have a snapshot with the type."""


class State(Enum):
    """State of a resource at a client. The names are those of `ConfigStatus` in envoy.service.status.v3."""

    SYNCED = "synced"
    """The client has ACKed the current version."""
    STALE = "stale"
    """The client has not ACKed the version that it was sent, or an update or removal is due."""
    NOT_SENT = "not sent"
    """The resource was never sent, or it does not exist (`resource` is None)."""
    ERROR = "error"
    """The client rejected the current version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """Status of one resource at one client."""

    name: str
    """Name of the resource."""
    state: State
    """State of the resource at the client."""
    version: str
    """Version that the client was last sent; empty if the resource was never sent."""
    resource: Resource | None
    """Desired resource, which may be newer than the version sent; None if there is none."""
    updated_at: float | None
    """Time when a new version was last sent; None if none was sent on this stream."""
    error: Rejection | None
    """Last rejection of the resource, until the client ACKs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReason:
    """Reason why a type is not synced."""

    reason: str
    """`ACK`, `READ` or `SNAPSHOT`, or the URL of the type that must arrive first."""
    since: float
    """Time when the type began to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStatus:
    """Status of one type at one client."""

    type_url: str
    """Type URL of the type."""
    names: frozenset[str]
    """Names that the client subscribes to."""
    wildcard: bool
    """Whether the client subscribes to all resources of the type."""
    sent_at: float | None
    """Time of the last response; None if there was none."""
    acked_at: float | None
    """Time of the last ACK; None if there was none."""
    version: str
    """Version of the type in the last ACKed response; empty if there was none."""
    unanswered: int
    """Number of responses that the client has neither ACKed nor NACKed."""
    waiting: WaitReason | None
    """What the type waits for; None if it waits for nothing."""
    last_error: Rejection | None
    """Last rejection, until all rejected resources are ACKed or removed."""
    synced: bool
    """Whether the client has ACKed all current resources, and waits for no other type before it uses them."""
    watch: Watch = field(repr=False, compare=False)
    """Watch that the status was computed from."""

    @property
    def counts(self) -> Counter[State]:
        """Number of resources by state. Counting is cheap for a synced client."""
        watch = self.watch
        by_name = self.type_url != VIRTUAL_HOST and not watch.subscription.collections
        if self.synced and by_name and not watch.states.records:
            absent = len(watch.subscription.names.difference(watch.sent))
            return Counter({State.SYNCED: len(watch.sent), State.NOT_SENT: absent})
        return Counter(resource.state for resource in self.resources)

    @property
    def resources(self) -> Iterator[ResourceStatus]:
        """Status of each resource that the client should have, has or subscribes to.

        Consume the iterator before the next call of the session.
        """
        yield from self.resource_statuses(self.watch.known_names())

    def resource_statuses(self, names: Iterable[str]) -> Iterator[ResourceStatus]:
        """Yield the status of some resources. Consume the iterator before the next call of the session."""
        unacked = self.watch.acks.unacked
        for name in names:
            yield _resource_status(self.watch, name, unacked)


def type_status(watch: Watch, waiting: WaitReason | None) -> TypeStatus:
    """Return the status of one type."""
    acks = watch.acks
    return TypeStatus(
        type_url=watch.type_url,
        names=watch.subscription.names,
        wildcard=watch.subscription.wildcard,
        sent_at=acks.sent_at,
        acked_at=acks.acked_at,
        version=acks.version,
        unanswered=len(acks.unanswered),
        waiting=waiting,
        last_error=watch.states.last_error,
        synced=watch.synced and not waiting,
        watch=watch,
    )


def wait_reason(
    watch: Watch,
    watches: Mapping[str, Watch],
    *,
    last_response_at: float,
    last_request_at: float,
    aggregated: bool,
) -> WaitReason | None:
    """Return what a served type waits for; None if it waits for nothing.

    Args:
        watch: Watch of the type.
        watches: All watches of the stream, by type.
        last_response_at: Time of the last response on the stream.
        last_request_at: Time of the last request on the stream.
        aggregated: Whether the stream is aggregated. Only then are the resources of other types known.
    """
    unanswered, clusters = watch.acks.waiting_since, watches[CLUSTER].acks.waiting_since
    if unanswered is not None:
        # If the client has sent no request since, it may hang rather than wait for other types.
        is_warming = aggregated and watch.type_url == CLUSTER and last_request_at >= unanswered
        needed = _needed(watch, watches, last_response_at) if is_warming else None
        return WaitReason(reason=needed[0] if needed else ACK, since=unanswered)
    if watch.pending:
        if watch.type_url in AFTER_CLUSTERS and clusters is not None:
            return WaitReason(reason=CLUSTER, since=clusters)
        return WaitReason(reason=LISTENER if watch.waits_for_referrers else READ, since=last_response_at)
    if aggregated and watch.type_url == LISTENER and (needed := _needed(watch, watches, last_response_at)):
        return WaitReason(reason=needed[0], since=needed[1])
    return None


def _needed(watch: Watch, watches: Mapping[str, Watch], default: float) -> tuple[str, float] | None:
    """Return the type that the resources of a type wait for, and since when (`default` if unknown)."""
    pending = {type_url: other.acks.unacked.union(other.rejected) for type_url, other in watches.items()}
    rejected = watch.rejected
    waits: dict[str, float] = {}
    for name in watch.sent:
        resource = watch.get(name)
        if not resource or name in rejected:
            continue
        for type_url, ref in resource.refs:
            used_watch = watches.get(type_url)
            if used_watch and _lacks(used_watch, ref, pending[type_url]):
                since = watch.acks.updated_at(name) or default
                waits[type_url] = min(waits.get(type_url, since), since)
    return min(waits.items(), key=lambda item: item[1]) if waits else None


def _lacks(watch: Watch, name: str, pending: set[str]) -> bool:
    """Whether the client has yet to subscribe to or ACK a resource that another resource uses.

    The client has rejected, or not yet answered, the resources in `pending`.
    """
    if not watch.subscription.covers(name):
        return True
    if watch.type_url == ENDPOINT and not watch.get(name):
        return False  # The client was notified that the assignment does not exist, and does not wait for it.
    return name not in watch.sent or name in pending


def _resource_status(watch: Watch, name: str, unacked: set[str]) -> ResourceStatus:
    resource = watch.get(name)
    version = watch.sent.get(name, "")
    record = watch.states.of(name)
    error = record.error
    if error and resource and error.version == resource.version and name not in unacked:
        state = State.ERROR
    elif name not in watch.sent:
        state = State.NOT_SENT
    elif name in unacked or not resource or resource.version != version or record.lingering:
        state = State.STALE
    else:
        state = State.STALE if record.causes is not None or watch.must_resend(name) else State.SYNCED
    return ResourceStatus(
        name=name,
        state=state,
        version=version,
        resource=resource,
        updated_at=watch.acks.updated_at(name) if name in watch.sent else None,
        error=error,
    )
