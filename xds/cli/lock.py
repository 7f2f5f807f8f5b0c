"""`xds lock`."""

from __future__ import annotations

from typing import Annotated

import typer

from xds.cli import mode_change
from xds.cli.durations import parse_period
from xds.cli.mode_change import ModeChangeOptions
from xds.cli.option_groups import grouped_options

EXAMPLES = """
xds lock shop --dry-run
xds lock shop --observed 7d
xds lock shop/web --yes
xds lock shop --dry-run -o yaml > mesh/shop-strict.yaml
"""


@grouped_options
def lock(
    *,
    options: ModeChangeOptions,
    observed: Annotated[
        str,
        typer.Option(
            "--observed",
            metavar="DURATION",
            help="Time for which no plaintext traffic may have been observed, such as 24h or 7d (maximum).",
        ),
    ] = "24h",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Lock even if connections would break, or plaintext traffic was or may have been observed.",
        ),
    ] = False,
) -> None:
    """Set STRICT for a namespace or a workload, unless a client would break.

    Plans the change and compares it with observed traffic, as xds plan --observed does, asks for
    confirmation, applies a PeerAuthentication, and waits until it is in force. Refuses if a connection would
    break, or if plaintext traffic was observed or may have been missed. Prints the ports that accept
    plaintext even then, because of portLevelMtls, another policy, or a missing sidecar.

    For a namespace, the PeerAuthentication is named default. For a workload, it has the workload's name, and
    selects pods by its matchLabels. It is applied with field manager xds: other fields of the object stay.

    If a control plane reads files, use --dry-run -o yaml, and commit the manifest.

    Exit status: 0 locked, or the dry run found nothing that breaks, 1 refused, not confirmed, rejected by the
    API server, or not in force in time, 2 wrong usage, 3 the control plane or the API server cannot be
    reached.
    """
    mode_change.lock(options, parse_period("--observed", observed), force=force)
