"""The library does not import the mesh or its dependencies."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
import xds.builders, xds.resources, xds.server, xds.store
unwanted = {"kubernetes", "yaml", "watchfiles", "typer", "aiohttp", "cryptography", "envoy"}
ours = {"builders", "codec", "names", "protocol", "resources", "server", "snapshot", "store", "validation"}
found = {name for name in sys.modules if name.partition(".")[0] in unwanted}
found |= {name for name in sys.modules if name.startswith("xds.") and name.split(".")[1] not in ours}
print(*sorted(found))
"""


def test_the_library_stands_alone():
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
