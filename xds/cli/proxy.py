"""`xds proxy`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options
from xds.mesh.sidecar import settings

if TYPE_CHECKING:  # heavy
    from xds.mesh.sidecar.environment import Sidecar


def proxy(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print Envoy's bootstrap, as JSON, and start nothing.")
    ] = False,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="Have the sidecar that runs here give up its connections, and wait for what is in flight: "
            "the preStop hook of its container.",
        ),
    ] = False,
    envoy: Annotated[
        str, typer.Option(metavar="FILE", envvar=settings.ENVOY.name, help=settings.ENVOY.description)
    ] = "",
    sds: Annotated[
        str, typer.Option(metavar="unix:///PATH", envvar=settings.SDS.name, help=settings.SDS.description)
    ] = "",
) -> None:
    """Become the Envoy of this pod, as its environment describes: what a sidecar's container runs.

    Signals and the exit status are Envoy's own. docs/sidecar.md lists the environment: POD_NAME, POD_NAMESPACE and INSTANCE_IP must
    be there.
    """
    sidecar = _read(sds)
    if drain:
        _drain(sidecar)
    elif dry_run:
        from xds.codec import to_json_dict  # noqa: PLC0415

        typer.echo(json.dumps(to_json_dict(sidecar.bootstrap()), indent=2))
    else:
        _become(sidecar, envoy)


def _read(sds: str) -> Sidecar:
    from xds.mesh.sidecar import environment  # noqa: PLC0415

    variables = os.environ | ({settings.SDS.name: sds} if sds else {})
    file = Path(variables.get(settings.LABELS_FILE.name) or settings.LABELS_FILE.default or "")
    try:
        labels = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        labels = ""
    except OSError as error:
        options.fail(f"{file}: {error.strerror}", 1)
    sidecar, problems = environment.read(variables, labels)
    if problems:
        options.show(problems)
        # What the kubelet knows by now it says to a new container only: it starts us again.
        raise typer.Exit(1)
    return sidecar


def _become(sidecar: Sidecar, envoy: str) -> None:
    from xds.mesh.sidecar import running  # noqa: PLC0415

    try:
        binary = running.find_envoy(envoy)
        running.wait_for_files(sidecar, report=lambda message: typer.echo(f"xds: {message}", err=True))
        running.exec_envoy(running.envoy_command(sidecar, binary))
    except running.StartError as error:
        options.fail(str(error), 1)


def _drain(sidecar: Sidecar) -> None:
    from xds.mesh.envoy.bootstrap import own_address  # noqa: PLC0415
    from xds.mesh.sidecar import draining  # noqa: PLC0415

    try:
        left = draining.drain(own_address(sidecar.pod), sidecar.drain_seconds)
    except draining.DrainError as error:
        options.fail(str(error), 1)
    if left:
        typer.echo(
            f"xds: after {sidecar.drain_seconds} s, {left} connections or requests are in flight", err=True
        )
