"""`xds problems`."""

from __future__ import annotations

from typing import Annotated

import typer

from xds.cli.client_options import ConnectionOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import namespace_option
from xds.cli.output import Format, print_document
from xds.cli.tables import Table
from xds.mesh.controlplane.status import since
from xds.mesh.model.objects import printable
from xds.mesh.v1 import objects_pb2 as pb

EXAMPLES = """
xds problems
xds problems --namespace shop
xds problems --notices -o json
"""


@grouped_options
def problems(
    *,
    namespace: Annotated[
        str | None,
        namespace_option("Namespace to print. Default: all namespaces, and the settings of the mesh."),
    ] = None,
    notices: Annotated[
        bool, typer.Option("--notices", help="Also print notices, such as objects that are ignored.")
    ] = False,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table",
    connection: ConnectionOptions,
) -> None:
    """Print the problems of a running control plane.

    These are objects that it rejects, objects that have no effect, certificates that are overdue for renewal,
    and replicas that have lost contact or serve different generations. An object that has had no effect only
    for seconds may be waiting for its pods: see AGE.

    For a rejected object of which an earlier version stays in use, the last column names that version: its
    resourceVersion or, for a file, the time when that version was written.

    Exit status: 0 no problem, 1 a problem was found, 2 wrong usage, 3 the control plane cannot be reached.
    Notices do not count.
    """
    with connection.open() as client:
        response = client.list_problems(namespace or "", notices=notices)
    if output == "table":
        _print_table(response)
    else:
        print_document(response, output)
    if any(not problem.notice for problem in response.problems):
        raise typer.Exit(1)


def _print_table(response: pb.ListProblemsResponse) -> None:
    if not response.problems:
        typer.echo("no problems")
        return
    table = Table("OBJECT", "PLACE", "AGE", "PROBLEM")
    for problem in response.problems:
        version = f" (resourceVersion {problem.resource_version})" if problem.resource_version else ""
        place = "" if problem.place == problem.object else problem.place
        age = since(problem.since.ToDatetime(), response.time) if problem.HasField("since") else "-"
        table.add_row(problem.object or "-", f"{place}{version}".strip() or "-", age, _text(problem))
    table.show()
    if response.more_problems:
        typer.echo(f"... and {response.more_problems} more problems", err=True)


def _text(problem: pb.ObjectProblem) -> str:
    prefix = f"{problem.object}: " if problem.object else ""
    hint = f" ({problem.hint})" if problem.hint else ""
    served = f"; version {problem.served_version} stays in use" if problem.served_version else ""
    notice = "notice: " if problem.notice else ""
    return printable(f"{notice}{problem.what.removeprefix(prefix)}{hint}{served}")
