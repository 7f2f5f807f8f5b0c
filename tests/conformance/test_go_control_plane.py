"""go-control-plane has the outcomes that docs/reference/xds-conformance-matrix.md lists."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.conformance.building import build
from tests.conformance.matrix import PATIENCE, cell, go_control_plane
from tests.kubernetes.environment.binaries import REQUIRED, BuildError
from xds.conformance import TITLES, Variant, run

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "xds-conformance-matrix.md"

IN_RANDOM_ORDER = ("R40", "R41")
"""Rules about the order of types, which is right by chance now and then."""


def documented() -> dict[str, list[str]]:
    """Return the page's outcomes of go-control-plane by rule."""
    rows = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines()]
    return {cells[1]: cells[7:11] for cells in rows if len(cells) > 11 and cells[1] in TITLES}


@pytest.mark.timeout(900)
async def test_go_control_plane_has_the_documented_outcomes():
    try:
        await asyncio.to_thread(build)
    except BuildError as error:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set: {error}")
        pytest.skip(str(error))
    async with go_control_plane() as address:
        report = await run(address, **PATIENCE)
    outcomes = {
        rule: [cell(report, rule, variant) for variant in Variant] for rule in TITLES if rule in documented()
    }
    assert len(outcomes) > 40
    expected = documented()
    for rule in IN_RANDOM_ORDER:
        pairs = zip(outcomes[rule], expected[rule], strict=True)
        outcomes[rule] = [usual if found == "pass" and usual else found for found, usual in pairs]
    assert outcomes == expected
