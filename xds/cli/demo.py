"""`xds demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from xds.demo.run import Options, Output, run


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep everything running afterwards, and say what to try.")
    ] = False,
    sotw: Annotated[
        bool, typer.Option("--sotw", help="Sidecars use state-of-the-world xDS instead of incremental.")
    ] = False,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="Tables for people, or JSON for programs.")
    ] = Output.TABLE,
) -> None:
    """Play Istio's automatic mutual TLS task with real Envoys on this machine, and check every answer.

    Pods are local processes with loopback addresses of their own: no cluster, no root, no Docker. Nothing is left
    running. Exit status: 0 all answers are as on Istio's page, 1 some are not, 2 the demo cannot run here.
    """
    raise typer.Exit(run(Options(keep=keep, sotw=sotw, output=output)))
