"""Small runs of the benchmark. Its measurements of speed are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"


def bench(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def measure(*args: str | Path) -> dict[str, Any]:
    """Run a small benchmark of one round; return the measurement of each scenario."""
    done = bench("--quick", "-o", "json", *args)
    assert done.returncode == 0, done.stderr
    [run] = json.loads(done.stdout)["runs"]
    assert run["size"]["streams"] == 20
    return {title: measurement for title, [measurement] in run["results"].items()}


def check_every_scenario(results: dict[str, Any], *, secrets: int) -> None:
    """Check the results of `--scenario every`, in which the server has encoded `secrets` private keys."""
    for title, measured in results.items():
        assert measured["cpu"] > 0 < measured["peak"], title
        assert measured["block"] > 0, title
        if title != "start until ready":
            # `seconds` is negative if the machine pauses the benchmark between a change and its clock.
            assert measured["megabytes"] > 0, title
    for title in ("connect", "one endpoint", "STRICT to DISABLE", "everybody reconnects at once"):
        assert results[title]["grpc"] > 0 < results[title]["raw"], title

    def encoded(title: str) -> dict[str, int]:
        counts: dict[str, int] = results[title]["encoded"]
        return counts

    # 20 services in 2 namespaces, pods that all serve the same port, and a private key for each sidecar.
    cold = encoded("connect")
    assert (cold["RouteConfiguration"], cold.get("Secret", 0)) == (2, secrets)
    assert encoded("one endpoint") == {"ClusterLoadAssignment": 1}
    assert encoded("PERMISSIVE to STRICT") == {"Listener": 1}
    assert encoded("STRICT to DISABLE") == {"ClusterLoadAssignment": 20, "Listener": 1}
    # Clients that know the current versions get only what belongs to their pod.
    assert encoded("everybody reconnects at once") == {}
    assert results["everybody reconnects at once"]["megabytes"] < results["connect"]["megabytes"] / 3
    slow = results["STRICT to DISABLE, 10 % of clients do not read"]["more"]
    assert slow["MB that they then received"] > 0
    churn = results["endpoint changes at a constant rate"]["more"]
    assert 0 < churn["% of the changes were sent, and newer ones instead of the others"] <= 100
    assert churn["times the bytes of the sent changes"] < 1.5
    assert encoded("rolling restart of all pods").get("Secret", 0) == secrets
