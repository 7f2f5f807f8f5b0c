"""`xds demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from xds.demo.run import Options, Output, run

EXAMPLES = """
xds demo
xds demo --keep
xds demo --authorization
"""


def demo(
    *,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the processes running at the end, and print the address of the page and "
            "commands to try.",
        ),
    ] = False,
    authorization: Annotated[
        bool,
        typer.Option(
            "--authorization",
            help="After the task, apply an AuthorizationPolicy that allows one client, and delete it.",
        ),
    ] = False,
    sotw: Annotated[
        bool,
        typer.Option("--sotw", help="Use state-of-the-world xDS in sidecars instead of incremental xDS."),
    ] = False,
    output: Annotated[Output, typer.Option("-o", "--output", help="Output format.")] = "table",
) -> None:
    """Run Istio's automatic mutual TLS task with real Envoys on this machine, and verify every response.

    Pods are local processes with loopback addresses. The demo needs no cluster, no root privileges and no
    Docker, and stops everything that it starts.

    Exit status: 0 all responses are the expected ones, 1 a response does not match or the demo failed, 2 the
    demo cannot run on this machine.
    """
    raise typer.Exit(run(Options(keep=keep, authorization=authorization, sotw=sotw, output=output)))
