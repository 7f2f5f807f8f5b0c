"""The library does not import the mesh or its dependencies."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
import xds.builders, xds.resources, xds.server, xds.store
unwanted = {"kubernetes", "yaml", "watchfiles", "typer", "aiohttp", "cryptography", "envoy"}
ours = {"builders", "checkpoint", "codec", "names", "protocol", "resources", "server", "snapshot", "store"}
ours |= {"validation"}
found = {name for name in sys.modules if name.partition(".")[0] in unwanted}
found |= {name for name in sys.modules if name.startswith("xds.") and name.split(".")[1] not in ours}
print(*sorted(found))
"""

CHECKS = """
import sys
import xds.conformance
print(*sorted({"_pytest", "pytest", "pytest_asyncio", "envoy"} & sys.modules.keys()))
"""


def imported(program: str) -> str:
    """Return what a program prints: the unwanted modules that it has imported."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_library_stands_alone():
    assert imported(ALONE).strip() == ""


def test_conformance_checks_need_no_extra():
    assert imported(CHECKS).strip() == ""
