"""The output of `xds status`: a row per proxy, or the types and resources of one proxy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from xds.cli.tables import Table
from xds.mesh.controlplane.status import (
    absent_line,
    expiry,
    overall_state,
    problem_line,
    proxy_name,
    proxy_state,
    resource_line,
    since,
    stream_line,
    type_line,
    type_word,
    types,
)
from xds.mesh.model.objects import printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name

_COLUMNS = ("CDS", "EDS", "SDS", "LDS", "RDS")
"""Types with a column, in the order in which a new sidecar needs them."""
_TITLES = ("PROXY", *_COLUMNS, "CERT", "CONNECTED", "STATUS")
_WIDE_TITLES = (*_TITLES[:-1], "ACKED", "RESOURCES", "STREAMS", "AGENT", "STATUS")
_TYPE_TITLES = ("PROXY", "TYPE", "RESOURCES", "STATUS")

_MAX_STREAMS = 8
"""Maximum streams of one proxy in a table. An Envoy that uses ADS has one, or two during a hot restart."""

_STYLES = {pb.SYNCED: "green", pb.WAITING: "yellow", pb.REJECTED: "red"}
_SEVERITY = {pb.SYNCED: 0, pb.WAITING: 1, pb.REJECTED: 2}


@dataclass(slots=True)
class ProxyTable:
    """A table with a row per proxy. Rows are added and printed repeatedly."""

    wide: bool = False
    """Whether to print all columns."""
    _table: Table = field(init=False)
    _states: dict[str, Any] = field(default_factory=dict)
    """State of each proxy as last printed: unlike the text, it contains no durations."""
    _absent: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._table = Table(*(_WIDE_TITLES if self.wide else _TITLES))

    def add(self, proxies: Sequence[pb.Proxy], absent: pb.NotConnected, now: Timestamp) -> None:
        """Print a row for each proxy, and for each sidecar that is not connected to any replica."""
        for proxy in proxies:
            self._table.add_row(*self._row(proxy, now))
        sidecars = () if absent.may_be_on_other_replica else absent.pods
        for sidecar in sidecars:
            self._add_absent(sidecar, now)
        if proxies or sidecars:
            self._table.show()

    def add_changes(self, response: pb.WatchProxiesResponse) -> None:
        """Add rows for what has changed, and print them."""
        for proxy in response.proxies:
            state = (proxy.problem, [(kind.type_url, kind.state, kind.rejection) for kind in types(proxy)])
            if self._states.get(proxy.node_id) != state:
                self._table.add_row(*self._row(proxy, response.time))
            self._states[proxy.node_id] = state
        for node_id in response.gone:
            self._states.pop(node_id, None)
            self._add_note(proxy_name(node_id), Text("disconnected"))
        if response.HasField("not_connected"):
            absent, known = response.not_connected, self._absent
            self._absent = {(sidecar.namespace, sidecar.pod) for sidecar in absent.pods}
            for sidecar in () if absent.may_be_on_other_replica else absent.pods:
                if (sidecar.namespace, sidecar.pod) not in known:
                    self._add_absent(sidecar, response.time)
        self._table.show()

    def _row(self, proxy: pb.Proxy, now: Timestamp) -> Iterator[str | Text]:
        """Yield the cells of a proxy's row."""
        yield proxy_name(proxy.node_id)
        for column in _COLUMNS:
            kinds = [kind for kind in types(proxy) if short_name(kind.type_url) == column]
            worst = max(kinds, key=lambda kind: _SEVERITY.get(kind.state, 0), default=None)
            yield Text(type_word(worst, now), _STYLES.get(worst.state, "")) if worst else "-"
        yield expiry(proxy, now)
        yield since(min(stream.connected_at.ToDatetime() for stream in proxy.streams), now)
        if self.wide:
            acked = [kind.acked_at.ToDatetime() for kind in types(proxy) if kind.HasField("acked_at")]
            yield f"{since(max(acked), now)} ago" if acked else "-"
            counts = [kind.resources for kind in types(proxy)]
            yield f"{sum(count.synced for count in counts)}/{sum(map(_total, counts))}"
            yield str(len(proxy.streams))
            yield printable(f"{proxy.agent} {proxy.agent_version}".strip()) or "-"
        yield proxy_state(proxy, now)

    def _add_absent(self, sidecar: pb.AbsentSidecar, now: Timestamp) -> None:
        text = absent_line(sidecar, now, may_be_on_other_replica=False)
        self._add_note(printable(f"{sidecar.pod}.{sidecar.namespace}"), Text(text, "red"))

    def _add_note(self, name: str, note: Text) -> None:
        blank = ("-",) * (len(_WIDE_TITLES if self.wide else _TITLES) - 2)
        self._table.add_row(name, *blank, note)


def print_footer(response: pb.ListProxiesResponse) -> None:
    """Print the number of proxies by state."""
    counts = Counter(overall_state(proxy) for proxy in response.proxies)
    absent = response.not_connected
    if absent.total and not absent.may_be_on_other_replica:
        counts["not connected"] = absent.total
    order = ("synced", "waiting", "rejected", "not connected")
    typer.echo("\n" + ", ".join(f"{counts[state]} {state}" for state in order if counts[state]))


def print_notes(response: pb.ListProxiesResponse) -> None:
    """Print what the table of all proxies omits, and problems of objects, to stderr."""
    absent = response.not_connected
    if absent.total and absent.may_be_on_other_replica:
        typer.echo(
            f"{absent.total} sidecars are not connected to this replica; other replicas may serve them "
            "(-o json lists them)",
            err=True,
        )
    elif more := absent.total - len(absent.pods):
        typer.echo(f"{more} more sidecars are not connected", err=True)
    for warning in response.warnings:
        typer.echo(problem_line(warning), err=True)
    if response.more_warnings:
        typer.echo(f"... and {response.more_warnings} more problems", err=True)


# --- one proxy ----------------------------------------------------------------------------------------------


def print_proxy(response: pb.ListProxiesResponse) -> None:
    """Print the streams of one proxy, a row per type, and its unsynced resources."""
    for proxy in response.proxies:
        _print_streams(proxy, response.time)
    table = Table(*_TYPE_TITLES)
    for proxy in response.proxies:
        for row in _type_rows(proxy, response.time):
            table.add_row(*row)
    absent = response.not_connected
    for sidecar in absent.pods:
        text = absent_line(sidecar, response.time, may_be_on_other_replica=absent.may_be_on_other_replica)
        style = "" if absent.may_be_on_other_replica else "red"
        table.add_row(printable(f"{sidecar.pod}.{sidecar.namespace}"), "-", "-", Text(text, style))
    table.show()
    shown = (stream for proxy in response.proxies for stream in proxy.streams[:_MAX_STREAMS])
    unsynced = [(kind, resource) for stream in shown for kind in stream.types for resource in kind.unsynced]
    if unsynced:
        _print_resources(unsynced, response.time)


def _print_streams(proxy: pb.Proxy, now: Timestamp) -> None:
    name = proxy_name(proxy.node_id)
    agent = printable(f" {proxy.agent} {proxy.agent_version}".rstrip())
    for stream in proxy.streams[:_MAX_STREAMS]:
        typer.echo(f"{name}:{agent}, {stream_line(stream, now)}")
    if len(proxy.streams) > _MAX_STREAMS:
        typer.echo(f"{name}: {len(proxy.streams)} streams in total")
    if proxy.HasField("certificate_expires_at"):
        typer.echo(f"{name}: certificate expires in {expiry(proxy, now)}")
    typer.echo()


def _type_rows(proxy: pb.Proxy, now: Timestamp) -> Iterator[tuple[str | Text, ...]]:
    """Yield a row per type of each stream, and a summary of the streams that the table omits."""
    name = proxy_name(proxy.node_id)
    for stream in proxy.streams[:_MAX_STREAMS]:
        for kind in stream.types:
            text = Text(type_line(kind, proxy.problem, now), _STYLES.get(kind.state, ""))
            count = f"{kind.resources.synced}/{_total(kind.resources)}"
            yield name, short_name(kind.type_url), count, text
    if omitted := proxy.streams[_MAX_STREAMS:]:
        unsynced = sum(any(kind.state != pb.SYNCED for kind in stream.types) for stream in omitted)
        text = Text(f"{len(omitted)} more streams, {unsynced} of them not synced; -o json lists all")
        yield name, "-", "-", text


def _print_resources(resources: Iterable[tuple[pb.Type, pb.Resource]], now: Timestamp) -> None:
    table = Table("TYPE", "RESOURCE", "STATE")
    for kind, resource in resources:
        table.add_row(short_name(kind.type_url), printable(resource.name), resource_line(resource, now))
    typer.echo()
    table.show()


def _total(count: pb.Counts) -> int:
    return count.synced + count.stale + count.not_sent + count.error
