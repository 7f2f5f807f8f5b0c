"""A small run of the benchmark with real Envoys. Its measurements of speed are not checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.envoy
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_only_plaintext_with_observation_writes_access_logs():
    done = subprocess.run(
        [sys.executable, "benchmarks/observe.py", "--quick", "-o", "json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["results"].keys() == {"mtls-kept", "mtls-new", "plaintext-kept", "plaintext-new"}
    for result in report["results"].values():
        assert all(sample["throughput"] > 0 for sample in (*result["on"], *result["off"]))
    assert report["observed"]["off"] == {}
    plaintext = [
        report["results"][name]["on"][0]["throughput"] for name in ("plaintext-kept", "plaintext-new")
    ]
    assert report["observed"]["on"]["access_logs.grpc_access_log.grpc_entries_flushed"] > sum(plaintext) / 2
