"""`xds plan`."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import typer

from xds.cli import plan_output
from xds.cli.manifests import load_settings, open_manifests, read_mesh
from xds.cli.options import (
    STDIN,
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    fail,
    parse_cluster,
    print_problems,
)
from xds.cli.output import print_document
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError
from xds.mesh.model.objects import Change, Ref
from xds.mesh.policy import plan as policy
from xds.mesh.policy.hops import all_targets, clients_of
from xds.mesh.sources.proposal import find_deleted, read_change
from xds.mesh.sources.settings import SettingsLoader

EXAMPLES = """
xds plan --manifests mesh/ -f strict.yaml
xds plan --manifests mesh/ -f policies/ --delete PeerAuthentication/shop/default
xds plan --manifests mesh/ -f strict.yaml -o markdown > comment.md
xds plan --kubernetes -f strict.yaml
"""


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def plan(
    *,
    manifests: Manifests = None,
    kubernetes: FromKubernetes = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    filenames: Annotated[
        list[str] | None,
        typer.Option(
            "--filename",
            "-f",
            metavar="PATH",
            help="Folder, file, kustomization, or - for stdin, with the objects to apply. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    deletions: Annotated[
        list[str] | None,
        typer.Option(
            "--delete",
            metavar="KIND/NS/NAME",
            help="Object to delete; KIND/NAME for a cluster-scoped kind. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    output: Annotated[
        Format,
        typer.Option("-o", "--output", help="Output format. markdown: for a comment on a pull request."),
    ] = Format.TABLE,
) -> None:
    """Print which connections break, lose or gain mutual TLS, or get repaired if a change is applied.

    --manifests or --kubernetes is the mesh before the change, -f the objects to apply, and --delete the
    objects to delete. Nothing is applied. Also prints kubelet probes and Prometheus scrapes that a STRICT
    sidecar would refuse, and objects of -f that would have no effect. Connections of clients that are not in
    the manifests, of new clients, and to new services are not compared.

    Exit status: 0 nothing breaks, 1 something breaks, 2 an object of -f is invalid, nothing was checked
    because there is no Pod or no Service, or wrong usage, 3 the API server cannot be reached.
    """
    if not filenames and not deletions:
        fail("nothing to plan: add -f PATH or --delete KIND/NS/NAME")
    if STDIN in (manifests or ()) and STDIN in (filenames or ()):
        fail("stdin (-) can be either --manifests or -f, not both")
    settings, _ = load_settings(mesh_config, assignments)
    cluster = parse_cluster(kubernetes, kubeconfig, context)
    before, problems = read_mesh(manifests, mesh_config, assignments, cluster=cluster)
    print_problems(problems)
    if not any(clients_of(before)) or not all_targets(before):
        where = ", ".join(manifests or ["the cluster"])
        fail(f"nothing was checked: no Pod or no Service with a TCP port in {where}")
    change = _read_change(filenames, settings, before) if filenames else Change()
    deleted = tuple(_find_deleted(before, text) for text in deletions or ())
    change = replace(change, removed=(*change.removed, *deleted))
    after = before.apply(change)
    found = policy.plan(before, after, policy.scope_of(change, after))
    ineffective = policy.ineffective(after, {fact.ref for fact in change.applied})
    if output is Format.JSON:
        print_document(plan_output.as_json(found, ineffective), output)
    elif output is Format.MARKDOWN:
        typer.echo(plan_output.as_markdown(found, ineffective))
    else:
        print_problems(ineffective)
        plan_output.print_table(found)
    if found.breaks:
        raise typer.Exit(1)


def _read_change(names: list[str], settings: SettingsLoader, before: Mesh) -> Change:
    """Return the change that applying manifests makes. Exits with status 2 if an object is invalid."""
    try:
        change, problems = read_change(open_manifests(names, settings), before)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    print_problems(problems)
    if change is None:
        fail("cannot plan the change: repair the problems of its objects first")
    return change


def _find_deleted(mesh: Mesh, text: str) -> Ref:
    try:
        return find_deleted(mesh, text)
    except UnknownNameError as error:
        fail(f"--delete: {error}")
