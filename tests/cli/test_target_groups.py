"""Service ports with the same clients and outcome share a row of a table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cli.commands import xds
from xds.cli.hop_cells import TargetGroups, grouped_cells, hop_cells
from xds.mesh.v1 import policies_pb2 as pb

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: zoo}
spec: {template: {spec: {serviceAccountName: client, containers: [{name: c, image: c:1}]}}}
"""
SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: shop}
spec: {selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
DEPLOYMENT = """---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME-SUFFIX, namespace: shop}
spec:
  template:
    metadata: {labels: {app: NAME, sidecar.istio.io/inject: "INJECT"}}
    spec: {serviceAccountName: server, containers: [{name: c, image: c:1}]}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


def workload(name: str, suffix: str = "v1", inject: str = "true") -> str:
    return DEPLOYMENT.replace("NAME", name).replace("SUFFIX", suffix).replace("INJECT", inject)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five Services with the same outcomes, one without endpoints, and one with different endpoints."""
    text = NAMESPACE
    for name in ("a", "b", "c", "d", "e", "mixed", "none"):
        text += SERVICE.replace("NAME", name)
    text += "".join(map(workload, "abcde"))
    text += workload("mixed") + workload("mixed", "v2", "false")
    (tmp_path / "mesh.yaml").write_text(text)
    return tmp_path


def rows(folder: Path, *words: object, stdin: str = "") -> list[list[str]]:
    """Return the cells of each row."""
    result = xds(*words, "--manifests", folder, stdin=stdin)
    lines = result.stdout.partition("\n\n")[0].splitlines()
    return [[cell for cell in line.split("  ") if cell] for line in lines[1:]]


def test_services_with_the_same_outcome_share_a_row(folder: Path) -> None:
    (folder / "strict.yaml").write_text(STRICT)
    found = [row[1:4] for row in rows(folder, "reach", "--from", "zoo/client")]
    assert [[cell.strip() for cell in row] for row in found] == [
        ["a.shop:80, b.shop:80, c.shop:80 and 2 more", "5/5", "fails"],
        ["mixed.shop:80", "1/2", "fails"],
        ["mixed.shop:80", "1/2", "plaintext"],
        ["none.shop:80", "-", "fails"],
    ]


def test_other_clients_have_a_row_of_their_own(folder: Path) -> None:
    found = [row[:2] for row in rows(folder, "reach") if "a.shop:80" in row[1]]
    assert {row[0].strip() for row in found} == {"shop/server, zoo/client", "shop/server"}


def test_other_clients_with_the_same_text_have_a_row_of_their_own() -> None:
    groups = TargetGroups(partial(hop_cells, wide=False))
    for last in ("e", "e", "f"):
        accounts = [pb.Account(name="default", pods=1)]
        clients = [pb.Clients(namespace=name, accounts=accounts) for name in ("a", "b", "c", "d", last)]
        groups.add(pb.Hop(clients=clients, service="web.shop", port=80, endpoints=1, ready=1, outcome="mtls"))
    first, second = (grouped_cells(group) for group in groups)
    assert first[0] == second[0] == "a/default, b/default, c/default and 2 more namespaces"
    assert (first[2], second[2]) == ("2/2", "1/1")


@pytest.mark.parametrize("words", [("-o", "wide"), ("--expand",)])
def test_other_tables_have_a_row_for_each_service(folder: Path, words: tuple[str, ...]) -> None:
    names = [row[1].strip() for row in rows(folder, "reach", "--from", "zoo/client", *words)]
    assert list(dict.fromkeys(names)) == [
        f"{name}.shop:80" for name in ("a", "b", "c", "d", "e", "mixed", "none")
    ]


def test_json_has_an_item_for_each_service(folder: Path) -> None:
    found = json.loads(xds("reach", "--manifests", folder, "--from", "zoo/client", "-o", "json").stdout)
    assert [item["service"][0] for item in found] == ["a", "b", "c", "d", "e", "m", "m", "n"]
    planned = xds("plan", "--manifests", folder, "-f", "-", "-o", "json", stdin=STRICT)
    assert [hop["service"][0] for hop in json.loads(planned.stdout)["hops"]] == ["a", "b", "c", "d", "e", "m"]


def test_changes_with_the_same_effect_share_a_row(folder: Path) -> None:
    found = rows(folder, "plan", "-f", "-", stdin=STRICT)
    assert [row[2].strip() for row in found if row[0] == "breaks"] == [
        "a.shop:80, b.shop:80, c.shop:80 and 2 more (5/5 endpoints)",
        "mixed.shop:80 (1/2 endpoints)",
    ]
    markdown = xds("plan", "--manifests", folder, "-f", "-", "-o", "markdown", stdin=STRICT).stdout
    assert "| a.shop:80, b.shop:80, c.shop:80 and 2 more (5/5 endpoints) |" in markdown
    assert "**breaks: 6**" in markdown
