"""A small run of the benchmark of the page. Its measurements of speed are not checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "page.py"


@pytest.mark.timeout(300)
def test_every_view_and_a_policy_flip_are_measured():
    pytest.importorskip("playwright.sync_api", reason="needs Playwright: dependency group test")
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("needs Chromium: apt-get install chromium")
    size = ("--services", "6", "--endpoints", "2", "--namespaces", "3", "--streams", "4", "--rounds", "1")
    done = subprocess.run(
        [sys.executable, str(BENCH), *size], capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line[:22].strip() for line in done.stdout.splitlines()]
    for view in ("map", "migration", "rollouts", "proxies", "problems"):
        assert {view, f"{view}, first"} <= set(rows)
    assert rows[-1] == "policy flip"
