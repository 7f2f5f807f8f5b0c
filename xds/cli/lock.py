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
xds lock shop --manifests mesh/
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
            help="Period that must be free of observed plaintext traffic, such as 24h or 7d (maximum).",
        ),
    ] = "24h",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Lock even if connections would break, or plaintext traffic was observed or may have been "
            "missed.",
        ),
    ] = False,
) -> None:
    """Set STRICT for a namespace or a workload, unless a client would break.

    Plans the change, as xds plan --observed does, and refuses if a connection would break, or if plaintext
    traffic was observed or may have been missed. Otherwise, asks for confirmation, applies a
    PeerAuthentication, and waits until it is in force, as xds wait does. Also prints ports that would still
    accept plaintext because of portLevelMtls, another policy, or a missing sidecar.

    For a namespace, the PeerAuthentication is named default. For a workload, it has the workload's name, and
    selects pods by its matchLabels. It is applied with field manager xds. Other fields of the object are left
    unchanged.

    With a control plane that reads files, --manifests writes the PeerAuthentication to a file of its own in
    the folder; without it, the manifest is only printed. An object in another file is not changed. To commit
    the manifest to a repository, use --dry-run -o yaml.

    Exit status: 0 locked, or the dry run found nothing that breaks, 1 refused, observation is disabled,
    nothing was checked, not confirmed, rejected by the API server, in a file that is not changed, only
    printed, or not in force in time, 2 wrong usage, 3 the control plane or the API server cannot be reached.
    """
    mode_change.lock(options, parse_period("--observed", observed), force=force)
