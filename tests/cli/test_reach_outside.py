"""`xds reach` lists the clients outside the mesh that objects prove."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.callers import APP, CALLERS
from xds.cli import app

STRICT = """
    apiVersion: security.istio.io/v1
    kind: PeerAuthentication
    metadata: {name: default, namespace: shop}
    spec: {mtls: {mode: STRICT}}
"""
CALLER = "api-server (ValidatingWebhookConfiguration web)"
GATEWAY = "gateway (Ingress shop/web)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = (APP, CALLERS["ValidatingWebhookConfiguration"], CALLERS["Ingress"])
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(textwrap.dedent(text))
    return tmp_path


def reach(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["reach", "--manifests", str(folder), *words], prog_name="xds")
    return result.exit_code, result.stdout


def rows(folder: Path, *words: str) -> list[tuple[str, int, str]]:
    """Client outside the mesh, port and outcome of each row."""
    _, output = reach(folder, *words, "-o", "json")
    found = json.loads(output)
    return [
        (row.get("outside") or row["client"], row["port"], row["outcome"])
        for row in found
        if row.get("outside") or "(" in str(row.get("client"))
    ]


@pytest.mark.parametrize("words", [(), ("--expand",)])
def test_callers_are_clients(folder: Path, words: tuple[str, ...]) -> None:
    assert rows(folder, *words) == [(GATEWAY, 80, "plaintext"), (CALLER, 443, "plaintext")]
    assert rows(folder, *words, "--only", "fails") == []
    assert rows(folder, *words, "--from", "deploy/web.shop") == []
    (folder / "strict.yaml").write_text(textwrap.dedent(STRICT))
    assert rows(folder, *words) == [(GATEWAY, 80, "fails"), (CALLER, 443, "fails")]


SCRAPED = CALLERS["port of a scraped Service"].replace('"8080"', '"9102"')
PROBED = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web, namespace: shop}
    spec:
      selector: {matchLabels: {app: web}}
      template:
        metadata:
          labels: {app: web}
          annotations:
            sidecar.istio.io/rewriteAppHTTPProbers: "false"
            prometheus.io/scrape: "true"
            prometheus.io/port: "8080"
            prometheus.istio.io/merge-metrics: "false"
        spec:
          containers:
          - name: web
            image: web
            ports: [{containerPort: 8080, name: http}, {containerPort: 8443, name: https}]
            readinessProbe: {httpGet: {port: 8080}}
"""


@pytest.mark.parametrize(
    ("caller", "clients"),
    [
        (CALLERS["PodMonitor"], {"prometheus-scrape (PodMonitor shop/web)": 8080}),
        (SCRAPED, {"prometheus-scrape (Service shop/scraped)": 9102}),
        (PROBED, {"kubelet-probe": 8080, "prometheus-scrape": 8080}),
    ],
)
@pytest.mark.parametrize("words", [(), ("--expand",), ("-n", "shop"), ("--to", "web.shop")])
def test_refused_callers_of_pods_are_listed(
    tmp_path: Path, caller: str, clients: dict[str, int], words: tuple[str, ...]
) -> None:
    namespace, deployment, service = APP.split("---")
    for number, text in enumerate((namespace, service, caller, "" if caller is PROBED else deployment)):
        (tmp_path / f"{number}.yaml").write_text(textwrap.dedent(text))
    assert reach(tmp_path, *words)[0] == 0
    assert rows(tmp_path) == []
    (tmp_path / "strict.yaml").write_text(textwrap.dedent(STRICT))
    status, output = reach(tmp_path, *words)
    is_listed = "--to" not in words or 9102 not in clients.values()
    assert status == is_listed
    for client, port in clients.items() if is_listed else ():
        row = rf"(?m)^{re.escape(client)} +port {port} of deploy/web \(shop/default\) +1/1 +fails "
        assert re.search(row, output)
    assert reach(tmp_path, *words, "--only", "mtls")[0] == status
    assert reach(tmp_path, "--from", "shop/default")[0] == 0


def test_monitor_calls_the_service_port_of_its_target(folder: Path) -> None:
    monitor = CALLERS["ServiceMonitor targetPort"]
    (folder / "monitor.yaml").write_text(textwrap.dedent(monitor))
    client = "prometheus-scrape (ServiceMonitor monitoring/web)"
    assert (client, 80, "plaintext") in rows(folder)
    assert (client, 443, "plaintext") not in rows(folder)


def test_only_certain_callers_make_the_exit_status_1(folder: Path) -> None:
    (folder / "strict.yaml").write_text(textwrap.dedent(STRICT))
    status, output = reach(folder)
    assert status == 1
    assert CALLER in output
    (folder / "1.yaml").unlink()
    status, output = reach(folder)
    assert status == 0
    assert GATEWAY in output
