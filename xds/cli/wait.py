"""`xds wait`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from xds.cli.client_options import ConnectionOptions
from xds.cli.durations import parse_duration
from xds.cli.option_groups import grouped_options
from xds.cli.options import fail
from xds.mesh.controlplane.status import proxy_name
from xds.mesh.model.names import ref_named
from xds.mesh.model.objects import TRAFFIC_KINDS, Ref
from xds.mesh.parse import KINDS
from xds.mesh.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from xds.cli.admin_client import AdminClient

EXAMPLES = """
xds wait PeerAuthentication/shop/default
xds wait DestinationRule/shop/httpbin --for acked --timeout 2m
kubectl apply -f strict.yaml && xds wait PeerAuthentication/shop/default --kubernetes
xds wait PeerAuthentication/istio-system/default --resource-version 81234
"""

_KINDS = {kind.name: kind.namespaced for kind in KINDS if kind.name in TRAFFIC_KINDS}
"""Kinds, and whether each is namespaced."""
_CLUSTER_SCOPED = ", ".join(f"{kind}/NAME" for kind, namespaced in _KINDS.items() if not namespaced)
_MAX_NAMES = 20
"""Maximum number of proxies that a message names."""

Condition = Literal["in-force", "acked"]
"""What to wait for."""


_CONDITIONS = {"in-force": pb.WaitRequest.IN_FORCE, "acked": pb.WaitRequest.ACKED}


@grouped_options
def wait(
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="KIND/NS/NAME",
            help=f"Object to wait for. Kinds: {', '.join(TRAFFIC_KINDS)} ({_CLUSTER_SCOPED}).",
        ),
    ],
    condition: Annotated[
        Condition,
        typer.Option(
            "--for",
            help="acked: all sidecars that the object affects have ACKed. in-force: in addition, no "
            "transition that the object may have caused is in progress.",
        ),
    ] = "in-force",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Time to wait, such as 90s or 2m.")
    ] = "60s",
    resource_version: Annotated[
        str,
        typer.Option(
            "--resource-version",
            metavar="VERSION",
            help="Oldest resourceVersion of the object to wait for. Default: the version that the control "
            "plane has read.",
        ),
    ] = "",
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="Read the object from the API server, and wait for its resourceVersion.",
        ),
    ] = False,
    connection: ConnectionOptions,
) -> None:
    """Wait until all connected sidecars that a policy or DestinationRule affects have ACKed it.

    An object affects a sidecar that subscribes to a resource made from it: a listener, cluster or
    assignment. If a control plane reads files, the command waits for everything that was written before it
    started. If it reads an API server, use --kubernetes or --resource-version: otherwise, the command does
    not wait for a change that the control plane has not read yet.

    The command does not wait for sidecars that are not connected, or that are connected to another replica.
    But a policy is not in force if none of the sidecars that should enforce it is connected to any replica.

    Exit status: 0 the condition is met, 1 the timeout has passed, a sidecar rejected its configuration or the
    control plane rejects the object, 2 the object does not exist or wrong usage, 3 the control plane or the
    API server cannot be reached, or too many waits are in progress.
    """
    ref = ref_named(target, _KINDS)
    parse_duration("--timeout", timeout)
    if kubernetes and resource_version:
        fail("--kubernetes cannot be combined with --resource-version")
    with connection.open(reads_cluster=kubernetes) as client:
        if kubernetes:
            from xds.cli import cluster  # noqa: PLC0415 - the Kubernetes client takes long to import

            reading = cluster.read_resource_version(ref, connection.kubeconfig, connection.context)
            resource_version = asyncio.run(reading)
        wait_for(client, ref, resource_version, timeout, condition)


def wait_for(
    client: AdminClient,
    ref: Ref,
    version: str,
    timeout: str,
    condition: Condition = "in-force",
) -> None:
    """Wait for an object, and print the result. Exit unless the condition is met.

    Args:
        client: the control plane.
        ref: the object.
        version: oldest resourceVersion to wait for; empty for the one that the control plane has read.
        timeout: duration to wait.
        condition: what to wait for.
    """
    request = pb.WaitRequest(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        resource_version=version,
        condition=_CONDITIONS[condition],
    )
    last = _follow(client.wait(request, parse_duration("--timeout", timeout)), ref)
    _report(last, ref, request, timeout)


def _follow(responses: Iterable[pb.WaitResponse], ref: Ref) -> pb.WaitResponse:
    """Print each response to a terminal, and return the last one."""
    last = pb.WaitResponse()
    for last in responses:
        if sys.stderr.isatty() and last.state < pb.WaitResponse.READY:
            typer.echo(f"xds: {ref}: {_progress(last)}", err=True)
    return last


def _progress(response: pb.WaitResponse) -> str:
    """Describe what an object waits for."""
    if response.detail:
        return response.detail
    acked = f"acked by {response.acked} of {response.affected} sidecars"
    waits = [f"{proxy_name(proxy.node_id)} {proxy.reason}" for proxy in response.lagging[:3]]
    if more := response.affected - response.acked - len(waits):
        waits.append(f"{more} more")
    return ", ".join([acked, *(waits or response.transitions)])


def _report(response: pb.WaitResponse, ref: Ref, request: pb.WaitRequest, timeout: str) -> None:
    """Print the result, and exit unless the condition is met."""
    state = pb.WaitResponse
    match response.state:
        case state.READY:
            _report_success(response, ref, request)
        case state.NO_VERSIONS:
            fail("the control plane reads files, which have no resourceVersion: omit the option")
        case state.NOT_FOUND:
            _fail_unread(response, ref)
        case state.INVALID:
            fail(f"the control plane rejects {ref}: {response.detail}", 1)
        case state.REJECTED:
            _fail_lagging(response, f"{ref}: rejected by {len(response.lagging)} sidecars")
        case _:
            _fail_lagging(
                response,
                f"{ref}: timed out after {timeout}: {_summary(response)}",
                response.transitions,
            )


def _report_success(response: pb.WaitResponse, ref: Ref, request: pb.WaitRequest) -> None:
    word = "in force" if request.condition == pb.WaitRequest.IN_FORCE else "acked"
    state = f"{word}, acked by {response.acked} of {response.affected} sidecars"
    typer.echo(f"{ref}: {state if response.affected else 'affects no connected sidecar (see xds problems)'}")
    if response.has_versions and not request.resource_version:
        typer.echo(
            f"xds: checked resourceVersion {response.resource_version}; to wait for a change that the "
            "control plane may not have read, use --kubernetes",
            err=True,
        )
    if response.not_connected and response.may_be_on_other_replica:
        typer.echo(
            f"xds: {response.not_connected} sidecars are not connected to this replica and were not checked; "
            "other replicas may serve them",
            err=True,
        )
    elif response.not_connected:
        typer.echo(f"xds: {response.not_connected} sidecars are not connected and were not checked", err=True)


def _fail_unread(response: pb.WaitResponse, ref: Ref) -> NoReturn:
    if response.has_versions:
        fail(
            f"the control plane has not read {ref}: check the name, or use --kubernetes to wait until the "
            "control plane has read a new object"
        )
    fail(f"{ref} does not exist in the files that the control plane reads")


def _summary(response: pb.WaitResponse) -> str:
    if response.detail:
        return response.detail
    return f"acked by {response.acked} of {response.affected} sidecars"


def _fail_lagging(response: pb.WaitResponse, message: str, transitions: Iterable[str] = ()) -> None:
    """Print a message, the sidecars that lag and the transitions in progress, and exit with status 1."""
    typer.echo(f"xds: {message}", err=True)
    for proxy in response.lagging[:_MAX_NAMES]:
        word = "rejected: " if proxy.rejected else ""
        typer.echo(f"  {proxy_name(proxy.node_id)} {word}{proxy.reason}", err=True)
    if more := response.affected - response.acked - len(response.lagging[:_MAX_NAMES]):
        typer.echo(f"  and {more} more sidecars", err=True)
    for transition in transitions:
        typer.echo(f"  {transition}", err=True)
    raise typer.Exit(1)
