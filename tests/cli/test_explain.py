"""`xds explain` and `xds describe`: text, JSON and YAML, of manifests and of a running control plane."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import Result

from tests.cli.commands import MANIFESTS, STRICT, write_folder, xds
from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.policy.world import pod
from tests.support.loopback import free_port
from xds.cli.explain_output import format_rate
from xds.mesh.model.objects import Change
from xds.mesh.parse import parse
from xds.snapshot import LISTENER

RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web.shop.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}
"""

READS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {namespaces: [shop]}}]
    to: [{operation: {methods: [GET], hosts: [web.shop]}}]
    when: [{key: "request.headers[x-token]", values: ["a,b=c"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}]}
"""
ALLOWED_REQUEST = ("--method", "GET", "--path", "/?a=b", "--host", "web.shop", "--header", "X-Token=a")
ALLOWED_REQUEST += ("--header", "x-token=b=c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, all=MANIFESTS, strict=STRICT)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0"),
        (0.04, "<0.1"),
        (0.4, "0.4"),
        (9.96, "10"),
        (310.4, "310"),
        (999.6, "1k"),
        (1240, "1.2k"),
        (56_700, "57k"),
    ],
)
def test_rates_are_short(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_text_names_both_sides_and_the_places_of_objects(folder: Path) -> None:
    result = xds("explain", "client.shop", "web.shop:http", "--manifests", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "client.shop -> web.shop\n"
        "\n"
        "Port 80 at web-1.shop (10.9.0.1:8080)\n"
        "  Outcome:            mutual TLS: auto mTLS is enabled, and the server's mode is STRICT\n"
        "  Client sends:       mutual TLS: auto mTLS is enabled, and the server's mode is STRICT\n"
        f"    decided by:       PeerAuthentication shop/default for the namespace ({folder}/strict.yaml:2)\n"
        "  Server accepts:     mutual TLS only (STRICT)\n"
        f"    decided by:       PeerAuthentication shop/default for the namespace ({folder}/strict.yaml:2)\n"
        "    overridden:       MeshPolicy default for the mesh (values.global.mtls.enabled=false)\n"
        "  Expected identity:  spiffe://cluster.local/ns/shop/sa/default\n"
    )


def test_failing_connection_exits_with_1(folder: Path) -> None:
    (folder / "rule.yaml").write_text(RULE)
    result = xds("explain", "client.shop", "web.shop", "--manifests", folder)
    assert result.exit_code == 1
    assert "fails: the client sends plaintext, but the server accepts mutual TLS only" in result.stdout
    assert (
        f"decided by:    DestinationRule shop/web for host web.shop.svc.cluster.local ({folder}/rule.yaml:2)"
        in result.stdout
    )


def test_request_is_allowed_or_denied(folder: Path) -> None:
    (folder / "reads.yaml").write_text(READS)
    words = ("explain", "client.shop", "web.shop", "--manifests", folder)
    allowed = xds(*words, *ALLOWED_REQUEST)
    assert allowed.exit_code == 0
    reads = f"AuthorizationPolicy shop/reads for the workload ({folder}/reads.yaml:2)"
    tried = f"AuthorizationPolicy shop/tried for the namespace ({folder}/reads.yaml:12)"
    assert (
        "  Access:             allowed\n"
        f"    policies:         ALLOW {reads}: matches\n"
        f"                      DENY (not enforced) {tried}: matches\n"
        "  Expected identity:"
    ) in allowed.stdout
    assert "  Access:             depends on the request\n" in xds(*words).stdout
    denied = xds(*words, "--method", "POST", "--path", "/", "--host", "web.shop")
    assert denied.exit_code == 1
    assert (
        "  Access:             denied\n"
        f"    policies:         ALLOW {reads}: does not match\n"
        f"                      DENY (not enforced) {tried}: matches\n"
        "    nearest rule:     AuthorizationPolicy shop/reads rules[0]\n"
        "                      from.namespaces shop: matches\n"
        "                      to.hosts web.shop: matches\n"
        "                      to.methods GET: is POST\n"
        "                      when.request.headers[x-token] a,b=c: is absent\n"
    ) in denied.stdout


def test_access_is_explained_if_the_mode_refuses_the_client(folder: Path) -> None:
    (folder / "reads.yaml").write_text(READS)
    result = xds("explain", "outsider.shop", "web.shop", "--manifests", folder, "-o", "json")
    assert json.loads(result.stdout)["groups"][0]["access"]["nearest"]["fields"][0] == {
        "field": "from.namespaces",
        "expected": "shop",
        "result": "not-matched",
        "actual": "absent: the client sends plaintext",
    }
    result = xds("explain", "outsider.shop", "web.shop", "--manifests", folder)
    assert "  Access:          denied, if the connection did not fail\n" in result.stdout


def test_json_and_yaml_have_the_same_content(folder: Path) -> None:
    words = ("explain", "outsider.shop", "web.shop", "--manifests", folder, "-o")
    printed = xds(*words, "json")
    assert printed.exit_code == 1
    found = json.loads(printed.stdout)
    assert found == yaml.safe_load(xds(*words, "yaml").stdout)
    (group,) = found["groups"]
    assert (group["outcome"], group["reason"]) == ("fails", "server-requires-mtls")
    assert group["endpoints"] == [{"pod": "web-1.shop", "address": "10.9.0.1", "port": 8080}]
    assert group["desired"] == {"send": "PLAINTEXT", "mode": "STRICT"}
    assert "served" not in group
    assert "time" not in found
    assert group["server"]["decidedBy"]["place"] == f"{folder}/strict.yaml:2"


def test_port_without_endpoint_and_service_without_port(folder: Path) -> None:
    kinds = "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    (folder / "none.yaml").write_text(
        kinds.format(name="none", spec="{selector: {app: none}, clusterIP: None, ports: [{port: 80}]}")
        + "---\n"
        + kinds.format(name="udp", spec="{clusterIP: None, ports: [{port: 53, protocol: UDP}]}")
    )
    result = xds("explain", "client.shop", "none.shop", "--manifests", folder)
    assert "\nPort 80\n  Outcome:         fails: the service port has no ready endpoint\n" in result.stdout
    assert xds("explain", "client.shop", "udp.shop", "--manifests", folder).stdout == (
        "client.shop -> udp.shop\n\nThe service has no TCP port.\n"
    )


def test_many_endpoints_are_counted(folder: Path) -> None:
    pods = [
        "apiVersion: v1\nkind: Pod\n"
        f"metadata: {{name: more-{number}, namespace: shop, labels: {{app: web}}}}\n"
        f"status: {{podIP: 10.9.1.{number}}}\n"
        for number in range(1, 9)
    ]
    (folder / "more.yaml").write_text("---\n".join(pods))
    result = xds("explain", "outsider.shop", "web.shop", "--manifests", folder)
    assert "more-5.shop (10.9.1.5:8080) and 3 more\n" in result.stdout


def test_workload_without_pods_counts_as_one_pod(folder: Path) -> None:
    (folder / "deployment.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: late, namespace: shop}\n"
        "spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, "
        "spec: {containers: [{name: web, image: web}]}}}\n"
    )
    result = xds("explain", "outsider.shop", "web.shop", "--manifests", folder)
    assert "\nPort 80 at deploy/late.shop (?:8080)\n" in result.stdout
    assert xds("describe", "pod", "late.shop", "--manifests", folder).stdout.startswith(
        "Pod deploy/late.shop\n"
    )


def test_tls_check_is_another_name_of_explain(folder: Path) -> None:
    words = ("client.shop", "web.shop", "--manifests", folder)
    assert xds("authn", "tls-check", *words).stdout == xds("explain", *words).stdout
    assert "authn" not in xds("--help").stdout
    assert xds("authn", "no-such").exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clint.shop", "web.shop", "--manifests", "m"), "did you mean client.shop, "),
        (("client.shop", "wed.shop", "--manifests", "m"), "did you mean web.shop?"),
        (
            ("client.shop", "web.shop", "--set", "meshConfig.x=1"),
            "--mesh-config requires --manifests, and --set requires --manifests or --kubernetes",
        ),
        (
            ("client.shop", "web.shop", "--manifests", "m", "--xds-address", "127.0.0.1:1"),
            "--xds-address cannot be combined with --manifests or --kubernetes",
        ),
        (
            ("client.shop", "web.shop", "--manifests", "m", "--token-file", "/dev/null"),
            "--ca-file, --token-file, --cert-file and --key-file require a running control plane",
        ),
        *(
            (("client.shop", "web.shop", "--manifests", "m", *words), message)
            for words, message in {
                ("--path", "/a/../b"): "--path /a/../b: write the normalized path",
                ("--path", "a"): "--path a: write the normalized path",
                ("--header", "x-token"): "--header x-token: write NAME=VALUE",
                ("--header", "=x"): "--header =x: write NAME=VALUE",
                ("--header", "Host=x"): "--header host: use --host, --method or --path",
                ("--header", ":method=x"): "--header :method: use --host, --method or --path",
            }.items()
        ),
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, words, message) -> None:
    result = xds("explain", *(folder if word == "m" else word for word in words))
    assert result.exit_code == 2
    assert message in result.stderr


def test_control_plane_that_cannot_be_reached_exits_with_3() -> None:
    result = xds("explain", "a.b", "c.d", "--xds-address", f"127.0.0.1:{free_port()}")
    assert result.exit_code == 3


# --- a running control plane ----------------------------------------------------------------------------


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        async with running("DISABLE") as plane:
            yield plane


async def at(plane: Plane, *words: str) -> Result:
    address = f"127.0.0.1:{plane.server.port}"
    return await asyncio.to_thread(xds, "explain", *words, "--xds-address", address)


async def test_differences_from_the_policies_come_first(plane: Plane) -> None:
    async with asyncio.timeout(WITHIN):
        while not re.search(
            r"^  In use: +yes:", (await at(plane, "one.shop", "web.shop")).stdout, re.MULTILINE
        ):
            await asyncio.sleep(0.05)
    plane.set_mode("STRICT")
    async with asyncio.timeout(WITHIN):
        while (
            "waiting for its listener"
            not in (result := await at(plane, "one.shop", "web.shop", "-o", "table")).stdout
        ):
            await asyncio.sleep(0.05)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    index = next(number for number, line in enumerate(lines) if re.fullmatch(r"  In use: +no", line))
    assert lines[index + 1].strip() == "the client is still configured to send plaintext, not mutual TLS"
    assert any(line.startswith("  Client sidecar:     one.shop: ") for line in lines)
    assert any("certificate expires " in line for line in lines)
    await plane.first.answer(LISTENER)


async def test_control_plane_evaluates_a_request(plane: Plane) -> None:
    found = [each.fact for each in parse(next(iter(yaml.safe_load_all(READS))), str)]
    web = replace(found[0], rules=(found[0].rules[0]._replace(sources=()),))
    await plane.applied(web)
    allowed = await at(plane, "one.shop", "web.shop", *ALLOWED_REQUEST)
    assert (allowed.exit_code, "  Access:          allowed\n" in allowed.stdout) == (0, True), allowed.stdout
    denied = await at(plane, "one.shop", "web.shop", "--method", "POST")
    assert (denied.exit_code, "to.methods GET: is POST\n" in denied.stdout) == (1, True), denied.stdout


async def test_sidecar_on_another_replica_is_not_known_to_be_in_use(plane: Plane) -> None:
    plane.controller.rollouts.proxies.is_replicated = True
    plane.controller.change(Change(applied=(pod("two", "shop"),)))
    async with asyncio.timeout(WITHIN):
        while "In use:" not in (result := await at(plane, "two.shop", "web.shop")).stdout:
            await asyncio.sleep(0.05)
    assert "not known: a sidecar may be connected to another replica; query that one too" in result.stdout


async def test_prefix_of_a_name_is_enough(plane: Plane, folder: Path) -> None:
    full = await at(plane, "one.shop", "web.shop")
    assert full.exit_code == 0
    first_line = (await at(plane, "on", "w")).stdout.partition("\n")[0]
    assert first_line == full.stdout.partition("\n")[0] == "one.shop -> web.shop"
    ambiguous = await at(plane, "web", "web.shop")
    assert (ambiguous.exit_code, ambiguous.stdout) == (2, "")
    assert ambiguous.stderr == "xds: web is ambiguous: it matches web-1.shop, web-2.shop\n"
    offline = xds("explain", "outs", "web:80", "--manifests", folder)
    assert offline.stdout.startswith("outsider.shop -> web.shop\n")
    assert xds("describe", "pod", "outs", "--manifests", folder).stdout.startswith("Pod outsider.shop\n")


@pytest.mark.parametrize("name", ["batch", "deploy/batch", "batch.shop", "bat"])
def test_workload_is_found_by_a_prefix(name: str, folder: Path) -> None:
    (folder / "batch.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: batch, namespace: shop}\n"
        "spec: {template: {spec: {containers: [{name: batch, image: batch}]}}}\n"
    )
    result = xds("explain", name, "web", "--manifests", folder)
    assert result.stdout.startswith("deploy/batch.shop -> web.shop\n"), result.stderr


async def test_unknown_name_at_a_control_plane_exits_with_2(plane: Plane) -> None:
    result = await at(plane, "two.shop", "web.shop")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("xds: pod two.shop not found (POD.NAMESPACE); ")


SCRAPED = """
apiVersion: v1
kind: Namespace
metadata: {name: zoo, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: cage, namespace: zoo}
spec: {selector: {app: cage}, ports: [{port: 80, targetPort: 8080, name: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cage, namespace: zoo}
spec:
  selector: {matchLabels: {app: cage}}
  template:
    metadata:
      labels: {app: cage}
      annotations:
        {prometheus.io/scrape: "true", prometheus.io/port: "9090", prometheus.istio.io/merge-metrics: "%s"}
    spec: {containers: [{name: cage, image: cage}]}
"""


@pytest.mark.parametrize(("merge", "is_refused"), [("false", True), ("true", False)])
def test_refused_scrapes_are_named(folder: Path, merge: str, is_refused: bool) -> None:
    (folder / "scraped.yaml").write_text(SCRAPED % merge)
    strict = STRICT.replace("shop", "zoo")
    planned = xds("plan", "--manifests", folder, "-f", "-", stdin=strict)
    (folder / "zoo.yaml").write_text(strict)
    remedy = (
        "let injection merge the metrics, or exempt port 9090 (PeerAuthentication with a selector, "
        "mtls STRICT and portLevelMtls 9090 PERMISSIVE)"
    )
    assert ("prometheus-scrape" in planned.stdout) is (remedy in planned.stdout) is is_refused
    for words in (("explain", "client.shop", "cage.zoo"), ("describe", "pod", "deploy/cage.zoo")):
        shown = xds(*words, "--manifests", folder).stdout
        found = re.findall(r"Refused: +prometheus-scrape of port 9090: (.*), or use PERMISSIVE", shown)
        assert found == ([remedy] if is_refused else [])


# --- xds describe ---------------------------------------------------------------------------------------


def test_description_of_a_pod(folder: Path) -> None:
    result = xds("describe", "pod", "web-1.shop", "--manifests", folder)
    assert result.exit_code == 1
    place = f"({folder}/strict.yaml:2)"
    why = "the client sends plaintext, but the server accepts mutual TLS only"
    assert result.stdout == (
        "Pod web-1.shop\n"
        "  Sidecar:   yes\n"
        "  Identity:  spiffe://cluster.local/ns/shop/sa/default\n"
        "  Services:  web.shop\n"
        "\n"
        "Port 8080\n"
        "  Service ports:    web.shop:80\n"
        "  Accepts:          mutual TLS only (STRICT)\n"
        f"    decided by:     PeerAuthentication shop/default for the namespace {place}\n"
        "    overridden:     MeshPolicy default for the mesh (values.global.mtls.enabled=false)\n"
        f"  Unreachable for:  new, outsider (shop/default): {why}\n"
        "\n"
        "All other ports\n"
        "  Accepts:       mutual TLS only (STRICT)\n"
        f"    decided by:  PeerAuthentication shop/default for the namespace {place}\n"
        "    overridden:  MeshPolicy default for the mesh (values.global.mtls.enabled=false)\n"
    )


def test_description_as_json_and_yaml(folder: Path) -> None:
    words = ("describe", "pod", "client.shop", "--manifests", folder, "-o")
    printed = xds(*words, "json")
    assert printed.exit_code == 0
    found = json.loads(printed.stdout)
    assert found == yaml.safe_load(xds(*words, "yaml").stdout)
    assert (found["pod"], found["sidecar"], [port.get("port") for port in found["ports"]]) == (
        "client.shop",
        True,
        [None],
    )
    assert found["ports"][0]["accepts"]["decidedBy"]["name"] == "default"
    [refused] = json.loads(xds("describe", "pod", "web-1.shop", *words[3:], "json").stdout)["ports"][0][
        "refusedClients"
    ]
    assert refused == {
        "clients": [
            {
                "namespace": "shop",
                "accounts": [{"name": "default", "pods": 2, "workloads": ["new", "outsider"]}],
            }
        ],
        "why": "the client sends plaintext, but the server accepts mutual TLS only",
    }
