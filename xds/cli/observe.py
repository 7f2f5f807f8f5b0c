"""`xds observe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from xds.cli.client_options import ConnectionOptions
from xds.cli.durations import parse_period
from xds.cli.explain_output import address_notes
from xds.cli.option_groups import grouped_options
from xds.cli.options import OBSERVATION_DISABLED, fail, namespace_option
from xds.cli.output import TABLES, WideFormat, print_document
from xds.cli.tables import Table
from xds.mesh.controlplane.status import duration, since
from xds.mesh.model.objects import printable
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import TRAFFIC_RETENTION, format_rate
from xds.mesh.v1 import traffic_pb2 as pb

EXAMPLES = """
xds observe
xds observe --namespace shop --plaintext
xds observe --denied
xds observe --watch
xds observe --since 7d -o json
"""

_TITLES = ("CLIENT", "SERVICE", "MODE", "REQ/MIN", "LAST SEEN")
_WIDE_TITLES = (*_TITLES[:-1], "REQ/HOUR", "REQ/DAY", "FAILED/HOUR", "FIRST SEEN", "LAST SEEN")
_DENIED_TITLES = ("CLIENT", "SERVICE", "MODE", "RESULT", "REQUEST", "REQ/DAY", "DENIED BY", "LAST SEEN")
_STYLES = {
    pb.TrafficEdge.MTLS: "green",
    pb.TrafficEdge.TLS: "green",
    pb.TrafficEdge.PLAINTEXT: "yellow",
    pb.TrafficEdge.REFUSED: "red",
}


@grouped_options
def observe(
    *,
    namespace: Annotated[
        str | None,
        namespace_option("Namespace of the client or the server. Default: all namespaces."),
    ] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Print only plaintext and refused traffic.")
    ] = False,
    denied: Annotated[
        bool,
        typer.Option(
            "--denied", help="Print what AuthorizationPolicies deny, or would deny, and which rule."
        ),
    ] = False,
    period: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="DURATION",
            help="Print traffic that was last seen in this time, such as 1h or 7d (maximum; "
            "with --denied: 24h). Default: 24h.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Print the current state, then each change until Ctrl-C.")
    ] = False,
    output: Annotated[WideFormat, typer.Option("-o", "--output", help="Output format.")] = "table",
    connection: ConnectionOptions,
) -> None:
    """Print the traffic that sidecars have reported, a row per client, service and mode.

    A client is a service account (NAMESPACE/ACCOUNT), or an address that belongs to no known pod. REQ/MIN
    is the average of the last 5 minutes: HTTP requests, or connections of other protocols. Mode refused
    means that the server requires mutual TLS and closed a plaintext connection. Reports take up to 20 s
    to arrive, in a large mesh up to 80 s.

    With --denied, print requests that AuthorizationPolicies deny: a row per client, service, mode, rule,
    method and start of the path. Policies with the annotation istio.io/dry-run deny nothing: their rows are
    "would be denied".

    Exit status: 0 printed, 1 observation is disabled, 2 wrong usage, 3 the control plane cannot be reached.
    """
    request = pb.ListTrafficRequest(namespace=namespace or "", plaintext_only=plaintext, denied_only=denied)
    if period:
        seconds = parse_period("--since", period)
        kind, retention = ("denied requests are", RETENTION) if denied else ("traffic is", TRAFFIC_RETENTION)
        if seconds > retention:
            fail(f"--since: {kind} remembered for only {duration(retention)}")
        request.period.FromMilliseconds(round(seconds * 1000))
    table = (_DeniedTable if denied else _TrafficTable)(wide=output == "wide")
    with connection.open() as client:
        if watch:
            with suppress(KeyboardInterrupt):
                _follow(client.watch_traffic(request), table, output)
            return
        response = client.list_traffic(request)
    _require_enabled(response)
    if output not in TABLES:
        print_document(response, output)
        return
    table.add_changes(response)
    if not response.edges:
        kind = "plaintext or refused traffic" if plaintext else "traffic"
        kind = f"denied {kind}" if denied else kind
        typer.echo(f"no {kind} was reported in the last {_observed_for(response)}")
        if denied:
            typer.echo("sidecars with Envoy 1.36 or older do not report what they deny")
    _print_notes(response)


def _follow(responses: Iterable[pb.ListTrafficResponse], table: _TrafficTable, output: WideFormat) -> None:
    for response in responses:
        _require_enabled(response)
        if output in TABLES:
            table.add_changes(response)
        else:
            print_document(response, output, is_stream=True)


class _TrafficTable:
    """A table with a row per edge. Rows of changed edges are printed again."""

    titles: tuple[str, ...] = _TITLES
    wide_titles: tuple[str, ...] = _WIDE_TITLES

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._table = Table(*(self.wide_titles if wide else self.titles))
        self._printed: dict[tuple[str, ...], bytes] = {}

    def add_changes(self, response: pb.ListTrafficResponse) -> None:
        """Print a row for each edge that was reported since the last call."""
        previous, self._printed = self._printed, {}
        has_rows = False
        for edge in response.edges:
            key = (edge.client_namespace, edge.client, _service(edge), str(edge.mode), str(edge.denial))
            last_seen = edge.last_seen.SerializeToString()
            self._printed[key] = last_seen
            if previous.get(key) != last_seen:
                self._table.add_row(*self._row(edge, response.time))
                has_rows = True
        if has_rows:
            self._table.show()

    def _row(self, edge: pb.TrafficEdge, now: Timestamp) -> Iterator[str | Text]:
        """Yield the cells of an edge's row."""
        yield from _first_cells(edge)
        yield format_rate(edge.requests_per_minute)
        if self._wide:
            yield str(sum(edge.minutes))
            yield str(edge.requests_per_day)
            yield str(edge.failed_per_hour)
            yield f"{since(edge.first_seen.ToDatetime(), now)} ago"
        yield f"{since(edge.last_seen.ToDatetime(), now)} ago"


class _DeniedTable(_TrafficTable):
    """A table with a row per edge of denied requests."""

    titles = _DENIED_TITLES
    wide_titles = (*_DENIED_TITLES[:-1], "FIRST SEEN", "LAST SEEN")

    def _row(self, edge: pb.TrafficEdge, now: Timestamp) -> Iterator[str | Text]:
        denial = edge.denial
        yield from _first_cells(edge)
        yield Text("would be denied", "yellow") if denial.dry_run else Text("denied", "red")
        yield printable(f"{denial.method} {denial.path}".strip()) or "-"
        yield str(edge.requests_per_day)
        yield printable(denial.rule) or "no ALLOW rule matches"
        if self._wide:
            yield f"{since(edge.first_seen.ToDatetime(), now)} ago"
        yield f"{since(edge.last_seen.ToDatetime(), now)} ago"


def _first_cells(edge: pb.TrafficEdge) -> Iterator[str | Text]:
    yield printable(f"{edge.client_namespace}/{edge.client}".lstrip("/"))
    yield printable(_service(edge))
    yield Text(pb.TrafficEdge.Mode.Name(edge.mode).lower(), _STYLES.get(edge.mode, ""))


def _service(edge: pb.TrafficEdge) -> str:
    return f"{edge.service}.{edge.namespace}:{edge.port}"


def _observed_for(response: pb.ListTrafficResponse) -> str:
    age = response.time.ToMilliseconds() - response.since.ToMilliseconds()
    return duration(min(age, response.period.ToMilliseconds()) / 1000)


def _require_enabled(response: pb.ListTrafficResponse) -> None:
    if not response.enabled:
        fail(OBSERVATION_DISABLED, 1)


def _print_notes(response: pb.ListTrafficResponse) -> None:
    """Print what clients are no pods, and what the table may omit, to stderr."""
    for note in address_notes(response.edges):
        typer.echo(note, err=True)
    for missing in response.missing_replicas:
        replica = f"replica {printable(missing.replica)}" if missing.replica else "other replicas"
        typer.echo(f"the traffic of {replica} is missing: {printable(missing.reason)}", err=True)
    if response.dropped:
        typer.echo(f"{response.dropped} reports or entries were dropped: counts may be too low", err=True)
