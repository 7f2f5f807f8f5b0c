"""The dashboard and the alerting rules use metrics that the control plane and sidecars expose."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.sidecar.apps import Exporter
from tests.sidecar.pods import ProxyMesh
from tests.support.clients import Client
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.prometheus import requires_prometheus

DASHBOARD = Path("examples/prometheus/dashboard.json")
ALERTS = Path("examples/prometheus/alerts.yaml")
ALERT_TESTS = Path("tests/sidecar/alerts.yaml")
PORT, METRICS = 8080, 9090

_NOT_METRICS = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|on|without|group_left|ignoring)\s*\([^)]*\)')
"""Strings, selectors, ranges and lists of labels."""
_NAME = re.compile(r"[a-z_]{2,}\b(?!\s*\()")
_WORDS = {"by", "on", "or", "and", "group_left"}


def panels() -> Iterator[dict]:
    yield from (panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    """Return the expressions of the dashboard, with its variables replaced, and those of the alerts."""
    texts = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [
        rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    return [text.replace("$__rate_interval", "5m") for text in texts] + rules


def metrics_in(expression: str) -> set[str]:
    return set(_NAME.findall(_NOT_METRICS.sub(" ", expression))) - _WORDS


def exposed(text: str) -> set[str]:
    """Return the names of the samples in a text, and of metrics that have none yet."""
    names = set(re.findall(r"^([a-z_]\w*)(?:\{| )", text, re.MULTILINE))
    types = re.findall(r"^# TYPE (\S+) (\w+)", text, re.MULTILINE)
    return names | {name + "_bucket" * (kind == "histogram") for name, kind in types}


def test_metrics_are_found_in_expressions():
    rate = 'sum by (le, type) (rate(ab_bucket{b="c"}[5m]))'
    assert metrics_in(f"{rate} * on (d) group_left () ee - max(f_g) or time() > 5") == {
        "ab_bucket",
        "ee",
        "f_g",
    }


def test_panels_are_complete_and_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"], panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.netns
@pytest.mark.envoy
async def test_metrics_exist(tmp_path):
    with Cluster() as cluster:
        mesh = ProxyMesh(cluster, tmp_path)
        async with mesh:
            pod, client = mesh.pod("web", "strict"), mesh.pod("client", "strict")
            mesh.service("web", "strict", {"http": (80, PORT)})
            mesh.apply(peer_authentication("strict", "STRICT"))
            mesh.metrics[pod.address] = {"port": METRICS}
            await mesh.start()
            await mesh.serve(pod, http=(PORT,))
            async with Exporter().at(pod.place, METRICS):
                assert (await client.client.get("http://web.strict/")).ok
                scrapes = [
                    await Client(cluster.node).get(f"http://{pod.address}:15020/stats/prometheus"),
                    await Client(cluster.node).get(f"http://{client.address}:15090/stats/prometheus"),
                ]
                assert all(scrape.ok for scrape in scrapes)
                names = exposed(await mesh.plane.metrics()).union(
                    *(exposed(scrape.text) for scrape in scrapes)
                )
    used = {expression: metrics_in(expression) for expression in expressions()}
    assert all(used.values())
    missing = {name for found in used.values() for name in found} - names
    assert not missing


@requires_prometheus
class TestPromtool:
    def test_expressions_are_valid(self, tmp_path):
        rules = [{"record": "x", "expr": text} for text in dict.fromkeys(expressions())]
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
        self.promtool("check", "rules", "--lint=none", str(tmp_path / "rules.yaml"))
        self.promtool("check", "rules", "--lint-fatal", str(ALERTS))

    def test_alerts_fire(self):
        self.promtool("test", "rules", str(ALERT_TESTS))

    def test_scrape_configuration_is_valid(self, tmp_path):
        settings = Path("examples/envoy/compose/monitoring/prometheus.yml")
        (tmp_path / "prometheus.yml").write_text(settings.read_text())
        (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
        self.promtool("check", "config", str(tmp_path / "prometheus.yml"))

    def promtool(self, *arguments: str) -> None:
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test():
    rules = {
        rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    }
    tests = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    fired = {
        case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    assert fired == rules
