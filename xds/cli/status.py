"""`xds status`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, TypeAlias

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from xds.cli import admin_client
from xds.cli.client_options import DEFAULT_XDS_ADDRESS, CaFile, CertFile, KeyFile, TokenFile, XdsAddress
from xds.cli.options import AllNamespaces, fail, parse_address
from xds.cli.rollout import follow_rollouts, has_transitions, print_rollouts
from xds.cli.tables import Table, natural_key
from xds.mesh.controlplane.status import (
    absent_line,
    proxy_name,
    resource_line,
    settled,
    stream_line,
    type_line,
    warning_line,
)
from xds.mesh.model.objects import printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name

EXAMPLES = """
xds status
xds status httpbin-1.shop
xds status --namespace shop --watch
xds status --rollout
xds status --xds-address localhost:15012 --ca-file root-cert.pem --token-file token
"""

_LineKey: TypeAlias = tuple[str, int, str]
"""The peer of a stream, the time the stream was opened, and a type URL."""

_TITLES = ("PROXY", "TYPE", "RESOURCES", "STATUS")

_MAX_STREAMS = 8
"""Maximum streams per proxy in a table. An Envoy that uses ADS has one, or two during a hot restart."""

_STYLES = {pb.SYNCED: "green", pb.WAITING: "yellow", pb.REJECTED: "red"}


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    JSON = "json"


def status(
    *,
    proxy: Annotated[
        str | None,
        typer.Argument(
            metavar="PROXY",
            help="Sidecar to print, with its unsynced resources: POD.NAMESPACE, a node ID, or a prefix of "
            "either. Default: all sidecars.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "-n",
            "--namespace",
            metavar="NS",
            help="Namespace to print. Default: all namespaces.",
            show_default=False,
        ),
    ] = None,
    all_namespaces: AllNamespaces = False,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Print the current state, then each change until Ctrl-C.")
    ] = False,
    rollout: Annotated[
        bool,
        typer.Option(
            "--rollout",
            help="Print the progress of transitions between plaintext and mutual TLS: one line per service, "
            "with what each endpoint waits for.",
        ),
    ] = False,
    xds_address: XdsAddress = DEFAULT_XDS_ADDRESS,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """Print the sync status of connected sidecars by resource type: synced, waiting or rejected, and why.

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
    address = parse_address("--xds-address", xds_address)
    credentials = admin_client.ClientCredentials(
        roots=ca_file, token=token_file, certificate=cert_file, key=key_file
    )
    with admin_client.AdminClient(address, credentials) as client:
        if rollout:
            _print_rollouts(client, namespace or "", output, watch=watch)
            return
        filters = {
            "proxy": client.resolve_proxy(proxy, namespace or "") if proxy else "",
            "namespace": namespace or "",
        }
        if watch:
            with suppress(KeyboardInterrupt):
                _follow(client.watch_proxies(filters, unsynced=output is Format.JSON), output)
            return
        response = client.list_proxies(filters, unsynced=bool(proxy) or output is Format.JSON)
    if output is Format.JSON:
        typer.echo(json.dumps(_to_json(response), indent=2))
    else:
        _print(response, one_proxy=bool(proxy))
    absent = response.not_connected
    if not response.proxies and (absent.may_be_on_other_replica or not absent.total):
        scope = f"of namespace {namespace} " if namespace else ""
        fail(f"no proxy {scope}is connected to {address}: nothing was checked")
    is_absent = absent.total and not absent.may_be_on_other_replica
    if is_absent or not all(map(settled, response.proxies)):
        raise typer.Exit(1)


def _print_rollouts(client: admin_client.AdminClient, namespace: str, output: Format, *, watch: bool) -> None:
    if watch:
        responses = client.watch_rollouts(namespace)
        with suppress(KeyboardInterrupt):
            if output is Format.JSON:
                for response in responses:
                    typer.echo(json.dumps(_to_json(response)))
            else:
                follow_rollouts(responses)
        return
    response = client.list_rollouts(namespace)
    if output is Format.JSON:
        typer.echo(json.dumps(_to_json(response), indent=2))
    else:
        print_rollouts(response)
    if has_transitions(response):
        raise typer.Exit(1)


def _follow(responses: Iterable[pb.WatchProxiesResponse], output: Format) -> None:
    """Print each response as it arrives: all of it as JSON, or the changed lines as a table."""
    if output is Format.JSON:
        for response in responses:
            typer.echo(json.dumps(_to_json(response)))
        return
    table = Table(*_TITLES)
    states: dict[str, dict[_LineKey, Any]] = {}
    known_absent: set[tuple[str, str]] = set()
    for response in responses:
        for proxy in response.proxies:
            previous = states.get(proxy.node_id, {})
            lines = {line.key: line for line in _lines(proxy, response.time)}
            for line in lines.values():
                if previous.get(line.key) != line.state:
                    table.add_row(*line.cells)
            for peer, _ in sorted({key[:2] for key in previous} - {key[:2] for key in lines}):
                if peer:
                    _add_note(table, proxy.node_id, f"stream from {peer} ended")
            states[proxy.node_id] = {line.key: line.state for line in lines.values()}
        for node_id in response.gone:
            states.pop(node_id, None)
            _add_note(table, node_id, "disconnected")
        if response.HasField("not_connected"):
            absent = response.not_connected
            for sidecar in () if absent.may_be_on_other_replica else absent.pods:
                if (sidecar.namespace, sidecar.pod) not in known_absent:
                    _add_absent(table, sidecar, response.time, may_be_on_other_replica=False)
            known_absent = {(sidecar.namespace, sidecar.pod) for sidecar in absent.pods}
        table.show()


def _to_json(response: Message) -> dict[str, Any]:
    return MessageToDict(response, always_print_fields_with_no_presence=True)


class _Line(NamedTuple):
    """A table line: one resource type of one stream, or a summary of the streams that the table omits."""

    key: _LineKey
    """Identifies the line in successive responses."""
    state: Any
    """The data that the text is made from. Unlike the text, it contains no durations."""
    cells: tuple[Text, ...]
    """The cells of the line."""


def _lines(proxy: pb.Proxy, now: Timestamp) -> Iterator[_Line]:
    """Yield the table lines of a proxy."""
    name = proxy_name(proxy.node_id)
    for stream in proxy.streams[:_MAX_STREAMS]:
        for kind in stream.types:
            count = kind.resources
            total = count.synced + count.stale + count.not_sent + count.error
            yield _Line(
                (stream.peer, stream.connected_at.ToNanoseconds(), kind.type_url),
                (kind, proxy.problem),
                (
                    Text(name),
                    Text(short_name(kind.type_url)),
                    Text(f"{count.synced}/{total}"),
                    Text(type_line(kind, proxy.problem, now), _STYLES.get(kind.state, "")),
                ),
            )
    if omitted := proxy.streams[_MAX_STREAMS:]:
        unsynced = sum(any(kind.state != pb.SYNCED for kind in stream.types) for stream in omitted)
        text = f"{len(omitted)} more streams, {unsynced} of them not synced; -o json lists all"
        yield _Line(("", 0, ""), text, (Text(name), Text("-"), Text("-"), Text(text)))


def _add_note(table: Table, node_id: str, note: str) -> None:
    table.add_row(proxy_name(node_id), "-", "-", printable(note))


def _add_absent(
    table: Table, sidecar: pb.AbsentSidecar, now: Timestamp, *, may_be_on_other_replica: bool
) -> None:
    name = printable(f"{sidecar.pod}.{sidecar.namespace}")
    text = absent_line(sidecar, now, may_be_on_other_replica=may_be_on_other_replica)
    table.add_row(name, "-", "-", Text(text, "" if may_be_on_other_replica else "red"))


def _print(response: pb.ListProxiesResponse, *, one_proxy: bool) -> None:
    """Print a response as tables. With `one_proxy`, include the proxy's streams and unsynced resources."""
    absent = response.not_connected
    if response.proxies or (absent.total and (one_proxy or not absent.may_be_on_other_replica)):
        _print_proxies(response, one_proxy=one_proxy)
    if absent.total and absent.may_be_on_other_replica and not one_proxy:
        typer.echo(
            f"{absent.total} sidecars are not connected to this replica; other replicas may serve them "
            "(-o json lists them)",
            err=True,
        )
    if not one_proxy:
        for warning in response.warnings:
            typer.echo(warning_line(warning), err=True)
        if response.more_warnings:
            typer.echo(f"... and {response.more_warnings} more warnings", err=True)


def _print_proxies(response: pb.ListProxiesResponse, *, one_proxy: bool) -> None:
    absent = response.not_connected
    if one_proxy and response.proxies:
        for proxy in response.proxies:
            name = proxy_name(proxy.node_id)
            agent = printable(f" {proxy.agent} {proxy.agent_version}".rstrip())
            for stream in proxy.streams[:_MAX_STREAMS]:
                typer.echo(f"{name}:{agent}, {stream_line(stream, response.time)}")
            if len(proxy.streams) > _MAX_STREAMS:
                typer.echo(f"{name}: {len(proxy.streams)} streams in total")
        typer.echo()
    table = Table(*_TITLES)
    for proxy in sorted(response.proxies, key=lambda proxy: natural_key(proxy_name(proxy.node_id))):
        for line in _lines(proxy, response.time):
            table.add_row(*line.cells)
    if one_proxy or not absent.may_be_on_other_replica:
        for sidecar in absent.pods:
            _add_absent(table, sidecar, response.time, may_be_on_other_replica=absent.may_be_on_other_replica)
    table.show()
    if more := absent.total - len(absent.pods):
        typer.echo(f"{more} more sidecars are not connected", err=True)
    if one_proxy:
        streams = (stream for proxy in response.proxies for stream in proxy.streams[:_MAX_STREAMS])
        unsynced = [
            (kind, resource) for stream in streams for kind in stream.types for resource in kind.unsynced
        ]
        if unsynced:
            _print_resources(unsynced, response.time)


def _print_resources(resources: Iterable[tuple[pb.Type, pb.Resource]], now: Timestamp) -> None:
    table = Table("TYPE", "RESOURCE", "STATE")
    for kind, resource in resources:
        table.add_row(short_name(kind.type_url), printable(resource.name), resource_line(resource, now))
    typer.echo()
    table.show()
