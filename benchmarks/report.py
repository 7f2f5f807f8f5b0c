"""Format the results for people and for programs."""

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
from rounds import Measured, Size


def as_json(size: Size, results: dict[str, list[Measured]]) -> str:
    """Return all results as JSON."""
    return json.dumps(
        {
            "machine": _machine(),
            "size": dataclasses.asdict(size),
            "results": {
                name: [dataclasses.asdict(found) | {"ratio": found.ratio} for found in rounds]
                for name, rounds in results.items()
            },
        },
        indent=1,
    )


def as_table(size: Size, results: dict[str, list[Measured]]) -> str:
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
        worst = max(rounds, key=lambda found: found.block)
        table.add_row(
            name,
            _spread((found.ratio for found in rounds), 1, 1),
            _spread((found.seconds for found in rounds), 1000, 0),
            _spread((found.floor for found in rounds), 1000, 0),
            f"{median(found.megabytes for found in rounds):,.1f}",
            f"{median(found.cpu for found in rounds):.2f}",
            f"{worst.block * 1000:.0f}",
            f"{max(found.late for found in rounds) * 1000:.0f}",
            _encodings(rounds[0]),
        )
        for what in rounds[0].more:
            values = _spread((found.more[what] for found in rounds), 1, 2)
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
    console.print(_machine(), highlight=False)
    return out.getvalue().rstrip()


def as_markdown(size: Size, results: dict[str, list[Measured]]) -> str:
    """Return the table of docs/explanation/performance.md, with its notes."""
    lines = [
        f"| | {' | '.join(_COLUMNS)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, rounds in results.items():
        cells = (
            name,
            f"**{_spread((found.ratio for found in rounds), 1, 1)}**",
            _spread((found.seconds for found in rounds), 1, 2),
            _spread((found.floor for found in rounds), 1, 3),
            f"{median(found.megabytes for found in rounds):,.1f}",
            _spread((found.cpu for found in rounds), 1, 2),
            f"{max(found.block for found in rounds) * 1000:.0f}",
            f"{max(found.late for found in rounds) * 1000:,.0f}",
            _encodings(rounds[0]),
        )
        lines.append(f"| {' | '.join(cells)} |")
        notes += [
            f"- {name}: {_WORDS[what]} {_spread((found.more[what] for found in rounds), 1, 1)}"
            for what in rounds[0].more
        ]
    about = f"{size.rounds} rounds, {size.starts} starts; {_machine()}"
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


def _encodings(found: Measured) -> str:
    kinds = sorted(found.encoded.keys() | found.contents.keys())
    return " ".join(
        f"{''.join(filter(str.isupper, kind))} {found.encoded.get(kind, 0)}/{found.contents.get(kind, 0)}"
        for kind in kinds
    )


def _spread(values: Iterable[float], factor: float, digits: int) -> str:
    found = sorted(value * factor for value in values)
    return f"{median(found):,.{digits}f} [{found[0]:,.{digits}f}-{found[-1]:,.{digits}f}]"


def _machine() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, load {load}"
