"""The gRPC service xds.mesh.v1.Proxies: connected proxies, their status, and what they wait for.

protos/xds/mesh/v1/proxies.proto documents the messages. The service builds each response from the streams'
sessions, in slices of a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any, TypeAlias

import grpc
import grpc.aio

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.absence import Absences, Absent
from xds.mesh.controlplane.proxy_messages import ProxySummary, proxy_message, served_resources
from xds.mesh.controlplane.status import VERSION_HEADER, pod, proxy_name, settled
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Problem, printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.server import DiscoveryService, Stream, Subscriber
from xds.server.stream import now

SERVICE = "xds.mesh.v1.Proxies"

WATCH_INTERVAL = 0.25
"""Interval at which a Watch call checks for changes, in seconds."""
RECHECK_INTERVAL = 1.0
"""Seconds after which a proxy that is not synced is checked again, because a timeout may have passed."""

MAX_NOT_CONNECTED = 1000
"""Maximum number of pods without a connected sidecar that a response lists. The rest are only counted."""
MAX_WARNINGS = 100
"""Maximum number of warnings that a response lists. The rest are only counted."""

ProblemOf: TypeAlias = Callable[[Subscriber], str]
"""Returns why a proxy's configuration is not up to date; empty if there is no problem."""
ExpiryOf: TypeAlias = Callable[[Subscriber], datetime | None]
"""Returns when the certificate expires that a proxy is served; None if it is served none."""


class ProxiesService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(
        self,
        problem_of: ProblemOf = lambda _: "",
        *,
        expiry_of: ExpiryOf = lambda _: None,
        absences: Callable[[], Absences] = Absences,
        problems: Callable[[], Collection[Problem]] = tuple,
    ) -> None:
        """Create the service.

        Args:
            problem_of: returns why a proxy's configuration is not up to date, such as
                `Controller.problem_of`.
            expiry_of: returns when the certificate of a proxy expires, such as
                `Controller.certificate_expiry`.
            absences: returns the pods without a connected sidecar, such as `Controller.absences`.
            problems: returns the problems of objects and settings.
        """
        self._problem_of, self._expiry_of = problem_of, expiry_of
        self._absences = absences
        self._problems = problems

    def __call__(self, server: GuardedServer, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def list_(
            request: pb.ListProxiesRequest, context: grpc.aio.ServicerContext
        ) -> pb.ListProxiesResponse:
            await context.send_initial_metadata(((VERSION_HEADER, version("xds-mesh")),))
            return await self.list(discovery, request)

        async def watch_(
            request: pb.WatchProxiesRequest, _: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.WatchProxiesResponse]:
            watch = _Watch(request, self._summary, self._absences)
            while True:
                changes = await watch.next_changes(discovery)
                if changes:
                    yield changes
                await asyncio.sleep(WATCH_INTERVAL)

        async def resources(
            request: pb.ResourcesRequest, context: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.ServedResource]:
            async for resource in served_resources(await _streams(discovery, request.node_id, context)):
                yield resource

        server.add_service(SERVICE, List=list_, Watch=watch_, Resources=resources)

    async def list(
        self, discovery: DiscoveryService, request: pb.ListProxiesRequest
    ) -> pb.ListProxiesResponse:
        """Return the current status of the requested proxies."""
        clock = Clock.read()
        checkpoint = Checkpoint()
        proxies = []
        absences = self._absences()
        streams_by_node, absent = _select(discovery, absences, request)
        for streams in streams_by_node.values():
            summary = self._summary(streams)
            proxies.append(
                await proxy_message(streams, summary, clock, checkpoint, unsynced=request.unsynced)
            )
        warnings = [_warning(problem) for problem in self._problems() if not problem.notice]
        return pb.ListProxiesResponse(
            proxies=proxies,
            time=clock.to_timestamp(now()),
            not_connected=_not_connected(
                absent, clock, may_be_on_other_replica=absences.may_be_on_other_replica
            ),
            warnings=warnings[:MAX_WARNINGS],
            more_warnings=len(warnings[MAX_WARNINGS:]),
        )

    def _summary(self, streams: Sequence[Stream]) -> ProxySummary:
        expiries = (self._expiry_of(stream.subscriber) for stream in streams)
        return ProxySummary(
            self._problem_of(streams[0].subscriber), next((expiry for expiry in expiries if expiry), None)
        )


@dataclass(slots=True)
class _Sent:
    """A proxy as a Watch call last sent it."""

    inputs: tuple[Any, ...]
    """The inputs of the message. While they are unchanged, only a timeout can change the message."""
    proxy: pb.Proxy
    """The message."""
    checked_at: float
    """When the message was built, in seconds of the server's clock."""


class _Watch:
    """The state of one Watch call."""

    def __init__(
        self,
        request: pb.WatchProxiesRequest,
        summary: Callable[[Sequence[Stream]], ProxySummary],
        absences: Callable[[], Absences] = Absences,
    ) -> None:
        self._request = request
        self._summary = summary
        self._absences = absences
        self._absent: tuple[Sequence[Absent], bool] | None = None
        self._clock = Clock.read()
        self._sent: dict[str, _Sent] | None = None

    async def next_changes(self, discovery: DiscoveryService) -> pb.WatchProxiesResponse | None:
        """Return what has changed since the last call, or None. The first call returns everything."""
        previous, self._sent = self._sent, {}
        changed = []
        checkpoint = Checkpoint()
        absences = self._absences()
        streams_by_node, absent = _select(discovery, absences, self._request)
        for node_id, streams in streams_by_node.items():
            summary = self._summary(streams)
            inputs = (
                summary,
                *((stream, stream.message_count, stream.subscriber.snapshot) for stream in streams),
            )
            sent = previous.get(node_id) if previous else None
            if sent is None or sent.inputs != inputs or _must_recheck(sent):
                proxy = await proxy_message(
                    streams, summary, self._clock, checkpoint, unsynced=self._request.unsynced
                )
                if sent is None or sent.proxy != proxy:
                    changed.append(proxy)
                sent = _Sent(inputs, proxy, now())
            self._sent[node_id] = sent
            await checkpoint()
        gone = previous.keys() - self._sent.keys() if previous else ()
        sent_absent, self._absent = self._absent, (absent, absences.may_be_on_other_replica)
        if previous is not None and not changed and not gone and sent_absent == self._absent:
            return None
        return pb.WatchProxiesResponse(
            proxies=changed,
            gone=sorted(gone),
            time=self._clock.to_timestamp(now()),
            not_connected=None
            if sent_absent == self._absent
            else _not_connected(
                absent, self._clock, may_be_on_other_replica=absences.may_be_on_other_replica
            ),
        )


def _must_recheck(sent: _Sent) -> bool:
    return now() >= sent.checked_at + RECHECK_INTERVAL and not settled(sent.proxy)


def _select(
    discovery: DiscoveryService,
    absences: Absences,
    request: pb.ListProxiesRequest | pb.WatchProxiesRequest,
) -> tuple[dict[str, list[Stream]], list[Absent]]:
    """Return the streams of the requested proxies by node ID, and the requested pods without one.

    A name selects a proxy with exactly this name. If there is none, it selects all proxies with this prefix.
    """
    streams: dict[str, list[Stream]] = {}
    for stream in sorted(discovery.streams, key=lambda stream: stream.opened_at):
        streams.setdefault(stream.node.id, []).append(stream)
    names = {node_id: pod(node_id) for node_id in streams}
    aliases: dict[str | Absent, tuple[str, ...]] = {
        node_id: (f"{name}.{namespace}", node_id)
        for node_id, (namespace, name) in names.items()
        if request.namespace in {"", namespace}
    }
    for absent in absences.pods:
        if request.namespace in {"", absent.namespace}:
            aliases[absent] = (f"{absent.pod}.{absent.namespace}",)
    selected = list(aliases)
    if request.proxy:
        exact_matches = [key for key, key_aliases in aliases.items() if request.proxy in key_aliases]
        selected = exact_matches or [
            key
            for key, key_aliases in aliases.items()
            if any(alias.startswith(request.proxy) for alias in key_aliases)
        ]
    node_ids = [key for key in selected if isinstance(key, str)]
    node_ids.sort(key=lambda node_id: natural_key(*names[node_id], node_id))
    return {node_id: streams[node_id] for node_id in node_ids}, [
        key for key in selected if isinstance(key, Absent)
    ]


def _not_connected(
    absent: Sequence[Absent], clock: Clock, *, may_be_on_other_replica: bool
) -> pb.NotConnected:
    return pb.NotConnected(
        pods=[
            pb.AbsentSidecar(
                namespace=sidecar.namespace,
                pod=sidecar.pod,
                since=None if sidecar.since is None else clock.to_timestamp(sidecar.since),
            )
            for sidecar in absent[:MAX_NOT_CONNECTED]
        ],
        total=len(absent),
        may_be_on_other_replica=may_be_on_other_replica,
    )


def _warning(problem: Problem) -> pb.ObjectWarning:
    return pb.ObjectWarning(
        place=printable(problem.where),
        what=printable(problem.what),
        hint=printable(problem.hint),
        level=pb.ObjectWarning.WARNING,
        served_version=problem.served_version,
    )


async def _streams(
    discovery: DiscoveryService, node_id: str, context: grpc.aio.ServicerContext
) -> list[Stream]:
    """Return the streams of a proxy. Abort the call if there is none."""
    streams = [stream for stream in discovery.streams if stream.node.id == node_id]
    if not streams:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"proxy {proxy_name(node_id)} is not connected")
    return streams
