"""Rewrite the table of docs/reference/xds-conformance-matrix.md: `python -m tests.conformance.matrix`."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.conformance.building import build_go, build_java
from tests.support.processes import started
from xds.conformance import TITLES, Outcome, Report, Variant, run, store_adapter
from xds.conformance.rules import NOT_JUDGED
from xds.server import XdsServer
from xds.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "xds-conformance-matrix.md"
PATIENCE = {"response_timeout": 5.0, "concurrency": 32}

Options = dict[str, Any]
"""Arguments of `run` for one server."""


@asynccontextmanager
async def library() -> AsyncIterator[Options]:
    """Serve with this library."""
    store = Store()
    server = XdsServer(store, "127.0.0.1:0", identifier="under-test", added=[store_adapter(store)], grace=0.1)
    async with server:
        yield {"target": f"127.0.0.1:{server.port}"}


@asynccontextmanager
async def go_control_plane(cache: str) -> AsyncIterator[Options]:
    """Serve with one of go-control-plane's caches. Raises BuildError."""
    folder = await asyncio.to_thread(build_go)
    async with _addresses(str(folder / "server"), cache) as (target, adapter):
        yield {"target": target, "adapter": adapter}


@asynccontextmanager
async def go_control_plane_ads() -> AsyncIterator[Options]:
    """Serve with go-control-plane's snapshot cache and its options for ADS. Raises BuildError."""
    async with go_control_plane("ads") as options:
        yield {**options, "variants": (Variant.SOTW_ADS, Variant.DELTA_ADS)}


@asynccontextmanager
async def java_control_plane() -> AsyncIterator[Options]:
    """Serve with java-control-plane. Raises BuildError."""
    folder = await asyncio.to_thread(build_java)
    command = ("java", "-cp", f"{folder}/lib/*:{folder}/classes", "Main", f"{folder}/adapter.binpb")
    async with _addresses(*command) as (target, adapter):
        yield {"target": target, "adapter": adapter, "repeat_node": True}


@asynccontextmanager
async def _addresses(*command: str) -> AsyncIterator[list[str]]:
    """Start a program, and yield the addresses that it prints."""
    async with started(*command, stderr=subprocess.DEVNULL) as process:
        yield (await process.stdout.readline()).decode().split()


SERVERS: dict[str, Callable[[], AbstractAsyncContextManager[Options]]] = {
    "This library": library,
    "gcp snapshot": partial(go_control_plane, "snapshot"),
    "gcp ADS": go_control_plane_ads,
    "gcp linear": partial(go_control_plane, "linear"),
    "java-control-plane": java_control_plane,
}
"""The columns of the table."""

BY_CHANCE = ("R40", "R41", "R43")
"""Rules about the order of types. A server that sends types in random order passes now and then."""

START, END = "<!-- table -->", "<!-- end of table -->"
"""Comments around the table in the page."""

_SHORT = {
    Variant.SOTW: "SotW",
    Variant.SOTW_ADS: "SotW ADS",
    Variant.DELTA: "delta",
    Variant.DELTA_ADS: "delta ADS",
}


def documented(name: str) -> dict[str, str]:
    """Return a server's outcomes in the page, by rule; empty if it has no column."""
    lines = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines()]
    header = next(cells for cells in lines if cells[1:2] == ["Rule"])
    if name not in header:
        return {}
    column = header.index(name)
    return {cells[1]: cells[column] for cells in lines if len(cells) == len(header) and cells[1] in TITLES}


async def outcomes(name: str) -> dict[str, str]:
    """Return a server's outcomes, by rule. Raises BuildError.

    On a busy machine, responses miss the timeout. Rules that differ from the page are therefore checked
    again, one check at a time and with more time.
    """
    expected, report = documented(name), await _judge(name)
    found = {rule: cell(report, rule) for rule in TITLES if rule not in NOT_JUDGED}
    found |= {rule: expected[rule] for rule in BY_CHANCE if rule in expected}
    if differing := [rule for rule in found if rule in expected and found[rule] != expected[rule]]:
        report = await _judge(name, rules=differing, response_timeout=20.0, concurrency=1)
        found |= {rule: cell(report, rule) for rule in differing}
    return found


async def _judge(name: str, **more: Any) -> Report:
    async with SERVERS[name]() as options:
        return await run(**options, **{**PATIENCE, **more})


def cell(report: Report, rule: str) -> str:
    """Return a cell of the table, such as `pass`, `**fail** (SotW), pass (delta, delta ADS)` or `-`."""
    by_word: dict[str, list[str]] = {}
    for variant in Variant:
        if word := _word(report, rule, variant):
            by_word.setdefault(word, []).append(_SHORT[variant])
    if len(by_word) <= 1:
        return next(iter(by_word), "-")
    return ", ".join(f"{word} ({', '.join(variants)})" for word, variants in by_word.items())


def _word(report: Report, rule: str, variant: Variant) -> str:
    match report.outcome(rule, variant):
        case Outcome.PASS:
            return "pass"
        case Outcome.FAIL:
            level = report.failed_level(rule, variant)
            return "**fail**" if level and report.counts(level) else "differs"
    return "-" if report.of(rule, variant) else ""


async def main() -> None:
    """Run the checks against all servers, and write the table into the page."""
    columns = [await outcomes(name) for name in SERVERS]
    lines = [["Rule", *SERVERS, ""], ["---"] * (len(SERVERS) + 2)]
    lines += [[rule, *(column[rule] for column in columns), TITLES[rule]] for rule in columns[0]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, start, rest = PAGE.read_text().partition(START)
    _, end, after = rest.partition(END)
    PAGE.write_text(f"{before}{start}\n\n{table}\n\n{end}{after}")


if __name__ == "__main__":
    asyncio.run(main())
