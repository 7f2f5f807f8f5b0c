"""`xds diff`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.text import Text

from xds.cli.manifests import ReadMesh, read_mesh
from xds.cli.options import (
    STDIN,
    Assignments,
    DefaultNamespace,
    IgnoredKinds,
    MeshConfigFile,
    Reading,
    fail,
    print_not_considered,
)
from xds.cli.output import Format, print_document
from xds.cli.prove import MAX_SERVERS, connections_value
from xds.cli.tables import Table
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import join_names
from xds.mesh.policy.access_changes import AccessChange, AccessEffect, access_changes, unknown_servers

EXAMPLES = """
xds diff mesh/ proposal/
xds diff git:main:mesh mesh/
xds diff git:v1.2:mesh git:HEAD:mesh -o json
"""

_STYLES = {AccessEffect.GAINED: "red", AccessEffect.MAY_BE_GAINED: "yellow", AccessEffect.LOST: "green"}
_GIT = "git:"
_HELP = "Folder or file with manifests, or git:REVISION:FOLDER (a folder from the root of the repository)."


def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=_HELP)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Manifests to compare them with.")],
    *,
    default_namespace: DefaultNamespace = None,
    ignored_kinds: IgnoredKinds = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    allow_gained: Annotated[
        bool, typer.Option("--allow-gained", help="Exit with status 0 even if clients gain access.")
    ] = False,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table",
) -> None:
    """Print which access to service ports clients gain and lose between two states of the manifests.

    All clients that could exist are compared, as for xds prove: service accounts, also new ones, and
    plaintext, which any client can send. A new service port gives access to all clients that it accepts. Both
    states must contain the whole mesh: a service port without pods is not considered. xds plan prints which
    connections of the known clients break.

    Exit status: 0 no client gains access, 1 a client gains or may gain access, or not everything was
    considered, 2 manifests cannot be read, or wrong usage.
    """
    if STDIN in (before, after):
        fail("stdin (-) cannot be compared: name a folder or a file")
    reading = Reading(default_namespace or "", ignored_kinds or ())

    def read(name: str) -> tuple[Mesh, ReadMesh]:
        with _exported(name) as path:
            mesh, found = read_mesh([path], mesh_config, assignments, reading=reading)
            if not any(mesh.services()):
                fail(f"nothing was compared: no Service in {name}")
            return mesh, found

    (old, old_read), (new, new_read) = read(before), read(after)
    changes = access_changes(old, new)
    unknown = chain(unknown_servers(old), unknown_servers(new))
    not_considered = tuple(dict.fromkeys((*old_read.not_considered, *new_read.not_considered, *unknown)))
    if output == "table":
        _print_table(changes, is_complete=not not_considered)
        print_not_considered(not_considered, err=False)
    else:
        values = [{"effect": str(change.effect), **connections_value(change)} for change in changes]
        print_document({"changes": values, "notConsidered": [*not_considered]}, output)
    is_gained = not allow_gained and any(change.effect.is_gain for change in changes)
    if not_considered or is_gained:
        raise typer.Exit(1)


def _print_table(changes: Sequence[AccessChange], *, is_complete: bool) -> None:
    table = Table("ACCESS", "CLIENTS", "MODE", "SERVERS", "REASON")
    for change in changes:
        effect = Text(change.effect, _STYLES[change.effect])
        servers = join_names(change.servers, MAX_SERVERS)
        table.add_row(effect, str(change.clients), change.clients.mode, servers, change.why)
    if changes:
        table.show()
    else:
        typer.echo("no access changes" + ("" if is_complete else " among the objects that were considered"))


@contextmanager
def _exported(name: str) -> Iterator[str]:
    """Return a path with the manifests that an argument names. Exits with status 2 on an error of git."""
    if not name.startswith(_GIT):
        yield name
        return
    tree = name.removeprefix(_GIT)
    if tree.startswith("-") or ":" not in tree:
        fail(f"{name} is not git:REVISION:FOLDER, such as git:main:mesh")
    with TemporaryDirectory(prefix="xds-diff-") as directory:
        folder = Path(directory, "files")
        folder.mkdir()
        settings = {
            "GIT_DIR": _git(["rev-parse", "--absolute-git-dir"]),
            "GIT_INDEX_FILE": f"{directory}/index",
            "GIT_WORK_TREE": str(folder),
        }
        _git(["read-tree", tree.removesuffix("/")], settings, folder)
        _git(["checkout-index", "--all"], settings, folder)
        yield str(folder)


def _git(arguments: Sequence[str], settings: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Run git, and return its output."""
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are checked
            ["git", *arguments],  # noqa: S607 - the user's git
            cwd=folder,
            env={**os.environ, **(settings or {})},
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        fail("git is not installed")
    except subprocess.CalledProcessError as error:
        fail(f"git {' '.join(arguments)}: {error.stderr.strip()}")
    return done.stdout.strip()
