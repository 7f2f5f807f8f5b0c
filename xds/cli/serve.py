"""`xds serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options
from xds.cli.running import Addresses, Part, Serving, run

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.model import MeshConfig


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

    async def prepare(config: MeshConfig) -> Serving:
        try:
            authority = root_authority(state_dir, config.trust_domain, datetime.now(UTC))
        except StateError as error:
            options.fail(f"--state-dir: {error}", 1)
        _say_what_is_at_stake(exposed, kept=state_dir is not None)
        parts: list[Part] = []  # each that is to run besides is added here
        return Serving(Hub(authority, serve_keys=not exposed), parts)

    logs.configure()
    warm()
    at = Addresses(xds=where["--xds-address"], admin=admin, rest=where.get("--rest-address"))
    source = Folder(manifests, settings)
    raise typer.Exit(asyncio.run(run(source, prepare, at, max_connection_age=max_connection_age or None)))


def _say_what_is_at_stake(exposed: list[str], *, kept: bool) -> None:
    if not exposed:
        _log().warning(
            "every user of this machine can take any pod's identity: nobody has to prove who they are"
        )
    else:
        _log().warning("xDS is neither encrypted nor authenticated, and others can reach it", address=exposed)
    if not kept:
        _log().info("the root certificate is new, and lives as long as this process; --state-dir keeps it")


def _log() -> BoundLogger:
    import structlog  # noqa: PLC0415

    log: BoundLogger = structlog.get_logger("xds.cli.serve")
    return log
