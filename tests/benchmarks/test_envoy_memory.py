"""A small run of the benchmark with a real Envoy. Its measurements of memory are not checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "envoy_memory.py"


@pytest.mark.envoy
@pytest.mark.netns
def test_clusters_are_those_of_the_visible_services():
    options = "--services 6 --endpoints 2 --namespaces 3 --visible 2"
    # The sidecar listens on its usual ports.
    command = f"ip link set lo up && exec {sys.executable} {BENCH} {options}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    all_services, some_services = (line.split() for line in done.stdout.splitlines()[1:])
    assert (all_services[0], some_services[0]) == ("6", "2")
    assert int(all_services[1]) - int(some_services[1]) == 4
