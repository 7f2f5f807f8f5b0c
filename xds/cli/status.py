"""`xds status`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer

from xds.cli import admin_client, options, tables

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.text import Text

    from xds.mesh.v1 import proxies_pb2 as pb

_Key: TypeAlias = tuple[str, int, str]
"""A stream's peer and when it came, and the type."""

_TITLES = ("PROXY", "TYPE", "RESOURCES", "STATUS")

_MAX_STREAMS = 8
"""Streams of one proxy that a table has. An Envoy that uses ADS has one, or two while it restarts."""


class Format(StrEnum):
    """How to print it."""

    TABLE = "table"
    JSON = "json"


def status(
    *,
    proxy: Annotated[
        str | None,
        typer.Argument(
            metavar="PROXY",
            help="One sidecar only: POD.NAMESPACE, its node id, or how one of these begins. Its resources that are "
            "not synced are told too.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("-n", "--namespace", metavar="NS", help="One namespace only.", show_default=False),
    ] = None,
    output: Annotated[
        Format,
        typer.Option(
            "-o", "--output", help="A table for people, or JSON for programs, as grpcurl prints it."
        ),
    ] = Format.TABLE,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Go on, and tell what changes, until Ctrl-C.")
    ] = False,
    rollout: Annotated[
        bool,
        typer.Option(
            "--rollout",
            help="Say instead how far changes between plaintext and mutual TLS are: a line for each service that is on its "
            "way, with what each endpoint waits for.",
        ),
    ] = False,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="Where the control plane serves xDS.")
    ] = "127.0.0.1:15010",
    ca_file: admin_client.CaFile = None,
    token_file: admin_client.TokenFile = None,
    cert_file: admin_client.CertFile = None,
    key_file: admin_client.KeyFile = None,
) -> None:
    """Say for every connected sidecar and type of resource: synced, waiting for what, or rejected and why.

    A running control plane is asked (services xds.mesh.v1.Proxies and Rollouts). Exit status: 0 all sidecars have what they
    should, 1 some do not yet, rejected something or are not connected, 2 no sidecar is connected at all or wrong use, 3 the
    control plane cannot be asked. With --rollout: 0 nothing is on its way, 1 something is, or went on without a sidecar that
    was not waited for any longer.
    """
    if "" in (proxy, namespace):
        options.fail("PROXY and --namespace must not be empty: leave them out to ask for all")
    if rollout and proxy:
        options.fail("--rollout is about services, not about one PROXY: leave one of the two out")
    where = options.parse_address("--xds-address", xds_address)
    proof = admin_client.ClientCredentials(
        roots=ca_file, token=token_file, certificate=cert_file, key=key_file
    )
    with admin_client.AdminClient(where, proof) as control_plane:
        if rollout:
            _rollout(control_plane, namespace or "", output, watch=watch)
            return
        chosen = {
            "proxy": control_plane.find(proxy, namespace or "") if proxy else "",
            "namespace": namespace or "",
        }
        if watch:
            with suppress(KeyboardInterrupt):  # the end that was asked for
                _follow(control_plane.watch(chosen, unsynced=output is Format.JSON), output)
            return
        answer = control_plane.list(chosen, unsynced=bool(proxy) or output is Format.JSON)
        if output is Format.JSON:
            typer.echo(json.dumps(_as_json(answer), indent=2))
        else:
            _print(answer, named=bool(proxy))
        absent = answer.not_connected
        if not answer.proxies and (absent.may_be_elsewhere or not absent.total):
            of = f"of namespace {namespace} " if namespace else ""
            options.fail(f"no proxy {of}is connected to {where}: nothing was checked")
        from xds.mesh.controlplane.status import settled  # noqa: PLC0415

        is_lacking = absent.total and not absent.may_be_elsewhere
        if is_lacking or not all(settled(each) for each in answer.proxies):
            raise typer.Exit(1)


def _rollout(control_plane: admin_client.AdminClient, namespace: str, output: Format, *, watch: bool) -> None:
    """Say how far changes of mode are."""
    from xds.cli import rollout  # noqa: PLC0415

    if watch:
        answers = control_plane.watch_rollouts(namespace)
        with suppress(KeyboardInterrupt):  # the end that was asked for
            if output is Format.JSON:
                for each in answers:
                    typer.echo(json.dumps(_as_json(each)))
            else:
                rollout.follow(answers)
        return
    answer = control_plane.rollouts(namespace)
    if output is Format.JSON:
        typer.echo(json.dumps(_as_json(answer), indent=2))
    else:
        rollout.show(answer)
    if not rollout.is_done(answer):
        raise typer.Exit(1)


def _follow(responses: Iterable[pb.WatchProxiesResponse], output: Format) -> None:
    """Print what comes, one after the other: of a proxy that changed, the lines that did."""
    if output is Format.JSON:
        for response in responses:
            typer.echo(json.dumps(_as_json(response)))
        return
    table = tables.Table(*_TITLES)
    told: dict[str, dict[_Key, Any]] = {}
    absent: set[tuple[str, str]] = set()
    for response in responses:
        for proxy in response.proxies:
            before = told.get(proxy.node_id, {})
            lines = {line.key: line for line in _lines(proxy, response.time)}
            for line in lines.values():
                if before.get(line.key) != line.told:
                    table.add_row(*line.cells)
            for peer, _ in sorted({key[:2] for key in before} - {key[:2] for key in lines}):
                if peer:
                    _add_note(table, proxy.node_id, f"its stream from {peer} ended")
            told[proxy.node_id] = {line.key: line.told for line in lines.values()}
        for node_id in response.gone:
            told.pop(node_id, None)
            _add_note(table, node_id, "gone")
        if response.HasField("not_connected"):
            missing = response.not_connected
            for each in () if missing.may_be_elsewhere else missing.pods:
                if (each.namespace, each.pod) not in absent:
                    _add_absent(table, each, response.time, may_be_elsewhere=False)
            absent = {(each.namespace, each.pod) for each in missing.pods}
        table.show()


def _as_json(answer: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    return MessageToDict(answer, always_print_fields_with_no_presence=True)


class _Line(NamedTuple):
    """What a table says of one type of one stream, or of the streams that it does not have."""

    key: _Key
    told: Any
    """What it is told from; the words change with time alone."""
    cells: tuple[Text, ...]


def _lines(proxy: pb.Proxy, now: Timestamp) -> Iterator[_Line]:
    """Go through what a table says of a proxy."""
    from rich.text import Text  # noqa: PLC0415

    from xds.mesh.controlplane.status import proxy_name, words  # noqa: PLC0415
    from xds.mesh.v1 import proxies_pb2 as pb  # noqa: PLC0415
    from xds.protocol.types import short  # noqa: PLC0415

    styles = {pb.SYNCED: "green", pb.WAITING: "yellow", pb.REJECTED: "red"}
    name = proxy_name(proxy.node_id)
    for stream in proxy.streams[:_MAX_STREAMS]:
        for kind in stream.types:
            count = kind.resources
            total = count.synced + count.stale + count.not_sent + count.error
            yield _Line(
                (stream.peer, stream.connected_at.ToNanoseconds(), kind.type_url),
                (kind, proxy.missing),
                (
                    Text(name),
                    Text(short(kind.type_url)),
                    Text(f"{count.synced}/{total}"),
                    Text(words(kind, proxy.missing, now), styles.get(kind.state, "")),
                ),
            )
    if more := proxy.streams[_MAX_STREAMS:]:
        waiting = sum(any(kind.state != pb.SYNCED for kind in stream.types) for stream in more)
        said = f"{len(more)} more streams, {waiting} of them not synced; -o json has them"
        yield _Line(("", 0, ""), said, (Text(name), Text("-"), Text("-"), Text(said)))


def _add_note(table: tables.Table, node_id: str, said: str) -> None:
    from rich.text import Text  # noqa: PLC0415

    from xds.mesh.controlplane.status import proxy_name  # noqa: PLC0415
    from xds.mesh.model.objects import printable  # noqa: PLC0415

    table.add_row(Text(proxy_name(node_id)), Text("-"), Text("-"), Text(printable(said)))


def _add_absent(
    table: tables.Table, absent: pb.AbsentSidecar, now: Timestamp, *, may_be_elsewhere: bool
) -> None:
    from rich.text import Text  # noqa: PLC0415

    from xds.mesh.controlplane.status import absent_words  # noqa: PLC0415
    from xds.mesh.model.objects import printable  # noqa: PLC0415

    name = printable(f"{absent.pod}.{absent.namespace}")
    said = absent_words(absent, now, may_be_elsewhere=may_be_elsewhere)
    table.add_row(Text(name), Text("-"), Text("-"), Text(said, "" if may_be_elsewhere else "red"))


def _print(answer: pb.ListProxiesResponse, *, named: bool) -> None:
    """Print an answer; `named`: it is about one sidecar, with its streams and resources."""
    absent = answer.not_connected
    if answer.proxies or (absent.total and (named or not absent.may_be_elsewhere)):
        _print_proxies(answer, named=named)
    if absent.total and absent.may_be_elsewhere and not named:
        typer.echo(
            f"{absent.total} sidecars are not connected to this replica, and may be connected to another one "
            "(-o json names them)",
            err=True,
        )
    if not named:
        _print_warnings(answer)


def _print_warnings(answer: pb.ListProxiesResponse) -> None:
    from xds.mesh.controlplane.status import warning_words  # noqa: PLC0415

    for warning in answer.warnings:
        typer.echo(warning_words(warning), err=True)
    if answer.more_warnings:
        typer.echo(f"... and {answer.more_warnings} more warnings", err=True)


def _print_proxies(answer: pb.ListProxiesResponse, *, named: bool) -> None:
    from xds.mesh.controlplane.status import proxy_name, stream_words  # noqa: PLC0415
    from xds.mesh.model.objects import printable  # noqa: PLC0415

    absent = answer.not_connected
    if named and answer.proxies:
        for proxy in answer.proxies:
            name, agent = (
                proxy_name(proxy.node_id),
                printable(f" {proxy.agent} {proxy.agent_version}".rstrip()),
            )
            for stream in proxy.streams[:_MAX_STREAMS]:
                typer.echo(f"{name}:{agent}, {stream_words(stream, answer.time)}")
            if len(proxy.streams) > _MAX_STREAMS:
                typer.echo(f"{name}: {len(proxy.streams)} streams in all")
        typer.echo()
    table = tables.Table(*_TITLES)
    for proxy in answer.proxies:
        for line in _lines(proxy, answer.time):
            table.add_row(*line.cells)
    if named or not absent.may_be_elsewhere:
        for each in absent.pods:
            _add_absent(table, each, answer.time, may_be_elsewhere=absent.may_be_elsewhere)
    table.show()
    if more := absent.total - len(absent.pods):
        typer.echo(f"{more} more sidecars are not connected", err=True)
    if named:
        shown = (stream for proxy in answer.proxies for stream in proxy.streams[:_MAX_STREAMS])
        listed = [(kind, each) for stream in shown for kind in stream.types for each in kind.unsynced]
        if listed:
            _print_resources(listed, answer.time)


def _print_resources(listed: Iterable[tuple[pb.Type, pb.Resource]], now: Timestamp) -> None:
    from rich.text import Text  # noqa: PLC0415

    from xds.mesh.controlplane.status import resource_words  # noqa: PLC0415
    from xds.mesh.model.objects import printable  # noqa: PLC0415
    from xds.protocol.types import short  # noqa: PLC0415

    table = tables.Table("TYPE", "RESOURCE", "STATE")
    for kind, resource in listed:
        name = Text(printable(resource.name))
        table.add_row(Text(short(kind.type_url)), name, Text(resource_words(resource, now)))
    typer.echo()
    table.show()
