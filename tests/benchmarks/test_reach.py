"""A small run of the benchmark of predictions. Its measurements of speed are not checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benchmarks" / "reach.py"


def test_every_connection_is_counted():
    size = ("--services", "6", "--endpoints", "2", "--namespaces", "3")
    done = subprocess.run(
        [sys.executable, str(BENCH), *size], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:12].strip(): line[12:].split() for line in done.stdout.splitlines()[1:]}
    assert {name: cells[1:3] for name, cells in rows.items()} == {
        "load": ["0", "0"],
        "whole mesh": ["6", "144"],
        "one service": ["1", "24"],
        "plan": ["6", "144"],
    }
