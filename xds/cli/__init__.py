"""The command `xds`. Each subcommand is a module of its own, imported when it is asked for: some are heavy."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_COMMANDS = {
    "serve": "Configure sidecars from a folder of manifests, and follow its changes.",
    "bootstrap": "Print the Envoy bootstrap of a pod's sidecar.",
    "inject": "Add the sidecar to the pods of manifests, for kubectl apply.",
    "install": "Install the control plane into a Kubernetes cluster, or bring it up to date.",
    "install-crds": "Create the kinds of objects that a cluster lacks, and leave those that it has.",
    "rotate-root": "Begin to replace a cluster's root certificate, or say how far that is.",
    "translate": "Print the configuration that a pod's sidecar gets.",
    "reach": "Say who reaches whom, encrypted or not, and why.",
    "status": "Say how far each connected sidecar is: synced, waiting for what, or what it rejected and why.",
    "proxy": "Become the Envoy of this pod: what a sidecar's container runs.",
    "init": "Redirect a pod's traffic to its sidecar, with iptables: what an init container does.",
    "token": "Give sidecars outside of Kubernetes the tokens by which they prove who they are.",
    "demo": "Play Istio's automatic mutual TLS task with real Envoys.",
}


class _Commands(TyperGroup):
    """The subcommands, by name."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        app = _app()
        name = cmd_name.replace("-", "_")
        app.command(cmd_name)(getattr(import_module(f"xds.cli.{name}"), name))
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _app(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **options,
    )


def _version(value: bool) -> None:
    if value:
        typer.echo(f"xds {version('xds-mesh')}")
        raise typer.Exit


app = _app(cls=_Commands, no_args_is_help=True)


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Automatic mutual TLS for Envoy sidecars: an xDS control plane in pure Python."""


def main() -> None:
    """Run the command line."""
    app(prog_name="xds")
