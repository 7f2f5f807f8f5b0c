"""How far a client is: what it has of each type, what it waits for, and what it rejected.

Nothing of this is kept for its own sake: it is put together, when asked for, from what the watches of a stream know.
Times are those that the session was given.
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
"""WaitReason for the client to answer a response."""

READ = "READ"
"""WaitReason for the client to read: something is due, and what was handed out before is not written yet."""

SNAPSHOT = "SNAPSHOT"
"""WaitReason for the server to have anything of the type to serve."""


class State(Enum):
    """How a resource stands with a client: the meanings of `ConfigStatus` in envoy.service.status.v3."""

    SYNCED = "synced"
    """The client has it as it should be, and said so."""
    STALE = "stale"
    """It was sent and is not acknowledged: on its way, or rejected together with another. Or a newer one, or its end, is due."""
    NOT_SENT = "not sent"
    """The client should have it and was never sent it, or asked for it and there is none (`resource` is None)."""
    ERROR = "error"
    """The client rejected what it was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """One resource of one client."""

    name: str
    state: State
    version: str
    """Of what the client was last sent; empty if it was sent none."""
    resource: Resource | None
    """What the client should have now, which may be newer than what it was sent; None if there is none."""
    updated_at: float | None
    """When it was last sent in a version that was news; None if it was not sent on this stream."""
    error: Rejection | None
    """The last rejection of it, until it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReason:
    """What keeps a type from being as it should."""

    reason: str
    """ACK, READ or SNAPSHOT, or the URL of the type that has to arrive first."""
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStatus:
    """One type of one client."""

    type_url: str
    names: frozenset[str]
    """What the client asked for by name,"""
    wildcard: bool
    """and whether it asked for everything."""
    sent_at: float | None
    acked_at: float | None
    version: str
    """Of the type, as the last response that the client took said it; empty if it took none."""
    unanswered: int
    """Responses that the client has not answered."""
    waiting: WaitReason | None
    last_error: Rejection | None
    """The last rejection, until all that was rejected is taken or gone."""
    synced: bool
    """Whether the client has all that it should have of the type, said so, and waits for nothing else to use it."""
    watch: Watch = field(repr=False, compare=False)

    @property
    def counts(self) -> Counter[State]:
        """Count the resources by state; that costs next to nothing if the client has them all."""
        watch = self.watch
        by_name = self.type_url != VIRTUAL_HOST and not watch.subscription.collections
        ends = watch.lingering or watch.gone
        if self.synced and by_name and not ends and not watch.acks.rejected:
            absent = len(watch.subscription.names.difference(watch.sent))
            return Counter({State.SYNCED: len(watch.sent), State.NOT_SENT: absent})
        return Counter(resource.state for resource in self.resources)

    @property
    def resources(self) -> Iterator[ResourceStatus]:
        """Go through all that the client should have, has, or asked for, as it is now: do not keep the iterator."""
        yield from self.resource_statuses(self.watch.known())

    def resource_statuses(self, names: Iterable[str]) -> Iterator[ResourceStatus]:
        """Go through some of these resources, as they are now: do not keep the iterator."""
        unacked = self.watch.acks.unacked
        for name in names:
            yield _resource_status(self.watch, name, unacked)


def type_status(watch: Watch, waiting: WaitReason | None) -> TypeStatus:
    """Put together the status of one type."""
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
        last_error=acks.last_error,
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
    """Say what a type waits for that is served.

    `last_response_at` is when the last response of the stream was, and `last_request_at` when the client last said anything. What other
    types have to bring is only known of a stream that is `aggregated`.
    """
    unanswered, clusters = watch.acks.waiting_since, watches[CLUSTER].acks.waiting_since
    if unanswered is not None:
        # A client that has been silent since then may be hung: nothing tells that it waits for more.
        warms = aggregated and watch.type_url == CLUSTER and last_request_at >= unanswered
        needed = _needed(watch, watches, last_response_at) if warms else None
        return WaitReason(reason=needed[0] if needed else ACK, since=unanswered)
    if watch.pending:
        if watch.type_url in AFTER_CLUSTERS and clusters is not None:
            return WaitReason(reason=CLUSTER, since=clusters)
        return WaitReason(reason=LISTENER if watch.withheld else READ, since=last_response_at)
    if aggregated and watch.type_url == LISTENER and (needed := _needed(watch, watches, last_response_at)):
        return WaitReason(reason=needed[0], since=needed[1])
    return None


def _needed(watch: Watch, watches: Mapping[str, Watch], brought: float) -> tuple[str, float] | None:
    """Return the type that what a client took of another waits for, and since when: `brought` for what it had already."""
    unacked = {type_url: each.acks.unacked for type_url, each in watches.items()}
    waits: dict[str, float] = {}
    for name in watch.sent:
        resource = watch.get(name)
        if not resource or name in watch.acks.rejected:
            continue
        for type_url, ref in resource.refs:
            used = watches.get(type_url)
            if used and _lacks(used, ref, unacked[type_url]):
                since = watch.acks.updated_at(name) or brought
                waits[type_url] = min(waits.get(type_url, since), since)
    return min(waits.items(), key=lambda item: item[1]) if waits else None


def _lacks(watch: Watch, name: str, unacked: set[str]) -> bool:
    """Whether a client has yet to ask for, get or take something that another resource refers to."""
    if not watch.subscription.covers(name):
        return True
    if watch.type_url == ENDPOINT and not watch.get(name):
        return False  # It was told that there is none, and goes on.
    return name not in watch.sent or name in unacked or name in watch.acks.rejected


def _resource_status(watch: Watch, name: str, unacked: set[str]) -> ResourceStatus:
    resource = watch.get(name)
    version = watch.sent.get(name, "")
    error = watch.acks.rejected.get(name)
    if error and resource and error.version == resource.version and name not in unacked:
        state = State.ERROR
    elif name not in watch.sent:
        state = State.NOT_SENT
    elif name in unacked or not resource or resource.version != version or name in watch.lingering:
        state = State.STALE
    else:
        state = State.STALE if name in watch.rejections or watch.is_due(name) else State.SYNCED
    return ResourceStatus(
        name=name,
        state=state,
        version=version,
        resource=resource,
        updated_at=watch.acks.updated_at(name) if name in watch.sent else None,
        error=error,
    )
