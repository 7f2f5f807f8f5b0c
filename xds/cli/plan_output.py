"""The effects of a change as a table and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import typer
from rich.text import Text

from xds.cli.hops import format_clients
from xds.cli.tables import Table
from xds.mesh.model.objects import Problem
from xds.mesh.policy.plan import Effect
from xds.mesh.policy.reach import Failure
from xds.mesh.v1 import policies_pb2 as pb

TITLES = ("EFFECT", "CLIENTS", "TARGET", "BEFORE", "AFTER", "DECIDED BY", "REMEDY")

_STYLES: dict[str, str] = {Effect.BREAKS: "red", Effect.MAY_BREAK: "yellow", Effect.PLAINTEXT: "yellow"}
_PLAINTEXT = "plaintext"


class _Row(NamedTuple):
    """A changed hop or refused direct traffic, as text."""

    effect: str
    clients: str
    target: str
    before: str
    after: str
    decided_by: str
    remedy: str


def print_table(plan: pb.PlanResponse) -> None:
    """Print a line for each effect, worst first, then each remedy once, and a summary."""
    rows = list(_rows(plan))
    if rows:
        table = Table(*TITLES[:-1])
        for row in rows:
            table.add_row(Text(row.effect, _STYLES.get(row.effect, "green")), *row[1:-1])
        table.show()
        typer.echo()
    if remedies := dict.fromkeys(row.remedy for row in rows if row.remedy):
        typer.echo("\n".join(["Remedies:", *(f"  {text}" for text in remedies), ""]))
    typer.echo(plan.summary)


def as_markdown(plan: pb.PlanResponse) -> str:
    """Return the effects as Markdown for a comment on a pull request."""
    rows = list(_rows(plan))
    lines = ["### Effect on connections", "", f"**{plan.summary}**"]
    if rows:
        lines += ["", "| " + " | ".join(title.lower() for title in TITLES) + " |", "|---" * len(TITLES) + "|"]
        lines += ["| " + " | ".join(map(_escape, row)) + " |" for row in rows]
    if plan.without_effect:
        lines += ["", "**Objects without effect:**", ""]
        lines += [f"- {_escape(str(to_problem(problem)))}" for problem in plan.without_effect]
    return "\n".join(lines)


def to_problem(problem: pb.ManifestProblem) -> Problem:
    """Return a problem of a manifest."""
    return Problem(where=problem.where, what=problem.what, hint=problem.hint, notice=problem.notice)


def _rows(plan: pb.PlanResponse) -> Iterator[_Row]:
    """Yield the rows, worst first."""
    breaking = [change for change in plan.hops if change.effect == Effect.BREAKS]
    yield from map(_hop_row, breaking)
    yield from map(_refusal_row, plan.refused)
    yield from map(_hop_row, plan.hops[len(breaking) :])


def _hop_row(change: pb.HopChange) -> _Row:
    endpoints = f" ({change.endpoints}/{change.ready} endpoints)" if change.ready else ""
    return _Row(
        effect=change.effect,
        clients=format_clients(change.clients),
        target=f"{change.service}:{change.port}{endpoints}",
        before=change.before.outcome,
        after=f"{change.after.outcome} ({change.after.reason})",
        decided_by=", ".join(change.after.decided_by),
        remedy=change.remedy,
    )


def _refusal_row(refusal: pb.RefusedTraffic) -> _Row:
    return _Row(
        effect=Effect.BREAKS if refusal.breaks else Effect.MAY_BREAK,
        clients=refusal.traffic,
        target=f"port {refusal.port} of {format_clients(refusal.pods)}",
        before=_PLAINTEXT,
        after=f"fails ({Failure.SERVER_REQUIRES_MTLS})",
        decided_by=", ".join(refusal.decided_by),
        remedy=refusal.remedy,
    )


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    for char in "\\|<`*_":
        text = text.replace(char, f"\\{char}")
    return text
