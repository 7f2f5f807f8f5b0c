"""The command `xds`.

Each subcommand is a function in its own module, `xds.cli.NAME`. The module is imported only when the
subcommand runs or prints its help, so `xds --help` is fast.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from xds.cli import startup
from xds.cli.plain import Command, plain_error

if TYPE_CHECKING:
    from typer._click.shell_completion import CompletionItem

_COMMANDS = {
    "serve": "Run the control plane for a folder of manifests or a Kubernetes cluster.",
    "new": "Write a small mesh of two services that runs on this machine.",
    "bootstrap": "Print the Envoy bootstrap of a pod's sidecar.",
    "inject": "Add sidecars to the pods in manifests.",
    "install": "Install or upgrade the control plane in a Kubernetes cluster.",
    "check": "Check a cluster, an installed control plane and its sidecars.",
    "install-crds": "Create missing CustomResourceDefinitions in a Kubernetes cluster.",
    "rotate-root": "Start or inspect the rotation of a cluster's root certificate.",
    "translate": "Print the configuration of a pod's sidecar.",
    "reach": "Print which connections use mutual TLS, use plaintext, or fail.",
    "validate": "Check manifests, and print their problems with file and line.",
    "plan": "Print which connections a change breaks, encrypts or repairs, before it is applied.",
    "generate": "Print AuthorizationPolicies that allow the traffic in a record, and nothing else.",
    "prove": "Prove who may connect to which servers, or print counterexamples.",
    "diff": "Print which access clients gain and lose between two states of the manifests.",
    "lock": "Set STRICT for a namespace or workload, unless a client would break.",
    "unlock": "Let a namespace or workload accept plaintext again.",
    "explain": "Print why a connection uses mutual TLS, uses plaintext, or fails.",
    "describe": "Print the Services, modes and refused clients of a pod.",
    "status": "Print the sync status of connected sidecars, or the progress of rollouts.",
    "observe": "Print the traffic that sidecars report: who sends what to which service, and how.",
    "report": "Print evidence for an auditor, or verify it: modes, access, certificates, exceptions.",
    "dashboard": "Open the control plane's page in a browser.",
    "problems": "Print the objects that are rejected or have no effect.",
    "wait": "Wait until all sidecars have ACKed a policy or DestinationRule.",
    "config": "Print the configuration that a connected sidecar is served.",
    "proxy": "Run Envoy in a sidecar container.",
    "init": "Redirect a pod's traffic to its sidecar with iptables.",
    "token": "Issue tokens for sidecars outside Kubernetes.",
    "conformance": "Check an xDS server against the rules of the protocol.",
    "demo": "Run Istio's automatic mutual TLS task with real Envoys on this machine.",
    "completion": "Print a completion script for bash, zsh or fish.",
    "version": "Print the versions of this program and of the control plane.",
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
        # gRPC reads this at import time. It would log every failed handshake, and errors that we report.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        name = cmd_name.replace("-", "_")
        module = import_module(f"xds.cli.{name}")
        app = _app()
        app.command(cmd_name, cls=Command, epilog=_examples(module))(getattr(module, name))
        command = typer.main.get_command(app)
        if ctx.resilient_parsing:  # typer's word for completion
            from xds.cli.completers import add_completers  # noqa: PLC0415

            add_completers(command)
        startup.finish()
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = plain_error(error.message)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        is_known = args[0] in _COMMANDS or args[0] in _HIDDEN
        if not (is_known or args[0].startswith("-") or ctx.resilient_parsing):
            similar = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" (did you mean {similar[0]}?)" if similar else ""
            ctx.fail(f"unknown command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        # typer would import the module of every command.
        from typer._click.shell_completion import CompletionItem  # noqa: PLC0415

        names = [*_COMMANDS, "--help", "--version"]
        return [
            CompletionItem(name, help=_COMMANDS.get(name))
            for name in names
            if name.startswith(incomplete) and (incomplete or name in _COMMANDS)
        ]

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
        from importlib.metadata import version  # noqa: PLC0415 - slow to import

        typer.echo(f"xds {version('xds-mesh')}")
        raise typer.Exit


app = _app(cls=_LazyGroup, no_args_is_help=True)


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A control plane for Envoy sidecars: automatic mutual TLS between the services of a mesh."""
    if os.environ.get("NO_COLOR"):
        context.color = False


def main() -> None:
    """Run the command line."""
    startup.start()
    if "_XDS_COMPLETE" in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415

        completion_init()
        if "COMP_WORDS" in os.environ:
            from xds.cli.completers import join_assignments  # noqa: PLC0415

            words, index = join_assignments(
                os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
            )
            os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(index)}
    app(prog_name="xds")
