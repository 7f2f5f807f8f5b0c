"""Our own service, xds.mesh.v1.Proxies: who is connected, how far each proxy is, and what keeps it.

protos/xds/mesh/v1/proxies.proto says what it answers. Nothing is kept for it: an answer is put together when it is asked for,
from what the streams know, a few milliseconds at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

from xds.introspect.clock import Clock
from xds.introspect.cooperative import Breath, portions
from xds.introspect.guard import Guarded
from xds.mesh.controlplane.absence import Absences, Absent
from xds.mesh.controlplane.status import pod, settled
from xds.mesh.model.objects import Problem, printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.acks import Rejection
from xds.protocol.session import Variant
from xds.protocol.status import ACK, READ, SNAPSHOT, ResourceStatus, State, TypeStatus, Waiting
from xds.server import DiscoveryService, Stream, Subscriber
from xds.server.stream import now

SERVICE = "xds.mesh.v1.Proxies"

EVERY = 0.25
"""Seconds in which changes are put together for who watches."""
UNSETTLED = 1.0
"""Seconds after which a proxy that is not synced is looked at again, though it said nothing: it may be done waiting."""

MAX_NOT_CONNECTED = 1000
"""Pods without a connected sidecar that an answer names; it counts the others."""
MAX_WARNINGS = 100
"""Warnings of an answer; it counts the others."""

Missing: TypeAlias = Callable[[Subscriber], str]
"""Says in words why a proxy gets no configuration, or no newer one; empty if it does."""

_VARIANTS = {Variant.SOTW: pb.Stream.SOTW, Variant.DELTA: pb.Stream.DELTA}
_STATES = {
    State.STALE: pb.Resource.STALE,
    State.NOT_SENT: pb.Resource.NOT_SENT,
    State.ERROR: pb.Resource.ERROR,
}
_REASONS = {ACK: pb.Waiting.ACK, READ: pb.Waiting.READ, SNAPSHOT: pb.Waiting.CONFIGURATION}


class ProxiesService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(
        self,
        missing: Missing = lambda _: "",
        *,
        absences: Callable[[], Absences] = Absences,
        problems: Callable[[], Collection[Problem]] = tuple,
    ) -> None:
        """Make one.

        Args:
            missing: says why a proxy waits: `Hub.missing`.
            absences: returns who should be connected and is not: `Hub.absences`.
            problems: returns what is wrong with objects and settings.
        """
        self._missing = missing
        self._absences = absences
        self._problems = problems

    def __call__(self, server: Guarded, discovery: DiscoveryService) -> None:
        """Add it, before the server starts."""

        async def list_(
            request: pb.ListProxiesRequest, _: grpc.aio.ServicerContext
        ) -> pb.ListProxiesResponse:
            clock = Clock.read()
            breathe = Breath()
            proxies = []
            absences = self._absences()
            chosen, absent = _chosen(discovery, absences, request)
            for streams in chosen.values():
                missing = self._why(streams)
                proxies.append(await _proxy(streams, missing, clock, breathe, unsynced=request.unsynced))
            warnings = [_warning(problem) for problem in self._problems() if not problem.notice]
            return pb.ListProxiesResponse(
                proxies=proxies,
                time=clock.at(now()),
                not_connected=_not_connected(absent, clock, elsewhere=absences.elsewhere),
                warnings=warnings[:MAX_WARNINGS],
                more_warnings=len(warnings[MAX_WARNINGS:]),
            )

        async def watch(
            request: pb.WatchProxiesRequest, _: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.WatchProxiesResponse]:
            watched = _Watched(request, self._why, self._absences)
            while True:
                changes = await watched.look(discovery)
                if changes:
                    yield changes
                await asyncio.sleep(EVERY)

        methods = {
            "List": grpc.unary_unary_rpc_method_handler(
                list_, pb.ListProxiesRequest.FromString, pb.ListProxiesResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch, pb.WatchProxiesRequest.FromString, pb.WatchProxiesResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def _why(self, streams: Sequence[Stream]) -> str:
        return self._missing(streams[0].subscriber)


@dataclass(slots=True)
class _Seen:
    """A proxy as a watcher was told of it."""

    marks: tuple[Any, ...]
    """What it is told from; as long as this is the same nothing the proxy does has changed it."""
    proxy: pb.Proxy
    looked_at: float


class _Watched:
    """What one caller of Watch has been told."""

    def __init__(
        self,
        request: pb.WatchProxiesRequest,
        why: Callable[[Sequence[Stream]], str],
        absences: Callable[[], Absences] = Absences,
    ) -> None:
        self._request = request
        self._why = why
        self._absences = absences
        self._absent: tuple[Sequence[Absent], bool] | None = None
        self._clock = Clock.read()
        self._seen: dict[str, _Seen] | None = None

    async def look(self, discovery: DiscoveryService) -> pb.WatchProxiesResponse | None:
        """Return what has changed since the last look, the first time everything; None if nothing has."""
        before, self._seen = self._seen, {}
        changed = []
        breathe = Breath()
        absences = self._absences()
        chosen, absent = _chosen(discovery, absences, self._request)
        for node_id, streams in chosen.items():
            missing = self._why(streams)
            marks = (
                missing,
                *((stream, stream.message_count, stream.subscriber.snapshot) for stream in streams),
            )
            seen = before.get(node_id) if before else None
            if seen is None or seen.marks != marks or _may_be_done(seen):
                proxy = await _proxy(streams, missing, self._clock, breathe, unsynced=self._request.unsynced)
                if seen is None or seen.proxy != proxy:
                    changed.append(proxy)
                seen = _Seen(marks, proxy, now())
            self._seen[node_id] = seen
            await breathe()
        gone = before.keys() - self._seen.keys() if before else ()
        known, self._absent = self._absent, (absent, absences.elsewhere)
        if before is not None and not changed and not gone and known == self._absent:
            return None
        return pb.WatchProxiesResponse(
            proxies=changed,
            gone=sorted(gone),
            time=self._clock.at(now()),
            not_connected=None
            if known == self._absent
            else _not_connected(absent, self._clock, elsewhere=absences.elsewhere),
        )


def _may_be_done(seen: _Seen) -> bool:
    return now() >= seen.looked_at + UNSETTLED and not settled(seen.proxy)


def _chosen(
    discovery: DiscoveryService,
    absences: Absences,
    request: pb.ListProxiesRequest | pb.WatchProxiesRequest,
) -> tuple[dict[str, list[Stream]], list[Absent]]:
    """Return what was asked for: the streams of proxies by node id, in the order of the answer, and pods without one."""
    found: dict[str, list[Stream]] = {}
    for stream in sorted(discovery.streams, key=lambda stream: stream.opened_at):
        found.setdefault(stream.node.id, []).append(stream)
    names = {node_id: pod(node_id) for node_id in found}
    said: dict[str | Absent, tuple[str, ...]] = {
        node_id: (f"{name}.{namespace}", node_id)
        for node_id, (namespace, name) in names.items()
        if request.namespace in {"", namespace}
    }
    for each in absences.pods:
        if request.namespace in {"", each.namespace}:
            said[each] = (f"{each.pod}.{each.namespace}",)
    chosen = list(said)
    if request.proxy:
        exact = [key for key, known in said.items() if request.proxy in known]
        chosen = exact or [
            key for key, known in said.items() if any(name.startswith(request.proxy) for name in known)
        ]
    node_ids = [key for key in chosen if isinstance(key, str)]
    node_ids.sort(key=lambda node_id: (*names[node_id], node_id))
    return {node_id: found[node_id] for node_id in node_ids}, [
        key for key in chosen if isinstance(key, Absent)
    ]


def _not_connected(absent: Sequence[Absent], clock: Clock, *, elsewhere: bool) -> pb.NotConnected:
    return pb.NotConnected(
        pods=[
            pb.AbsentSidecar(
                namespace=each.namespace,
                pod=each.pod,
                since=None if each.since is None else clock.at(each.since),
            )
            for each in absent[:MAX_NOT_CONNECTED]
        ],
        total=len(absent),
        may_be_elsewhere=elsewhere,
    )


def _warning(problem: Problem) -> pb.ObjectWarning:
    return pb.ObjectWarning(
        place=printable(problem.where),
        what=printable(problem.what),
        hint=printable(problem.hint),
        level=pb.ObjectWarning.WARNING,
    )


async def _proxy(
    streams: Sequence[Stream], missing: str, clock: Clock, breathe: Breath, *, unsynced: bool
) -> pb.Proxy:
    node = streams[-1].node
    namespace, name = pod(node.id)
    proxy = pb.Proxy(
        node_id=node.id,
        namespace=namespace,
        pod=name,
        agent=node.user_agent_name,
        agent_version=node.user_agent_version,
        missing=missing,
    )
    for stream in streams:
        await breathe()
        statuses = stream.session.status()
        proxy.streams.add(
            peer=stream.info.peer,
            variant=_VARIANTS[stream.info.variant],
            type_url=stream.info.type_url,
            connected_at=clock.at(stream.opened_at),
            types=[await _type(status, clock, breathe, unsynced=unsynced) for status in statuses],
        )
    return proxy


async def _type(status: TypeStatus, clock: Clock, breathe: Breath, *, unsynced: bool) -> pb.Type:
    error = status.last_error
    state = pb.REJECTED if error else pb.SYNCED if status.synced else pb.WAITING
    counts = status.counts
    listed = error or (unsynced and counts.total() > counts[State.SYNCED])
    resources: list[ResourceStatus] = []
    if listed:
        async for portion in portions(status, breathe):
            resources += (each for each in portion if each.state is not State.SYNCED)
    rejected = {each.name: each.error for each in resources if each.error}
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
        sent_at=None if status.sent_at is None else clock.at(status.sent_at),
        acked_at=None if status.acked_at is None else clock.at(status.acked_at),
        unanswered=status.unanswered,
        unsynced=[_resource(each, clock) for each in resources] if unsynced else (),
    )


def _waiting(waiting: Waiting, clock: Clock) -> pb.Waiting:
    reason = _REASONS.get(waiting.for_, pb.Waiting.TYPE)
    type_url = waiting.for_ if reason == pb.Waiting.TYPE else ""
    return pb.Waiting(reason=reason, type_url=type_url, since=clock.at(waiting.since))


def _rejection(rejection: Rejection, clock: Clock, of: Mapping[str, Rejection]) -> pb.Rejection:
    """Tell of a rejection, and `of` which resources it is."""
    causes = dict.fromkeys(source for each in of.values() for source in each.sources[:1])
    return pb.Rejection(
        version=rejection.version,
        code=rejection.code,
        message=rejection.message,
        time=clock.at(rejection.at),
        resources=of,
        sources=rejection.sources,
        causes=causes,
    )


def _resource(status: ResourceStatus, clock: Clock) -> pb.Resource:
    return pb.Resource(
        name=status.name,
        state=_STATES[status.state],
        sent_version=status.version,
        version=status.resource.version if status.resource else "",
        updated_at=None if status.updated_at is None else clock.at(status.updated_at),
        rejection=_rejection(status.error, clock, {status.name: status.error}) if status.error else None,
    )
