"""`xds reach`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xds.cli import options, tables

if TYPE_CHECKING:
    from xds.mesh.model.mesh import Mesh
    from xds.mesh.model.objects import Service, ServicePort
    from xds.mesh.policy.reach import Outcome

_STYLES = {"mtls": "green", "plaintext": "yellow", "fails": "red"}


class Format(StrEnum):
    """How to print it."""

    TABLE = "table"
    JSON = "json"


def reach(
    *,
    manifests: options.Manifests,
    mesh_config: options.MeshConfigFile = None,
    assignments: options.Assignments = None,
    client: Annotated[
        str | None, typer.Option("--from", metavar="POD.NS", help="One client only.", show_default=False)
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--to", metavar="SERVICE.NS[:PORT]", help="One service only.", show_default=False),
    ] = None,
    output: Annotated[
        Format, typer.Option("-o", "--output", help="A table for people, or JSON for programs.")
    ] = Format.TABLE,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with status 1 if anything is wrong with the manifests, or if an object has no effect.",
        ),
    ] = False,
) -> None:
    """Say for every client, service port and endpoint: mtls, plaintext or fails, and why.

    Nothing is sent: it follows from the manifests, as sidecars would be configured from them. Objects that have no effect, such
    as a policy whose selector matches no pod, are printed to stderr. Exit status: 0 everything asked for works, 1 something
    fails (with --strict: or is wrong, or has no effect), 2 nothing was checked, because there is no Pod or no Service, or wrong
    use.
    """
    from xds.mesh.policy.effect import without_effect  # noqa: PLC0415
    from xds.mesh.policy.reach import Result, predict  # noqa: PLC0415

    mesh, problems = options.read(manifests, mesh_config, assignments)
    ineffective = [each for found in without_effect(mesh).problems.values() for each in found]
    # In a running mesh it is normal that a Service has no endpoints now; in manifests it is worth a look.
    warnings = [*problems, *(replace(each, notice=False) for each in ineffective)]
    options.print_problems(warnings)
    clients = [options.find_pod(mesh, client)] if client else None
    targets = list(_targets(mesh, server)) if server else None
    outcomes = list(predict(mesh, clients, targets))
    if not outcomes:
        lacking = "Service with a TCP port" if any(not pod.ended for pod in mesh.pods()) else "Pod"
        options.fail(f"nothing was checked: there is no {lacking} in {manifests}")
    rows = [_row(outcome) for outcome in outcomes]
    if output is Format.JSON:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    is_wrong = strict and any(not problem.notice for problem in warnings)
    if is_wrong or any(outcome.result is Result.FAILS for outcome in outcomes):
        raise typer.Exit(1)


def _targets(mesh: Mesh, text: str) -> Iterator[tuple[Service, ServicePort]]:
    name, _, port = text.partition(":")
    short, _, namespace = name.removesuffix(".svc.cluster.local").removesuffix(".svc").rpartition(".")
    service = mesh.service(namespace, short)
    if service is None:
        known = [f"{service.name}.{service.namespace}" for service in mesh.services()]
        options.fail_unknown("service", name, known, "SERVICE.NAMESPACE")
    ports = [each for each in service.ports if port in ("", str(each.port), each.name)]
    if not ports:
        known = [str(each.port) for each in service.ports]
        options.fail_unknown("port", port, known, f"of service {name}")
    yield from ((service, each) for each in ports)


def _row(outcome: Outcome) -> dict[str, Any]:
    endpoint = outcome.endpoint
    pod = endpoint.pod if endpoint else None
    return {
        "client": f"{outcome.client.name}.{outcome.client.namespace}",
        "service": f"{outcome.service.name}.{outcome.service.namespace}",
        "port": outcome.port.port,
        "endpoint": f"{pod.name}.{pod.namespace}" if pod else None,
        "address": str(options.Address(endpoint.address, endpoint.port)) if endpoint else None,
        "outcome": str(outcome.result),
        "reason": str(outcome.reason),
        "decidedBy": [str(ref) for ref in outcome.because],
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.text import Text  # noqa: PLC0415

    table = tables.Table("CLIENT", "SERVICE", "ENDPOINT", "OUTCOME", "REASON", "DECIDED BY")
    for row in rows:
        where = f"{row['endpoint']} ({row['address']})" if row["endpoint"] else row["address"] or "-"
        table.add_row(
            Text(row["client"]),
            Text(f"{row['service']}:{row['port']}"),
            Text(where),
            Text(row["outcome"], _STYLES[row["outcome"]]),
            Text(row["reason"]),
            Text(", ".join(row["decidedBy"])),
        )
    table.show()
