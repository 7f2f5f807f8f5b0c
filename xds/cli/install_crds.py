"""`xds install-crds`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options, tables

if TYPE_CHECKING:
    from xds.mesh.kube.crds import CrdStatus

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Ask the API server what would be done, and change nothing.")
]


def install_crds(
    *,
    dry_run: DryRun = False,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Create the kinds that the cluster lacks, of Policy, MeshPolicy, PeerAuthentication and DestinationRule.

    Those that are there already, Istio's say, are used as they are: never changed, never deleted. Exit status: 0 all kinds
    can be used, 1 some cannot or were refused, 2 wrong use, 3 the API server cannot be asked.
    """
    asyncio.run(_install(dry_run, kubeconfig, context))


async def _install(dry_run: bool, kubeconfig: options.Kubeconfig, context: options.Context) -> None:
    from xds.mesh.kube import crds  # noqa: PLC0415

    async with options.connected(kubeconfig, context) as api:
        found = await crds.install(api, dry_run=dry_run)
    show(found, dry_run=dry_run)
    if any(definition.problem for definition in found):
        raise typer.Exit(1)


def show(found: Iterable[CrdStatus], *, dry_run: bool) -> None:
    """Print what became of each kind."""
    from rich.text import Text  # noqa: PLC0415

    table = tables.Table("KIND", "VERSIONS", "BY", "STATUS")
    for definition in found:
        status = Text("is there already, and used as it is")
        if definition.problem:
            status = Text(f"is there already, but {definition.problem}", "red")
        elif definition.created:
            status = Text("would be created" if dry_run else "created", "green")
        table.add_row(
            Text(definition.name), Text(",".join(definition.versions)), Text(definition.owner or "-"), status
        )
    table.show()
