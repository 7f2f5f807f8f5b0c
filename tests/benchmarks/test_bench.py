"""Small runs of the benchmark. Its measurements of speed are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.support.bench import BENCH, bench, check_every_scenario, measure


def test_every_scenario_with_files_over_tls():
    check_every_scenario(measure("--scenario", "every", "--tls"), secrets=20)


def test_replicas_share_the_sidecars():
    results = measure("--replicas", "2", "--scenario", "default", "reconnect")
    one = {name: result["encoded"] for name, result in results.items()}
    assert one["one endpoint"] == {"ClusterLoadAssignment": 2}
    assert one["STRICT to DISABLE"] == {"ClusterLoadAssignment": 40, "Listener": 2}
    assert results["everybody reconnects at once"]["megabytes"] < results["connect"]["megabytes"] / 3


def test_results_of_the_library_are_merged_compared_and_plotted(tmp_path):
    old, new, grown, plot = (tmp_path / name for name in ("old.json", "new.json", "grown.json", "plot.svg"))
    results = measure("--source", "library", "--save", old)
    assert results["one endpoint"]["encoded"] == {"ClusterLoadAssignment": 1}
    assert results["all endpoints"]["encoded"] == {"ClusterLoadAssignment": 20}

    report = json.loads(old.read_text())
    [run] = report["runs"]
    grown.write_text(
        json.dumps({"machine": "", "runs": [run, larger(run, "services"), larger(run, "streams")]})
    )
    assert bench("--load", grown, "--plot", plot).returncode == 0
    lines = [*ET.parse(plot).getroot().iter("{http://www.w3.org/2000/svg}polyline")]
    # 4 scenarios, 3 values, and 2 axes with 2 sizes each.
    assert [len(line.attrib["points"].split()) for line in lines] == [2] * 4 * 3 * 2

    for rounds in run["results"].values():
        rounds[0]["cpu"] *= 2
    new.write_text(json.dumps(report))
    merged = bench("--load", old, new, "-o", "json")
    assert len(json.loads(merged.stdout)["runs"][0]["results"]["connect"]) == 2
    compared = bench("--load", new, "--compare", old)
    assert compared.returncode == 0, compared.stderr
    [row] = [line for line in compared.stdout.splitlines() if "connect" in line]
    assert [cell.split("= ")[1].strip() for cell in row.split("│")[2:5]] == ["1.00", "1.00", "2.00*"]


def test_policies_are_measured_in_alternating_rounds():
    done = bench("--quick", "-o", "json", "--policies", "20")
    assert done.returncode == 0, done.stderr
    without, with_policies = json.loads(done.stdout)["runs"]
    assert (without["size"]["policies"], with_policies["size"]["policies"]) == (0, 20)
    # The sidecars of 7 services connect: each has rules of its own, and no listener of its own.
    for run, rules in ((without, 2), (with_policies, 14)):
        [connect], [flip] = (run["results"][title] for title in ("connect", "PERMISSIVE to STRICT"))
        assert connect["encoded"]["TypedExtensionConfig"] == rules
        assert flip["encoded"] == {"Listener": 1}


def test_visible_services_are_measured_in_alternating_rounds():
    done = bench("--quick", "-o", "json", "--visible", "5")
    assert done.returncode == 0, done.stderr
    everything, some = json.loads(done.stdout)["runs"]
    assert (everything["size"]["visible"], some["size"]["visible"]) == (0, 5)
    [flip] = everything["results"]["STRICT to DISABLE"]
    [flip_of_some] = some["results"]["STRICT to DISABLE"]
    assert flip["encoded"] == {"ClusterLoadAssignment": 20, "Listener": 1}
    assert flip_of_some["encoded"] == {"ClusterLoadAssignment": 5, "Listener": 1}


def larger(run: dict[str, Any], key: str) -> dict[str, Any]:
    return {**run, "size": {**run["size"], key: 10 * run["size"][key]}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--streams", "1000"), "need more pods than 60: raise --services or --endpoints"),
        (("--replicas", "2", "--source", "library"), "--replicas requires --source files"),
        (("--policies", "1", "--source", "library"), "--policies requires --source files"),
        (("--tls", "--source", "library"), "--tls cannot be combined with --source library"),
        (("--istiod", "pilot-discovery"), "--istiod requires --source kubernetes, without --tls"),
        (("--source", "kubernetes", "--istiod", "no-such-program"), "no-such-program is not a program"),
    ],
)
def test_impossible_options_are_an_error(options, message):
    done = bench("--quick", *options)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_file_limit_error_has_a_hint():
    limited = f"ulimit -n 300 && exec {sys.executable} {BENCH} --quick --streams 1000"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs 1200 open files" in done.stderr
    assert "ulimit -Hn 1200" in done.stderr
