"""Format the results as a table, as Markdown or as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
from collections.abc import Iterable
from statistics import median

from rich.console import Console
from rich.table import Table
from rounds import Measurement, Size


def as_json(size: Size, results: dict[str, list[Measurement]]) -> str:
    """Return all results as JSON."""
    return json.dumps(
        {
            "machine": machine(),
            "size": dataclasses.asdict(size),
            "results": {
                name: [dataclasses.asdict(result) | {"ratio": result.ratio} for result in rounds]
                for name, rounds in results.items()
            },
        },
        indent=1,
    )


def as_table(size: Size, results: dict[str, list[Measurement]]) -> str:
    """Return a table of medians, with the minimum and the maximum of important values."""
    table = Table(
        title=f"{size.streams:,} delta streams, {size.services:,} services x {size.endpoints} endpoints"
    )
    for column in (
        "",
        "times the floor",
        "last client, ms",
        "floor, ms",
        "MB",
        "server CPU, s",
        "block, ms",
        "late, ms",
        "encoded/new",
    ):
        table.add_column(column, justify="right" if column else "left")
    notes = []
    for name, rounds in results.items():
        worst = max(rounds, key=lambda result: result.block)
        table.add_row(
            name,
            _spread((result.ratio for result in rounds), 1, 1),
            _spread((result.seconds for result in rounds), 1000, 0),
            _spread((result.floor for result in rounds), 1000, 0),
            f"{median(result.megabytes for result in rounds):,.1f}",
            f"{median(result.cpu for result in rounds):.2f}",
            f"{worst.block * 1000:.0f}",
            f"{max(result.late for result in rounds) * 1000:.0f}",
            _encodings(rounds[0]),
        )
        for what in rounds[0].more:
            values = _spread((result.more[what] for result in rounds), 1, 2)
            notes.append(f"{name}: {_WORDS[what]} {values}")
        notes.append(
            f"{name}: the longest block was {worst.culprit}, of which garbage collection "
            f"{worst.collecting * 1000:.0f} ms at most"
        )
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(table)
    console.print(
        "median [min-max] of the rounds; block: CPU time of the longest callback; late: lag of a 5 ms timer; "
        "encoded/new: of the first round",
        markup=False,
    )
    for note in notes:
        console.print(note, highlight=False)
    console.print(machine(), highlight=False)
    return out.getvalue().rstrip()


def as_markdown(size: Size, results: dict[str, list[Measurement]]) -> str:
    """Return the table of docs/explanation/performance.md, with its notes."""
    lines = [
        f"| | {' | '.join(_COLUMNS)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, rounds in results.items():
        cells = (
            name,
            f"**{_spread((result.ratio for result in rounds), 1, 1)}**",
            _spread((result.seconds for result in rounds), 1, 2),
            _spread((result.floor for result in rounds), 1, 3),
            f"{median(result.megabytes for result in rounds):,.1f}",
            _spread((result.cpu for result in rounds), 1, 2),
            f"{max(result.block for result in rounds) * 1000:.0f}",
            f"{max(result.late for result in rounds) * 1000:,.0f}",
            _encodings(rounds[0]),
        )
        lines.append(f"| {' | '.join(cells)} |")
        notes += [
            f"- {name}: {_WORDS[what]} {_spread((result.more[what] for result in rounds), 1, 1)}"
            for what in rounds[0].more
        ]
    about = f"{size.rounds} rounds, {size.starts} starts; {machine()}"
    return "\n".join([*lines, "", *notes, "", about])


_COLUMNS = (
    "times the floor",
    "last client, s",
    "floor, s",
    "MB in total",
    "server CPU, s",
    "block, ms",
    "late, ms",
    "encoded / new",
)
_WORDS = {
    "read": "seconds from the start of the process until the manifests were read:",
    "listening": "seconds from then until the server listened:",
    "everything": "seconds from the start of the process until all clients had all resources:",
    "kib_per_stream": "KiB of server memory per stream:",
    "mib": "MiB of server memory in total:",
    "noticed": "seconds until the server had read the changed file:",
}


def _encodings(result: Measurement) -> str:
    kinds = sorted(result.encoded.keys() | result.contents.keys())
    return " ".join(
        f"{''.join(filter(str.isupper, kind))} {result.encoded.get(kind, 0)}/{result.contents.get(kind, 0)}"
        for kind in kinds
    )


def _spread(values: Iterable[float], factor: float, digits: int) -> str:
    result = sorted(value * factor for value in values)
    return f"{median(result):,.{digits}f} [{result[0]:,.{digits}f}-{result[-1]:,.{digits}f}]"


def machine() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, load {load}"
