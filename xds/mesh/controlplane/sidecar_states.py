"""The state of pods' sidecars as clients and as servers: what they have ACKed, and their certificates."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.proxy_messages import ProxySummary, proxy_message
from xds.mesh.controlplane.status import absent_line, pod, type_line, types
from xds.mesh.envoy.inbound import NAME as INBOUND
from xds.mesh.model.objects import Pod, PodKey
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import proxies_pb2
from xds.protocol.status import State
from xds.protocol.types import short_name
from xds.server import DiscoveryService, Stream
from xds.server.stream import now
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET

CLIENT_TYPES = (CLUSTER, ENDPOINT)
"""Types that decide what a client sends, besides secrets."""
SERVER_TYPES = (LISTENER,)
"""Types that decide what a server accepts, besides secrets."""


class SidecarStates:
    """The state of sidecars at the time of its creation."""

    def __init__(self, controller: Controller, discovery: DiscoveryService, checkpoint: Checkpoint) -> None:
        self._controller, self._checkpoint = controller, checkpoint
        self._generation = controller.mesh.served.generation
        self._clock, self._now = Clock.read(), now()
        self._absences = controller.absences()
        self._absent = {(absent.namespace, absent.pod): absent for absent in self._absences.pods}
        self._streams: dict[PodKey, list[Stream]] = {}
        for stream in discovery.streams:
            self._streams.setdefault(pod(stream.node.id), []).append(stream)

    @property
    def time(self) -> Timestamp:
        """Time of the states."""
        return self._clock.to_timestamp(self._now)

    async def find(self, pod: Pod, type_urls: Sequence[str]) -> pb.ProxyState:
        """Return the state of a pod's sidecar: whether it has ACKed these types and its secrets."""
        key = pod.key
        streams = self._streams.get(key, ())
        state = pb.ProxyState(
            pod=f"{pod.name}.{pod.namespace}",
            status=self._absence(pod),
            acked_generation=min(
                (stream.session.answered_generation(kind) for stream in streams for kind in type_urls),
                default=-1,
            ),
            served_generation=self._generation,
            may_be_on_other_replica=not streams and self._absences.may_be_on_other_replica,
        )
        expires = self._controller.certificates.expires_at(pod)
        if expires:
            state.certificate_expires.FromDatetime(expires)
        if streams:
            problem = self._controller.problem_of(streams[0].subscriber)
            summary = ProxySummary(problem, expires)
            proxy = await proxy_message(streams, summary, self._clock, self._checkpoint, unsynced=False)
            unsynced = [kind for kind in types(proxy) if _must_ack(kind, (*type_urls, SECRET))]
            lines = [
                f"{short_name(kind.type_url)} {type_line(kind, problem, self.time)}" for kind in unsynced
            ]
            if not lines and (problem or state.acked_generation < state.served_generation):
                lines = [problem or "has not ACKed the served state"]
            state.synced, state.status = not lines, "; ".join(lines) or "synced"
        return state

    def listener_since(self, pod: Pod) -> Timestamp | None:
        """Return since when a sidecar is known to have the listener that it is served; None if it has not."""
        known: list[float] = []
        for stream in self._streams.get(pod.key, ()):
            kind = next((each for each in stream.session.status() if each.type_url == LISTENER), None)
            inbound = next(kind.resource_statuses([INBOUND])) if kind else None
            if not kind or not inbound or inbound.state is not State.SYNCED:
                return None
            # A sidecar that has reconnected may have ACKed it on an earlier stream.
            acked_at = None if inbound.updated_at is None else kind.acked_at
            known.append(stream.opened_at if acked_at is None else acked_at)
        return self._clock.to_timestamp(max(known)) if known else None

    def _absence(self, pod: Pod) -> str:
        """Describe a sidecar that is not connected."""
        absent = self._absent.get(pod.key)
        since = absent.since if absent else None
        return absent_line(
            proxies_pb2.AbsentSidecar(since=None if since is None else self._clock.to_timestamp(since)),
            self.time,
            may_be_on_other_replica=self._absences.may_be_on_other_replica,
        )


def _must_ack(kind: proxies_pb2.Type, type_urls: Sequence[str]) -> bool:
    """Return whether a proxy has not ACKed one of these types.

    A type that is ACKed and waits for another type, such as a listener for its routes, does not count.
    """
    waits_for_other_type = (
        kind.state == proxies_pb2.WAITING and kind.waiting.reason == proxies_pb2.Waiting.TYPE
    )
    return kind.type_url in type_urls and kind.state != proxies_pb2.SYNCED and not waits_for_other_type
