"""`xds generate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from xds.cli.manifests import read_source
from xds.cli.option_groups import grouped_options
from xds.cli.options import STDIN, SourceOptions, fail
from xds.cli.output import Format, print_document
from xds.cli.records import read_records
from xds.cli.tables import Table
from xds.mesh.model.names import unknown_name
from xds.mesh.model.objects import DRY_RUN, printable
from xds.mesh.observe.least_privilege import gaps, least_privilege
from xds.mesh.observe.least_privilege_yaml import document
from xds.mesh.observe.record import Record, in_words
from xds.mesh.observe.unused_access import UnusedAccess, unused_access
from xds.mesh.observe.used_services import sidecar_document, used_services

EXAMPLES = """
xds generate --manifests mesh/ --record traffic.json > mesh/access.yaml
xds generate --kubernetes --record monday.json --record tuesday.json -n shop --dry-run
xds generate --kubernetes --record traffic.json --check
xds generate --kubernetes --record traffic.json --kind Sidecar -n shop
"""

Kind = Literal["AuthorizationPolicy", "Sidecar"]
"""A kind of object to print."""


@grouped_options
def generate(
    *,
    source: SourceOptions,
    record: Annotated[
        list[str],
        typer.Option(
            "--record",
            metavar="FILE",
            help="Output of xds observe -o json, or - for stdin. Can be repeated.",
        ),
    ],
    namespaces: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="Namespace of the objects to print. Can be repeated. Default: all.",
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="Kind of the objects to print.")] = (
        "AuthorizationPolicy"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help=f"Add the annotation {DRY_RUN}, to try the policies first.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print which access of today's ALLOW policies is unused.")
    ] = False,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format with --check.")] = "table",
) -> None:
    """Print AuthorizationPolicies or Sidecars for recorded traffic.

    The AuthorizationPolicies allow the recorded traffic, and nothing else. There is one for each workload
    with a sidecar that was called. It names the service accounts that called each port with mutual TLS. A
    port that was called without mutual TLS stays open to all clients, because these have no identity. A
    workload that nobody called, and one that an ALLOW policy restricts already, gets no policy: a comment
    names it. Traffic that was refused, or that today's policies and modes refuse, is not allowed.

    With --kind Sidecar, there is one Sidecar for each namespace that has sidecars and no Sidecar. It
    shows its clients the services that any of them called, so their configuration gets smaller. They call
    all others in plaintext, or not at all with REGISTRY_ONLY: run xds plan before you apply it.

    The record has no methods and paths. Comments say what may be missing in it. The same record gives the
    same output.

    With --check, print no policies, but the access that the recorded traffic did not use: for each rule of
    today's ALLOW policies and each server, the clients that the rule allows to call it, and that did not.

    Exit status: 0 printed, or all access was used, 1 there is nothing to print, some access was not used,
    or the record may be incomplete, 2 a file is no record, or wrong usage, 3 the API server cannot be
    reached.
    """
    if check and dry_run:
        fail("--dry-run has no effect with --check")
    if kind == "Sidecar" and (dry_run or check):
        fail(f"{'--dry-run' if dry_run else '--check'} has no effect with --kind Sidecar")
    if output != "table" and not check:
        fail("--output has no effect without --check")
    if STDIN in record and STDIN in (source.manifests or ()):
        fail("stdin (-) can be either --manifests or --record, not both")
    found = read_records(record)
    mesh, read = read_source(source)
    read.print()
    known = sorted({pod.namespace for pod in mesh.pods()})
    for name in namespaces or ():
        if name not in known:
            fail(unknown_name("namespace", name, known, "-n"))
    missing = [*gaps(mesh, found), *(["no traffic was recorded"] if check and not found.flows else [])]
    for gap in missing:
        typer.echo(f"the record is incomplete: {printable(gap)}", err=True)
    if check:
        unused = unused_access(mesh, found.flows, namespaces or ())
        is_complete = not (missing or read.not_considered)
        if output == "table":
            _print_unused(found, unused, is_complete=is_complete)
        else:
            print_document(_value(found, unused, [*missing, *read.not_considered]), output)
        raise typer.Exit(int(bool(unused.rules) or not is_complete))
    if kind == "Sidecar":
        used = used_services(mesh, found.flows, namespaces or ())
        without = [(f"namespace {name}", reason) for name, reason in used.omitted]
        _print_objects("Sidecar", sidecar_document(found, missing, used), without, is_empty=not used.hosts)
    else:
        generated = least_privilege(mesh, found.flows, namespaces or ())
        lines = document(found, missing, generated, dry_run=dry_run)
        _print_objects("policy", lines, generated.omitted, is_empty=not generated.policies)


def _print_objects(
    what: str, lines: Iterable[str], without: Iterable[tuple[str, str]], *, is_empty: bool
) -> None:
    """Print objects; if there are none, which owners have none, and why."""
    if is_empty:
        for owner, reason in without:
            typer.echo(f"no {what} for {owner}: {reason}", err=True)
        fail(f"no {what} to print", 1)
    typer.echo("\n".join(lines))


def _print_unused(record: Record, found: UnusedAccess, *, is_complete: bool) -> None:
    verb = "used" if is_complete else "observed"
    table = Table("POLICY", "RULE", "SERVERS", "UNUSED BY" if is_complete else "NOT OBSERVED")
    for rule in found.rules:
        policy, servers = f"{rule.policy.namespace}/{rule.policy.name}", ", ".join(rule.servers)
        who = rule.unused_by if rule.is_used else f"not {verb} at all: {rule.unused_by}"
        table.add_row(policy, f"rules[{rule.rule}]", servers, who)
    if found.rules:
        table.show()
        typer.echo()
    count = f"{len({each[:2] for each in found.rules})} of {found.checked} rules of ALLOW policies"
    period = f"from {in_words(record.since)} to {in_words(record.until)}"
    prefix = "" if is_complete else "not known to be complete: "
    typer.echo(f"{prefix}{count} allow access that was not {verb} {period}")
    typer.echo(f"workloads with a sidecar and without an ALLOW policy: {found.unrestricted}", err=True)


def _value(record: Record, found: UnusedAccess, gaps: Sequence[str]) -> dict[str, Any]:
    rules = [
        {
            "policy": f"{rule.policy.namespace}/{rule.policy.name}",
            "rule": rule.rule,
            "isUsed": rule.is_used,
            "servers": [*rule.servers],
            "serviceAccounts": [
                f"{each.namespace}/{name}" for each in rule.clients for name in each.accounts
            ],
            "otherClients": [*rule.others],
        }
        for rule in found.rules
    ]
    return {
        "since": Timestamp(seconds=int(record.since)).ToJsonString(),
        "until": Timestamp(seconds=int(record.until)).ToJsonString(),
        "gaps": [*gaps],
        "rules": rules,
        "checkedRules": found.checked,
        "unrestrictedWorkloads": found.unrestricted,
    }
