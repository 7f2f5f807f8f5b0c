"""`xds install-crds`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from xds.cli import cluster
from xds.cli.options import Context, Kubeconfig
from xds.cli.tables import Table
from xds.mesh.kube import crds
from xds.mesh.kube.crds import CrdStatus

EXAMPLES = """
xds install-crds --dry-run
xds install-crds --context staging
"""

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Send dry-run requests to the API server, which change nothing.")
]


def install_crds(
    *,
    dry_run: DryRun = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Create missing CustomResourceDefinitions: authentication policies and DestinationRules.

    Idempotent: existing definitions, such as Istio's, are used and left untouched.

    Exit status: 0 all kinds can be used, 1 a kind cannot be used or the API server rejected a request, 2
    wrong usage, 3 the API server cannot be reached.
    """
    asyncio.run(_install(dry_run, kubeconfig, context))


async def _install(dry_run: bool, kubeconfig: Path | None, context: str | None) -> None:
    async with cluster.connect(kubeconfig, context) as api:
        definitions = await crds.install(api, dry_run=dry_run)
    print_definitions(definitions, dry_run=dry_run)
    if any(definition.problem for definition in definitions):
        raise typer.Exit(1)


def print_definitions(definitions: Iterable[CrdStatus], *, dry_run: bool) -> None:
    """Print the status of each definition."""
    table = Table("KIND", "VERSIONS", "BY", "STATUS")
    for definition in definitions:
        status = Text("exists, left untouched")
        if definition.problem:
            status = Text(f"exists, but {definition.problem}", "red")
        elif definition.created:
            status = Text("would be created" if dry_run else "created", "green")
        table.add_row(definition.name, ",".join(definition.versions), definition.owner or "-", status)
    table.show()
