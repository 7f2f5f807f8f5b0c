"""The control plane: its source, controller, servers and background tasks, composed and run.

`xds serve` runs `ControlPlane(source, build, settings).run()`. A program can do the same: for a folder of
manifests with `standalone.build_components`, or for a cluster with `in_cluster.build_components`.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Collection,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from importlib.metadata import version

import structlog

from xds.introspect import Introspection
from xds.mesh.controlplane.admin import AdminServer
from xds.mesh.controlplane.certificate_service import CertificateService
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.ineffective_objects import IneffectiveObjects
from xds.mesh.controlplane.metrics.controlplane import Metrics, StartupMetrics
from xds.mesh.controlplane.metrics.traffic import TrafficMetrics
from xds.mesh.controlplane.objects_service import ObjectsService
from xds.mesh.controlplane.page.access import Access
from xds.mesh.controlplane.page.api import Backend, Page
from xds.mesh.controlplane.parts import BackgroundTask, BuildComponents, Components, Settings, Source
from xds.mesh.controlplane.policies_service import PoliciesService
from xds.mesh.controlplane.problem_log import ProblemLog
from xds.mesh.controlplane.problem_times import FoundProblem, ProblemTimes
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.mesh.controlplane.replica_traffic import ReplicaTraffic
from xds.mesh.controlplane.replicas_service import ReplicasService
from xds.mesh.controlplane.report.service import ReportsService
from xds.mesh.controlplane.rollouts_service import RolloutsService
from xds.mesh.controlplane.running_problems import RunningProblems
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.envoy.translate import warm
from xds.mesh.model.names import host_port
from xds.mesh.model.objects import Change, MeshConfig, Problem
from xds.mesh.sources.report import SourceUpdate
from xds.mesh.v1 import described
from xds.server import Observer, XdsServer
from xds.server.rest import RestServer

log = structlog.get_logger(__name__)

OPTIONS = (
    # A sidecar has three streams: its configuration and two for reports.
    ("grpc.max_concurrent_streams", 8),
    # A pending call can use 900 kB (see SECURITY.md). 1,000 sidecars must be able to reconnect at once.
    ("grpc.server.max_pending_requests", 1_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_500),
)
"""gRPC options of the xDS server: lower limits than those of the library, because pods are not trusted."""
IDENTIFIER = f"xds {version('xds-mesh')}"
"""Name of the server, for clients."""


class CannotListenError(Exception):
    """The control plane cannot listen on one of its addresses."""

    def __init__(self, problem: str, *listeners: str) -> None:
        super().__init__(problem)
        self.listeners = listeners
        """Name of the listener in `Settings`, or the names of the possible ones."""


@contextmanager
def listening(listener: str) -> Iterator[None]:
    """Raise CannotListenError if a listener cannot be opened."""
    try:
        yield
    except OSError as error:
        raise CannotListenError(str(error.strerror), listener) from error


class ControlPlane:
    """A source, a controller that translates its objects, and the servers that serve the result."""

    def __init__(self, source: Source, build: BuildComponents, settings: Settings) -> None:
        self.ready = asyncio.Event()
        """Set once the servers listen."""
        self._source = source
        self._build = build
        self._settings = settings
        self._page = Page(Access(settings.admin_token, (settings.admin[0], *settings.names)))
        self._metrics: Metrics | None = None
        self._ineffective: IneffectiveObjects | None = None
        self._running: RunningProblems | None = None
        self._is_stopping = False
        self._problem_log, self._problem_times = ProblemLog(log), ProblemTimes()

    async def run(self) -> None:
        """Serve until cancelled. Raises CannotListenError, and any error of `build` and of a task."""
        host, port = self._settings.admin
        admin = AdminServer(
            self._not_ready_reason,
            host,
            port,
            metrics=self._render_metrics,
            note=self._source.staleness,
            warnings=lambda: self._problems,
            page=self._page,
        )
        with listening("admin"):
            await admin.start()
        try:
            await self._read_and_serve(f"http://{host_port(host, admin.port)}")
        finally:
            await admin.stop()

    async def _read_and_serve(self, admin_url: str) -> None:
        """Read the source, create the components, and serve until cancelled."""
        async with aclosing(self._source.watch()) as updates:
            # The source waits for the API server now and then. A thread uses that time.
            warming = asyncio.create_task(asyncio.to_thread(warm))
            try:
                change = await self._wait_until_complete(updates)
            finally:
                await warming
            components = await self._build(change.config or MeshConfig())
            components.controller.change(change)
            self._log_change(change)
            await self._serve(components, updates, admin_url)

    async def _wait_until_complete(self, updates: AsyncIterator[SourceUpdate]) -> Change:
        """Return the first state that the source has read completely. Record problems meanwhile."""
        async for update in updates:
            self._record_problems(update)
            if update.complete:
                return update.change
        raise RuntimeError("the source ended before it had read everything")

    async def _follow(self, updates: AsyncIterator[SourceUpdate], controller: Controller) -> None:
        """Pass the source's changes to the controller, and record its problems."""
        async for update in updates:
            self._record_problems(update)
            if update.change != Change():
                controller.change(update.change)
                self._log_change(update.change)

    def _log_change(self, change: Change) -> None:
        counts = {"applied": len(change.applied), "removed": len(change.removed)}
        log.info("objects changed", source=self._source.what, **counts)

    # --- problems and metrics -------------------------------------------------------------------------------

    def _not_ready_reason(self) -> str | None:
        """Return why the xDS server does not listen; None if it listens."""
        if self._is_stopping:
            return "shutting down"
        if self.ready.is_set():
            return None
        return self._source.pending_reason() or "computing the first configuration"

    @property
    def _problems(self) -> Collection[Problem]:
        """The current problems of objects, settings and the running mesh, and the objects without effect."""
        ineffective = self._ineffective.problems if self._ineffective else ()
        return (*self._source.problems, *self._running_problems(), *ineffective)

    def _running_problems(self) -> tuple[Problem, ...]:
        return self._running.problems if self._running else ()

    def _record_problems(self, update: SourceUpdate) -> None:
        self._problem_log.add(update)
        self._problem_times.add(update)

    def _found_problems(self) -> tuple[FoundProblem, ...]:
        """Return the current problems, with when each was found."""
        ineffective = self._ineffective.found if self._ineffective else ()
        problems = (*self._source.problems, *self._running_problems())
        return (*self._problem_times.found(problems), *ineffective)

    async def _check_problems(self) -> tuple[FoundProblem, ...]:
        """Return the current problems, after a check for objects without effect."""
        if self._ineffective:
            await self._ineffective.check()
        return self._found_problems()

    def _render_metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type. During startup, return only the source's metrics."""
        startup_metrics = StartupMetrics(lambda: self._source.problems, self._source.stale_seconds)
        return (self._metrics or startup_metrics).render(accept)

    # --- the servers and background tasks -------------------------------------------------------------------

    async def _serve(
        self, components: Components, updates: AsyncIterator[SourceUpdate], admin_url: str
    ) -> None:
        """Run the servers and all tasks until cancelled. Raises the error of a task that ends earlier."""
        controller, settings = components.controller, self._settings
        server, backend, tasks = self._compose(components)
        rest = (
            RestServer(
                controller.connections,
                *settings.rest,
                identifier=IDENTIFIER,
                failed=server.discovery.failed,
                names=settings.names,
            )
            if settings.rest
            else None
        )
        running = [asyncio.create_task(task()) for task in (*tasks, *components.tasks)]
        running.append(asyncio.create_task(self._follow(updates, controller)))
        is_ready = asyncio.create_task(controller.ready.wait())
        try:
            await asyncio.wait([*running, is_ready], return_when=asyncio.FIRST_COMPLETED)
            if controller.ready.is_set():
                await self._start(server, rest)
                if components.peers:
                    # The listener for client certificates is the last one.
                    components.peers.publish(server.secure_ports[-1])
                self._page.start(backend)
                self.ready.set()
                log.info("control plane ready", admin=f"{admin_url}/ready", page=f"{admin_url}/")
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_stopping = True
            if rest:
                await rest.stop()
            await server.stop()
            for task in (*running, is_ready):
                task.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _compose(self, components: Components) -> tuple[XdsServer, Backend, Sequence[BackgroundTask]]:
        """Create the services. Return the xDS server, what the page reads, and the background tasks."""
        controller, listeners, peers = components.controller, components.listeners, components.peers
        reports = TrafficReports(controller)
        replica_traffic = ReplicaTraffic(
            reports, peers.access if peers else None, own_connected=lambda: controller.connections.streams
        )
        self._ineffective = components.ineffective
        self._running = RunningProblems(
            controller, lambda: (replica_traffic.merged, replica_traffic.denials), self._record_problems
        )
        self._metrics = metrics = Metrics(
            controller, lambda: self._problems, self._source.stale_seconds, lambda: self._source.unenforced
        )
        for collector in (*components.metrics, TrafficMetrics(reports)):
            metrics.register(collector)
        tasks: list[BackgroundTask] = [
            controller.run,
            components.ineffective.run,
            replica_traffic.run,
            self._running.run,
            metrics.measure_loop_lag,
        ]
        observer: Observer = metrics.streams
        if self._settings.collector:
            from xds.mesh.controlplane.tracing import change_tracer  # noqa: PLC0415 - not installed by default

            observer = tracer = change_tracer(self._settings.collector, controller, metrics.streams)
            tasks.append(tracer.run)
        proxies = ProxiesService(
            controller.problem_of,
            expiry_of=controller.certificate_expiry,
            absences=controller.absences,
            problems=lambda: self._problems,
        )
        objects = ObjectsService(controller, self._source, self._check_problems)
        traffic = TrafficService(controller, replica_traffic)
        rollouts, policies = RolloutsService(controller), PoliciesService(controller, traffic)
        replica = peers.access.name if peers else ""
        reports_service = ReportsService(controller, traffic, lambda: self._problems, replica)
        services = (proxies, rollouts, policies, objects, traffic, reports_service)
        server = XdsServer(
            controller.connections,
            host_port(*self._settings.xds),
            identifier=IDENTIFIER,
            max_connection_age=self._settings.max_connection_age,
            options=OPTIONS,
            observer=observer,
            added=[
                Introspection(services, admit=listeners.admit if listeners else None, documented=described),
                reports,
                *([ReplicasService(replica_traffic, peers.admit)] if peers else ()),
                *([CertificateService(controller, listeners.authenticate)] if listeners else ()),
            ],
            secure=listeners.credentials if listeners else (),
            authenticate=listeners.authenticate if listeners else None,
        )
        metrics.add_server(server.discovery)
        backend = Backend(
            controller, server.discovery, proxies, rollouts, policies, objects, self._found_problems, traffic
        )
        return server, backend, tasks

    async def _start(self, server: XdsServer, rest: RestServer | None) -> None:
        """Start the servers. Raises CannotListenError."""
        if rest:
            with listening("rest"):
                await rest.start()
        try:
            with listening("xds"):
                await server.start()
        except RuntimeError as error:
            is_plaintext = f" {host_port(*self._settings.xds)}: " in str(error)
            listeners = ("xds",) if is_plaintext else ("xds_tls", "xds_mtls")
            raise CannotListenError(str(error), *listeners) from error
