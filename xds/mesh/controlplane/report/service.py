"""The gRPC service xds.mesh.v1.Reports: evidence for an auditor.

protos/xds/mesh/v1/reports.proto documents the messages.
"""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import version

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.one_at_a_time import OneAtATime
from xds.mesh.controlplane.report import exceptions
from xds.mesh.controlplane.report.certificates import inventory
from xds.mesh.controlplane.report.workloads import Facts, WorkloadReports
from xds.mesh.controlplane.sidecar_states import SidecarStates
from xds.mesh.controlplane.status import duration
from xds.mesh.controlplane.traffic_comparison import recording, timestamp
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.envoy.features import POST_QUANTUM, features_of, served_config
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, natural_key, unknown_name
from xds.mesh.model.objects import MeshConfig, Problem, TlsSettings
from xds.mesh.model.workload import workloads_of
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import TRAFFIC_RETENTION
from xds.mesh.observe.least_privilege import gaps
from xds.mesh.policy.hops import clients_of
from xds.mesh.v1 import reports_pb2 as pb
from xds.mesh.v1.traffic_pb2 import ListTrafficRequest, ListTrafficResponse
from xds.protocol.wire import Node
from xds.server import DiscoveryService

SERVICE = "xds.mesh.v1.Reports"

MAX_PART_SIZE = 2**20
"""Bytes above which a response takes no more workloads and exceptions. gRPC clients limit it to 4 MiB."""
LIBRARIES = (
    "grpcio",
    "protobuf",
    "cryptography",
    "envoy-data-plane",
    "betterproto2",
    "aiohttp",
    "kubernetes",
)
"""Packages whose versions a report contains."""
NOT_SHOWN = (
    "What connections negotiated: only Envoy's statistics have it (ssl.versions, ssl.ciphers, ssl.curves).",
    "Single requests, their methods, paths and contents: sidecars report counts per client, port and mode.",
    f"The number of requests before the last {duration(RETENTION)}; older traffic than the period.",
    "Traffic between two pods without a sidecar, and of pods without a sidecar to clients outside the mesh.",
    "Earlier states of policies and modes: a report describes the time of its creation.",
    "Serial numbers and fingerprints of workloads' certificates, and the control plane's server certificate.",
    "Certificates of applications, and those in files that DestinationRules name.",
    "Who may change policies, pods and the CA: that is access to the Kubernetes API, or to the folder.",
    "Whether a process in a pod bypasses its sidecar: a NetworkPolicy can prevent that.",
)
"""What a report does not show."""


class ReportsService:
    """The service, for `Introspection(added=[...])`.

    Args:
        controller: the mesh and its certificates.
        traffic: the observed traffic.
        problems: returns the current problems of objects and settings.
        replica: name of this replica; empty without others.
    """

    def __init__(
        self,
        controller: Controller,
        traffic: TrafficService,
        problems: Callable[[], Collection[Problem]] = tuple,
        replica: str = "",
    ) -> None:
        self._controller, self._traffic = controller, traffic
        self._problems, self._replica = problems, replica
        self._reports = OneAtATime()

    def __call__(self, server: GuardedServer, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def create(
            request: pb.CreateReportRequest, context: grpc.aio.ServicerContext
        ) -> AsyncIterator[pb.Report]:
            try:
                parts = await self._reports.run(lambda: self._create(request, discovery))
            except UnknownNameError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            for part in parts:
                yield part

        server.add_service(SERVICE, Create=create)

    async def _create(self, request: pb.CreateReportRequest, discovery: DiscoveryService) -> list[pb.Report]:
        seconds = request.period.ToMilliseconds() / 1000 if request.HasField("period") else TRAFFIC_RETENTION
        period = Duration()
        period.FromMilliseconds(round(seconds * 1000))
        traffic = await self._traffic.list(ListTrafficRequest(period=period))
        problems = tuple(self._problems())
        async with self._controller.mesh_lock:
            mesh, clock = self._controller.mesh, Clock.read()
            _require_namespaces(mesh, request.namespaces)
            states = SidecarStates(self._controller, discovery, Checkpoint())
            changes = {
                each.key: (each.after, clock.to_timestamp(each.finished_at))
                for each in reversed(self._controller.rollouts.rollout.history.finished())
                if not each.skipped
            }
        checkpoint, listeners = Checkpoint(), {}
        nodes = [
            (pod, [subscriber.node for subscriber in streams])
            for key, streams in self._controller.connections.streams.items()
            if (pod := mesh.pod(*key)) and pod.has_sidecar
        ]
        for pod, _ in nodes:
            listeners[pod.key] = states.listener_since(pod)
            await checkpoint()
        facts = Facts(
            mesh=mesh,
            certificates=self._controller.certificates,
            edges=traffic.edges,
            connected=self._traffic.connected,
            listeners=listeners,
            changes=changes,
        )
        first = pb.Report(
            scope=_scope(mesh, request, traffic, seconds, self._replica),
            certificates=inventory(self._controller.certificates, mesh.config),
            not_shown=NOT_SHOWN,
        )
        sidecars = [each for _, each in nodes]
        return await asyncio.to_thread(_report, first, facts, traffic, sidecars, problems)


def _require_namespaces(mesh: Mesh, namespaces: Sequence[str]) -> None:
    """Raise UnknownNameError if a namespace has no pods."""
    known = sorted({pod.namespace for pod in clients_of(mesh)})
    for name in namespaces:
        if name not in known:
            raise UnknownNameError(unknown_name("namespace", name, known, "the mesh"))


def _scope(
    mesh: Mesh,
    request: pb.CreateReportRequest,
    traffic: ListTrafficResponse,
    seconds: float,
    replica: str,
) -> pb.ReportScope:
    now, observed_since = traffic.time.ToMilliseconds() / 1000, traffic.since.ToMilliseconds() / 1000
    period = traffic.period.ToMilliseconds() / 1000
    return pb.ReportScope(
        trust_domain=mesh.config.trust_domain,
        root_namespace=mesh.config.root_namespace,
        namespaces=request.namespaces,
        created=traffic.time,
        since=timestamp(max(observed_since, now - period)),
        counted_since=timestamp(max(observed_since, now - RETENTION)),
        period=Duration(seconds=round(seconds)),
        replica=replica,
        observation_enabled=traffic.enabled,
    )


def _report(
    first: pb.Report,
    facts: Facts,
    traffic: ListTrafficResponse,
    sidecars: Sequence[Sequence[Node]],
    problems: Sequence[Problem],
) -> list[pb.Report]:
    """Return the parts of a report. `sidecars` has the nodes of each sidecar of this replica."""
    mesh, namespaces = facts.mesh, first.scope.namespaces
    record = recording(traffic, first.scope.period.ToMilliseconds() / 1000)
    first.gaps.extend(gaps(mesh, record))
    first.versions.extend(_versions(sidecars, len(facts.connected - facts.listeners.keys())))
    first.tls.extend(_tls(mesh.config, sidecars))
    parts, reports = _Parts(first), WorkloadReports(facts)
    parts.add_exceptions(exceptions.of_mesh(mesh, namespaces, problems))
    found = workloads_of(pod for pod in clients_of(mesh) if not namespaces or pod.namespace in namespaces)
    for workload in found.values():
        reported = reports.describe(workload)
        parts.next(reported.ByteSize()).workloads.append(reported)
        parts.add_exceptions(exceptions.of_workload(mesh, workload, reported))
    return parts.all


class _Parts:
    """The responses of a report. A new one begins when the last one is full."""

    def __init__(self, first: pb.Report) -> None:
        self.all, self._size = [first], first.ByteSize()

    def next(self, size: int) -> pb.Report:
        """Return the response for so many bytes."""
        if self._size + size > MAX_PART_SIZE:
            self.all.append(pb.Report())
            self._size = 0
        self._size += size
        return self.all[-1]

    def add_exceptions(self, found: Iterable[pb.ReportException]) -> None:
        for each in found:
            self.next(each.ByteSize()).exceptions.append(each)


def _versions(sidecars: Sequence[Sequence[Node]], elsewhere: int) -> Iterator[pb.PartVersion]:
    yield pb.PartVersion(part="xds control plane", version=version("xds-mesh"))
    yield pb.PartVersion(part="Python", version=platform.python_version())
    for library in LIBRARIES:
        yield pb.PartVersion(part=library, version=version(library))
    for envoy, count in sorted(Counter(map(_envoy, sidecars)).items(), key=lambda each: natural_key(each[0])):
        yield pb.PartVersion(part="Envoy", version=envoy, count=count)
    if elsewhere:
        problem = "not known: the sidecars are connected to other replicas"
        yield pb.PartVersion(part="Envoy", version=problem, count=elsewhere)
    yield pb.PartVersion(part="Kubernetes", version="not known: the control plane does not read it")


def _envoy(nodes: Iterable[Node]) -> str:
    """Return the version of a sidecar's Envoy; those of both during a hot restart."""
    versions = dict.fromkeys(node.user_agent_version for node in nodes if node.user_agent_name == "envoy")
    return ", ".join(filter(None, versions)) or "not known: the sidecar has not sent it"


def _tls(config: MeshConfig, sidecars: Sequence[Sequence[Node]]) -> Iterator[pb.ConfiguredTls]:
    groups: dict[tuple[TlsSettings, bool], list[str]] = {}
    for nodes in sidecars:
        served = served_config(config, features_of(nodes))
        groups.setdefault((served.mesh_tls, config.fips), []).append(_envoy(nodes))
    for (tls, fips), versions in groups.items():
        yield pb.ConfiguredTls(
            sidecars=len(versions),
            envoy_versions=sorted(set(versions), key=natural_key),
            min_version=tls.min_version,
            max_version=tls.max_version,
            cipher_suites=tls.cipher_suites,
            curves=tls.curves,
            post_quantum=tls.curves[:1] == (POST_QUANTUM,),
            fips=fips,
        )
