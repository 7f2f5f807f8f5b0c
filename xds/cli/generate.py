"""`xds generate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from xds.cli.manifests import read_mesh
from xds.cli.option_groups import grouped_options
from xds.cli.options import STDIN, SourceOptions, fail
from xds.cli.records import read_records
from xds.mesh.model.names import join_names, unknown_name
from xds.mesh.model.objects import DRY_RUN, printable
from xds.mesh.observe.least_privilege import (
    AllowRule,
    LeastPrivilege,
    WorkloadPolicy,
    least_privilege,
)
from xds.mesh.observe.record import Record, in_words

EXAMPLES = """
xds generate --manifests mesh/ --record traffic.json > mesh/access.yaml
xds generate --kubernetes --record monday.json --record tuesday.json -n shop --dry-run
"""

MAX_NAMES = 5
"""Maximum number of clients that a comment names."""


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
            help="Namespace of the servers. Can be repeated. Default: all.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help=f"Add the annotation {DRY_RUN}, to try the policies first.")
    ] = False,
) -> None:
    """Print AuthorizationPolicies that allow the recorded traffic, and nothing else.

    There is one policy for each workload with a sidecar that was called. It names the service accounts that
    called each port with mutual TLS. A port that was called without mutual TLS stays open to all clients,
    because these have no identity. A workload that nobody called, and one that an ALLOW policy restricts
    already, gets no policy: a comment names it. Traffic that was refused, or that today's policies and modes
    refuse, is not allowed.

    The record has no methods and paths. Comments say what may be missing in it. The same record gives the
    same output.

    Exit status: 0 printed, 1 there is nothing to restrict, 2 a file is no record, or wrong usage, 3 the API
    server cannot be reached.
    """
    if STDIN in record and STDIN in (source.manifests or ()):
        fail("stdin (-) can be either --manifests or --record, not both")
    found = read_records(record)
    mesh, read = read_mesh(
        source.manifests,
        source.mesh_config,
        source.assignments,
        cluster=source.cluster,
        reading=source.reading(),
    )
    read.print()
    known = sorted({pod.namespace for pod in mesh.pods()})
    for name in namespaces or ():
        if name not in known:
            fail(unknown_name("namespace", name, known, "-n"))
    generated = least_privilege(mesh, found.flows, namespaces or ())
    for gap in found.gaps:
        typer.echo(f"the record is incomplete: {printable(gap)}", err=True)
    if not generated.policies:
        for workload, reason in generated.omitted:
            typer.echo(f"no policy for {workload}: {reason}", err=True)
        fail("no policy to print", 1)
    typer.echo("\n".join(document(found, generated, dry_run=dry_run)))


def document(record: Record, generated: LeastPrivilege, *, dry_run: bool) -> Iterator[str]:
    """Yield the lines of the policies for a record, as YAML with comments."""
    yield f"# Allows the traffic that was observed from {in_words(record.since)} to {in_words(record.until)}."
    yield "# Who called with mutual TLS is what the clients' own sidecars reported: check each client."
    yield from (f"# Incomplete: {printable(gap)}" for gap in record.gaps)
    yield from (f"# No policy for {workload}: {reason}" for workload, reason in generated.omitted)
    for number, policy in enumerate(generated.policies):
        if number:
            yield "---"
        yield from _policy(policy, dry_run=dry_run)


def _policy(policy: WorkloadPolicy, *, dry_run: bool) -> Iterator[str]:
    yield "apiVersion: security.istio.io/v1"
    yield "kind: AuthorizationPolicy"
    yield "metadata:"
    yield f"  name: {json.dumps(policy.name)}"
    yield f"  namespace: {json.dumps(policy.namespace)}"
    if dry_run:
        yield "  annotations:"
        yield f'    {DRY_RUN}: "true"'
    yield "spec:"
    yield "  selector:"
    yield "    matchLabels:"
    yield from (f"      {key}: {json.dumps(value)}" for key, value in policy.selector.items())
    yield "  action: ALLOW"
    yield "  rules:"
    for rule in policy.rules:
        yield from _rule(rule)


def _rule(rule: AllowRule) -> Iterator[str]:
    item = "  - "
    if rule.principals:
        yield "  - from:"
        yield "    - source:"
        yield "        principals:"
        yield from (f"        - {json.dumps(principal)}" for principal in rule.principals)
        item = "    "
    else:
        clients = printable(join_names(rule.without_identity, MAX_NAMES))
        yield f"  # Open to all clients, because some have no identity: {clients}"
    yield f"{item}to:"
    yield "    - operation:"
    yield f"        ports: {json.dumps([*map(str, rule.ports)])}"
