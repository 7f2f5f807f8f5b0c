"""docs/reference/xds-conformance-matrix.md has each server's outcomes, and the cause of each failure."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from tests.conformance.building import build_go, build_java, has_java
from tests.conformance.matrix import PAGE, SERVERS, documented, outcomes
from tests.kubernetes.environment.binaries import REQUIRED, BuildError

COLUMNS = [
    (name, build_go if name.startswith("gcp") else build_java) for name in SERVERS if name != "This library"
]


@pytest.mark.parametrize(("server", "build"), COLUMNS)
@pytest.mark.timeout(900)
async def test_server_has_the_documented_outcomes(server, build):
    if build is build_java and not has_java():
        pytest.skip("needs Maven and a JDK")
    try:
        await asyncio.to_thread(build)
    except BuildError as error:
        if os.environ.get(REQUIRED) and build is build_go:
            pytest.fail(f"{REQUIRED} is set: {error}")
        pytest.skip(str(error))
    assert await outcomes(server) == documented(server)


def causes(server: str) -> set[str]:
    """Return the rules whose causes the page lists for a server."""
    rules = set()
    for line in PAGE.read_text().partition("## Causes")[2].splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and server.removeprefix("gcp ") in cells[1].split(", "):
            rules |= {*re.findall(r"R\d+", cells[2])}
    return rules


@pytest.mark.parametrize("server", [name for name, _ in COLUMNS])
def test_each_failure_has_a_cause(server):
    failing = {rule for rule, cell in documented(server).items() if "fail" in cell or "differs" in cell}
    assert failing
    assert causes(server) == failing


def test_library_passes():
    assert {*documented("This library").values()} == {"pass"}
