"""`xds version`."""

from __future__ import annotations

import json
from importlib.metadata import version as installed_version
from typing import Annotated, Literal

import typer

from xds.cli.client_options import ConnectionOptions
from xds.cli.option_groups import grouped_options

EXAMPLES = """
xds version
xds version --client
xds version -o json
"""

VersionFormat = Literal["text", "json"]
"""An output format."""


@grouped_options
def version(
    *,
    client: Annotated[bool, typer.Option("--client", help="Print only the version of this program.")] = False,
    output: Annotated[VersionFormat, typer.Option("-o", "--output", help="Output format.")] = "text",
    connection: ConnectionOptions,
) -> None:
    """Print the versions of this program (client) and of the running control plane (server).

    Exit status: 0 printed, 2 wrong usage, 3 the control plane cannot be reached; the version of the client
    is printed nevertheless.
    """
    versions = {"client": installed_version("xds-mesh")}
    error: typer.Exit | None = None
    if not client:
        try:
            with connection.open() as server:
                versions["server"] = server.server_version() or "unknown (too old to send its version)"
        except typer.Exit as exit_:
            error = exit_
    if output == "json":
        typer.echo(json.dumps(versions, indent=2))
    else:
        for side, text in versions.items():
            typer.echo(f"{side}: {text}")
    if error:
        raise error
