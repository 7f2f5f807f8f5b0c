"""`xds reach`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from xds.cli.hops import hop_cells, hop_json, outcome_cells, outcome_json
from xds.cli.manifests import find_pod, read_mesh
from xds.cli.options import (
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    MeshConfigMap,
    XdsNamespace,
    fail,
    fail_unknown,
    parse_cluster,
    print_problems,
)
from xds.cli.output import WideFormat
from xds.cli.rows import Rows
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, ports_named
from xds.mesh.model.objects import Pod
from xds.mesh.policy.effect import without_effect
from xds.mesh.policy.hops import Target, all_targets, clients_of, hops
from xds.mesh.policy.reach import Result

EXAMPLES = """
xds reach --manifests mesh/
xds reach --manifests mesh/ --only fails
xds reach --manifests mesh/ --from shop/sleep --to httpbin.shop:8000
xds reach --manifests mesh/ --to httpbin.shop --expand
xds reach --manifests mesh/ --strict -o json
xds reach --kubernetes --context staging --to httpbin.shop
kustomize build overlays/prod | xds reach --manifests - --manifests policies/
"""


def reach(
    *,
    manifests: Manifests = None,
    kubernetes: FromKubernetes = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    xds_namespace: XdsNamespace = None,
    mesh_config_map: MeshConfigMap = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    client: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="POD.NS|NS/ACCOUNT",
            help="Client pod, or service account of client pods, to print. Default: all pods.",
            show_default=False,
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
    namespace: Annotated[
        str | None,
        typer.Option(
            "-n",
            "--namespace",
            metavar="NS",
            help="Namespace of the services to print. Default: all namespaces.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        Result | None,
        typer.Option(
            "--only",
            help="Outcome to print; it does not change the exit status. Default: all outcomes.",
            show_default=False,
        ),
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Print a line for each client pod and endpoint.")
    ] = False,
    output: Annotated[WideFormat, typer.Option("-o", "--output", help="Output format.")] = WideFormat.TABLE,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Also exit with status 1 if the manifests have a problem or an object has no effect.",
        ),
    ] = False,
) -> None:
    """Print which clients reach which services (mtls, plaintext or fails), and why.

    The result is predicted from manifests, or from the objects of a cluster; no request is sent to a pod. A
    line stands for all clients and endpoints with the same outcome. Failures come first for each service. A
    workload whose Pods are not in the manifests, such as a Deployment, counts as one pod (deploy/NAME), with
    a sidecar if the webhook would inject one. Problems, and objects without effect, such as a policy whose
    selector matches no pod, are printed to stderr.

    Exit status: 0 every connection works, 1 a connection fails (with --strict also: a problem, or an object
    without effect), 2 nothing was checked because there is no Pod or no Service, or wrong usage, 3 the API
    server cannot be reached.
    """
    cluster = parse_cluster(kubernetes, kubeconfig, context, xds_namespace, mesh_config_map)
    mesh, problems = read_mesh(manifests, mesh_config, assignments, cluster=cluster)
    ineffective = [problem for effect in without_effect(mesh).problems.values() for problem in effect]
    # A Service without endpoints is normal in a running mesh, but likely a mistake in manifests.
    warnings = [*problems, *(replace(problem, notice=False) for problem in ineffective)]
    print_problems(warnings)
    clients = list(_clients(mesh, client))
    targets = [target for target in _targets(mesh, server) if namespace in (None, target[0].namespace)]
    if not clients or not targets:
        missing = "Service with a TCP port" if clients else "Pod"
        where = f"namespace {namespace} of " if clients and namespace else ""
        fail(f"nothing was checked: no {missing} in {where}{', '.join(manifests or ['the cluster'])}")
    fails = _print_hops(mesh, clients, targets, output, only=only, expand=expand)
    if fails or (strict and any(not problem.notice for problem in warnings)):
        raise typer.Exit(1)


def _print_hops(
    mesh: Mesh,
    clients: list[Pod],
    targets: list[Target],
    output: WideFormat,
    *,
    only: Result | None,
    expand: bool,
) -> bool:
    """Print the hops, and return whether a connection fails."""
    columns = ("CLIENT", "SERVICE", "ENDPOINT") if expand else ("CLIENTS", "SERVICE", "ENDPOINTS")
    rows = Rows(output, *columns, "OUTCOME", "REASON", "DECIDED BY")
    fails = False
    for hop in hops(mesh, clients, _with_progress(targets)):
        fails |= hop.answer.result is Result.FAILS
        if only not in (None, hop.answer.result):
            continue
        if not expand:
            rows.add(hop_json(hop), hop_cells(hop, wide=output is WideFormat.WIDE))
            continue
        for outcome in hop.outcomes():
            rows.add(outcome_json(outcome), outcome_cells(outcome))
    rows.close()
    return fails


def _with_progress(targets: list[Target]) -> Iterable[Target]:
    """Show a progress bar on a terminal, unless the rows themselves are printed there."""
    is_hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    return track(
        targets, "Checking services", console=Console(stderr=True), transient=True, disable=is_hidden
    )


def _clients(mesh: Mesh, text: str | None) -> Iterator[Pod]:
    """Yield the client pods that POD.NAMESPACE or NAMESPACE/ACCOUNT selects; None selects all."""
    if text is None:
        yield from clients_of(mesh)
        return
    accounts: dict[str, list[Pod]] = {}
    for pod in clients_of(mesh) if "/" in text else ():
        accounts.setdefault(f"{pod.namespace}/{pod.service_account}", []).append(pod)
    if text in accounts:
        yield from accounts[text]
    elif any(account.startswith(f"{text.partition('/')[0]}/") for account in accounts):
        fail_unknown("service account", text, list(accounts), "NAMESPACE/ACCOUNT")
    else:
        yield find_pod(mesh, text)


def _targets(mesh: Mesh, text: str | None) -> Iterator[Target]:
    """Yield the ports that SERVICE.NAMESPACE[:PORT] selects, by number or name; None selects all."""
    if text is None:
        yield from all_targets(mesh)
        return
    try:
        service, ports = ports_named(mesh, text)
    except UnknownNameError as error:
        fail(str(error))
    yield from ((service, port) for port in ports)
