"""`xds serve`."""

from __future__ import annotations

import asyncio
import gc
import signal
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options
from xds.cli.options import Address

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.hub import Hub
    from xds.sources.files import Folder, Report


def serve(
    *,
    manifests: options.Manifests,
    mesh_config: options.MeshConfigFile = None,
    assignments: options.Assignments = None,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="Where sidecars connect.")
    ] = "127.0.0.1:15010",
    admin_address: Annotated[
        str,
        typer.Option("--admin-address", metavar="HOST:PORT", help="Where /healthz, /ready and /metrics are."),
    ] = "127.0.0.1:15014",
    rest_address: Annotated[
        str | None,
        typer.Option(
            "--rest-address",
            metavar="HOST:PORT",
            help="Where the same is served to who polls with HTTP and JSON (POST /v3/discovery:clusters and so on). "
            "Off unless said.",
            show_default=False,
        ),
    ] = None,
    max_connection_age: Annotated[
        float,
        typer.Option(
            "--max-connection-age",
            metavar="SECONDS",
            min=0,
            help="How long a sidecar's connection lasts, give or take a tenth, before it has to connect anew: so "
            "sidecars spread over control planes that were added. 0: for ever.",
        ),
    ] = 1800,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            file_okay=False,
            help="Where the root certificate and its key are kept; made if need be. Without it they live as long "
            "as the process.",
            show_default=False,
        ),
    ] = None,
    insecure_xds: Annotated[
        bool,
        typer.Option(
            "--insecure-xds",
            help="Allow an --xds-address or --rest-address that others can reach, though nobody has to prove who they are there. "
            "No sidecar gets a private key then.",
        ),
    ] = False,
) -> None:
    """Configure sidecars from a folder of manifests, and follow its changes.

    What is wrong with a manifest is logged with file and line, and the last good version of that object stays in force.
    """
    where = {"--xds-address": options.address("--xds-address", xds_address)}
    if rest_address:
        where["--rest-address"] = options.address("--rest-address", rest_address)
    admin = options.address("--admin-address", admin_address)
    exposed = [f"{option} {at}" for option, at in where.items() if not at.is_loopback]
    if exposed and not insecure_xds:
        options.fail(
            f"{exposed[0]} can be reached by others, and xDS is neither encrypted nor authenticated here. "
            "Listen on 127.0.0.1, or say --insecure-xds (sidecars then get no private keys)"
        )
    settings = options.settings(mesh_config, assignments)
    from datetime import UTC, datetime  # noqa: PLC0415

    from xds.cli import logs  # noqa: PLC0415
    from xds.hub import Hub  # noqa: PLC0415
    from xds.sources.files import Folder  # noqa: PLC0415
    from xds.state import StateError, root_authority  # noqa: PLC0415
    from xds.translate import warm  # noqa: PLC0415

    config, _ = settings.load()
    try:
        authority = root_authority(state_dir, config.trust_domain, datetime.now(UTC))
    except StateError as error:
        options.fail(f"--state-dir: {error}", 1)
    logs.configure()
    warm()
    hub = Hub(authority, serve_keys=not exposed)
    _say_what_is_at_stake(exposed, kept=state_dir is not None)
    run = _run(
        hub,
        Folder(manifests, settings),
        where["--xds-address"],
        admin,
        rest_address=where.get("--rest-address"),
        max_connection_age=max_connection_age or None,
    )
    raise typer.Exit(asyncio.run(run))


def _say_what_is_at_stake(exposed: list[str], *, kept: bool) -> None:
    if not exposed:
        _log().warning(
            "every user of this machine can take any pod's identity: nobody has to prove who they are"
        )
    else:
        _log().warning("xDS is neither encrypted nor authenticated, and others can reach it", address=exposed)
    if not kept:
        _log().info("the root certificate is new, and lives as long as this process; --state-dir keeps it")


async def _run(
    hub: Hub,
    folder: Folder,
    where: Address,
    admin_address: Address,
    *,
    rest_address: Address | None,
    max_connection_age: float | None,
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
        return None if server.port else "the manifests are being read"

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics(hub, lambda: folder.problems)
    identifier = f"xds {version('xds')}"
    server = XdsServer(
        hub,
        str(where),
        identifier=identifier,
        max_connection_age=max_connection_age,
        observer=metrics.streams,
        added=[Introspection([ProxiesService(hub.missing)])],
    )
    rest = (
        RestServer(hub, *rest_address, identifier=identifier, failed=server.discovery.failed)
        if rest_address
        else None
    )
    metrics.connected(server.discovery)
    admin = AdminServer(lacking, *admin_address, metrics=metrics.exposed)
    tasks = (hub.run(), _follow(folder, hub), metrics.watch_loop())
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
            _log().info("ready", admin=f"http://{admin_address._replace(port=admin.port)}/ready")
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


async def _follow(folder: Folder, hub: Hub) -> None:
    """Tell the hub what the folder says, and the log what is wrong with it."""
    from xds.sources.files import watch  # noqa: PLC0415

    async for report in watch(folder):
        _log_problems(report)
        change = report.change
        if change.applied or change.removed or change.config or not hub.ready.is_set():
            hub.change(change)
            _log().info("manifests", applied=len(change.applied), removed=len(change.removed))


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
