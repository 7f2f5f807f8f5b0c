"""What several subcommands have in common: their options, and how they end when something is wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

from xds.mesh.model.objects import printable

if TYPE_CHECKING:  # heavy; every subcommand imports this module
    from xds.mesh.kube.api import KubeApi
    from xds.mesh.model.mesh import Mesh
    from xds.mesh.model.objects import MeshConfig, Pod, Problem
    from xds.mesh.sources.settings import SettingsLoader

MOST_NOTICES = 20
"""How many notices are shown; who passes a whole cluster over to us need not read of each ConfigMap."""

UNREADABLE = (
    "the manifests are not used until every document in them can be read: any of them may be a policy"
)
"""Why nothing is predicted, translated or issued."""

MANIFESTS = typer.Option(
    "--manifests",
    metavar="DIR",
    exists=True,
    file_okay=False,
    help="Folder of Kubernetes and Istio objects: *.yaml, *.yml and *.json, as kubectl takes them.",
)
Manifests = Annotated[Path, MANIFESTS]
MeshConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--mesh-config", metavar="FILE", exists=True, dir_okay=False, help="Istio's MeshConfig, as YAML."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, over those of --mesh-config: values.global.mtls.auto=true, "
        "values.global.mtls.enabled=false (the defaults), or meshConfig.KEY=VALUE. Can be repeated.",
    ),
]

Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Where the API server is, and who we are there. Default: the pod's own service account, else what "
        "kubectl uses.",
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="The kubeconfig's context to use.", show_default=False),
]


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def address(option: str, text: str) -> Address:
    """Read an option's HOST:PORT; an IPv6 address is in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and host[0] + host[-1] != "[]"):
        raise typer.BadParameter(
            f"{text!r} is not HOST:PORT, such as 127.0.0.1:15010", param_hint=f"'{option}'"
        )
    return Address(host.strip("[]"), int(port))


def show(problems: Iterable[Problem]) -> None:
    """Print problems to stderr, one a line, in the form that editors and CI systems find files in."""
    notices = 0
    for problem in problems:
        notices += problem.notice
        if not problem.notice or notices <= MOST_NOTICES:
            kind = typer.style("notice", dim=True) if problem.notice else typer.style("problem", fg="red")
            said = problem.what + (f" ({problem.hint})" if problem.hint else "")
            typer.echo(f"{printable(problem.where)}: {kind}: {printable(said)}", err=True)
    if notices > MOST_NOTICES:
        typer.echo(f"... and {notices - MOST_NOTICES} more notices", err=True)


def fail(message: str, status: int = 2) -> NoReturn:
    """End with a message: 2 for wrong use, 1 for a no."""
    typer.echo(f"xds: {message}", err=True)
    raise typer.Exit(status)


@asynccontextmanager
async def connected(kubeconfig: Path | None, context: str | None) -> AsyncIterator[KubeApi]:
    """Connect to the API server; end with what it says if it refuses something (1) or cannot be asked (3)."""
    from xds.mesh.kube.api import KubeApi, KubeConfigError, KubeError  # noqa: PLC0415

    try:
        async with await KubeApi.connect(kubeconfig, context) as api:
            yield api
    except KubeConfigError as error:
        fail(str(error))
    except KubeError as error:
        fail(str(error), 1 if error.status else 3)


def settings(config: Path | None, assignments: list[str] | None) -> tuple[SettingsLoader, MeshConfig]:
    """Return the mesh's settings, to be read again, and as they are now; exit with status 2 if they cannot be used."""
    from xds.mesh.sources.settings import SettingsLoader  # noqa: PLC0415

    read = SettingsLoader(config, assignments or ())
    found, problems = read.load()
    if found is None:
        show(problems)
        raise typer.Exit(2)
    return read, found


def load(manifests: Path, config: Path | None = None, assignments: list[str] | None = None) -> Mesh:
    """Read everything once, and show what is wrong with it; exit with status 2 if that hides which objects there are."""
    mesh, problems = read(manifests, config, assignments)
    show(problems)
    return mesh


def read(
    manifests: Path, config: Path | None = None, assignments: list[str] | None = None
) -> tuple[Mesh, tuple[Problem, ...]]:
    """Read everything once; return what is wrong with it, too. Exit with status 2 if that hides which objects there are."""
    from xds.mesh.model.mesh import Mesh  # noqa: PLC0415
    from xds.mesh.sources.files import Folder  # noqa: PLC0415

    try:
        report = Folder(manifests, settings(config, assignments)[0]).load()
    except OSError as error:
        fail(f"{manifests}: {error.strerror}")
    if not report.complete:
        show(report.problems)
        fail(UNREADABLE)
    return Mesh(report.change.applied, report.change.config), report.problems


def find_pod(mesh: Mesh, name: str) -> Pod:
    """Return the pod POD.NAMESPACE, or end with what could have been meant."""
    pod, _, namespace = name.rpartition(".")
    found = mesh.pod(namespace, pod)
    if found is None:
        unknown("pod", name, [f"{pod.name}.{pod.namespace}" for pod in mesh.pods()], "POD.NAMESPACE")
    return found


def unknown(kind: str, name: str, known: list[str], form: str) -> NoReturn:
    """End because there is nothing of that name; suggest what there is."""
    import difflib  # noqa: PLC0415

    # What a name is without its namespace, and a Deployment's without the rest of the pod's.
    first, _, rest = name.rpartition(".")
    begin = [each for each in known if each.startswith((f"{name}.", f"{first}-")) and each.endswith(rest)]
    begin += [each for each in known if each.split(".")[0] == name and each not in begin]
    similar = begin or difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    shown = ", ".join(similar[:5]) + (", ..." if len(similar) > 5 else "")
    if not known:
        fail(f"there is no {kind} {name}: the manifests have none at all")
    asked = "did you mean" if similar is not known else "there are"
    fail(f"there is no {kind} {name} ({form}); {asked} {shown}" + ("?" if asked.startswith("did") else ""))
