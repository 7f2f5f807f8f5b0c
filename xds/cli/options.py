"""Options that several subcommands share, and how a subcommand reports an error and exits.

Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

from xds.mesh.model.objects import printable

if TYPE_CHECKING:
    from xds.mesh.model.objects import Problem

MAX_NOTICES = 20
"""Notices that one run prints. A dump of a whole cluster can have one for each ConfigMap."""

MANIFESTS = typer.Option(
    "--manifests",
    metavar="DIR",
    exists=True,
    file_okay=False,
    help="Folder of Kubernetes and Istio objects: *.yaml, *.yml and *.json, as for kubectl apply.",
)
Manifests = Annotated[Path, MANIFESTS]
MeshConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--mesh-config", metavar="FILE", exists=True, dir_okay=False, help="Istio MeshConfig, as YAML."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of --mesh-config: meshConfig.KEY=VALUE, values.global.mtls.auto=BOOL "
        "(default true) or "
        "values.global.mtls.enabled=BOOL (default false). Can be repeated.",
    ),
]

Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Path to a kubeconfig file. Default: the pod's service account, or else the kubeconfig "
        "that kubectl uses.",
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context of the kubeconfig to use.", show_default=False),
]


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(option: str, text: str) -> Address:
    """Parse the HOST:PORT of an option; an IPv6 address is in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and host[0] + host[-1] != "[]"):
        raise typer.BadParameter(
            f"{text!r} is not HOST:PORT, such as 127.0.0.1:15010", param_hint=f"'{option}'"
        )
    return Address(host.strip("[]"), int(port))


def print_problems(problems: Iterable[Problem]) -> None:
    """Print problems to stderr, one per line, in a format that editors and CI systems recognize."""
    notices = 0
    for problem in problems:
        notices += problem.notice
        if not problem.notice or notices <= MAX_NOTICES:
            kind = typer.style("notice", dim=True) if problem.notice else typer.style("problem", fg="red")
            message = problem.what + (f" ({problem.hint})" if problem.hint else "")
            typer.echo(f"{printable(problem.where)}: {kind}: {printable(message)}", err=True)
    if notices > MAX_NOTICES:
        typer.echo(f"... and {notices - MAX_NOTICES} more notices", err=True)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error and exit. Status 2 is wrong usage, 1 is a failed check or operation."""
    typer.echo(f"xds: {message}", err=True)
    raise typer.Exit(status)


def fail_unknown(kind: str, name: str, known: list[str], form: str) -> NoReturn:
    """Exit because no object has the name; suggest known names."""
    if not known:
        fail(f"there is no {kind} {name}: the manifests contain no {kind}")
    # A name without its namespace, or a Deployment's name without the suffix of its pods.
    first, _, rest = name.rpartition(".")
    completions = [
        each for each in known if each.startswith((f"{name}.", f"{first}-")) and each.endswith(rest)
    ]
    completions += [each for each in known if each.split(".")[0] == name and each not in completions]
    similar = completions or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    names = similar or known
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    hint = f"did you mean {shown}?" if similar else f"known: {shown}"
    fail(f"there is no {kind} {name} ({form}); {hint}")
