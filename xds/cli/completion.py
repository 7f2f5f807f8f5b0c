"""`xds completion`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

EXAMPLES = """
source <(xds completion bash)
xds completion zsh > "${fpath[1]}/_xds"
xds completion fish > ~/.config/fish/completions/xds.fish
"""

Shell = Literal["bash", "zsh", "fish"]
"""A shell."""


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script that completes commands, options and names in a shell.

    Names of pods, services and namespaces come from the folder in --manifests, or else from the running
    control plane.
    """
    typer.echo(get_completion_script(prog_name="xds", complete_var="_XDS_COMPLETE", shell=shell))
