"""The command `xds`.

Each subcommand is a function in its own module, `xds.cli.NAME`. The module is imported only when the
subcommand runs or prints its help, so `xds --help` is fast.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_COMMANDS = {
    "serve": "Run the control plane for a folder of manifests or a Kubernetes cluster.",
    "new": "Write a small mesh of two services that runs on this machine.",
    "bootstrap": "Print the Envoy bootstrap of a pod's sidecar.",
    "inject": "Add sidecars to the pods in manifests.",
    "install": "Install or upgrade the control plane in a Kubernetes cluster.",
    "install-crds": "Create missing CustomResourceDefinitions in a Kubernetes cluster.",
    "rotate-root": "Start or inspect the rotation of a cluster's root certificate.",
    "translate": "Print the configuration of a pod's sidecar.",
    "reach": "Print which connections use mutual TLS, use plaintext, or fail.",
    "validate": "Check manifests, and print their problems with file and line.",
    "plan": "Print which connections a change breaks, encrypts or repairs, before it is applied.",
    "explain": "Print why a connection uses mutual TLS, uses plaintext, or fails.",
    "describe": "Print the Services, modes and refused clients of a pod.",
    "status": "Print the sync status of connected sidecars, or the progress of rollouts.",
    "problems": "Print the objects that are rejected or have no effect.",
    "wait": "Wait until all sidecars have ACKed a policy or DestinationRule.",
    "config": "Print the configuration that a connected sidecar is served.",
    "proxy": "Run Envoy in a sidecar container.",
    "init": "Redirect a pod's traffic to its sidecar with iptables.",
    "token": "Issue tokens for sidecars outside Kubernetes.",
    "demo": "Run Istio's automatic mutual TLS task with real Envoys on this machine.",
}


_HIDDEN = {"authn": ("tls-check", "explain")}
"""Hidden groups with one subcommand, which is another name of a command. istioctl had `authn tls-check`."""


class _LazyGroup(TyperGroup):
    """A group that imports the module of a subcommand on demand."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _HIDDEN:
            alias, original = _HIDDEN[cmd_name]
            command = self.get_command(ctx, original)
            return TyperGroup(name=cmd_name, commands={alias: command}, hidden=True, rich_markup_mode=None)
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name == "serve":
            # Without this, gRPC logs every failed handshake. It reads the variable at import time.
            os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        name = cmd_name.replace("-", "_")
        module = import_module(f"xds.cli.{name}")
        app = _app()
        app.command(cmd_name, epilog=_examples(module))(getattr(module, name))
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _examples(module: Any) -> str | None:
    """Format the module's EXAMPLES, one command per line, as the end of the help text."""
    examples = getattr(module, "EXAMPLES", "").strip()
    if not examples:
        return None
    lines = "\n".join(f"  {line}" for line in examples.splitlines())
    return f"\b\nExamples:\n{lines}"  # click does not rewrap a paragraph that starts with \b


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


app = _app(cls=_LazyGroup, no_args_is_help=True)


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A control plane for Envoy sidecars: automatic mutual TLS between the services of a mesh."""


def main() -> None:
    """Run the command line."""
    app(prog_name="xds")
