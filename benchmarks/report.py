"""The results: stored as JSON, and printed as a table, as Markdown or as a comparison."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Self

from rich.console import Console
from rich.table import Table
from rounds import Measurement
from sources import Size

_MILLI = 1000

COLUMNS: dict[str, Callable[[Measurement], tuple[float, int]]] = {
    "last client, s": lambda m: (m.seconds, 3),
    "detect, s": lambda m: (m.detect, 3),
    "grpc.aio, s": lambda m: (m.grpc, 3),
    "sockets, s": lambda m: (m.raw, 3),
    "times grpc.aio": lambda m: (m.ratio, 1),
    "CPU, s": lambda m: (m.cpu, 2),
    "MB": lambda m: (m.megabytes, 1),
    "peak, MiB": lambda m: (m.peak, 0),
    "block, ms": lambda m: (m.block * _MILLI, 0),
    "GC, ms": lambda m: (m.collecting * _MILLI, 0),
}
"""Columns of the tables: the value of a measurement, and its number of digits."""
_COMPARED = ("last client, s", "times grpc.aio", "CPU, s", "MB", "peak, MiB", "block, ms")


@dataclass(frozen=True, slots=True)
class Run:
    """All rounds of one size."""

    size: Size
    results: dict[str, list[Measurement]]
    """The measurements of each scenario, by its title."""

    @property
    def title(self) -> str:
        """The size as text."""
        size = self.size
        return (
            f"{size.source}: {size.services:,} services x {size.endpoints} endpoints, "
            f"{size.streams:,} {'TLS' if size.tls else 'plaintext'} delta streams"
            + (f", {size.replicas} replicas" if size.replicas > 1 else "")
            + (f", {size.policies:,} AuthorizationPolicies" if size.policies else "")
            + (f", {size.visible:,} services visible" if size.visible else "")
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a benchmark."""

    machine: str
    runs: list[Run]

    @classmethod
    def measured(cls, runs: list[Run]) -> Self:
        """Return the report of runs on this machine."""
        return cls(machine(), runs)

    @classmethod
    def load(cls, files: Iterable[Path]) -> Self:
        """Merge the rounds of reports, such as those of alternating runs of two versions."""
        merged: dict[Size, Run] = {}
        machine = ""
        for file in files:
            content = json.loads(file.read_text())
            machine = content["machine"]
            for run in content["runs"]:
                size = Size(**run["size"])
                results = merged.setdefault(size, Run(size, {})).results
                for title, rounds in run["results"].items():
                    results.setdefault(title, []).extend(Measurement(**each) for each in rounds)
        return cls(machine, [*merged.values()])

    def as_json(self) -> str:
        """Return all measurements."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def as_table(report: Report) -> str:
    """Return a table of medians for each run, with the minimum and the maximum of several rounds."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    for run in report.runs:
        table = Table("", title=run.title)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for title, rounds in run.results.items():
            table.add_row(title, *(_spread(rounds, column) for column in COLUMNS))
        console.print(table)
        for note in _notes(run):
            console.print(note, highlight=False, markup=False)
    console.print("median [minimum-maximum] of the rounds", markup=False)
    console.print(report.machine, highlight=False)
    return out.getvalue().rstrip()


def as_markdown(report: Report) -> str:
    """Return the tables of docs/explanation/performance.md."""
    lines: list[str] = []
    for run in report.runs:
        lines += [run.title, "", *_markdown_row("", COLUMNS), f"|---|{'---|' * len(COLUMNS)}"]
        for title, rounds in run.results.items():
            lines += _markdown_row(title, (_spread(rounds, column) for column in COLUMNS))
        lines += ["", *(f"- {note}" for note in _notes(run)), ""]
    return "\n".join([*lines, report.machine])


def as_comparison(old: Report, new: Report) -> str:
    """Return tables of the new medians, and their ratios to the old ones."""
    old_runs = {run.size: run for run in old.runs}
    out = io.StringIO()
    console = Console(file=out, width=200)
    for run in new.runs:
        if run.size not in old_runs:
            console.print(f"{run.title}: not in the old results", highlight=False)
            continue
        table = Table("", title=f"{run.title}: new / old")
        for column in _COMPARED:
            table.add_column(column, justify="right")
        old_results = old_runs[run.size].results
        for title, rounds in run.results.items():
            if title in old_results:
                cells = (_ratio(old_results[title], rounds, column) for column in _COMPARED)
                table.add_row(title, *cells)
        console.print(table)
    console.print(
        "new median / old median = ratio; * the ranges of old and new rounds do not overlap", markup=False
    )
    console.print(f"old: {old.machine}\nnew: {new.machine}", highlight=False)
    return out.getvalue().rstrip()


def _ratio(old: list[Measurement], new: list[Measurement], column: str) -> str:
    before, after = ([COLUMNS[column](each)[0] for each in rounds] for rounds in (old, new))
    digits = COLUMNS[column](new[0])[1]
    if not (median(before) and median(after)):
        return "-"
    differs = "*" if max(after) < min(before) or max(before) < min(after) else " "
    values = f"{median(after):,.{digits}f} / {median(before):,.{digits}f}"
    return f"{values} = {median(after) / median(before):.2f}{differs}"


def _markdown_row(title: str, cells: Iterable[str]) -> Iterator[str]:
    yield f"| {' | '.join((title, *cells))} |"


def _notes(run: Run) -> Iterator[str]:
    for title, rounds in run.results.items():
        for what in dict.fromkeys(what for each in rounds for what in each.more):
            value = median(each.more.get(what, 0) for each in rounds)
            yield f"{title}: {value:,.{1 if value > 10 else 3}f} {what}"
        if encoded := ", ".join(f"{count:,} {name}" for name, count in rounds[0].encoded.items()):
            yield f"{title}: encoded {encoded}"
        yield f"{title}: the longest block was {max(rounds, key=lambda each: each.block).culprit}"


def _spread(rounds: list[Measurement], column: str) -> str:
    values = sorted(COLUMNS[column](each)[0] for each in rounds)
    digits = COLUMNS[column](rounds[0])[1]
    if not values[-1]:
        return "-"
    text = f"{median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} [{values[0]:,.{digits}f}-{values[-1]:,.{digits}f}]"


def machine() -> str:
    """Return the machine, its load, and the versions of Python and gRPC."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    software = f"Python {platform.python_version()}, grpcio {version('grpcio')}"
    return f"{software}, {os.cpu_count()} cores, {platform.machine()}, load {load}"
