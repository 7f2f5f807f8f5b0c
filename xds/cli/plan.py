"""`xds plan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import typer

from xds.cli import plan_output
from xds.cli.manifests import load_folder, load_settings, open_manifests, read_mesh
from xds.cli.options import (
    STDIN,
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    fail,
    fail_unknown,
    parse_cluster,
    print_problems,
)
from xds.cli.output import print_document
from xds.mesh.inject.workloads import SHORT_NAMES
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, ref_named
from xds.mesh.model.objects import Change, Namespace, Problem, Ref
from xds.mesh.parse import KINDS
from xds.mesh.policy import plan as policy
from xds.mesh.policy.conflicts import overridden
from xds.mesh.policy.effect import without_effect
from xds.mesh.policy.hops import all_targets, clients_of
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
    deleted = tuple(_find_object(before, text) for text in deletions or ())
    after = before.apply(replace(change, removed=(*change.removed, *deleted)))
    found = policy.plan(before, after)
    ineffective = list(_ineffective(after, {fact.ref for fact in change.applied}))
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
    """Return the objects to apply, and the pods of workloads that the change stops.

    Exits with status 2 if a document or an object is invalid.
    """
    folder = open_manifests(names, settings)
    namespaces = [fact for fact in before.facts() if isinstance(fact, Namespace)]
    mesh, problems = load_folder(folder, namespaces)
    print_problems(problems)
    if mesh is None or folder.has_unusable_objects(namespaces):
        fail("cannot plan the change: repair the problems of its objects first")
    facts = (
        fact
        for namespace in mesh.namespaces()
        for fact in mesh.in_namespace(namespace, with_defaults=False).facts.values()
    )
    applied = tuple(policy.as_applied(before, fact) for fact in facts)
    return Change(applied=applied, removed=folder.stopped_pods)


def _find_object(mesh: Mesh, text: str) -> Ref:
    """Return the object that KIND/NS/NAME or KIND/NAME names. A workload stands for its expected pod."""
    kinds = {item.name: item.namespaced for item in KINDS} | dict.fromkeys(SHORT_NAMES, True)
    try:
        ref = ref_named(text, kinds)
    except UnknownNameError as error:
        fail(f"--delete: {error}")
    if ref.kind == "Namespace":
        fail(f"--delete {text}: cannot plan the deletion of a Namespace: delete the objects in it instead")
    if ref.kind in SHORT_NAMES:
        ref = Ref("Pod", ref.namespace, f"{SHORT_NAMES[ref.kind]}/{ref.name}")
    known = {
        fact.ref
        for other in mesh.namespaces()
        for fact in mesh.in_namespace(other, with_defaults=False).facts.values()
    }
    if ref not in known:
        similar = [_name(other) for other in known if other.kind == ref.kind]
        fail_unknown("object", text, similar, "--delete KIND/NS/NAME")
    return ref


def _name(ref: Ref) -> str:
    return "/".join(part for part in ref if part)


def _ineffective(mesh: Mesh, refs: set[Ref]) -> Iterator[Problem]:
    """Yield why objects of the change have no effect."""
    if not refs:
        return
    problems: Iterable[tuple[Ref, tuple[Problem, ...]]] = without_effect(mesh).problems.items()
    yield from (problem for ref, found in problems if ref in refs for problem in found)
    for ref, override in overridden(mesh).items():
        fact = mesh.get(ref)
        if ref in refs and fact:
            part = f"{override.what} " if override.what else ""
            what = f"{ref}: {part}has no effect, because {', '.join(map(str, override.by))} overrides it"
            yield Problem(where=fact.meta.origin or str(ref), what=what)
