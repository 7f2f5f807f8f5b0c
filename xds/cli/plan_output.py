"""The effects of a change as a table, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import typer
from rich.text import Text

from xds.cli.hops import clients_json
from xds.cli.tables import Table
from xds.mesh.model.objects import Problem, printable
from xds.mesh.policy.hop_text import format_clients, format_target
from xds.mesh.policy.plan import Effect, HopChange, Plan, Refusal
from xds.mesh.policy.plan_text import format_pod_port, summary
from xds.mesh.policy.reach import Answer, Failure
from xds.mesh.policy.remedy import change_remedy, refusal_remedy

TITLES = ("EFFECT", "CLIENTS", "TARGET", "BEFORE", "AFTER", "DECIDED BY", "REMEDY")

_STYLES = {Effect.BREAKS: "red", Effect.MAY_BREAK: "yellow", Effect.PLAINTEXT: "yellow"}
_PLAINTEXT = "plaintext"


class _Row(NamedTuple):
    """A changed hop or refused direct traffic, as text."""

    effect: Effect
    clients: str
    target: str
    before: str
    after: str
    decided_by: str
    remedy: str


def print_table(plan: Plan) -> None:
    """Print a line for each effect, worst first, then each remedy once, and a summary."""
    rows = list(_rows(plan))
    if rows:
        table = Table(*TITLES[:-1])
        for row in rows:
            table.add_row(Text(str(row.effect), _STYLES.get(row.effect, "green")), *row[1:-1])
        table.show()
        typer.echo()
    if remedies := dict.fromkeys(row.remedy for row in rows if row.remedy):
        typer.echo("\n".join(["Remedies:", *(f"  {text}" for text in remedies), ""]))
    typer.echo(summary(plan))


def as_markdown(plan: Plan, ineffective: Sequence[Problem]) -> str:
    """Return the effects as Markdown for a comment on a pull request."""
    rows = list(_rows(plan))
    lines = ["### Effect on connections", "", f"**{summary(plan)}**"]
    if rows:
        lines += ["", "| " + " | ".join(title.lower() for title in TITLES) + " |", "|---" * len(TITLES) + "|"]
        lines += ["| " + " | ".join(map(_escape, row)) + " |" for row in rows]
    if ineffective:
        lines += ["", "**Objects without effect:**", ""]
        lines += [f"- {_escape(str(problem))}" for problem in ineffective]
    return "\n".join(lines)


def as_json(plan: Plan, ineffective: Iterable[Problem]) -> dict[str, Any]:
    """Return the effects as a JSON value."""
    return {
        "breaks": plan.breaks,
        "hops": [_hop_json(change) for change in plan.hops],
        "refused": [
            {
                "traffic": str(refusal.traffic),
                "breaks": refusal.breaks,
                "pods": clients_json(refusal.clients),
                "port": refusal.port,
                "decidedBy": [str(refusal.decided_by)],
                "remedy": refusal_remedy(refusal),
            }
            for refusal in plan.refusals
        ],
        "withoutEffect": [
            {
                "where": printable(problem.where),
                "what": printable(problem.what),
                "hint": printable(problem.hint),
            }
            for problem in ineffective
        ],
    }


def _hop_json(change: HopChange) -> dict[str, Any]:
    return {
        "effect": str(change.effect),
        "clients": clients_json(change.clients),
        "service": f"{change.service.name}.{change.service.namespace}",
        "port": change.port.port,
        "endpoints": len(change.endpoints),
        "ready": change.ready,
        "before": _answer_json(change.before),
        "after": _answer_json(change.after),
        "remedy": change_remedy(change),
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "outcome": str(answer.result),
        "reason": str(answer.reason),
        "decidedBy": [str(ref) for ref in answer.decided_by],
    }


def _rows(plan: Plan) -> Iterator[_Row]:
    """Yield the rows, worst first."""
    breaking = [change for change in plan.hops if change.effect is Effect.BREAKS]
    yield from map(_hop_row, breaking)
    yield from map(_refusal_row, plan.refusals)
    yield from map(_hop_row, plan.hops[len(breaking) :])


def _hop_row(change: HopChange) -> _Row:
    endpoints = f" ({len(change.endpoints)}/{change.ready} endpoints)" if change.ready else ""
    return _Row(
        effect=change.effect,
        clients=format_clients(change.clients),
        target=format_target(change.service, change.port) + endpoints,
        before=str(change.before.result),
        after=f"{change.after.result} ({change.after.reason})",
        decided_by=", ".join(map(str, change.after.decided_by)),
        remedy=change_remedy(change),
    )


def _refusal_row(refusal: Refusal) -> _Row:
    return _Row(
        effect=refusal.effect,
        clients=str(refusal.traffic),
        target=format_pod_port(refusal),
        before=_PLAINTEXT,
        after=f"fails ({Failure.SERVER_REQUIRES_MTLS})",
        decided_by=str(refusal.decided_by),
        remedy=refusal_remedy(refusal),
    )


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    for char in "\\|<`*_":
        text = text.replace(char, f"\\{char}")
    return text
