"""The effects of a change as a table and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from xds.cli.explain_output import address_notes, refused_client
from xds.cli.hop_cells import TargetGroups, format_clients, reason
from xds.cli.options import print_not_considered
from xds.cli.tables import Table
from xds.mesh.controlplane.status import since
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Problem, Ref, printable
from xds.mesh.observe.record import in_words
from xds.mesh.policy.hop_text import MAX_NAMES
from xds.mesh.policy.prediction import Effect
from xds.mesh.policy.reach import refusal_by
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge

TITLES = ("EFFECT", "CLIENTS", "TARGET", "BEFORE", "AFTER", "DECIDED BY", "REMEDY")
_SEEN_TITLES = (*TITLES[:-1], "SEEN", TITLES[-1])
_TRAFFIC_TITLES = ("CLIENT", "TARGET", "MODE", "FIRST SEEN", "LAST SEEN")

_STYLES: dict[str, str] = {
    Effect.BREAKS: "red",
    Effect.MAY_BREAK: "yellow",
    Effect.PLAINTEXT: "yellow",
    "not known": "yellow",
}
_PLAINTEXT = "plaintext"
_MAX_PAIRS = 5
"""Maximum number of connections that become possible that are named."""
_UNPROVEN = (
    "clients outside the mesh that no object proves. With a running control plane, --observed finds those "
    "that send plaintext."
)


class _Row(NamedTuple):
    """A changed hop or refused direct traffic, as text."""

    effect: str
    clients: str
    target: str
    before: str
    after: str
    decided_by: str
    seen: str
    """When the traffic was last observed."""
    remedy: str

    def cells(self, *, with_seen: bool) -> tuple[str, ...]:
        return tuple(self) if with_seen else (*self[:-2], self.remedy)


def print_table(plan: pb.PlanResponse) -> None:
    """Print a line for each effect, worst first, then each remedy once, observed traffic and a summary."""
    rows, with_seen = list(_rows(plan)), _with_seen(plan)
    if rows:
        table = Table(*(_SEEN_TITLES if with_seen else TITLES)[:-1])
        for row in rows:
            cells = row.cells(with_seen=with_seen)
            table.add_row(Text(row.effect, _STYLES.get(row.effect, "green")), *cells[1:-1])
        table.show()
        typer.echo()
    if remedies := dict.fromkeys(row.remedy for row in rows if row.remedy):
        typer.echo("\n".join(["Remedies:", *(f"  {text}" for text in remedies), ""]))
    typer.echo("\n".join(_summaries(plan)))
    print_not_considered(_not_considered(plan), err=False)
    for gap in plan.replay.gaps:
        typer.echo(f"xds: {printable(gap)}", err=True)
    if plan.HasField("observation"):
        _print_observation(plan.observation)


def _with_seen(plan: pb.PlanResponse) -> bool:
    """Whether rows say when their traffic was last seen."""
    return plan.HasField("observation") or plan.HasField("replay")


def _summaries(plan: pb.PlanResponse) -> Iterator[str]:
    """Yield the result in words; with a replay, first that of the recorded traffic."""
    replay = plan.replay
    if not plan.HasField("replay"):
        yield plan.summary
        return
    yield printable(replay.summary)
    if replay.failing:
        yield f"recorded flows that fail without the change too: {replay.failing:,}"
    if replay.possible:
        pairs = dict.fromkeys(
            f"{client} -> {each.service}:{each.port}"
            for each in replay.possible
            for client in _account_names(each.clients) or ["clients outside the mesh"]
        )
        yield f"becomes possible, never used ({len(pairs):,}): {join_names(pairs, _MAX_PAIRS)}"
    yield f"all connections, used or not: {plan.summary}"


def _print_observation(observation: pb.Observation) -> None:
    """Print plaintext traffic to ports that become STRICT, what may be missing, and the result."""
    typer.echo()
    print_traffic(observation.plaintext, observation.time)
    for gap in observation.gaps:
        typer.echo(f"xds: {gap}", err=True)
    typer.echo(observation.summary)


def print_traffic(edges: Sequence[TrafficEdge], now: Timestamp) -> None:
    """Print a table of plaintext traffic, and an empty line; nothing without traffic."""
    if edges:
        table = Table(*_TRAFFIC_TITLES)
        for edge in edges:
            table.add_row(*_traffic_cells(edge, now))
        table.show()
        for note in address_notes(edges):
            typer.echo(note, err=True)
        typer.echo()


def _traffic_cells(edge: TrafficEdge, now: Timestamp) -> tuple[str, ...]:
    return (
        f"{edge.client_namespace}/{edge.client}".lstrip("/"),
        f"{edge.service}.{edge.namespace}:{edge.port}",
        TrafficEdge.Mode.Name(edge.mode).lower(),
        f"{since(edge.first_seen.ToDatetime(), now)} ago",
        f"{since(edge.last_seen.ToDatetime(), now)} ago",
    )


def as_markdown(plan: pb.PlanResponse) -> str:
    """Return the effects as Markdown for a comment on a pull request."""
    with_seen = _with_seen(plan)
    titles, rows = (
        _SEEN_TITLES if with_seen else TITLES,
        [row.cells(with_seen=with_seen) for row in _rows(plan)],
    )
    first, *more = _summaries(plan)
    lines = ["### Effect on connections", "", f"**{_escape(first)}**", *_markdown_table(titles, rows)]
    lines += [line for text in more for line in ("", _escape(text))]
    lines += ["", *(f"- {_escape(gap)}" for gap in plan.replay.gaps)] if plan.replay.gaps else []
    for phrase in _not_considered(plan):
        lines += ["", f"Not considered: {_escape(phrase)}"]
    if plan.HasField("observation"):
        observation = plan.observation
        cells = [_traffic_cells(edge, observation.time) for edge in observation.plaintext]
        lines += ["", f"**{_escape(observation.summary)}**", *_markdown_table(_TRAFFIC_TITLES, cells)]
        lines += ["", *(f"- {_escape(gap)}" for gap in observation.gaps)] if observation.gaps else []
    if plan.without_effect:
        lines += ["", "**Objects without effect:**", ""]
        lines += [f"- {_escape(str(to_problem(problem)))}" for problem in plan.without_effect]
    return "\n".join(lines)


def _not_considered(plan: pb.PlanResponse) -> Iterator[str]:
    """Yield what the plan does not consider, and could change it."""
    yield from plan.not_considered
    if plan.unproven_clients:
        yield _UNPROVEN


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table after an empty line; nothing without rows."""
    if rows:
        yield ""
        yield "| " + " | ".join(title.lower() for title in titles) + " |"
        yield "|---" * len(titles) + "|"
        for row in rows:
            yield "| " + " | ".join(map(_escape, row)) + " |"


def to_problem(problem: pb.ManifestProblem) -> Problem:
    """Return a problem of a manifest."""
    return Problem(where=problem.where, what=problem.what, hint=problem.hint, notice=problem.notice)


def _rows(plan: pb.PlanResponse) -> Iterator[_Row]:
    """Yield the rows, worst first."""
    if plan.HasField("replay"):
        yield from _replay_rows(plan.replay)
        yield from (_refusal_row(refusal) for refusal in plan.refused if refusal.breaks)
        return
    now = plan.observation.time
    breaking = [change for change in plan.hops if change.effect == Effect.BREAKS]
    yield from _hop_rows(breaking, now)
    yield from map(_refusal_row, plan.refused)
    yield from _hop_rows(plan.hops[len(breaking) :], now)


def _account_names(clients: Iterable[pb.Clients]) -> list[str]:
    return [f"{item.namespace}/{account.name}" for item in clients for account in item.accounts]


def _replay_rows(replay: pb.Replay) -> Iterator[_Row]:
    """Yield the rows of recorded flows. Targets that differ in nothing else share a row."""
    targets: dict[_Row, list[str]] = {}
    seen: dict[_Row, float] = {}
    for row, edges in (
        *((_flow_row(change), change.flows) for change in replay.changes),
        *((_unknown_row(unknown), unknown.flows) for unknown in replay.unknown),
    ):
        clients = dict.fromkeys(f"{edge.client_namespace}/{edge.client}".lstrip("/") for edge in edges)
        key = row._replace(clients=printable(join_names(clients, MAX_NAMES)))
        targets.setdefault(key, []).append(f"{edges[0].service}.{edges[0].namespace}:{edges[0].port}")
        last = max(edge.last_seen.ToMilliseconds() / 1000 for edge in edges)
        seen[key] = max(last, seen.get(key, last))
    for key, names in targets.items():
        target = printable(join_names(dict.fromkeys(names), MAX_NAMES))
        yield key._replace(target=target, seen=in_words(seen[key]))


def _flow_row(change: pb.FlowChange) -> _Row:
    return _Row(
        effect=change.effect,
        clients="",
        target="",
        before=change.before.outcome,
        after=f"{change.after.outcome} ({reason(change.after)})",
        decided_by=", ".join(change.after.decided_by),
        seen="",
        remedy="",
    )


def _unknown_row(unknown: pb.UnknownFlows) -> _Row:
    mode = TrafficEdge.Mode.Name(unknown.flows[0].mode).lower()
    return _Row("not known", "", "", mode, unknown.reason, "", "", "")


def _hop_rows(changes: Iterable[pb.HopChange], now: Timestamp) -> Iterator[_Row]:
    groups = TargetGroups(partial(_hop_row, now=now))
    for change in changes:
        copied = pb.HopChange()
        copied.CopyFrom(change)
        groups.add(copied)
    for group in groups:
        endpoints = f" ({group.share} endpoints)" if group.share else ""
        yield group.row._replace(target=f"{group.target}{endpoints}")


def _hop_row(change: pb.HopChange, now: Timestamp) -> _Row:
    """Return the row of a change without its target."""
    return _Row(
        effect=change.effect,
        clients=format_clients(change.clients),
        target="",
        before=change.before.outcome,
        after=f"{change.after.outcome} ({reason(change.after)})",
        decided_by=", ".join(change.after.decided_by),
        seen=f"{since(change.last_seen.ToDatetime(), now)} ago" if change.HasField("last_seen") else "-",
        remedy=change.remedy,
    )


def _refusal_row(refusal: pb.RefusedTraffic) -> _Row:
    return _Row(
        effect=Effect.BREAKS if refusal.breaks else Effect.MAY_BREAK,
        clients=refused_client(refusal),
        target=f"port {refusal.port} of {format_clients(refusal.pods)}",
        before=_PLAINTEXT,
        after=f"fails ({refusal_by(Ref.parse(refusal.decided_by[0]))})",
        decided_by=", ".join(refusal.decided_by),
        seen="-",
        remedy=refusal.remedy,
    )


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    for char in "\\|<`*_":
        text = text.replace(char, f"\\{char}")
    return text
