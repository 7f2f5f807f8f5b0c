"""`xds reach`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from xds.cli.hop_cells import TargetGroups, grouped_cells, hop_cells, hop_value, result_cells
from xds.cli.mesh_options import MeshOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import fail, print_not_considered, print_problems
from xds.cli.output import TABLES, WideFormat, to_value
from xds.cli.rows import Rows
from xds.mesh.policy.reach import Result
from xds.mesh.v1 import policies_pb2 as pb

EXAMPLES = """
xds reach --only fails
xds reach --to httpbin.shop --watch
xds reach --manifests mesh/
xds reach --manifests mesh/ --from shop/sleep --to httpbin.shop:8000
xds reach --manifests mesh/ --to httpbin.shop --expand
xds reach --manifests mesh/ --strict -o json
xds reach --kubernetes --context staging --to httpbin.shop
kustomize build overlays/prod | xds reach --manifests - --manifests policies/
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachOptions:
    """The options."""

    mesh: MeshOptions
    client: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="POD.NS|NS/ACCOUNT",
            help="Client pod (or a prefix of its name), or service account of client pods, to print. "
            "Default: all pods.",
        ),
    ] = None
    server: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SERVICE.NS[:PORT]",
            help="Service (or a prefix of its name) or service port to print. Default: all services.",
        ),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(
            "-n",
            "--namespace",
            metavar="NS",
            help="Namespace of the services to print. Default: all namespaces.",
        ),
    ] = None
    only: Annotated[
        Result | None,
        typer.Option(
            "--only", help="Outcome to print; it does not change the exit status. Default: all outcomes."
        ),
    ] = None
    expand: Annotated[
        bool, typer.Option("--expand", help="Print a line for each client pod and endpoint.")
    ] = False
    output: Annotated[WideFormat, typer.Option("-o", "--output", help="Output format.")] = "table"
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Also exit with status 1 if an object has a problem or no effect, or if the answer is "
            "incomplete (Not considered).",
        ),
    ] = False
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Also print what changes, until Ctrl-C; the exit status is then 0. Requires a running "
            "control plane.",
        ),
    ] = False

    @property
    def groups_targets(self) -> bool:
        """Whether service ports with the same clients and outcome share a row."""
        return self.output == "table"


@grouped_options
def reach(options: ReachOptions) -> None:
    """Print which clients reach which services (mtls, plaintext or fails), and why.

    The result is predicted from the objects of a running control plane, of manifests, or of a cluster; no
    request is sent to a pod. A line stands for all clients, services and endpoints with the same outcome;
    with -o wide, it stands for one service. Failures come first for each service. If a running control plane
    observes traffic, OBSERVED is what sidecars reported from the clients' service accounts to the service
    port, in requests per minute. A workload whose Pods are not in the manifests, such as a Deployment, counts
    as one pod (deploy/NAME), with a sidecar if the webhook would inject one. Problems, and objects without
    effect, such as a policy whose selector matches no pod, are printed to stderr. Clients outside the mesh
    that objects prove, such as the API server for a webhook, are listed after the pods. What could change the
    answer follows as Not considered, such as objects of unknown kinds.

    Exit status: 0 every connection works, 1 a connection fails (with --strict also: a problem, an object
    without effect, or an incomplete answer), 2 nothing was checked because there is no Pod or no Service, or
    wrong usage, 3 the control plane or the API server cannot be reached.
    """
    with options.mesh.open(prints_problems=False) as policies:
        warnings = policies.problems()
        print_problems(warnings)
        with suppress(KeyboardInterrupt) if options.watch else nullcontext():
            fails, is_complete = _print_results(policies.reach(_request(options)), options)
        if options.watch:
            return
    unclear = not is_complete or any(not problem.notice for problem in warnings)
    if fails or (options.strict and unclear):
        raise typer.Exit(1)


def _request(options: ReachOptions) -> pb.ReachRequest:
    return pb.ReachRequest(
        client=options.client,
        service=options.server,
        namespace=options.namespace,
        outcome=options.only,
        expand=options.expand,
        endpoint_names=options.output == "wide",
        watch=options.watch,
    )


def _print_results(responses: Iterable[pb.ReachResponse], options: ReachOptions) -> tuple[bool, bool]:
    """Print results until the last one, or with --watch also what changes.

    Returns whether a connection fails, and whether everything was considered.

    Exits with status 2 if there is no client or no service port.
    """
    rows: Rows | None = None
    groups = TargetGroups(partial(hop_cells, wide=False))
    fails, is_complete = False, True
    previous: set[bytes] = set()
    current: set[bytes] = set()
    for response in _with_progress(responses, options):
        if response.last and not (response.total and response.client_pods) and not options.watch:
            print_not_considered(response.not_considered)
            fail(f"nothing was checked: {_missing(response, options)}")
        fails |= response.fails
        items: list[pb.Hop | pb.ConnectionResult] = [*response.hops, *response.results]
        for item in items:
            rows = rows or _rows(options, is_observed=item.HasField("observed"))
            key = item.SerializeToString(deterministic=True) if options.watch else b""
            if key not in previous and isinstance(item, pb.Hop) and options.groups_targets:
                groups.add(item)
            elif key not in previous:
                _add(rows, item, options.output)
            current.add(key)
        if response.last:
            rows = rows or _rows(options)
            for group in groups:
                rows.add_cells(grouped_cells(group))
            is_complete = not response.not_considered
            if not (is_complete or options.output in TABLES):
                rows.add_value({"notConsidered": [*response.not_considered]})
            rows.close()
            if options.output in TABLES:
                print_not_considered(response.not_considered, err=False)
            groups = TargetGroups(partial(hop_cells, wide=False))
            previous, current = current, set()
    return fails, is_complete


def _rows(options: ReachOptions, *, is_observed: bool = False) -> Rows:
    first = ("CLIENT", "SERVICE", "ENDPOINT") if options.expand else ("CLIENTS", "SERVICE", "ENDPOINTS")
    outcome = ("OUTCOME", "OBSERVED") if is_observed else ("OUTCOME",)
    return Rows(options.output, *first, *outcome, "REASON", "DECIDED BY", is_stream=options.watch)


def _missing(response: pb.ReachResponse, options: ReachOptions) -> str:
    if not response.client_pods:
        return f"no Pod in {options.mesh.source}"
    where = f"namespace {options.namespace} of " if options.namespace else ""
    return f"no Service with a TCP port in {where}{options.mesh.source}"


def _add(rows: Rows, item: pb.Hop | pb.ConnectionResult, output: WideFormat) -> None:
    if output not in TABLES:
        rows.add_value(hop_value(item) if isinstance(item, pb.Hop) else to_value(item))
    elif isinstance(item, pb.Hop):
        rows.add_cells(hop_cells(item, wide=output == "wide"))
    else:
        rows.add_cells(result_cells(item))


def _with_progress(
    responses: Iterable[pb.ReachResponse], options: ReachOptions
) -> Iterator[pb.ReachResponse]:
    """Show a progress bar on a terminal, unless rows are printed there meanwhile."""
    prints_rows = sys.stdout.isatty() and (options.expand or not options.groups_targets)
    is_hidden = not sys.stderr.isatty() or prints_rows
    with Progress(console=Console(stderr=True), transient=True, disable=is_hidden) as progress:
        task = progress.add_task("Checking services", total=None)
        for response in responses:
            progress.update(task, completed=response.checked, total=response.total)
            if response.last:
                progress.stop()
            yield response
