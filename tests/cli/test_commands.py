"""Commands that print a result and exit: their output and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.commands import MANIFESTS, STRICT, write_folder, xds

BAD = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: [{port: x}]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, all=MANIFESTS)


def run_json(*words: object, status: int = 0) -> Any:
    result = xds(*words)
    assert (result.exit_code, result.stderr) == (status, "")
    return json.loads(result.stdout)


def test_reach_groups_clients_and_endpoints(folder: Path) -> None:
    rows = run_json("reach", "--manifests", folder, "-o", "json")
    assert rows == [
        {
            "clients": [{"namespace": "shop", "accounts": [{"name": "default", "pods": 2}]}],
            "service": "web.shop",
            "port": 80,
            "endpoints": 1,
            "ready": 1,
            "outcome": outcome,
            "reason": reason,
            "decidedBy": ["MeshPolicy default"],
            "conditions": [],
            "endpointNames": [],
            "outside": "",
            "pods": [],
        }
        for outcome, reason in (("plaintext", "client-without-sidecar"), ("mtls", "auto-mtls"))
    ]


def test_reach_expand_prints_every_connection(folder: Path) -> None:
    rows = run_json("reach", "--manifests", folder, "-o", "json", "--from", "client.shop", "--expand")
    assert rows == [
        {
            "client": "client.shop",
            "service": "web.shop",
            "port": 80,
            "endpoint": "web-1.shop",
            "address": "10.9.0.1:8080",
            "outcome": "mtls",
            "reason": "auto-mtls",
            "decidedBy": ["MeshPolicy default"],
            "conditions": [],
        }
    ]
    assert len(run_json("reach", "--manifests", folder, "-o", "json", "--expand")) == 4
    result = xds("reach", "--manifests", folder, "--expand")
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["CLIENT", "SERVICE", "ENDPOINT", "OUTCOME", "REASON", "DECIDED", "BY"]
    assert len(lines) == 4
    [line] = [line for line in lines if line.startswith("client.shop")]
    words = "client.shop web.shop:80 web-1.shop (10.9.0.1:8080) mtls auto-mtls MeshPolicy default"
    assert line.split() == words.split()


def test_reach_exits_with_1_if_a_connection_fails(folder: Path) -> None:
    (folder / "strict.yaml").write_text(STRICT)
    arguments = ("reach", "--manifests", folder, "-o", "json", "--to", "web.shop:80")
    assert {row["outcome"] for row in run_json(*arguments, "--from", "client.shop")} == {"mtls"}
    [row] = run_json(*arguments, "--from", "outsider.shop", status=1)
    assert (row["outcome"], row["reason"]) == ("fails", "server-requires-mtls")
    assert row["decidedBy"] == ["PeerAuthentication shop/default"]


def test_reach_warns_of_an_object_without_effect(folder: Path) -> None:
    (folder / "duplicate.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: duplicate, namespace: zoo}\n"
        "spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n"
    )
    result = xds("reach", "--manifests", folder, "--to", "web.shop")
    assert result.exit_code == 0
    assert (
        f"{folder}/duplicate.yaml:1: problem: Service zoo/duplicate: clusterIP 10.0.0.1 belongs to "
        f"Service shop/web: "
        "traffic to it is not sent to this Service\n"
    ) in result.stderr


def test_reach_table_has_a_line_per_outcome(folder: Path) -> None:
    result = xds("reach", "--manifests", folder)
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["CLIENTS", "SERVICE", "ENDPOINTS", "OUTCOME", "REASON", "DECIDED", "BY"]
    assert [line.split() for line in lines] == [
        ["shop/default", "web.shop:80", "1/1", outcome, reason, "MeshPolicy", "default"]
        for outcome, reason in (("plaintext", "client-without-sidecar"), ("mtls", "auto-mtls"))
    ]
    assert "\x1b" not in result.stdout
    wide = xds("reach", "--manifests", folder, "-o", "wide", "--from", "client.shop").stdout
    assert wide.splitlines()[1].startswith("shop/default (1 pod)  web.shop:80  1/1 (web-1.shop)  mtls ")


def test_reach_names_few_namespaces_in_a_table(folder: Path) -> None:
    for number, account in [(number, account) for number in range(2, 7) for account in ("a", "b")]:
        (folder / f"{number}{account}.yaml").write_text(
            f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}, namespace: n{number}}}\n"
            f"spec: {{serviceAccountName: {account}}}\n"
        )
    line = xds("reach", "--manifests", folder, "--only", "plaintext").stdout.splitlines()[1]
    assert line.startswith("n2/* (2 accounts), n3/* (2 accounts), n4/* (2 accounts) and 3 more namespaces  ")
    assert run_json("reach", "--manifests", folder, "-o", "json", "--only", "plaintext")[0]["clients"][4] == {
        "namespace": "n6",
        "accounts": [{"name": "a", "pods": 1}, {"name": "b", "pods": 1}],
    }


def test_reach_prints_only_the_chosen_outcomes(folder: Path) -> None:
    (folder / "strict.yaml").write_text(STRICT)
    arguments = ("reach", "--manifests", folder, "-o", "json", "--only")
    assert [row["reason"] for row in run_json(*arguments, "fails", status=1)] == ["server-requires-mtls"]
    assert [row["reason"] for row in run_json(*arguments, "mtls", status=1)] == ["auto-mtls"]
    assert run_json(*arguments, "plaintext", status=1) == []
    result = xds("reach", "--manifests", folder, "-o", "yaml", "--only", "plaintext")
    assert (result.exit_code, yaml.safe_load(result.stdout)) == (1, [])


def test_reach_yaml_has_the_rows_of_json(folder: Path) -> None:
    for more in ((), ("--expand",)):
        arguments = ("reach", "--manifests", folder, *more)
        result = xds(*arguments, "-o", "yaml")
        assert yaml.safe_load(result.stdout) == run_json(*arguments, "-o", "json")
        assert "&id" not in result.stdout, "no anchors"


def test_reach_shows_progress_on_a_terminal_only(folder: Path) -> None:
    command = [sys.executable, "-m", "xds", "reach", "--manifests", folder, "-o", "json"]
    leader, follower = os.openpty()
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    printed = b""
    with suppress(OSError):  # The end of a terminal, which delivers its output in parts.
        while part := os.read(leader, 65536):
            printed += part
    os.close(leader)
    stdout, _ = process.communicate()
    assert (process.returncode, b"Checking services" in printed) == (0, True)
    assert len(json.loads(stdout)) == 2
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""


def test_reach_limits_output_to_accounts_and_namespaces(folder: Path) -> None:
    arguments = ("reach", "--manifests", folder, "-o", "json")
    assert len(run_json(*arguments, "--from", "shop/default", "-n", "shop", "--expand")) == 4
    for words, message in (
        (
            ("--from", "shop/web"),
            "service account shop/web not found (NAMESPACE/ACCOUNT); did you mean shop/default?",
        ),
        (("-n", "shp"), f"nothing was checked: no Service with a TCP port in namespace shp of {folder}"),
    ):
        result = xds(*arguments, *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr


MISTYPED_SELECTOR = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: wbe}}, mtls: {mode: STRICT}}
"""


def test_reach_reports_a_strict_policy_without_effect(folder: Path) -> None:
    (folder / "strict.yaml").write_text(MISTYPED_SELECTOR)
    lines = [
        (
            f"{folder}/strict.yaml:2: problem: PeerAuthentication shop/strict: selector app=wbe "
            f"matches no pod in namespace shop, so "
            "it has no effect (did you mean app=web?)"
        )
    ]
    result = xds("reach", "--manifests", folder)
    assert (result.exit_code, result.stderr.splitlines()) == (0, lines)
    result = xds("reach", "--manifests", folder, "--strict")
    assert (result.exit_code, result.stderr.splitlines()) == (1, lines)
    (folder / "strict.yaml").write_text(
        MISTYPED_SELECTOR.replace("wbe", "web").replace("STRICT", "PERMISSIVE")
    )
    result = xds("reach", "--manifests", folder, "--strict")
    assert (result.exit_code, result.stderr) == (0, "")


def test_reach_strict_fails_on_problems_not_on_notices(folder: Path) -> None:
    (folder / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: shop}\n"
    )
    assert xds("reach", "--manifests", folder, "--strict").exit_code == 0
    (folder / "map.yaml").write_text(BAD)
    assert xds("reach", "--manifests", folder, "--strict").exit_code == 1


def test_reach_fails_if_nothing_was_checked(tmp_path: Path) -> None:
    for manifests, missing in (
        (STRICT, "Pod"),
        (MANIFESTS.partition("---")[0], "Pod"),
        (MANIFESTS.partition("---")[2], "Service with a TCP port"),
    ):
        (tmp_path / "m.yaml").write_text(manifests)
        for output in ("table", "json"):
            result = xds("reach", "--manifests", tmp_path, "-o", output)
            assert (result.exit_code, result.stdout) == (2, "")
            error = f"xds: nothing was checked: no {missing} in {tmp_path}"
            assert result.stderr.splitlines()[-1] == error


@pytest.mark.parametrize("to", ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local:80", "web.shop:http"])
def test_service_can_be_named_in_several_ways(folder: Path, to: str) -> None:
    assert len(run_json("reach", "--manifests", folder, "-o", "json", "--to", to)) == 2


def test_settings_change_the_result(folder: Path, tmp_path: Path) -> None:
    arguments = ("reach", "--manifests", folder, "-o", "json", "--from", "client.shop")
    off = ("--set", "values.global.mtls.auto=false")
    assert run_json(*arguments, *off)[0]["outcome"] == "plaintext"
    (tmp_path / "mesh.yaml").write_text("enableAutoMtls: false\n")
    file = ("--mesh-config", tmp_path / "mesh.yaml")
    assert run_json(*arguments, *file)[0]["outcome"] == "plaintext"
    assert run_json(*arguments, *file, "--set", "meshConfig.enableAutoMtls=true")[0]["outcome"] == "mtls"


def test_translate_prints_all_resource_types(folder: Path) -> None:
    shown = run_json("translate", "client.shop", "--manifests", folder)
    assert list(shown) == ["clusters", "endpoints", "listeners", "routes"]
    name = "outbound|80||web.shop.svc.cluster.local"
    [cluster] = [cluster for cluster in shown["clusters"] if cluster["name"] == name]
    tls = cluster["transport_socket_matches"][0]["transport_socket"]["typed_config"]
    assert tls["@type"] == "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    assert name in [endpoints["cluster_name"] for endpoints in shown["endpoints"]]
    assert "PRIVATE KEY" not in json.dumps(shown)


def test_translate_prints_one_type_as_yaml(folder: Path) -> None:
    everything = run_json("translate", "client.shop", "--manifests", folder)
    result = xds("translate", "client.shop", "--manifests", folder, "--type", "listeners", "-o", "yaml")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout) == {"listeners": everything["listeners"]}


OTHER_SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.0.0.2, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.0.0.3, ports: [{name: tcp, port: 5432, targetPort: 5432}]}
"""


def test_translate_selects_the_resources_of_a_service(folder: Path) -> None:
    (folder / "others.yaml").write_text(OTHER_SERVICES)
    arguments = ("translate", "client.shop", "--manifests", folder)
    shown = run_json(*arguments, "--service", "web.shop")
    name = "outbound|80||web.shop.svc.cluster.local"
    assert [cluster["name"] for cluster in shown["clusters"]] == [name]
    assert [endpoints["cluster_name"] for endpoints in shown["endpoints"]] == [name]
    assert [listener["name"] for listener in shown["listeners"]] == ["0.0.0.0_80"]
    [route] = shown["routes"]
    assert [host["name"] for host in route["virtual_hosts"]] == ["web.shop.svc.cluster.local:80"]
    tcp = run_json(*arguments, "--service", "db.shop")
    assert [listener["name"] for listener in tcp["listeners"]] == ["10.0.0.3_5432"]
    assert tcp["routes"] == []
    assert list(run_json(*arguments, "--service", "db.shop", "--type", "clusters")) == ["clusters"]


def test_bootstrap_with_a_token_uses_tls(folder: Path) -> None:
    where = ("--manifests", folder, "--xds-address", "xds.istio-system.svc:15012")
    shown = run_json("bootstrap", "client.shop", *where, "--token-file", "/token", "--ca-file", "/roots.pem")
    ads = shown["dynamic_resources"]["ads_config"]
    assert ads["api_type"] == "DELTA_GRPC"
    asked = ads["grpc_services"][0]["google_grpc"]
    assert asked["target_uri"] == "xds.istio-system.svc:15012"
    roots = asked["channel_credentials"]["ssl_credentials"]["root_certs"]
    [token] = asked["call_credentials"]
    assert (roots["filename"], token["from_plugin"]["typed_config"]["secret_data"]["filename"]) == (
        "/roots.pem",
        "/token",
    )
    args = {name: int(value["int_value"]) for name, value in asked["channel_args"]["args"].items()}
    assert args["grpc.max_receive_message_length"] == 32 * 1024 * 1024
    assert (args["grpc.keepalive_time_ms"], args["grpc.keepalive_timeout_ms"]) == (30_000, 10_000)
    assert shown["cluster_manager"]["load_stats_config"]["grpc_services"] == ads["grpc_services"]
    clusters = {cluster["name"]: cluster for cluster in shown["static_resources"]["clusters"]}
    tls = clusters["xds-tls"]["transport_socket"]["typed_config"]
    assert tls["sni"] == "xds.istio-system.svc"
    assert tls["common_tls_context"]["validation_context"]["trusted_ca"] == {"filename": "/roots.pem"}
    assert "envoy_internal_address" in json.dumps(clusters["xds-grpc"])
    [relay] = [each for each in shown["static_resources"]["listeners"] if each["name"] == "xds-reports"]
    assert "address" not in relay
    assert "%FILE_CONTENT(/token:/)%" in json.dumps(relay)


def test_bootstrap_rejects_a_token_path_that_envoy_cannot_read(folder: Path) -> None:
    where = ("--manifests", folder, "--token-file", "/a:b", "--ca-file", "/roots.pem")
    result = xds("bootstrap", "client.shop", *where)
    assert result.exit_code == 2
    assert "must not contain" in result.output


def test_bootstrap_prints_node_and_xds_server(folder: Path) -> None:
    shown = run_json("bootstrap", "client.shop", "--manifests", folder, "--xds-address", "127.0.0.5:99")
    assert shown["node"]["id"] == "sidecar~10.9.0.2~client.shop~shop.svc.cluster.local"
    assert shown["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
    assert '"port_value": 99' in json.dumps(shown)
    shown = run_json("bootstrap", "client.shop", "--manifests", folder, "--sotw")
    assert shown["dynamic_resources"]["ads_config"]["api_type"] == "GRPC"
    assert '"port_value": 15010' in json.dumps(shown)


def test_bootstrap_on_loopback_needs_interception_mode_none(folder: Path) -> None:
    (folder / "all.yaml").write_text(MANIFESTS.replace("10.9.0.2", "127.9.0.2"))
    result = xds("bootstrap", "client.shop", "--manifests", folder)
    assert result.exit_code == 0
    assert result.stderr == (
        f"{folder}/all.yaml:12: problem: Pod shop/client: has the loopback address 127.9.0.2 and "
        "interception mode REDIRECT, so its sidecar gets no traffic: iptables rules do not redirect "
        "traffic on loopback (set the annotation sidecar.istio.io/interceptionMode: NONE)\n"
    )


def test_problems_go_to_stderr_and_the_result_to_stdout(folder: Path) -> None:
    (folder / "bad.yaml").write_text(BAD)
    result = xds("reach", "--manifests", folder, "-o", "json")
    assert result.exit_code == 0
    assert result.stderr == (
        f"{folder}/bad.yaml:4: problem: Service shop/bad: spec.ports[0].port must be a number from 1 "
        f"to 65535,"
        " not 'x'; until it is repaired, a Policy that targets Service bad is STRICT for every port of "
        "pods in namespace"
        " shop\n"
    )
    *results, last = json.loads(result.stdout)
    assert len(results) == 2
    assert last == {"notConsidered": ["invalid objects (1): Service shop/bad"]}


def test_notices_are_limited(folder: Path) -> None:
    maps = [
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{n}, namespace: shop}}\n" for n in range(100)
    ]
    (folder / "maps.yaml").write_text("---\n".join([*maps, BAD]))
    lines = xds("reach", "--manifests", folder).stderr.splitlines()
    assert len(lines) == 22
    assert lines[0].endswith("notice: kind ConfigMap c0 is ignored")
    assert "problem: Service shop/bad" in lines[-2]
    assert lines[-1] == "... and 80 more notices"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("translate", "clint.shop"), "pod clint.shop not found (POD.NAMESPACE); did you mean client.shop"),
        (("translate", "web.shop"), "pod web.shop not found (POD.NAMESPACE); did you mean web-1.shop?"),
        (
            ("translate", "client.shop", "--service", "wb.shop"),
            "service wb.shop not found (SERVICE.NAMESPACE); did you mean web.shop?",
        ),
        (("bootstrap", "client"), "pod client not found (POD.NAMESPACE); did you mean client.shop?"),
        (("reach", "--from", "x.y"), "pod x.y not found (POD.NAMESPACE); known: client.shop, new.shop"),
        (
            ("reach", "--to", "wb.shop"),
            "service wb.shop not found (SERVICE.NAMESPACE); did you mean web.shop?",
        ),
        (
            ("reach", "--to", "web.nowhere"),
            "service web.nowhere not found (SERVICE.NAMESPACE); did you mean",
        ),
        (("reach", "--to", "web.shop:81"), "port 81 not found (service web.shop); did you mean 80?"),
        (("bootstrap", "client.shop", "--xds-address", "x"), "'x' is not HOST:PORT"),
        (
            ("bootstrap", "client.shop", "--token-file", "/x"),
            "--token-file and --ca-file must be used together",
        ),
        (("bootstrap", "client.shop", "--xds-address", "x:99999"), "'x:99999' is not HOST:PORT"),
        (("bootstrap", "client.shop", "--xds-address", "::1:15010"), "'::1:15010' is not HOST:PORT"),
        (("reach", "--set", "mtls=true"), "--set mtls=true: problem: mtls is not a setting"),
        (("reach", "--set", "meshConfig.trustDomian=x"), "(did you mean meshConfig.trustDomain?)"),
        (("reach", "--set", "meshConfig.foo=x"), "is not a setting (known: values.global.mtls.auto"),
        (("reach", "-o", "xml"), "Invalid value for '-o'"),
        (("reach", "--mesh-config", "/none"), "does not exist"),
        (("serve", "--xds-address", "0.0.0.0:0"), "--xds-address 0.0.0.0:0 is reachable from other machines"),
        (("serve", "--xds-address", "[::]:0"), "--xds-address [::]:0 is reachable from other machines"),
        (("serve", "--xds-address", "example.com:0"), "add --insecure-xds"),
        (("serve", "--admin-address", ":80"), "':80' is not HOST:PORT"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_hint(folder: Path, words: tuple[str, ...], message: str) -> None:
    result = xds(*words, "--manifests", folder)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_invalid_mesh_config_is_wrong_usage(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("trustDomain: spiffe://x\n")
    result = xds("reach", "--manifests", folder, "--mesh-config", tmp_path / "mesh.yaml")
    assert result.exit_code == 2
    assert f"{tmp_path}/mesh.yaml:1: problem: mesh config: trustDomain 'spiffe://x' is not" in result.stderr


def test_manifests_folder_is_required(tmp_path: Path) -> None:
    assert xds("translate", "client.shop").exit_code == 2
    assert xds("reach", "--manifests", tmp_path / "none").exit_code == 2


@pytest.mark.parametrize("command", ["translate", "bootstrap"])
def test_pod_without_an_address_exits_with_1(folder: Path, command: str) -> None:
    result = xds(command, "new.shop", "--manifests", folder)
    assert result.exit_code == 1
    assert result.stderr == "xds: pod new.shop has no address (status.podIP) yet\n"


def test_empty_folder_has_no_pods(tmp_path: Path) -> None:
    result = xds("translate", "a.b", "--manifests", tmp_path)
    assert result.exit_code == 2
    assert "pod a.b not found: there is no pod" in result.stderr


@pytest.mark.parametrize("command", ["", "serve", "bootstrap", "translate", "reach", "token"])
def test_help_is_plain_text(command: str) -> None:
    result = xds(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: xds {command}".rstrip())
    assert not set(result.stdout) & set("`\x1b│╭"), "no markup, no frames"


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("--help", "envoy_data_plane yaml asyncio rich email"),
        ("--version", "envoy_data_plane yaml asyncio rich"),
        ("version --client", "envoy_data_plane yaml asyncio rich google"),
        ("completion bash", "envoy_data_plane yaml asyncio rich"),
        ("reach --manifests {}", "envoy_data_plane asyncio"),
        ("translate client.shop --manifests {}", "asyncio rich xds.mesh.policy.prediction"),
        ("bootstrap client.shop --manifests {}", "asyncio rich xds.mesh.policy.prediction"),
    ],
)
def test_command_imports_only_what_it_needs(folder: Path, words: str, absent: str) -> None:
    """Imports take most of the time of a short command."""
    unneeded = {"aiohttp", "cryptography", "grpc", "kubernetes", "multiprocessing", "structlog", "watchfiles"}
    code = (
        "import sys; from xds.cli import app\n"
        f"try: app({words.format(folder).split()!r}, prog_name='xds')\n"
        "except SystemExit as exit: assert not exit.code, exit.code\n"
        f"imported = {unneeded | set(absent.split())!r} & set(sys.modules)\n"
        "assert not imported, imported"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_help_lists_commands() -> None:
    result = xds("--help")
    for command in ("serve", "bootstrap", "translate", "reach", "demo"):
        assert f"\n  {command} " in result.stdout


def test_version_is_printed() -> None:
    assert xds("--version").stdout.startswith("xds ")


def test_unknown_command_is_wrong_usage() -> None:
    result = xds("frobnicate")
    assert result.exit_code == 2
    assert "unknown command 'frobnicate'" in result.stderr
