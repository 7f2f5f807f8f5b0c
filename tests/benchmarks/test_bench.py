"""A small run of the benchmark. Its measurements of speed are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"

ROWS = {
    "library: connect",
    "library: one of 20 changes",
    "library: all of 20 changes",
    "mesh, 2 kinds: cold start",
    "mesh, 2 kinds: one endpoint",
    "mesh, 2 kinds: PERMISSIVE to STRICT",
    "mesh, 2 kinds: STRICT to DISABLE",
    "mesh, 2 kinds: DISABLE to PERMISSIVE",
}


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *args], capture_output=True, text=True, timeout=110, check=False
    )


def test_equal_content_is_encoded_once():
    done = bench("--quick", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["size"]["streams"] == 20
    assert set(report["results"]) == ROWS
    for name, rounds in report["results"].items():
        for measured in rounds:
            assert measured["seconds"] > 0 < measured["floor"], name
            assert measured["ratio"] == pytest.approx(measured["seconds"] / measured["floor"])
            assert measured["megabytes"] > 0, name
            for kind, count in measured["encoded"].items():
                assert count <= measured["contents"].get(kind, 0), (name, kind)

    def first(name: str) -> dict[str, int]:
        return report["results"][f"mesh, 2 kinds: {name}"][0]["encoded"]

    # 20 services, pods that all serve the same port, and a private key for each sidecar.
    cold = first("cold start")
    assert (cold["ClusterLoadAssignment"], cold["RouteConfiguration"], cold["Secret"]) == (20, 2, 20)
    assert first("one endpoint") == {"ClusterLoadAssignment": 1}
    assert first("PERMISSIVE to STRICT") == {"Listener": 1}
    assert first("STRICT to DISABLE") == {"ClusterLoadAssignment": 20, "Listener": 1}


def test_more_streams_than_pods_are_an_error():
    done = bench("--quick", "--only", "mesh", "--streams", "1000")
    assert done.returncode == 1
    assert "need more pods in each namespace" in done.stderr
    assert "Traceback" not in done.stderr


def test_file_limit_error_has_a_hint():
    limited = f"ulimit -n 300 && exec {sys.executable} {BENCH} --quick --streams 1000"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs 2200 open files" in done.stderr
    assert "ulimit -Hn 2200" in done.stderr
