"""What `--manifests` accepts: files, folders, standard input, kustomizations, and several of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.commands import xds
from xds.cli import app

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
"""
WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web:1, ports: [{name: http, containerPort: 8080}]}]}
"""
CLIENT = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: client, namespace: shop}
spec: {template: {metadata: {labels: {app: client}}, spec: {containers: [{name: c, image: c:1}]}}}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
ROWS = {("deploy/web.shop", "mtls"), ("sts/client.shop", "mtls")}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in (("ns", NAMESPACE), ("web", WEB), ("client", CLIENT), ("strict", STRICT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.yaml").write_text(text)
    return tmp_path


def reach(*manifests: object, stdin: str = "") -> set[tuple[str, str]]:
    options = [word for name in manifests for word in ("--manifests", name)]
    result = xds("reach", *options, "--expand", "-o", "json", stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return {(row["client"], row["outcome"]) for row in json.loads(result.stdout)}


def test_git_repository_without_pods_is_predicted(files: Path) -> None:
    assert reach(files) == ROWS


def test_manifests_can_be_repeated(files: Path) -> None:
    assert reach(files / "ns", files / "web/all.yaml", files / "client") == ROWS
    assert reach(files / "ns", files / "ns", files) == ROWS


def test_manifests_are_read_from_stdin(files: Path) -> None:
    assert reach("-", stdin=f"{NAMESPACE}---{WEB}---{CLIENT}") == ROWS
    assert reach("-", files / "client", stdin=NAMESPACE + "---" + WEB) == ROWS


def test_json_is_read_from_stdin(files: Path) -> None:
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}, "annotations": {"a": "😀"}},
    }
    assert reach("-", files / "web", files / "client", stdin=json.dumps(namespace)) == ROWS


def test_stdin_that_is_not_text_is_an_error() -> None:
    result = CliRunner().invoke(app, ["reach", "--manifests", "-"], input=b"\xff\xff")
    assert (result.exit_code, result.stderr) == (2, "xds: stdin: is not UTF-8 text\n")


@pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")), reason="needs kustomize or kubectl"
)
def test_kustomization_is_built(files: Path) -> None:
    (files / "kustomization.yaml").write_text(
        "resources: [ns/all.yaml, web/all.yaml, client/all.yaml]\nnameSuffix: -v2\n"
    )
    assert reach(files) == {("deploy/web-v2.shop", "mtls"), ("sts/client-v2.shop", "mtls")}


def test_kustomization_without_a_program_is_an_error(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "kustomization.yaml").touch()
    monkeypatch.setenv("PATH", "/nowhere")
    result = xds("reach", "--manifests", files)
    assert result.exit_code == 2
    assert f"kustomize build {files} | xds COMMAND --manifests -" in result.stderr


def test_kustomization_below_a_folder_is_not_built(files: Path) -> None:
    (files / "web/kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [all.yaml]\n"
    )
    result = xds("reach", "--manifests", files)
    assert result.exit_code == 0
    assert result.stderr == (
        f"{files}/web/kustomization.yaml:2: notice: kind Kustomization is ignored (its changes are not "
        "applied to the files that it lists)\n"
    )


def test_missing_path_is_an_error(files: Path) -> None:
    result = xds("reach", "--manifests", files, "--manifests", files / "none")
    assert (result.exit_code, result.stderr) == (2, f"xds: {files}/none: no such file or folder\n")


def test_unknown_namespace_is_noticed_once(files: Path) -> None:
    result = xds("reach", "--manifests", files / "web", "--manifests", files / "client")
    assert result.exit_code == 0
    assert result.stderr == (
        f"{files}/web/all.yaml:7: notice: Namespace shop is not in the manifests, so its workloads have "
        "no sidecar (add the Namespace with its label istio-injection)\n"
    )


@pytest.mark.parametrize("name", ["istio-system", "kube-system"])
def test_unknown_namespace_that_is_never_injected_is_not_noticed(files: Path, name: str) -> None:
    for kind, text in (("web", WEB), ("client", CLIENT)):
        (files / kind / "all.yaml").write_text(text.replace("namespace: shop", f"namespace: {name}"))
    result = xds("reach", "--manifests", files / "web", "--manifests", files / "client")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["deploy/web.shop", "web.shop"])
def test_workload_can_be_named_without_its_kind(files: Path, name: str) -> None:
    result = xds("translate", name, "--manifests", files, "--type", "endpoints")
    assert result.exit_code == 0
    [load_assignment] = json.loads(result.stdout)["endpoints"]
    [locality] = load_assignment["endpoints"]
    [endpoint] = locality["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": "deploy/web.shop", "port_value": 8080}


def test_pod_without_a_sidecar_has_no_configuration(files: Path) -> None:
    (files / "ns/all.yaml").write_text(NAMESPACE.replace("istio-injection: enabled", "istio.io/rev: a"))
    result = xds("translate", "web.shop", "--manifests", files)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "xds: pod web.shop has no sidecar to configure, so its traffic is plaintext "
        "(label its Namespace istio-injection=enabled, or use xds inject)\n"
    )


def test_reach_reports_labels_that_add_no_sidecar(files: Path) -> None:
    (files / "ns/all.yaml").write_text(NAMESPACE.replace("istio-injection: enabled", "istio.io/rev: a"))
    result = xds("reach", "--manifests", files, "--strict")
    assert result.exit_code == 1
    assert "problem: Namespace shop: label istio.io/rev=a has no effect" in result.stderr
    assert "PeerAuthentication shop/default: no pod in namespace shop has a sidecar" in result.stderr


def test_ambiguous_workload_is_not_chosen(files: Path) -> None:
    (files / "client/all.yaml").write_text(CLIENT.replace("name: client", "name: web"))
    result = xds("translate", "web.shop", "--manifests", files)
    assert result.exit_code == 2
    assert "pod web.shop not found" in result.stderr


def test_address_of_a_workload_is_unknown(files: Path) -> None:
    arguments = ("--from", "sts/client.shop", "--expand", "-o", "json")
    result = xds("reach", "--manifests", files, *arguments)
    [row] = json.loads(result.stdout)
    assert (row["endpoint"], row["address"]) == ("deploy/web.shop", "?:8080")


def test_bootstrap_needs_a_real_pod(files: Path) -> None:
    result = xds("bootstrap", "web.shop", "--manifests", files)
    assert result.exit_code == 2
    assert "pod web.shop not found: there is no pod" in result.stderr
    assert "Deployment web is ignored" in result.stderr


# --- Helm ---------------------------------------------------------------------------------------------------

RELEASE = """---
# Source: shop/templates/serviceaccount.yaml
apiVersion: v1
kind: ServiceAccount
metadata:
  name: web
---
# Source: shop/templates/service.yaml
apiVersion: v1
kind: Service
metadata:
  name: web
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
# Source: shop/templates/optional.yaml

---
# Source: shop/templates/list.yaml
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web}
  spec:
    template:
      metadata: {labels: {app: web}}
      spec: {serviceAccountName: web, containers: [{name: web, image: web:1, ports: [{containerPort: 8080}]}]}
- apiVersion: security.istio.io/v1
  kind: PeerAuthentication
  metadata: {name: default}
  spec: {mtls: {mode: STRICT}}
---
# Source: shop/templates/migration.yaml
apiVersion: batch/v1
kind: Job
metadata:
  name: migration
  annotations: {"helm.sh/hook": "pre-install,pre-upgrade"}
spec: {template: {metadata: {labels: {app: migration}}, spec: {containers: [{name: m, image: m:1}]}}}
---
# Source: shop/templates/tests/test-connection.yaml
apiVersion: v1
kind: Pod
metadata:
  name: web-test
  labels: {app: web}
  annotations:
    "helm.sh/hook": test
spec: {containers: [{name: wget, image: busybox, args: ["web:80"]}]}
"""
"""Shaped like the output of `helm template`."""


def test_output_of_helm_is_predicted(files: Path) -> None:
    words = ("--manifests", "-", "--manifests", files / "ns", "--default-namespace", "shop", "--expand")
    result = xds("reach", *words, "-o", "json", stdin=RELEASE)
    rows = {(row["client"], row["endpoint"], row["outcome"]) for row in json.loads(result.stdout)}
    assert rows == {
        ("deploy/web.shop", "deploy/web.shop", "mtls"),
        ("job/migration.shop", "deploy/web.shop", "mtls"),
    }
    assert result.stderr == f"{files}/ns, stdin: notice: ignored: 1 Pod of helm test\n"


def test_output_of_helm_is_planned(files: Path) -> None:
    bare = CLIENT.replace("labels: {app: client", 'labels: {sidecar.istio.io/inject: "false", app: client')
    (files / "client/all.yaml").write_text(bare)
    words = ("--manifests", files / "ns", "--manifests", files / "web", "--manifests", files / "client")
    result = xds("plan", *words, "-f", "-", "--default-namespace", "shop", "-o", "json", stdin=RELEASE)
    assert result.exit_code == 1
    [hop] = json.loads(result.stdout)["hops"]
    assert (hop["effect"], hop["service"]) == ("breaks", "web.shop")
    [accounts] = hop["clients"]
    assert accounts["namespace"] == "shop"
    assert xds("plan", *words, "-f", "-", stdin=RELEASE).exit_code == 0


def test_output_of_helm_is_validated(files: Path) -> None:
    result = xds(
        "validate", "-f", "-", "-f", files / "ns", "--mesh", "--default-namespace", "shop", stdin=RELEASE
    )
    assert result.exit_code == 0
    [_, notice] = result.stdout.splitlines()
    assert notice == f"{files}/ns, stdin  notice  ignored: 1 Pod of helm test"


@pytest.mark.parametrize(
    ("hook", "is_considered"),
    [("test", False), ("test-success", False), ("post-install", True), ("post-install, test", True)],
)
def test_pod_of_a_hook_is_considered_unless_only_helm_test_runs_it(
    files: Path, hook: str, is_considered: bool
) -> None:
    text = RELEASE.replace('"helm.sh/hook": test', f'"helm.sh/hook": {hook}')
    result = xds(
        "reach", "--manifests", "-", "--from", "default/default", "-o", "json", "--expand", stdin=text
    )
    assert ("web-test.default" in {row["client"] for row in json.loads(result.stdout)}) == is_considered
    assert ("ignored: 1 Pod of helm test" in result.stderr) != is_considered


def test_running_pod_of_helm_test_is_a_client(files: Path) -> None:
    running = RELEASE + "status: {phase: Running, podIP: 10.0.0.9}\n"
    result = xds("reach", "--manifests", "-", "-o", "json", "--expand", stdin=running)
    assert "web-test.default" in {row["client"] for row in json.loads(result.stdout)}


@pytest.mark.parametrize("command", ["reach", "translate"])
def test_options_for_manifests_require_manifests(command: str) -> None:
    arguments = ["web.shop", "--kubernetes"] if command == "translate" else []
    result = xds(command, *arguments, "--default-namespace", "shop")
    assert result.exit_code == 2
    assert result.stderr == "xds: --default-namespace and --ignore-kind require manifests\n"
