"""What runs when `xds serve` does: the hub, its source, the servers, and parts that others add; until a signal."""

from __future__ import annotations

import asyncio
import gc
import os
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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import typer

from xds.cli.options import Address
from xds.mesh.model.objects import Change, MeshConfig

if TYPE_CHECKING:
    import grpc
    from prometheus_client.registry import Collector
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.cli.problem_log import ProblemLog
    from xds.introspect.guard import Admit
    from xds.mesh.controlplane.controller import Hub
    from xds.mesh.controlplane.effects import EffectWatcher
    from xds.mesh.controlplane.metrics.controlplane import Metrics
    from xds.mesh.model.objects import Problem
    from xds.mesh.sources.report import SourceUpdate
    from xds.server import Authenticate, XdsServer
    from xds.server.rest import RestServer

Part: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Something that runs in the background from the start, until it is cancelled; if it ends before, so does everything.

What needs facts awaits `hub.ready` itself.
"""


class Source(Protocol):
    """Where facts come from."""

    what: str
    """What it reads, in a word for the log."""

    @property
    def problems(self) -> Collection[Problem]:
        """What is wrong now."""

    @property
    def unenforced(self) -> Mapping[str, int]:
        """How many objects there are of each kind that is not enforced."""

    def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield everything, then what is different, without end."""

    def pending_reason(self) -> str:
        """Say what is not known yet, for who asks whether we are ready; empty if everything is."""

    def staleness(self) -> str:
        """Say how old what is known is, if it can be out of date; else empty."""

    def stale_seconds(self) -> float:
        """Tell for how many seconds it has not been possible to learn of changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where to listen."""

    xds: Address
    admin: Address
    rest: Address | None = None
    names: Sequence[str] = ()
    """DNS names by which clients may address the REST server."""


class Door(NamedTuple):
    """Where xDS is served over TLS, and to whom."""

    secure: Sequence[tuple[str, grpc.ServerCredentials]]
    """Addresses, and gRPC's credentials for each."""
    authenticate: Authenticate
    admit: Admit
    """Lets those in who may ask about the server."""


class Serving(NamedTuple):
    """Whom to serve with, made once the mesh's settings are known."""

    hub: Hub
    effects: EffectWatcher
    parts: Sequence[Part] = ()
    """What is to run besides."""
    door: Door | None = None
    """How others than this machine get in."""
    metrics: Sequence[Collector] = ()
    """What the parts count."""


Prepare: TypeAlias = Callable[["MeshConfig"], Awaitable[Serving]]
"""Makes the hub and what runs besides, from the settings of the mesh. May take its time: /ready says what is missing."""


async def run(source: Source, prepare: Prepare, at: Addresses, *, max_connection_age: float | None) -> int:
    """Serve until a signal asks to end; return the exit status."""
    from xds.mesh.controlplane.admin import AdminServer  # noqa: PLC0415

    _raise_file_limit()
    # gRPC's own log has a line for each failed handshake, and no limit. It asks for this when it is used for the first time.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control_plane = ControlPlane(source, prepare, at, max_connection_age)

    def lacking() -> str | None:
        return "shutting down" if stop.is_set() else control_plane.lacking()

    admin = AdminServer(
        lacking,
        *at.admin,
        metrics=control_plane.exposed,
        standing=source.staleness,
        warnings=lambda: control_plane.problems,
    )
    try:
        await admin.start()
    except OSError as error:
        _log().error("cannot listen", problem=str(error))
        return 1
    ready = f"http://{at.admin._replace(port=admin.port)}/ready"
    work = asyncio.create_task(control_plane.run(ready))
    asked = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([work, asked], return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()
        work.cancel()
        [ended] = await asyncio.gather(work, return_exceptions=True)
        await admin.stop()
    if isinstance(ended, CannotListenError):
        _log().error("cannot listen", problem=str(ended))
    elif isinstance(ended, typer.Exit):
        raise ended
    elif isinstance(ended, Exception):
        _log().error("stopped by an error", exc_info=ended)
    elif stop.is_set():
        _log().info("stopped")
        return 0
    return 1


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one, and soft limits of 1,024 are common."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS has a hard limit that it does not accept as a soft one.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class CannotListenError(Exception):
    """An address cannot be had."""


class ControlPlane:
    """A source, and everybody who is served from it."""

    def __init__(
        self, source: Source, prepare: Prepare, at: Addresses, max_connection_age: float | None
    ) -> None:
        self._source = source
        self._prepare = prepare
        self._at = at
        self._max_connection_age = max_connection_age
        self._metrics: Metrics | None = None
        self._effects: EffectWatcher | None = None
        self._listening = False

    def lacking(self) -> str | None:
        """Say why nobody is served yet; None: they are."""
        return (
            None
            if self._listening
            else self._source.pending_reason() or "the first configuration is being made"
        )

    @property
    def problems(self) -> Collection[Problem]:
        """What is wrong now with objects and settings, and which objects have no effect."""
        return (*self._source.problems, *(self._effects.problems if self._effects else ()))

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics: while the source is not complete, those of what is wrong with it."""
        from xds.mesh.controlplane.metrics.controlplane import StartMetrics  # noqa: PLC0415

        start = StartMetrics(lambda: self._source.problems, self._source.stale_seconds)
        return (self._metrics or start).exposed(accept)

    async def run(self, ready: str) -> None:
        """Serve until cancelled, or until something fails. CannotListenError, and whatever a part raises."""
        from xds.cli.problem_log import ProblemLog  # noqa: PLC0415

        async with aclosing(self._source.watch()) as reports:
            problem_log = ProblemLog(_log())
            change = await _first(reports, problem_log)
            serving = await self._prepare(change.config or MeshConfig())
            serving.hub.change(change)
            _say(self._source, change)
            follow = _follow(self._source, reports, serving.hub, problem_log)
            await self._serve(serving, ready, (follow, *(part() for part in serving.parts)))

    async def _serve(
        self, serving: Serving, ready: str, besides: Iterable[Coroutine[Any, Any, None]]
    ) -> None:
        from xds.introspect import Introspection  # noqa: PLC0415
        from xds.mesh.controlplane.dropped_connections import Cuts  # noqa: PLC0415
        from xds.mesh.controlplane.metrics.controlplane import Metrics  # noqa: PLC0415
        from xds.mesh.controlplane.proxies_service import ProxiesService  # noqa: PLC0415
        from xds.mesh.controlplane.rollouts_service import RolloutsService  # noqa: PLC0415
        from xds.mesh.v1 import described  # noqa: PLC0415
        from xds.server import XdsServer  # noqa: PLC0415
        from xds.server.rest import RestServer  # noqa: PLC0415

        hub, door = serving.hub, serving.door
        self._effects = serving.effects
        cuts = Cuts(hub)
        self._metrics = Metrics(
            hub, cuts, lambda: self.problems, self._source.stale_seconds, lambda: self._source.unenforced
        )
        for collector in serving.metrics:
            self._metrics.register(collector)
        identifier = f"xds {version('xds-mesh')}"
        proxies = ProxiesService(hub.missing, absences=hub.absences, problems=lambda: self.problems)
        asked = (proxies, RolloutsService(hub, cuts))
        server = XdsServer(
            hub,
            str(self._at.xds),
            identifier=identifier,
            max_connection_age=self._max_connection_age,
            observer=self._metrics.streams,
            added=[Introspection(asked, admit=door.admit if door else None, documented=described)],
            secure=door.secure if door else (),
            authenticate=door.authenticate if door else None,
        )
        failed = server.discovery.failed
        rest = (
            RestServer(hub, *self._at.rest, identifier=identifier, failed=failed, names=self._at.names)
            if self._at.rest
            else None
        )
        self._metrics.connected(server.discovery)
        work = [
            asyncio.create_task(task)
            for task in (hub.run(), cuts.run(), serving.effects.run(), self._metrics.watch_loop(), *besides)
        ]
        known = asyncio.create_task(hub.ready.wait())
        try:
            await asyncio.wait([*work, known], return_when=asyncio.FIRST_COMPLETED)
            if hub.ready.is_set():
                # The facts stay: without them a collection of garbage takes a tenth of the time, in which nobody is served.
                gc.collect()
                gc.freeze()
                await _start(*(each for each in (rest, server) if each))
                self._listening = True
                _log().info("ready", admin=ready)
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if rest:
                await rest.stop()
            await server.stop()
            for task in (*work, known):
                task.cancel()
            ended = await asyncio.gather(*work, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure


async def _start(*servers: XdsServer | RestServer) -> None:
    for server in servers:
        try:
            await server.start()
        except (OSError, RuntimeError) as error:
            raise CannotListenError(str(error)) from error


async def _first(reports: AsyncIterator[SourceUpdate], problem_log: ProblemLog) -> Change:
    """Wait until everything is known; the log is told what stands in the way."""
    async for report in reports:
        problem_log.add(report)
        if report.complete:
            return report.change
    raise RuntimeError("the source of facts ended")


async def _follow(
    source: Source, reports: AsyncIterator[SourceUpdate], hub: Hub, problem_log: ProblemLog
) -> None:
    """Tell the hub what the source says, and the log what is wrong with it."""
    async for report in reports:
        problem_log.add(report)
        if report.change != Change():
            hub.change(report.change)
            _say(source, report.change)


def _say(source: Source, change: Change) -> None:
    _log().info(source.what, applied=len(change.applied), removed=len(change.removed))


def _log() -> BoundLogger:
    import structlog  # noqa: PLC0415

    log: BoundLogger = structlog.get_logger("xds.cli.serve")
    return log
