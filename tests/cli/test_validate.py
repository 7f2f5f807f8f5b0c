"""`xds validate`: problems of manifests with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.golden.cases import CASES, load
from xds.cli import app
from xds.cli.envoy_check import refused_by_envoy

POLICY = """apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  mtls:
    mode: STRICT
"""
BAD = POLICY.replace("mode: STRICT", "mode: STRICKT")
BAD_MESSAGE = (
    "PeerAuthentication shop/strict: spec.mtls.mode must be one of UNSET, DISABLE, PERMISSIVE, STRICT, not "
    "'STRICKT' (did you mean STRICT?); until it is repaired, STRICT applies to pods in namespace shop with "
    "labels app=web"
)
WEB = """apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: web:1}
"""


def xds(*words: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, words)], input=stdin, prog_name="xds")


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("policies").mkdir()
    Path("policies/strict.yaml").write_text(POLICY)
    return Path("policies")


def test_valid_policies_have_no_problems(policies: Path) -> None:
    result = xds("-f", policies)
    assert (result.exit_code, result.stdout) == (0, "no problems found\n")
    assert json.loads(xds("-f", policies, "-o", "json").stdout) == []
    assert xds("-f", policies, "-o", "github").stdout == ""


def test_problem_has_file_line_and_the_control_planes_words(policies: Path) -> None:
    (policies / "bad.yaml").write_text(BAD)
    (policies / "strict.yaml").unlink()
    result = xds("-f", policies)
    assert result.exit_code == 1
    header, line = result.stdout.splitlines()
    assert header.split() == ["PLACE", "LEVEL", "MESSAGE"]
    assert line == f"policies/bad.yaml:7  problem  {BAD_MESSAGE}"
    assert json.loads(xds("-f", policies, "-o", "json").stdout) == [
        {"file": "policies/bad.yaml", "line": 7, "level": "problem", "message": BAD_MESSAGE, "hint": ""}
    ]
    annotation = f"::error file=policies/bad.yaml,line=7,title=xds::{BAD_MESSAGE}\n"
    assert xds("-f", policies, "-o", "github").stdout == annotation


def test_notice_does_not_fail(policies: Path) -> None:
    (policies / "map.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
    result = xds("-f", policies, "-o", "github")
    assert result.exit_code == 0
    assert result.stdout == "::notice file=policies/map.yaml,line=2,title=xds::kind ConfigMap a is ignored\n"


def test_findings_are_sorted_by_file_and_line(policies: Path) -> None:
    (policies / "b.yaml").write_text("kind: x\n---\n" * 10 + "kind: y\n")
    (policies / "a.yaml").write_text("kind: x\n")
    findings = json.loads(xds("-f", policies, "-o", "json").stdout)
    places = [(finding["file"], finding["line"]) for finding in findings]
    assert places == sorted(places)
    assert len(places) > 10


def test_unreadable_document_hides_no_problem_of_others(policies: Path) -> None:
    (policies / "bad.yaml").write_text(BAD + "---\n{\n")
    result = xds("-f", policies, "-o", "json")
    assert result.exit_code == 1
    assert [finding["line"] for finding in json.loads(result.stdout)] == [7, 10]


def test_other_documents_of_a_repository_are_skipped(policies: Path) -> None:
    (policies / "values.yaml").write_text("replicas: 1\n---\nimage: web\n")
    (policies / "data.json").write_text("[1, 2]")
    result = xds("-f", policies, "-o", "json")
    [finding] = json.loads(result.stdout)
    files = f"{policies}/data.json, {policies}/values.yaml"
    what = f"documents without apiVersion and kind are skipped (3): {files}"
    assert (result.exit_code, finding["level"], finding["message"]) == (0, "notice", what)
    named = xds("-f", policies / "values.yaml", "-o", "json")
    assert named.exit_code == 1
    assert "apiVersion is required" in named.stdout


@pytest.mark.parametrize(
    "text",
    [
        "Kind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n",
        "spec: {mtls: {mode: STRICT}}\n",
        "- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}}\n",
    ],
)
def test_document_that_may_be_a_policy_is_not_skipped(policies: Path, text: str) -> None:
    (policies / "typo.yaml").write_text(text)
    assert xds("-f", policies).exit_code == 1


def test_policy_with_a_pod_template_is_a_policy(policies: Path) -> None:
    text = "template: {spec: {containers: []}}, mtls: {mode: STRICT}"
    (policies / "odd.yaml").write_text(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a, namespace: b}, "
        f"spec: {{{text}}}}}"
    )
    result = xds("-f", policies)
    assert result.exit_code == 1
    assert "spec.template is not a known field" in result.stdout


def test_policy_repository_has_no_pods_to_select(policies: Path) -> None:
    assert xds("-f", policies).exit_code == 0
    result = xds("-f", policies, "--mesh")
    assert result.exit_code == 1
    assert "namespace shop does not exist" in result.stdout


def test_whole_mesh_reports_objects_without_effect(policies: Path) -> None:
    Path("web.yaml").write_text(WEB)
    assert xds("-f", policies, "-f", "web.yaml", "--mesh").exit_code == 0
    Path("web.yaml").write_text(WEB.replace("app: web", "app: wbe"))
    result = xds("-f", policies, "-f", "web.yaml", "--mesh", "-o", "github")
    assert result.exit_code == 1
    assert result.stdout == (
        "::error file=policies/strict.yaml,line=1,title=xds::PeerAuthentication shop/strict: selector "
        "app=web matches no pod in namespace shop, so it has no effect (did you mean app=wbe?)\n"
    )


def test_selector_that_matches_nothing_is_a_notice(policies: Path) -> None:
    Path("web.yaml").write_text(WEB.replace("app: web", "app: wbe"))
    result = xds("--manifests", policies, "-f", "web.yaml", "-o", "json")
    assert result.exit_code == 0
    [finding] = json.loads(result.stdout)
    assert finding == {
        "file": "policies/strict.yaml",
        "line": 1,
        "level": "notice",
        "message": "PeerAuthentication shop/strict: selector app=web matches no pod in namespace shop, so it "
        "has no effect",
        "hint": "did you mean app=wbe?",
    }
    (policies / "strict.yaml").write_text(POLICY.replace("app: web", "tier: front"))
    assert "(unless it belongs to objects in other manifests)" in xds("-f", ".", "-o", "github").stdout


@pytest.mark.parametrize("label", ["istio.io/rev: 1-24", "istio.io/dataplane-mode: ambient"])
def test_mesh_without_sidecars_has_problems(policies: Path, label: str) -> None:
    Path("web.yaml").write_text(WEB.replace("istio-injection: enabled", label))
    lock = POLICY.replace("  selector: {matchLabels: {app: web}}\n", "")
    (policies / "strict.yaml").write_text(lock.replace("namespace: shop", "namespace: istio-system"))
    result = xds("-f", policies, "-f", "web.yaml", "--mesh", "-o", "github")
    assert result.exit_code == 1
    assert result.stdout == (
        "::error file=policies/strict.yaml,line=1,title=xds::PeerAuthentication istio-system/strict: no pod "
        "in the mesh has a sidecar, so it has no effect (inject the sidecar; until then, these pods accept "
        "plaintext)\n"
        f"::notice file=web.yaml,line=1,title=xds::Namespace shop: label {label.replace(': ', '=')} has no "
        "effect: it adds no sidecar to pods, so their traffic is plaintext (label the Namespace "
        "istio-injection=enabled)\n"
    )
    Path("web.yaml").write_text(WEB)
    assert xds("-f", policies, "-f", "web.yaml", "--mesh").stdout == "no problems found\n"


def test_unknown_identity_is_reported_of_a_whole_mesh(policies: Path) -> None:
    Path("web.yaml").write_text(WEB)
    (policies / "access.yaml").write_text(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: web, namespace: shop}\n"
        "spec: {rules: [{from: [{source: {serviceAccounts: [defaultt]}}]}]}\n"
    )
    assert xds("-f", policies, "-f", "web.yaml").stdout == "no problems found\n"
    result = xds("-f", policies, "-f", "web.yaml", "--mesh", "-o", "github")
    assert result.exit_code == 0
    assert result.stdout == (
        "::notice file=policies/access.yaml,line=1,title=xds::AuthorizationPolicy shop/web: "
        "source.serviceAccount 'shop/defaultt': no known pod or ServiceAccount has this identity "
        "(did you mean default?)\n"
    )


def test_pod_that_injection_rejects_is_a_problem(policies: Path) -> None:
    Path("web.yaml").write_text(WEB.replace("image: web:1", "image: web:1, ports: [{containerPort: 15001}]"))
    result = xds("-f", policies, "-f", "web.yaml", "-o", "json")
    assert result.exit_code == 1
    [finding] = json.loads(result.stdout)
    assert (finding["file"], finding["line"]) == ("web.yaml", 13)
    assert finding["message"].endswith("is 15001, which is reserved for outbound interception")


def test_stdin_is_named_in_the_message(policies: Path) -> None:
    result = xds("-f", "-", "-o", "github", stdin=BAD)
    assert (result.exit_code, result.stdout) == (1, f"::error title=xds::stdin:7: {BAD_MESSAGE}\n")
    assert policies.exists()


def test_annotation_is_escaped(policies: Path) -> None:
    (policies / "50%,a:b.yaml").write_text(BAD.replace("STRICKT", '"100%\\n::error::x"'))
    (policies / "strict.yaml").unlink()
    [line] = xds("-f", policies, "-o", "github").stdout.splitlines()
    assert line.startswith("::error file=policies/50%25%2Ca%3Ab.yaml,line=7,title=xds::PeerAuthentication")
    assert "'100%25\\n::error::x'" in line


def test_nothing_to_check_is_wrong_usage(policies: Path) -> None:
    (policies / "strict.yaml").unlink()
    result = xds("-f", policies)
    assert (result.exit_code, result.stderr) == (2, "xds: nothing was checked: no manifests in policies\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Missing option '--filename'"),
        (("-f", "none"), "none: no such file or folder"),
        (("-f", "policies", "-o", "xml"), "Invalid value for '-o'"),
        (("-f", "policies", "--set", "mtls=true"), "mtls is not a setting"),
    ],
)
def test_wrong_usage_exits_with_2(policies: Path, words: tuple[str, ...], message: str) -> None:
    result = xds(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert policies.exists()


RULE = """apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  exportTo: [.]
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: ROOT}}
"""


@pytest.mark.envoy
@pytest.mark.real
def test_envoy_loads_what_sidecars_would_get(policies: Path, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("not a certificate")
    (policies / "web.yaml").write_text(WEB)
    (policies / "rule.yaml").write_text(RULE.replace("ROOT", str(tmp_path / "root.pem")))
    assert xds("-f", policies).exit_code == 0
    result = xds("-f", policies, "--envoy", "-o", "json")
    assert result.exit_code == 1
    [finding] = json.loads(result.stdout)
    assert (finding["file"], finding["line"]) == ("policies/rule.yaml", 6)
    assert finding["message"] == (
        "DestinationRule shop/web: Envoy refuses Cluster outbound|80||web.shop.svc.cluster.local: "
        f"Failed to load trusted CA certificates from {tmp_path / 'root.pem'}"
    )
    (tmp_path / "root.pem").unlink()
    assert xds("-f", policies, "--envoy").exit_code == 0


@pytest.mark.envoy
@pytest.mark.real
def test_envoy_refuses_no_resource_of_the_golden_cases() -> None:
    meshes = [load(case.values[0]) for case in CASES]
    assert not [problem for mesh in meshes for problem in refused_by_envoy(mesh)]


def test_envoy_that_cannot_check_is_wrong_usage(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = xds("-f", policies, "--envoy")
    assert result.exit_code == 2
    assert result.stderr.startswith("xds: --envoy: no pod in the manifests has a sidecar")
    (policies / "web.yaml").write_text(WEB)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    result = xds("-f", policies, "--envoy")
    assert result.exit_code == 2
    assert result.stderr.startswith("xds: --envoy: Envoy is not found")


# --- namespaces and kinds -----------------------------------------------------------------------------------

CHART = """apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: web:1}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: job}
spec: {containers: [{name: job, image: job:1}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: {name: default}
spec: {peers: [{mtls: {mode: PERMISSIVE}}]}
"""
ROUTE = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web.example], gateways: [istio-system/in], http: [{route: [{destination: {host: web}}]}]}
"""


def messages(*words: object, stdin: str = "") -> list[str]:
    """Return the messages of `xds validate`, with their levels."""
    findings = json.loads(xds(*words, "-o", "json", stdin=stdin).stdout)
    return [f"{finding['level']}: {finding['message']}" for finding in findings]


def test_missing_namespaces_are_reported_once_per_file(policies: Path) -> None:
    (policies / "strict.yaml").unlink()
    for name in ("a.yaml", "b.yaml"):
        (policies / name).write_text(POLICY.replace(", namespace: shop", "") + "---\n" + CHART)
    what = "notice: objects without metadata.namespace are in namespace default (5)"
    assert [found for found in messages("-f", policies) if "metadata.namespace" in found] == [what, what]


def test_default_namespace_is_that_of_objects_without_one(policies: Path) -> None:
    words = ("-f", "-", "--mesh", "--default-namespace", "shop")
    assert messages(*words, stdin=CHART) == []
    found = "\n".join(messages(*words[:3], stdin=CHART))
    assert "notice: objects without metadata.namespace are in namespace default (4)" in found
    assert "PeerAuthentication default/web: selector app=web matches only pods without a sidecar" in found


def test_default_namespace_must_be_a_name(policies: Path) -> None:
    result = xds("-f", policies, "--default-namespace", "a/b")
    assert result.exit_code == 2
    assert "'a/b' is not a DNS label" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "VirtualService",
        "virtualservice",
        "virtualservices",
        "virtualservices.networking.istio.io",
        "networking.istio.io/VirtualService",
    ],
)
def test_ignored_kind_is_only_counted(policies: Path, name: str) -> None:
    (policies / "routes.yaml").write_text(f"{ROUTE}---\n{ROUTE.replace('web, n', 'api, n')}")
    assert xds("-f", policies).exit_code == 1
    result = xds("-f", policies, "--ignore-kind", name)
    assert result.exit_code == 0
    [_, line] = result.stdout.splitlines()
    assert line.split(maxsplit=2) == ["policies", "notice", "ignored: 2 VirtualService"]


def test_kind_of_another_group_is_not_ignored(policies: Path) -> None:
    (policies / "route.yaml").write_text(ROUTE)
    result = xds("-f", policies, "--ignore-kind", "virtualservices.example.com")
    assert result.exit_code == 1
    assert "NOT enforced" in result.stdout


def test_misspelled_policy_cannot_be_ignored(policies: Path) -> None:
    (policies / "typo.yaml").write_text(POLICY.replace("PeerAuthentication", "PeerAuthenticationX"))
    result = xds("-f", policies, "--ignore-kind", "PeerAuthenticationX")
    assert result.exit_code == 1
    assert "did you mean PeerAuthentication?" in result.stdout
    assert "ignored:" not in result.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "PeerAuthentication",
            "PeerAuthentication is always read: without its objects, an answer could be wrong",
        ),
        ("services", "Service is always read"),
        ("endpoints", "Endpoints is always read"),
        ("apps/Deployment", "Deployment is always read"),
        ("Ingress", "Ingress is always read"),
        (
            "requestauthentications.security.istio.io",
            "RequestAuthentication is security that is not enforced",
        ),
    ],
)
def test_kinds_that_answers_depend_on_cannot_be_ignored(policies: Path, name: str, reason: str) -> None:
    result = xds("-f", policies, "--ignore-kind", "VirtualService", "--ignore-kind", name)
    assert result.exit_code == 2
    assert reason in result.stderr
