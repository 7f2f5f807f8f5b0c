"""Shared options of subcommands, and functions that report an error and exit.

Every subcommand imports this module, so it must be cheap to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from xds.mesh.model.names import host_port, unknown_name
from xds.mesh.model.objects import printable

if TYPE_CHECKING:
    from xds.mesh.model.objects import Problem

MAX_NOTICES = 20
"""Maximum number of notices that one run prints. A dump of a whole cluster can cause one per ConfigMap."""

OBSERVATION_DISABLED = "observation is disabled: start xds serve with --observe=true"
"""Error if a command needs observed traffic."""
EXIT_UNREACHABLE = 3
"""Exit status if a control plane, an API server or Envoy cannot be reached."""


STDIN = "-"
"""Name of standard input as a file."""


def file_option(option: str, help_text: str) -> Any:
    """Return an option with the path of an existing file."""
    return typer.Option(option, metavar="FILE", exists=True, dir_okay=False, help=help_text)


def namespace_option(help_text: str) -> Any:
    """Return an option with the namespace to print."""
    return typer.Option("-n", "--namespace", metavar="NS", callback=_check_not_empty, help=help_text)


def _check_not_empty(name: str | None) -> str | None:
    if name == "":
        fail("--namespace must not be empty: omit it to print all namespaces")
    return name


Manifests = Annotated[
    list[str] | None,
    typer.Option(
        "--manifests",
        metavar="PATH",
        help="Folder, file, kustomization, or - for stdin, with Kubernetes and Istio objects, as for kubectl "
        "apply. Can be repeated.",
    ),
]


def _check_namespace(name: str | None) -> str | None:
    from xds.mesh.parse.names import label  # noqa: PLC0415 - slow to import

    if name is not None and (error := label(name)):
        raise typer.BadParameter(f"{name!r} {error}")
    return name


def _check_ignored(names: list[str] | None) -> list[str] | None:
    if names:
        from xds.mesh.inject.kinds import why_not_ignored  # noqa: PLC0415 - slow to import

        for name in names:
            if reason := why_not_ignored(name):
                raise typer.BadParameter(reason)
    return names


DefaultNamespace = Annotated[
    str | None,
    typer.Option(
        "--default-namespace",
        metavar="NAME",
        callback=_check_namespace,
        help="Namespace of objects in files that do not specify one, as for kubectl apply -n. "
        "Default: default.",
    ),
]
IgnoredKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-kind",
        metavar="KIND",
        callback=_check_ignored,
        help="Kind that is handled elsewhere, such as VirtualService or virtualservices.networking.istio.io: "
        "only count its objects in files. Kinds that answers depend on cannot be ignored. Can be repeated.",
    ),
]
FromKubernetes = Annotated[
    bool,
    typer.Option(
        "--kubernetes",
        help="Read objects and mesh settings once from a Kubernetes cluster, instead of --manifests.",
    ),
]
MeshConfigFile = Annotated[
    Path | None,
    file_option("--mesh-config", "Istio MeshConfig file (YAML)."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a mesh setting: meshConfig.KEY=VALUE, values.global.mtls.auto=BOOL (default true) or "
        "values.global.mtls.enabled=BOOL (default false). Can be repeated.",
    ),
]

Kubeconfig = Annotated[
    Path | None,
    file_option(
        "--kubeconfig",
        "Path to a kubeconfig file. Default: the pod's service account in a cluster, else the "
        "kubeconfig that kubectl uses.",
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Kubeconfig context to use. Default: the current context."
    ),
]
XdsNamespace = Annotated[
    str | None,
    typer.Option(
        "--xds-namespace",
        metavar="NAME",
        help="Namespace of the control plane, which has the ConfigMap and mesh-wide policies. Requires "
        "--kubernetes. Default: the pod's namespace in a cluster, else istio-system.",
    ),
]
MeshConfigMap = Annotated[
    str | None,
    typer.Option(
        "--mesh-config-map",
        metavar="NAME",
        help="ConfigMap in the control plane's namespace with an Istio MeshConfig in the key mesh, such as "
        "Istio's ConfigMap istio. Requires --kubernetes. Default: xds.",
    ),
]
ControlPlaneNamespace = Annotated[
    str | None,
    typer.Option(
        "--xds-namespace",
        metavar="NAME",
        help="Namespace of the control plane in the cluster. Default: istio-system.",
    ),
]
AllNamespaces = Annotated[
    bool, typer.Option("-A", "--all-namespaces", help="Print all namespaces. This is the default.")
]


class ClusterReference(NamedTuple):
    """How to find a Kubernetes cluster, and the control plane's settings in it."""

    kubeconfig: Path | None
    """Path to a kubeconfig file; None for the default."""
    context: str | None
    """Name of a kubeconfig context; None for the current one."""
    namespace: str | None
    """Namespace of the control plane; None for the default."""
    mesh_config_map: str | None = None
    """Name of the ConfigMap with the mesh's settings; None for the default."""


class Reading(NamedTuple):
    """How to read manifests."""

    default_namespace: str = ""
    """Namespace of objects that do not specify one; empty for `default`, with a notice."""
    ignored_kinds: Sequence[str] = ()
    """Kinds whose objects are only counted."""


AS_WRITTEN = Reading()
"""How to read manifests without options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Options of a command that reads manifests or a cluster."""

    manifests: Manifests = None
    default_namespace: DefaultNamespace = None
    ignored_kinds: IgnoredKinds = None
    kubernetes: FromKubernetes = False
    kubeconfig: Kubeconfig = None
    context: Context = None
    xds_namespace: XdsNamespace = None
    mesh_config_map: MeshConfigMap = None
    mesh_config: MeshConfigFile = None
    assignments: Assignments = None

    def reading(self, filenames: Sequence[str] = ()) -> Reading:
        """How to read manifests. Exits with status 2 if there are none.

        Args:
            filenames: files of the command's option -f.
        """
        reading = Reading(self.default_namespace or "", self.ignored_kinds or ())
        if reading != AS_WRITTEN and not (self.manifests or filenames):
            fail("--default-namespace and --ignore-kind require manifests")
        return reading

    @property
    def cluster(self) -> ClusterReference | None:
        """The cluster that --kubernetes selects; None without it. Exits with status 2 on wrong usage."""
        options = {
            "--kubeconfig": self.kubeconfig,
            "--context": self.context,
            "--xds-namespace": self.xds_namespace,
            "--mesh-config-map": self.mesh_config_map,
        }
        for option, value in options.items():
            if value and not self.kubernetes:
                fail(f"{option} requires --kubernetes")
        if not self.kubernetes:
            return None
        return ClusterReference(self.kubeconfig, self.context, self.xds_namespace, self.mesh_config_map)


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


def parse_address(option: str, text: str) -> Address:
    """Parse an option's HOST:PORT. An IPv6 address must be in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and host[0] + host[-1] != "[]"):
        raise typer.BadParameter(
            f"{text!r} is not HOST:PORT, such as 127.0.0.1:15010", param_hint=f"'{option}'"
        )
    return Address(host.strip("[]"), int(port))


def parse_pull_policy(option: str, text: str) -> None:
    """Check an option's image pull policy."""
    if text not in ("Always", "IfNotPresent", "Never"):
        raise typer.BadParameter(f"{text!r} is not Always, IfNotPresent or Never", param_hint=f"'{option}'")


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


def print_not_considered(phrases: Iterable[str], *, err: bool = True) -> None:
    """Print what an answer does not consider, and could change it."""
    for phrase in phrases:
        typer.echo(f"Not considered: {printable(phrase)}", err=err)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error and exit. Status 2 means wrong usage; 1 means that a check or operation failed."""
    typer.echo(f"xds: {message}", err=True)
    raise typer.Exit(status)


def fail_unreachable(message: str) -> NoReturn:
    """Print why something cannot be reached, and exit."""
    fail(message, EXIT_UNREACHABLE)


def fail_unknown(kind: str, name: str, known: list[str], form: str) -> NoReturn:
    """Print that no object has the name, with similar names, and exit. See `unknown_name`."""
    fail(unknown_name(kind, name, known, form))
