"""Run the control plane of `xds serve`: its source, controller, servers and background tasks."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc
import structlog
import typer
from prometheus_client.registry import Collector

from xds.cli import garbage
from xds.cli.options import Address
from xds.cli.problem_log import ProblemLog
from xds.cli.tracing import change_tracer
from xds.introspect import Introspection
from xds.introspect.guard import Admit
from xds.mesh.controlplane.admin import AdminServer
from xds.mesh.controlplane.certificate_service import CertificateService
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.effects import EffectWatcher
from xds.mesh.controlplane.metrics.controlplane import Metrics, StartupMetrics
from xds.mesh.controlplane.metrics.traffic import TrafficMetrics
from xds.mesh.controlplane.objects_service import ObjectsService, ReadObjects
from xds.mesh.controlplane.page.access import Access
from xds.mesh.controlplane.page.api import Backend, Page
from xds.mesh.controlplane.policies_service import PoliciesService
from xds.mesh.controlplane.problem_times import FoundProblem, ProblemTimes
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.mesh.controlplane.replica_traffic import ReplicaAccess, ReplicaTraffic
from xds.mesh.controlplane.replicas_service import ReplicasService
from xds.mesh.controlplane.rollouts_service import RolloutsService
from xds.mesh.controlplane.running_problems import RunningProblems
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.envoy.translate import warm
from xds.mesh.model.objects import Change, MeshConfig, Problem
from xds.mesh.sources.report import SourceUpdate
from xds.mesh.v1 import described
from xds.server import Authenticate, XdsServer
from xds.server.rest import RestServer

log = structlog.get_logger("xds.cli.serve")

BackgroundTask: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""A function that runs until it is cancelled. The control plane stops if the function returns earlier.

Tasks start before the mesh is known; a task that needs the mesh awaits `controller.ready`.
"""


OPTIONS = (
    # A sidecar has three streams: its configuration and two for reports.
    ("grpc.max_concurrent_streams", 8),
    # A pending call can use 900 kB (see SECURITY.md). 1,000 sidecars must be able to reconnect at once.
    ("grpc.server.max_pending_requests", 1_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_500),
)
"""gRPC options of `xds serve`: lower limits than those of the library, because pods are not trusted."""


class Source(ReadObjects, Protocol):
    """A source of objects and settings."""

    what: str
    """The kind of source, as one word for the log."""

    @property
    def problems(self) -> Collection[Problem]:
        """The current problems."""

    @property
    def unenforced(self) -> Mapping[str, int]:
        """The number of objects of each kind that the control plane does not enforce."""

    def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield the current state, then each change, until closed."""

    def pending_reason(self) -> str:
        """Return what has not been read yet, for /ready; empty once everything has been read."""

    def staleness(self) -> str:
        """Return since when changes cannot be read, and why; empty if they can."""

    def stale_seconds(self) -> float:
        """Return the number of seconds since changes could last be read; 0 if they can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddresses:
    """Addresses of the control plane's plaintext listeners, and of the collector of its traces."""

    xds: Address
    """Address of the xDS server."""
    admin: Address
    """Address of the page, /healthz, /ready and /metrics."""
    rest: Address | None = None
    """Address of the REST server; None if it is disabled."""
    names: Sequence[str] = ()
    """DNS names that clients of the REST server and of the page may use."""
    admin_token: str | None = None
    """Token that admits clients of other machines to the page; None to admit local clients only."""
    collector: str = ""
    """URL of the OpenTelemetry collector that receives traces; empty for none."""


class SecureListeners(NamedTuple):
    """The TLS listeners of the xDS server, and the clients they accept."""

    credentials: Sequence[tuple[str, grpc.ServerCredentials]]
    """Addresses to listen on, each with its gRPC credentials."""
    authenticate: Authenticate
    """Authenticates the client of a stream."""
    admit: Admit
    """Authorizes a client of the admin services."""
    admit_replicas: Admit
    """Authorizes another replica."""


class PeerLinks(NamedTuple):
    """How replicas share observed traffic."""

    access: ReplicaAccess
    """Reaches the other replicas."""
    publish: Callable[[int], None]
    """Lets other replicas connect to this one, at a port."""
    admit: Admit
    """Admits other replicas."""


class Components(NamedTuple):
    """The parts of a control plane that depend on the mesh's settings."""

    controller: Controller
    """Translates the mesh and publishes it to proxies."""
    effects: EffectWatcher
    """Finds objects without effect."""
    tasks: Sequence[BackgroundTask] = ()
    """Additional background tasks, such as leader election and the webhook."""
    listeners: SecureListeners | None = None
    """The TLS listeners; None if TLS is disabled."""
    metrics: Sequence[Collector] = ()
    """Metrics of the background tasks."""
    peers: PeerLinks | None = None
    """Links to other replicas; None if there are none, or if they do not know each other."""


BuildComponents: TypeAlias = Callable[[MeshConfig], Awaitable[Components]]
"""Creates the components once the mesh's settings are known. May take long; /ready is served meanwhile."""


async def run(
    source: Source, build: BuildComponents, addresses: ListenAddresses, *, max_connection_age: float | None
) -> int:
    """Run until SIGINT or SIGTERM arrives; return the exit status."""
    _raise_file_limit()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    page = Page(Access(addresses.admin_token, (addresses.admin.host, *addresses.names)))
    control_plane = ControlPlane(source, build, addresses, max_connection_age, page)

    def not_ready_reason() -> str | None:
        return "shutting down" if stop.is_set() else control_plane.not_ready_reason()

    admin = AdminServer(
        not_ready_reason,
        *addresses.admin,
        metrics=control_plane.render_metrics,
        note=source.staleness,
        warnings=lambda: control_plane.problems,
        page=page,
    )
    try:
        await admin.start()
    except OSError as error:
        problem = f"{error.strerror} (choose another with --admin-address)"
        log.error("cannot listen", problem=problem)  # noqa: TRY400 - not a bug: no traceback
        return 1
    admin_url = f"http://{addresses.admin._replace(port=admin.port)}"
    running = asyncio.create_task(control_plane.run(admin_url))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        running.cancel()
        [result] = await asyncio.gather(running, return_exceptions=True)
        await admin.stop()
    if isinstance(result, CannotListenError):
        log.error("cannot listen", problem=str(result))
    elif isinstance(result, typer.Exit):
        raise result
    elif isinstance(result, Exception):
        log.error("control plane failed", exc_info=result)
    elif stop.is_set():
        log.info("control plane stopped")
        return 0
    return 1


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit: the usual 1,024 also limits connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS does not accept its hard limit as the soft limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class CannotListenError(Exception):
    """The control plane cannot listen on one of its addresses."""


class ControlPlane:
    """A source, a controller that translates its objects, and the servers that serve the result."""

    def __init__(
        self,
        source: Source,
        build: BuildComponents,
        addresses: ListenAddresses,
        max_connection_age: float | None,
        page: Page,
    ) -> None:
        self._source = source
        self._build = build
        self._addresses = addresses
        self._max_connection_age = max_connection_age
        self._page = page
        self._metrics: Metrics | None = None
        self._effects: EffectWatcher | None = None
        self._running: RunningProblems | None = None
        self._is_listening = False
        self._problem_log, self._problem_times = ProblemLog(log), ProblemTimes()

    def not_ready_reason(self) -> str | None:
        """Return why the xDS server does not listen yet; None if it listens."""
        return (
            None
            if self._is_listening
            else self._source.pending_reason() or "computing the first configuration"
        )

    @property
    def problems(self) -> Collection[Problem]:
        """The current problems of objects, settings and the running mesh, and the objects without effect."""
        effects = self._effects.problems if self._effects else ()
        return (*self._source.problems, *self._running_problems(), *effects)

    def _running_problems(self) -> tuple[Problem, ...]:
        return self._running.problems if self._running else ()

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type. During startup, return only the source's metrics."""
        startup_metrics = StartupMetrics(lambda: self._source.problems, self._source.stale_seconds)
        return (self._metrics or startup_metrics).render(accept)

    async def run(self, admin_url: str) -> None:
        """Serve until cancelled. Raises CannotListenError, and any error of a background task."""
        async with aclosing(self._source.watch()) as updates:
            # The source waits for the API server now and then. A thread uses that time.
            warming = asyncio.create_task(asyncio.to_thread(warm))
            try:
                change = await _wait_until_complete(updates, self._record_problems)
            finally:
                await warming
            components = await self._build(change.config or MeshConfig())
            components.controller.change(change)
            _log_change(self._source, change)
            follow = _follow(self._source, updates, components.controller, self._record_problems)
            await self._serve(components, admin_url, (follow, *(task() for task in components.tasks)))

    def _record_problems(self, update: SourceUpdate) -> None:
        self._problem_log.add(update)
        self._problem_times.add(update)

    def _found_problems(self) -> tuple[FoundProblem, ...]:
        """Return the current problems, with when each was found."""
        effects = self._effects.found if self._effects else ()
        problems = (*self._source.problems, *self._running_problems())
        return (*self._problem_times.found(problems), *effects)

    async def _check_problems(self) -> tuple[FoundProblem, ...]:
        """Return the current problems, after a check for objects without effect."""
        if self._effects:
            await self._effects.check()
        return self._found_problems()

    async def _serve(
        self, components: Components, admin_url: str, tasks: Iterable[Coroutine[Any, Any, None]]
    ) -> None:
        controller, listeners = components.controller, components.listeners
        self._effects = components.effects
        self._metrics = Metrics(
            controller, lambda: self.problems, self._source.stale_seconds, lambda: self._source.unenforced
        )
        for collector in components.metrics:
            self._metrics.register(collector)
        identifier = f"xds {version('xds-mesh')}"
        proxies = ProxiesService(
            controller.problem_of,
            expiry_of=controller.certificate_expiry,
            absences=controller.absences,
            problems=lambda: self.problems,
        )
        objects = ObjectsService(controller, self._source, self._check_problems)
        reports = TrafficReports(controller)
        peers = components.peers
        replica_traffic = ReplicaTraffic(
            reports, peers.access if peers else None, own_connected=lambda: controller.connections.streams
        )
        self._running = RunningProblems(controller, lambda: replica_traffic.merged, self._record_problems)
        self._metrics.register(TrafficMetrics(reports))
        traffic = TrafficService(controller, replica_traffic)
        rollouts, policies = RolloutsService(controller), PoliciesService(controller, traffic)
        services = (proxies, rollouts, policies, objects, traffic)
        admit = listeners.admit if listeners else None
        endpoint = self._addresses.collector
        tracer = change_tracer(endpoint, controller, self._metrics.streams) if endpoint else None
        server = XdsServer(
            controller.connections,
            str(self._addresses.xds),
            identifier=identifier,
            max_connection_age=self._max_connection_age,
            options=OPTIONS,
            observer=tracer or self._metrics.streams,
            added=[
                Introspection(services, admit=admit, documented=described),
                reports,
                *([ReplicasService(replica_traffic, peers.admit)] if peers else ()),
                *([CertificateService(controller, listeners.authenticate)] if listeners else ()),
            ],
            secure=listeners.credentials if listeners else (),
            authenticate=listeners.authenticate if listeners else None,
        )
        rest = (
            RestServer(
                controller.connections,
                *self._addresses.rest,
                identifier=identifier,
                failed=server.discovery.failed,
                names=self._addresses.names,
            )
            if self._addresses.rest
            else None
        )
        self._metrics.add_server(server.discovery)
        backend = Backend(
            controller,
            server.discovery,
            proxies,
            rollouts,
            policies,
            objects,
            self._found_problems,
            traffic,
        )
        running = [
            asyncio.create_task(task)
            for task in (
                controller.run(),
                components.effects.run(),
                replica_traffic.run(),
                self._running.run(),
                self._metrics.measure_loop_lag(),
                garbage.collect_after_growth(),
                *((tracer.run(),) if tracer else ()),
                *tasks,
            )
        ]
        is_ready = asyncio.create_task(controller.ready.wait())
        try:
            await asyncio.wait([*running, is_ready], return_when=asyncio.FIRST_COMPLETED)
            if controller.ready.is_set():
                garbage.freeze()
                await self._listen(server, rest)
                self._is_listening = True
                if peers:
                    # The listener for client certificates is the last one.
                    peers.publish(server.secure_ports[-1])
                self._page.start(backend)
                log.info("control plane ready", admin=f"{admin_url}/ready", page=f"{admin_url}/")
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if rest:
                await rest.stop()
            await server.stop()
            for task in (*running, is_ready):
                task.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _listen(self, server: XdsServer, rest: RestServer | None) -> None:
        """Start the servers. Raises CannotListenError."""
        option = "--rest-address"
        try:
            if rest:
                await rest.start()
            option = "--xds-address"
            await server.start()
        except OSError as error:
            raise CannotListenError(f"{error.strerror} (choose another with {option})") from error
        except RuntimeError as error:
            if f" {self._addresses.xds}: " not in str(error):
                option = "--xds-tls-address or --xds-mtls-address"
            raise CannotListenError(f"{error} (choose another with {option})") from error


async def _wait_until_complete(
    updates: AsyncIterator[SourceUpdate], record_problems: Callable[[SourceUpdate], None]
) -> Change:
    """Return the first state that the source has read completely. Record problems meanwhile."""
    async for update in updates:
        record_problems(update)
        if update.complete:
            return update.change
    raise RuntimeError("the source ended before it had read everything")


async def _follow(
    source: Source,
    updates: AsyncIterator[SourceUpdate],
    controller: Controller,
    record_problems: Callable[[SourceUpdate], None],
) -> None:
    """Pass the source's changes to the controller, and record its problems."""
    async for update in updates:
        record_problems(update)
        if update.change != Change():
            controller.change(update.change)
            _log_change(source, update.change)


def _log_change(source: Source, change: Change) -> None:
    log.info("objects changed", source=source.what, applied=len(change.applied), removed=len(change.removed))
