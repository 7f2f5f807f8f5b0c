"""`xds status`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated

import typer

from xds.cli import admin_client
from xds.cli.client_options import ConnectionOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import AllNamespaces, fail
from xds.cli.output import TABLES, WideFormat, print_document
from xds.cli.proxy_table import ProxyTable, print_footer, print_notes, print_proxy
from xds.cli.rollout_output import follow_rollouts, has_transitions, print_rollouts
from xds.mesh.controlplane.status import settled
from xds.mesh.v1 import proxies_pb2 as pb

EXAMPLES = """
xds status
xds status --not-synced
xds status httpbin-1.shop
xds status --namespace shop --watch
xds status -o wide
xds status --rollout
xds status --xds-address localhost:15012 --ca-file root-cert.pem --token-file token
"""


@grouped_options
def status(
    *,
    proxy: Annotated[
        str | None,
        typer.Argument(
            metavar="PROXY",
            help="Sidecar to print, with its unsynced resources: POD.NAMESPACE, a node ID, or a prefix of "
            "either. Default: all sidecars.",
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("-n", "--namespace", metavar="NS", help="Namespace to print. Default: all namespaces."),
    ] = None,
    all_namespaces: AllNamespaces = False,
    not_synced: Annotated[
        bool, typer.Option("--not-synced", help="Omit sidecars that have ACKed their whole configuration.")
    ] = False,
    output: Annotated[WideFormat, typer.Option("-o", "--output", help="Output format.")] = "table",
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Print the current state, then each change until Ctrl-C.")
    ] = False,
    rollout: Annotated[
        bool,
        typer.Option(
            "--rollout",
            help="Print the progress of transitions between plaintext and mutual TLS: one line per service, "
            "with what each endpoint waits for. Without --watch, also those that finished in the last hour.",
        ),
    ] = False,
    connection: ConnectionOptions,
) -> None:
    """Print the sync status of connected sidecars, one row each: synced, waiting or rejected, and why.

    Queries a running control plane with the gRPC services xds.mesh.v1.Proxies and xds.mesh.v1.Rollouts.

    Exit status: 0 all sidecars are synced, 1 a sidecar is not synced, rejected a resource, or is known but
    not connected, 2 nothing to check or wrong usage, 3 the control plane cannot be reached. With
    --rollout: 0 no transition is in progress, 1 a transition is in progress or skipped a lagging sidecar.
    """
    if "" in (proxy, namespace):
        fail("PROXY and --namespace must not be empty: omit them to print all sidecars")
    if namespace and all_namespaces:
        fail("--namespace and --all-namespaces cannot be combined")
    if rollout and proxy:
        fail("--rollout cannot be combined with PROXY, because it prints services")
    if not_synced and (proxy or rollout or watch):
        fail("--not-synced cannot be combined with PROXY, --rollout or --watch")
    with connection.open() as client:
        if rollout:
            _print_rollouts(client, namespace or "", output, watch=watch)
            return
        filters = {
            "proxy": client.resolve_proxy(proxy, namespace or "") if proxy else "",
            "namespace": namespace or "",
        }
        if watch:
            with suppress(KeyboardInterrupt):
                _follow(client.watch_proxies(filters, unsynced=output not in TABLES), output)
            return
        response = client.list_proxies(filters, unsynced=bool(proxy) or output not in TABLES)
    if proxy and output in TABLES:
        print_proxy(response)
    else:
        _print(response, output, only_unsynced=not_synced)
    absent = response.not_connected
    if not response.proxies and (absent.may_be_on_other_replica or not absent.total):
        scope = f"of namespace {namespace} " if namespace else ""
        fail(f"no proxy {scope}is connected to {client.address}: nothing was checked")
    is_absent = absent.total and not absent.may_be_on_other_replica
    if is_absent or not all(map(settled, response.proxies)):
        raise typer.Exit(1)


def _print_rollouts(
    client: admin_client.AdminClient, namespace: str, output: WideFormat, *, watch: bool
) -> None:
    if watch:
        responses = client.watch_rollouts(namespace)
        with suppress(KeyboardInterrupt):
            if output in TABLES:
                follow_rollouts(responses)
                return
            for response in responses:
                print_document(response, output, is_stream=True)
        return
    response = client.list_rollouts(namespace)
    if output in TABLES:
        print_rollouts(response)
    else:
        print_document(response, output)
    if has_transitions(response):
        raise typer.Exit(1)


def _follow(responses: Iterable[pb.WatchProxiesResponse], output: WideFormat) -> None:
    """Print each response as it arrives: all of it as JSON or YAML, or the changed rows as a table."""
    table = ProxyTable(wide=output == "wide")
    for response in responses:
        if output in TABLES:
            table.add_changes(response)
        else:
            print_document(response, output, is_stream=True)


def _print(response: pb.ListProxiesResponse, output: WideFormat, *, only_unsynced: bool) -> None:
    """Print all proxies, or only those that are not synced."""
    proxies = [proxy for proxy in response.proxies if not (only_unsynced and settled(proxy))]
    if output not in TABLES:
        shown = pb.ListProxiesResponse()
        shown.CopyFrom(response)
        del shown.proxies[:]
        shown.proxies.extend(proxies)
        print_document(shown, output)
        return
    absent = response.not_connected
    if response.proxies or (absent.total and not absent.may_be_on_other_replica):
        ProxyTable(wide=output == "wide").add(proxies, absent, response.time)
        print_footer(response)
    print_notes(response)
