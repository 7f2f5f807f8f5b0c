"""The table of docs/reference/xds-conformance-matrix.md: `python -m tests.conformance.matrix` prints it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.conformance.building import build
from xds.conformance import TITLES, Level, Outcome, Report, Variant, run, store_adapter
from xds.server import XdsServer
from xds.store import Store

PATIENCE = {"response_timeout": 5.0, "concurrency": 32}


@asynccontextmanager
async def library() -> AsyncIterator[str]:
    """Serve with this library, and yield the address."""
    store = Store()
    server = XdsServer(store, "127.0.0.1:0", identifier="under-test", added=[store_adapter(store)], grace=0.1)
    async with server:
        yield f"127.0.0.1:{server.port}"


@asynccontextmanager
async def go_control_plane() -> AsyncIterator[str]:
    """Serve with go-control-plane, and yield the address. Raises BuildError."""
    program = await asyncio.to_thread(build)
    process = await asyncio.create_subprocess_exec(program, stdout=subprocess.PIPE)
    try:
        address, adapter = (await process.stdout.readline()).decode().split()
        yield address, adapter
    finally:
        process.kill()
        await process.wait()


def cell(report: Report, rule: str, variant: Variant) -> str:
    """Return a cell of the table."""
    match report.outcome(rule, variant):
        case Outcome.PASS:
            return "pass"
        case Outcome.FAIL:
            return "**fail**" if report.failed_level(rule, variant) is Level.MUST else "differs"
    return ""


def table(reports: list[Report]) -> list[str]:
    """Return a row for each judged rule: its outcome by server and variant."""
    rows = []
    for rule, title in TITLES.items():
        if any(not report.reason(rule) for report in reports):
            cells = [cell(report, rule, variant) for report in reports for variant in Variant]
            rows.append(f"| {rule} | {reports[0].level(rule)} | {' | '.join(cells)} | {title} |")
    return rows


async def main() -> None:
    """Print the table."""
    reports = []
    for serving in (library, go_control_plane):
        async with serving() as address:
            reports.append(await run(address, **PATIENCE))
    print("\n".join(table(reports)))


if __name__ == "__main__":
    asyncio.run(main())
