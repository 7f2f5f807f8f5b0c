"""Messages of the gRPC service xds.mesh.v1.Proxies, made from the sessions of a proxy's streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.introspect.cooperative import batches
from xds.mesh.controlplane.status import pod
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.acks import Rejection
from xds.protocol.session import Variant
from xds.protocol.status import ACK, READ, SNAPSHOT, ResourceStatus, State, TypeStatus, WaitReason
from xds.server import Stream

_VARIANTS = {Variant.SOTW: pb.Stream.SOTW, Variant.DELTA: pb.Stream.DELTA}
_STATES = {
    State.SYNCED: pb.Resource.SYNCED,
    State.STALE: pb.Resource.STALE,
    State.NOT_SENT: pb.Resource.NOT_SENT,
    State.ERROR: pb.Resource.ERROR,
}
_REASONS = {ACK: pb.Waiting.ACK, READ: pb.Waiting.READ, SNAPSHOT: pb.Waiting.CONFIGURATION}


class ProxySummary(NamedTuple):
    """What the control plane knows about a proxy, apart from its streams."""

    problem: str
    """Why its configuration is not up to date; empty if there is no problem."""
    expires_at: datetime | None
    """When its certificate expires; None if it is served none."""


async def proxy_message(
    streams: Sequence[Stream],
    summary: ProxySummary,
    clock: Clock,
    checkpoint: Checkpoint,
    *,
    unsynced: bool,
) -> pb.Proxy:
    """Return the status of a proxy.

    Args:
        streams: streams of the proxy, at least one.
        summary: what is known apart from the streams.
        clock: converts times.
        checkpoint: yields to the event loop.
        unsynced: whether to list the resources that are not synced.
    """
    node = streams[-1].node
    namespace, name = pod(node.id)
    proxy = pb.Proxy(
        node_id=node.id,
        namespace=namespace,
        pod=name,
        agent=node.user_agent_name,
        agent_version=node.user_agent_version,
        problem=summary.problem,
        certificate_expires_at=summary.expires_at,
    )
    for stream in streams:
        await checkpoint()
        statuses = stream.session.status()
        proxy.streams.add(
            peer=stream.info.peer,
            variant=_VARIANTS[stream.info.variant],
            type_url=stream.info.type_url,
            connected_at=clock.to_timestamp(stream.opened_at),
            types=[await _type(status, clock, checkpoint, unsynced=unsynced) for status in statuses],
        )
    return proxy


async def _type(status: TypeStatus, clock: Clock, checkpoint: Checkpoint, *, unsynced: bool) -> pb.Type:
    error = status.last_error
    state = pb.REJECTED if error else pb.SYNCED if status.synced else pb.WAITING
    counts = status.counts
    must_list = error or (unsynced and counts.total() > counts[State.SYNCED])
    resources: list[ResourceStatus] = []
    if must_list:
        async for batch in batches(status, checkpoint):
            resources += (resource for resource in batch if resource.state is not State.SYNCED)
    rejected = {resource.name: resource.error for resource in resources if resource.error}
    return pb.Type(
        type_url=status.type_url,
        state=state,
        waiting=_waiting(status.waiting, clock) if status.waiting else None,
        rejection=_rejection(error, clock, rejected) if error else None,
        resources=pb.Counts(
            synced=counts[State.SYNCED],
            stale=counts[State.STALE],
            not_sent=counts[State.NOT_SENT],
            error=counts[State.ERROR],
        ),
        wildcard=status.wildcard,
        names=len(status.names),
        version=status.version,
        sent_at=None if status.sent_at is None else clock.to_timestamp(status.sent_at),
        acked_at=None if status.acked_at is None else clock.to_timestamp(status.acked_at),
        unanswered=status.unanswered,
        unsynced=[_resource(resource, clock) for resource in resources] if unsynced else (),
    )


def _waiting(waiting: WaitReason, clock: Clock) -> pb.Waiting:
    reason = _REASONS.get(waiting.reason, pb.Waiting.TYPE)
    type_url = waiting.reason if reason == pb.Waiting.TYPE else ""
    return pb.Waiting(reason=reason, type_url=type_url, since=clock.to_timestamp(waiting.since))


def _rejection(rejection: Rejection, clock: Clock, resources: Mapping[str, Rejection]) -> pb.Rejection:
    """Return the message for a rejection; `resources` maps rejected resources to their rejections."""
    causes = dict.fromkeys(
        source for resource_rejection in resources.values() for source in resource_rejection.sources[:1]
    )
    return pb.Rejection(
        version=rejection.version,
        code=rejection.code,
        message=rejection.message,
        time=clock.to_timestamp(rejection.at),
        resources=resources,
        sources=rejection.sources,
        causes=causes,
    )


def _resource(status: ResourceStatus, clock: Clock) -> pb.Resource:
    return pb.Resource(
        name=status.name,
        state=_STATES[status.state],
        sent_version=status.version,
        version=status.resource.version if status.resource else "",
        updated_at=None if status.updated_at is None else clock.to_timestamp(status.updated_at),
        rejection=_rejection(status.error, clock, {status.name: status.error}) if status.error else None,
    )


async def served_resources(streams: Iterable[Stream]) -> AsyncIterator[pb.ServedResource]:
    """Yield the resources that a proxy is served, without their contents."""
    checkpoint = Checkpoint()
    for stream in streams:
        for kind in stream.session.status():
            async for batch in batches(kind, checkpoint):
                for status in batch:
                    yield pb.ServedResource(
                        type_url=kind.type_url,
                        name=status.name,
                        version=status.version,
                        state=_STATES[status.state],
                        sources=map(str, status.resource.sources) if status.resource else (),
                    )
