"""`xds reach`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from xds.cli.manifests import find_pod, read_mesh
from xds.cli.options import (
    Address,
    Assignments,
    Manifests,
    MeshConfigFile,
    fail,
    fail_unknown,
    print_problems,
)
from xds.cli.tables import Table, natural_key
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Service, ServicePort
from xds.mesh.policy.effect import without_effect
from xds.mesh.policy.reach import Outcome, Result, predict

EXAMPLES = """
xds reach --manifests mesh/
xds reach --manifests mesh/ --from sleep.shop --to httpbin.shop:8000
xds reach --manifests mesh/ --strict -o json
"""

_STYLES = {"mtls": "green", "plaintext": "yellow", "fails": "red"}


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    JSON = "json"


def reach(
    *,
    manifests: Manifests,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    client: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="POD.NS", help="Client pod to print. Default: all pods.", show_default=False
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SERVICE.NS[:PORT]",
            help="Service or service port to print. Default: all services.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Also exit with status 1 if the manifests have a problem or an object has no effect.",
        ),
    ] = False,
) -> None:
    """Print whether each client reaches each service endpoint (mtls, plaintext or fails), and why.

    The result is predicted from the manifests; no request is sent. Problems of the manifests, and objects
    without effect, such as a policy whose selector matches no pod, are printed to stderr.

    Exit status: 0 every connection works, 1 a connection fails (with --strict also: a problem, or an object
    without effect), 2 nothing was checked because there is no Pod or no Service, or wrong usage.
    """
    mesh, problems = read_mesh(manifests, mesh_config, assignments)
    ineffective = [problem for effect in without_effect(mesh).problems.values() for problem in effect]
    # A Service without endpoints is normal in a running mesh, but likely a mistake in manifests.
    warnings = [*problems, *(replace(problem, notice=False) for problem in ineffective)]
    print_problems(warnings)
    clients = [find_pod(mesh, client)] if client else None
    targets = list(_targets(mesh, server)) if server else None
    outcomes = list(predict(mesh, clients, targets))
    if not outcomes:
        missing = "Service with a TCP port" if any(not pod.ended for pod in mesh.pods()) else "Pod"
        fail(f"nothing was checked: no {missing} in {manifests}")
    rows = sorted(map(_row, outcomes), key=_order)
    if output is Format.JSON:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    has_problem = strict and any(not problem.notice for problem in warnings)
    if has_problem or any(outcome.result is Result.FAILS for outcome in outcomes):
        raise typer.Exit(1)


def _targets(mesh: Mesh, text: str) -> Iterator[tuple[Service, ServicePort]]:
    """Yield the ports that SERVICE.NAMESPACE[:PORT] selects; PORT is a number or a name."""
    host, _, port = text.partition(":")
    name, _, namespace = host.removesuffix(".svc.cluster.local").removesuffix(".svc").rpartition(".")
    service = mesh.service(namespace, name)
    if service is None:
        known = [f"{service.name}.{service.namespace}" for service in mesh.services()]
        fail_unknown("service", host, known, "SERVICE.NAMESPACE")
    selected = [item for item in service.ports if port in ("", str(item.port), item.name)]
    if not selected:
        fail_unknown("port", port, [str(item.port) for item in service.ports], f"service {host}")
    yield from ((service, item) for item in selected)


def _row(outcome: Outcome) -> dict[str, Any]:
    endpoint = outcome.endpoint
    pod = endpoint.pod if endpoint else None
    return {
        "client": f"{outcome.client.name}.{outcome.client.namespace}",
        "service": f"{outcome.service.name}.{outcome.service.namespace}",
        "port": outcome.port.port,
        "endpoint": f"{pod.name}.{pod.namespace}" if pod else None,
        "address": str(Address(endpoint.address, endpoint.port)) if endpoint else None,
        "outcome": str(outcome.result),
        "reason": str(outcome.reason),
        "decidedBy": [str(ref) for ref in outcome.decided_by],
    }


def _order(row: dict[str, Any]) -> list[Any]:
    names = (row["client"], row["service"], str(row["port"]), row["endpoint"] or "", row["address"] or "")
    return [natural_key(name) for name in names]


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("CLIENT", "SERVICE", "ENDPOINT", "OUTCOME", "REASON", "DECIDED BY")
    for row in rows:
        endpoint = f"{row['endpoint']} ({row['address']})" if row["endpoint"] else row["address"] or "-"
        table.add_row(
            row["client"],
            f"{row['service']}:{row['port']}",
            endpoint,
            Text(row["outcome"], _STYLES[row["outcome"]]),
            row["reason"],
            ", ".join(row["decidedBy"]),
        )
    table.show()
