"""`xds plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from xds.cli import plan_output
from xds.cli.durations import is_duration, parse_period
from xds.cli.mesh_options import MeshOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import (
    OBSERVATION_DISABLED,
    STDIN,
    fail,
    print_not_considered,
    print_problems,
)
from xds.cli.output import print_document
from xds.cli.records import read_records

EXAMPLES = """
xds plan -f strict.yaml
xds plan --manifests mesh/ -f strict.yaml
xds plan --manifests mesh/ -f policies/ --delete PeerAuthentication/shop/default
xds plan --manifests mesh/ -f strict.yaml -o markdown > comment.md
xds plan --kubernetes -f strict.yaml
xds plan -f strict.yaml --observed 7d
xds plan -f access.yaml --replay 7d
xds plan --manifests mesh/ -f strict.yaml --replay monday.json --replay tuesday.json
xds observe -o json | xds plan --kubernetes -f strict.yaml --replay -
"""

PlanFormat = Literal["table", "json", "markdown"]
"""An output format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options."""

    mesh: MeshOptions
    filenames: Annotated[
        list[str] | None,
        typer.Option(
            "--filename",
            "-f",
            metavar="PATH",
            help="Folder, file, kustomization, or - for stdin, with the objects to apply. Can be repeated.",
        ),
    ] = None
    deletions: Annotated[
        list[str] | None,
        typer.Option(
            "--delete",
            metavar="KIND/NS/NAME",
            help="Object to delete; KIND/NAME for a cluster-scoped kind. Can be repeated.",
        ),
    ] = None
    observed: Annotated[
        str | None,
        typer.Option(
            "--observed",
            metavar="DURATION",
            help="Also compare the change with the plaintext traffic that a running control plane has "
            "observed for this time, such as 24h or 7d (maximum).",
        ),
    ] = None
    replay: Annotated[
        list[str] | None,
        typer.Option(
            "--replay",
            metavar="DURATION|FILE",
            help="Print the traffic that the change breaks, instead of all connections: what a running "
            "control plane has observed for this time, such as 24h or 7d (maximum); with --manifests or "
            "--kubernetes, an output of xds observe -o json, or - for stdin. Can be repeated for files.",
        ),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Also exit with status 1 if an object has a problem or no effect, or if the plan is "
            "incomplete (Not considered).",
        ),
    ] = False
    output: Annotated[
        PlanFormat,
        typer.Option("-o", "--output", help="Output format. markdown: for a comment on a pull request."),
    ] = "table"


@grouped_options
def plan(options: PlanOptions) -> None:
    """Print which connections break, lose or gain mutual TLS, or get repaired if a change is applied.

    The mesh before the change is that of a running control plane, of --manifests, or of --kubernetes; -f is
    the objects to apply, and --delete the objects to delete. Nothing is applied. Also prints objects of -f
    that would have no effect, and clients outside the mesh that a STRICT sidecar would refuse. An object must
    prove such a client, as a probe or a webhook does. New clients, and connections to new services, are not
    compared. What else could change the plan follows as Not considered, such as objects of unknown kinds.

    With --replay, prints only what was observed: traffic that worked, and that the change denies or breaks
    (may break: some of its requests), by client and service port, with the time when it was last seen. Then
    connections that become possible and were never used, and why traffic may be missing in the record. It is
    safe only if nothing breaks, may break, may be missing or is not known.

    With --observed, also prints the clients that sent plaintext to a port that the change makes STRICT. If
    there are none, prints that it is safe to lock, or why traffic may have been missed.

    Exit status: 0 nothing breaks (with --replay: nothing that was recorded or that objects prove), 1
    something breaks (with --strict also: a problem, an object without effect, or an incomplete plan),
    --observed or --replay does not show that the change is safe, or observation is disabled, 2 an object of
    -f is invalid, nothing was checked because there is no Pod or Service, or wrong usage, 3 the control plane
    or the API server cannot be reached.
    """
    filenames, deletions = options.filenames or [], options.deletions or []
    observed = parse_period("--observed", options.observed) if options.observed else None
    if not filenames and not deletions:
        fail("nothing to plan: add -f PATH or --delete KIND/NS/NAME")
    records, period = _replayed(options)
    if sum(STDIN in names for names in (filenames, options.mesh.manifests or (), records)) > 1:
        fail("stdin (-) can be only one of --manifests, -f and --replay")
    replay = read_records(records) if records else period
    with options.mesh.open(filenames, prints_problems=not options.strict) as policies:
        warnings = policies.problems() if options.strict else ()
        found = policies.plan(filenames, deletions, observed, options.mesh.reading(filenames), replay)
    print_problems(warnings)
    print_problems(map(plan_output.to_problem, found.problems))
    if found.nothing_to_compare:
        print_not_considered(found.not_considered)
        fail(f"nothing was checked: no Pod or no Service with a TCP port in {options.mesh.source}")
    if found.invalid:
        fail("cannot plan the change: repair the problems of its objects first")
    if observed and not found.observation.enabled:
        fail(OBSERVATION_DISABLED, 1)
    if options.output == "json":
        print_document(found, options.output)
    elif options.output == "markdown":
        typer.echo(plan_output.as_markdown(found))
    else:
        print_problems(map(plan_output.to_problem, found.without_effect))
        plan_output.print_table(found)
    problems = [*map(plan_output.to_problem, (*found.problems, *found.without_effect)), *warnings]
    unclear = bool(found.not_considered) or any(not problem.notice for problem in problems)
    breaks = not found.replay.safe if replay else found.breaks
    if breaks or (observed and not found.observation.safe) or (options.strict and unclear):
        raise typer.Exit(1)


def _replayed(options: PlanOptions) -> tuple[list[str], float | None]:
    """Return the files, or the seconds, of --replay."""
    names = options.replay or []
    periods = [name for name in names if is_duration(name)]
    if not options.mesh.is_live:
        if periods:
            fail(f"--replay {periods[0]} requires a running control plane: omit --manifests and --kubernetes")
        return names, None
    if names != periods[:1]:
        fail(
            "--replay FILE requires the mesh before the change: add --manifests or --kubernetes. A running "
            "control plane replays what it has observed for one time: --replay 7d"
        )
    return [], parse_period("--replay", names[0]) if names else None
