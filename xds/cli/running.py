"""What runs when `xds serve` does: the hub, its source, the servers, and parts that others add; until a signal."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from xds.cli.options import Address

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.hub import Hub
    from xds.model import Problem
    from xds.sources.report import Report

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

    def watch(self) -> AsyncIterator[Report]:
        """Yield everything, then what is different, without end."""

    def lacking(self) -> str:
        """Say what is not known yet, for who asks whether we are ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where to listen."""

    xds: Address
    admin: Address
    rest: Address | None = None


async def run(
    hub: Hub,
    source: Source,
    at: Addresses,
    *,
    max_connection_age: float | None,
    parts: Sequence[Part] = (),
) -> int:
    """Serve until a signal asks to end; return the exit status."""
    from xds.admin import AdminServer  # noqa: PLC0415
    from xds.introspect import Introspection  # noqa: PLC0415
    from xds.introspect.proxies import ProxiesService  # noqa: PLC0415
    from xds.metrics.controlplane import Metrics  # noqa: PLC0415
    from xds.server import XdsServer  # noqa: PLC0415
    from xds.server.rest import RestServer  # noqa: PLC0415

    def lacking() -> str | None:
        if stop.is_set():
            return "shutting down"
        return None if server.port else source.lacking()

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics(hub, lambda: source.problems)
    identifier = f"xds {version('xds')}"
    server = XdsServer(
        hub,
        str(at.xds),
        identifier=identifier,
        max_connection_age=max_connection_age,
        observer=metrics.streams,
        added=[Introspection([ProxiesService(hub.missing)])],
    )
    rest = (
        RestServer(hub, *at.rest, identifier=identifier, failed=server.discovery.failed) if at.rest else None
    )
    metrics.connected(server.discovery)
    admin = AdminServer(lacking, *at.admin, metrics=metrics.exposed)
    tasks = (hub.run(), _follow(source, hub), metrics.watch_loop(), *(part() for part in parts))
    work = [asyncio.create_task(task) for task in tasks]
    events = [asyncio.create_task(stop.wait()), asyncio.create_task(hub.ready.wait())]
    try:
        await admin.start()
        await asyncio.wait([*work, *events], return_when=asyncio.FIRST_COMPLETED)
        if hub.ready.is_set():
            # The facts stay: without them a collection of garbage takes a tenth of the time, in which nobody is served.
            gc.collect()
            gc.freeze()
            if rest:
                await rest.start()
            await server.start()
            _log().info("ready", admin=f"http://{at.admin._replace(port=admin.port)}/ready")
            await asyncio.wait([*work, events[0]], return_when=asyncio.FIRST_COMPLETED)
    except (OSError, RuntimeError) as error:
        _log().error("cannot listen", problem=str(error))
        return 1
    finally:
        if rest:
            await rest.stop()
        await server.stop()
        for task in (*work, *events):
            task.cancel()
        ended = await asyncio.gather(*work, return_exceptions=True)
        await admin.stop()
    if stop.is_set():
        _log().info("stopped")
        return 0
    for failure in ended:
        if isinstance(failure, Exception):
            _log().error("stopped by an error", exc_info=failure)
    return 1


async def _follow(source: Source, hub: Hub) -> None:
    """Tell the hub what the source says, and the log what is wrong with it."""
    async for report in source.watch():
        _log_problems(report)
        change = report.change
        if change.applied or change.removed or change.config or not hub.ready.is_set():
            hub.change(change)
            _log().info(source.what, applied=len(change.applied), removed=len(change.removed))


def _log_problems(report: Report) -> None:
    for problem in report.problems:
        said = {"where": problem.where, "what": problem.what} | (
            {"hint": problem.hint} if problem.hint else {}
        )
        if problem.notice:
            _log().info("notice", **said)
        else:
            _log().warning("problem", **said)
    for problem in report.solved:
        if not problem.notice:
            _log().info("solved", where=problem.where, what=problem.what)


def _log() -> BoundLogger:
    import structlog  # noqa: PLC0415

    log: BoundLogger = structlog.get_logger("xds.cli.serve")
    return log
