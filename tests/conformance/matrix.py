"""The table of docs/reference/xds-conformance-matrix.md: `python -m tests.conformance.matrix` prints it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from tests.conformance.building import build_go, build_java
from tests.support.loopback import free_port
from tests.support.processes import started
from tests.support.waiting import eventually
from xds.conformance import TITLES, Outcome, Report, Variant, run, store_adapter
from xds.server import XdsServer
from xds.store import Store

PATIENCE = {"response_timeout": 5.0, "concurrency": 32}
NODE = "test-id"
"""Node that go-control-plane's example has resources for."""

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
async def go_control_plane() -> AsyncIterator[Options]:
    """Serve with go-control-plane. Raises BuildError."""
    folder = await asyncio.to_thread(build_go)
    async with _addresses(str(folder / "server")) as (target, adapter):
        yield {"target": target, "adapter": adapter}


@asynccontextmanager
async def java_control_plane() -> AsyncIterator[Options]:
    """Serve with java-control-plane. Raises BuildError."""
    folder = await asyncio.to_thread(build_java)
    command = ("java", "-cp", f"{folder}/lib/*:{folder}/classes", "Main", f"{folder}/adapter.binpb")
    async with _addresses(*command) as (target, adapter):
        yield {"target": target, "adapter": adapter, "repeat_node": True}


@asynccontextmanager
async def example() -> AsyncIterator[Options]:
    """Serve with go-control-plane's example, which has no adapter. Raises BuildError."""
    folder = await asyncio.to_thread(build_go)
    port = free_port()
    command = (folder / "example", "-port", port, "-nodeID", NODE)
    async with started(*command, stdout=None, stderr=subprocess.DEVNULL):
        _, writer = await eventually(partial(asyncio.open_connection, "127.0.0.1", port))
        writer.close()
        await writer.wait_closed()
        yield {"target": f"127.0.0.1:{port}", "node": NODE}


@asynccontextmanager
async def _addresses(*command: str) -> AsyncIterator[list[str]]:
    """Start a program, and yield the addresses that it prints."""
    async with started(*command, stderr=subprocess.DEVNULL) as process:
        yield (await process.stdout.readline()).decode().split()


SERVERS: dict[str, Callable[[], AbstractAsyncContextManager[Options]]] = {
    "This library": library,
    "go-control-plane": go_control_plane,
    "java-control-plane": java_control_plane,
    "Envoy's example": example,
}
"""The columns of the table."""

_SHORT = {
    Variant.SOTW: "SotW",
    Variant.SOTW_ADS: "SotW ADS",
    Variant.DELTA: "delta",
    Variant.DELTA_ADS: "delta ADS",
}


async def judge(name: str, **more: Any) -> Report:
    """Run the checks against one of the servers. `more` are arguments of `run`. Raises BuildError."""
    async with SERVERS[name]() as options:
        return await run(**options, **{**PATIENCE, **more})


def cell(report: Report, rule: str) -> str:
    """Return a cell of the table, such as `pass` or `**fail** (SotW), pass (delta, delta ADS)`."""
    by_word: dict[str, list[str]] = {}
    for variant in Variant:
        if word := _word(report, rule, variant):
            by_word.setdefault(word, []).append(_SHORT[variant])
    if len(by_word) == 1:
        return next(iter(by_word))
    return ", ".join(f"{word} ({', '.join(variants)})" for word, variants in by_word.items())


def _word(report: Report, rule: str, variant: Variant) -> str:
    match report.outcome(rule, variant):
        case Outcome.PASS:
            return "pass"
        case Outcome.FAIL:
            level = report.failed_level(rule, variant)
            return "**fail**" if level and report.counts(level) else "differs"
    return ""


def rows(reports: list[Report]) -> list[str]:
    """Return a row for each judged rule: its outcome by server."""
    rules = [rule for rule in TITLES if not reports[0].reason(rule)]
    cells = {rule: " | ".join(cell(report, rule) for report in reports) for rule in rules}
    return [f"| {rule} | {reports[0].level(rule)} | {cells[rule]} | {TITLES[rule]} |" for rule in rules]


async def main() -> None:
    """Print the table."""
    reports = [await judge(name) for name in SERVERS]
    print(f"{len(reports[0].results)} checks")
    print("\n".join(rows(reports)))


if __name__ == "__main__":
    asyncio.run(main())
