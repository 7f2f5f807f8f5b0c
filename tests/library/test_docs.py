"""The programs in docs/tutorials/library.md and docs/reference/library.md run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from envoy_data_plane.envoy.config.cluster.v3 import ClusterLbPolicy
from envoy_data_plane.envoy.config.route.v3 import VirtualHost
from envoy_data_plane.envoy.service.runtime.v3 import Runtime

from tests.library import messages
from tests.library.programs import running
from xds import builders, resources
from xds.codec import encode
from xds.store import Store

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorials" / "library.md").read_text()
REFERENCE = (ROOT / "docs" / "reference" / "library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL)


async def test_the_first_program_runs(tmp_path):
    program = tmp_path / "first.py"
    (first, *_) = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    program.write_text(first.replace("127.0.0.1:18000", "127.0.0.1:0"))
    async with running(str(program)) as started:
        await started.wait_for(r"serving xDS .*port=\d+")


LOG = """
import logging, structlog, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s %(proxy)s")
from xds.server import discovery
{shown}
discovery.log.info("unimportant", proxy="a")
try:
    secret = "s3cret"
    secret / 0
except TypeError:
    discovery.log.error("it broke", proxy="a", exc_info=True)
"""


def test_logging_can_be_configured_as_shown():
    """With the traceback, without local variables."""
    as_json, as_records = (block for block in BLOCKS if block.startswith("structlog.configure("))
    said = [
        subprocess.run(
            [sys.executable, "-c", LOG.format(shown=block)], capture_output=True, text=True, check=True
        )
        for block in (as_json, as_records)
    ]
    (line,) = said[0].stderr.splitlines()
    assert json.loads(line).items() >= {"event": "it broke", "level": "error", "proxy": "a"}.items()
    assert said[1].stderr.startswith("xds.server.discovery ERROR it broke a\nTraceback")
    for each in said:
        assert (each.stdout, each.stderr.count("TypeError: unsupported operand")) == ("", 1)
        assert "s3cret" not in each.stderr


def test_builders_are_documented_and_their_example_works():
    page = (ROOT / "docs" / "reference" / "builders.md").read_text()
    assert set(re.findall(r"^::: xds\.builders\.(\w+)$", page, re.MULTILINE)) == set(builders.__all__)
    names = vars(builders) | {
        "store": Store(),
        "chain": b"c",
        "key": b"k",
        "ClusterLbPolicy": ClusterLbPolicy,
    }
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert len(names["store"].view("a").of(resources.CLUSTER)) == 3


def test_documented_calls_work():
    names = vars(resources) | {
        "cluster": messages.eds_cluster("web"),
        "listener": messages.listener("web", "default"),
        "route": messages.routes("default"),
        "assignments": [messages.assignment("web")],
        "virtual_host": VirtualHost(name="web", domains=["web.example"]),
        "runtime": Runtime(name="flags"),
        "data": encode(messages.eds_cluster("web")),
        "store": Store(),
    }
    shown = [block for block in BLOCKS if block.startswith(("resource(", "store.set(cluster", "with store"))]
    assert len(shown) == 3
    for block in shown:
        exec(block, names)
    view = names["store"].view("ingress-1", "edge")
    assert {(type_url, *of) for type_url, of in view.types.items() if of} == {
        (resources.CLUSTER, "web"),
        (resources.ENDPOINT, "web"),
        (resources.LISTENER, "web"),
        (resources.ROUTE, "default"),
    }
