"""`xds plan`: what a change breaks, as a table, JSON and Markdown, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.commands import write_folder, xds

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.0.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata:
  {name: web-1, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z",
   labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {containers: [{name: a, ports: [{containerPort: 8080}, {name: metrics, containerPort: 9090}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {security.istio.io/tlsMode: istio}}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, namespace: zoo}
status: {podIP: 10.1.0.3}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
NOT_CONSIDERED = (
    "Not considered: clients outside the mesh that no object proves. With a running control plane, "
    "--observed finds those that send plaintext.\n"
)
UNCHANGED = f"no connection changes\n{NOT_CONSIDERED}"
TITLES = "EFFECT CLIENTS TARGET BEFORE AFTER DECIDED BY"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "strict.yaml").write_text(POLICY)
    return write_folder(tmp_path, all=MESH)


def plan(folder: Path, *words: object, stdin: str = "") -> Result:
    return xds("plan", "--manifests", folder, *words, stdin=stdin)


def plan_json(folder: Path, *words: object, status: int, stdin: str = "") -> Any:
    result = plan(folder, *words, "-o", "json", stdin=stdin)
    assert (result.exit_code, result.stderr) == (status, "")
    return json.loads(result.stdout)


def test_strict_policy_breaks_plaintext_clients(folder: Path) -> None:
    result = plan(folder, "-f", folder.parent / "strict.yaml")
    assert (result.exit_code, result.stderr) == (1, "")
    titles, *lines = result.stdout.splitlines()
    assert titles.split() == TITLES.split()
    policy, fails = "PeerAuthentication shop/default", "fails (server-requires-mtls)"
    exempt = (
        "exempt port 9090 (PeerAuthentication with a selector, mtls STRICT and portLevelMtls 9090 PERMISSIVE)"
    )
    assert [" ".join(line.split()) for line in lines] == [
        f"breaks outsider (zoo/default) web.shop:80 (1/1 endpoints) plaintext {fails} {policy}",
        f"may break metrics-port port 9090 of web (shop/default) plaintext {fails} {policy}",
        "",
        "Remedies:",
        f"add a sidecar to outsider (zoo/default), or use PERMISSIVE in {policy} until then",
        f"{exempt}, or use PERMISSIVE in {policy}",
        "",
        "breaks: 1, may break: 1",
        *NOT_CONSIDERED.splitlines(),
    ]


def test_json_contains_answers_before_and_after(folder: Path) -> None:
    found = plan_json(folder, "-f", "-", status=1, stdin=POLICY)
    assert found["breaks"]
    assert found["hops"] == [
        {
            "effect": "breaks",
            "clients": [
                {
                    "namespace": "zoo",
                    "accounts": [{"name": "default", "pods": 1, "workloads": ["outsider"]}],
                }
            ],
            "service": "web.shop",
            "port": 80,
            "endpoints": 1,
            "ready": 1,
            "before": {
                "outcome": "plaintext",
                "reason": "client-without-sidecar",
                "decidedBy": ["MeshPolicy default"],
                "conditions": [],
            },
            "after": {
                "outcome": "fails",
                "reason": "server-requires-mtls",
                "decidedBy": ["PeerAuthentication shop/default"],
                "conditions": [],
            },
            "remedy": "add a sidecar to outsider (zoo/default), or use PERMISSIVE in PeerAuthentication "
            "shop/default until then",
        }
    ]
    [refused] = found["refused"]
    assert (refused["traffic"], refused["breaks"], refused["port"]) == ("metrics-port", False, 9090)
    assert found["withoutEffect"] == []


def test_deleting_the_policy_repairs_the_clients(folder: Path) -> None:
    (folder / "strict.yaml").write_text(POLICY)
    found = plan_json(folder, "--delete", "PeerAuthentication/shop/default", status=0)
    [hop] = found["hops"]
    assert (hop["effect"], hop["remedy"], found["breaks"]) == ("repaired", "", False)


def test_disabled_mtls_is_a_warning_not_a_failure(folder: Path) -> None:
    found = plan_json(folder, "-f", "-", status=0, stdin=POLICY.replace("STRICT", "DISABLE"))
    [hop] = found["hops"]
    assert (hop["effect"], hop["after"]["reason"]) == ("plaintext", "server-plaintext")
    assert hop["remedy"] == "set PERMISSIVE or STRICT in PeerAuthentication shop/default"


def test_change_without_consequences_says_so(folder: Path) -> None:
    result = plan(folder, "-f", "-", stdin=POLICY.replace("STRICT", "PERMISSIVE"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, UNCHANGED, "")


def test_probes_that_strict_refuses_break(folder: Path) -> None:
    pod = MESH.split("---")[2].replace(
        "{name: a,", "{name: a, livenessProbe: {httpGet: {port: 8080}}, readinessProbe: {grpc: {port: 9090}},"
    )
    (folder / "pod.yaml").write_text(pod)
    (folder / "all.yaml").write_text("---".join([*MESH.split("---")[:2], *MESH.split("---")[3:4]]))
    found = plan_json(folder, "-f", folder.parent / "strict.yaml", status=1)
    assert found["hops"] == []
    assert [(item["traffic"], item["port"]) for item in found["refused"]] == [
        ("kubelet-probe", 8080),
        ("kubelet-probe", 9090),
    ]
    assert found["refused"][0]["remedy"].startswith("inject the sidecar with rewritten probes, or exempt")


def test_markdown_is_a_table_for_a_pull_request(folder: Path) -> None:
    mistyped = POLICY.replace("name: default", "name: other").replace(
        "spec: {", "spec: {selector: {matchLabels: {app: wbe}}, "
    )
    result = plan(folder, "-f", "-", "-o", "markdown", stdin=f"{POLICY}---{mistyped}")
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        "### Effect on connections",
        "",
        "**breaks: 1, may break: 1**",
        "",
        "| effect | clients | target | before | after | decided by | remedy |",
    ]
    assert lines[6].startswith(
        "| breaks | outsider (zoo/default) | web.shop:80 (1/1 endpoints) | plaintext | fails ("
    )
    assert lines[-1].startswith("- stdin:7: PeerAuthentication shop/other: selector app=wbe matches no pod")
    nothing = plan(folder, "-f", "-", "-o", "markdown", stdin=POLICY.replace("STRICT", "PERMISSIVE"))
    text = f"### Effect on connections\n\n**no connection changes**\n\n{NOT_CONSIDERED}"
    assert nothing.stdout == text


def test_objects_without_effect_are_reported(folder: Path) -> None:
    newer = POLICY.replace("name: default", "name: newer").replace("STRICT", "PERMISSIVE")
    (folder / "strict.yaml").write_text(POLICY)
    result = plan(folder, "-f", "-", stdin=newer)
    assert result.exit_code == 0
    assert result.stderr == (
        "stdin:2: problem: PeerAuthentication shop/newer: has no effect, because PeerAuthentication "
        "shop/default overrides it\n"
    )


def test_applied_objects_keep_what_the_api_server_set(folder: Path) -> None:
    """A Pod without its status and a Service without its clusterIP are updates of the existing objects."""
    pod = MESH.split("---")[2].partition("status:")[0]
    service = MESH.split("---")[1].replace("clusterIP: 10.0.0.1, ", "")
    result = plan(folder, "-f", "-", stdin=f"{service}---{pod}")
    assert (result.exit_code, result.stdout) == (0, "no connection changes\n")
    result = plan(folder, "-f", "-", stdin=pod.replace(", security.istio.io/tlsMode: istio", ""))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "plaintext: 2")


def test_pod_without_status_is_injected_and_called(tmp_path: Path) -> None:
    bare = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: out}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: shop, labels: {app: bare}}
spec: {containers: [{name: c, image: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {type: NodePort, selector: {app: bare}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: out}
spec: {containers: [{name: c, image: c}]}
"""
    (tmp_path / "bare.yaml").write_text(bare)
    found = plan_json(tmp_path, "-f", "-", status=1, stdin=POLICY)
    (hop,) = found["hops"]
    assert hop["effect"] == "breaks"
    assert [refusal["traffic"] for refusal in found["refused"]] == ["outside-client"]


def test_service_without_a_ready_pod_is_not_considered(tmp_path: Path) -> None:
    unready = "status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'False'}]}"
    folder = write_folder(tmp_path, all=MESH.replace("status: {podIP: 10.1.0.1}", unready))
    found = plan_json(folder, "-f", "-", status=0, stdin=POLICY)
    assert found["notConsidered"] == ["connections to Services without a ready pod (1): shop/web"]
    assert found["hops"] == []
    assert plan(folder, "-f", "-", "--strict", stdin=POLICY).exit_code == 1


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: a, livenessProbe: {httpGet: {port: 8080}}}]}
"""


JOB = DEPLOYMENT.replace("apps/v1", "batch/v1").replace("Deployment", "Job")
CRON_JOB = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: api, namespace: shop}
spec:
  schedule: "@daily"
  jobTemplate: {spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a}]}}}}
"""


def test_workloads_are_compared_as_pods(folder: Path) -> None:
    """The webhook adds a sidecar, and the sidecar answers the probes."""
    (folder / "strict.yaml").write_text(POLICY)
    found = plan_json(folder, "-f", "-", status=0, stdin=DEPLOYMENT)
    assert (found["hops"], found["refused"]) == ([], [])
    (folder / "api.yaml").write_text(DEPLOYMENT)
    without = DEPLOYMENT.replace(
        "labels: {app: web}}", 'labels: {app: web, sidecar.istio.io/inject: "false"}}'
    )
    found = plan_json(folder, "-f", "-", status=1, stdin=without)
    assert [(hop["effect"], hop["after"]["reason"], hop["endpoints"]) for hop in found["hops"]] == [
        ("breaks", "server-requires-mtls", 1),
        ("plaintext", "endpoint-without-sidecar", 1),
        ("plaintext", "client-without-sidecar", 1),
        ("repaired", "client-without-sidecar", 1),
    ]
    found = plan_json(folder, "--delete", "deployment/shop/api", "--delete", "Pod/shop/web-1", status=1)
    assert {hop["after"]["reason"] for hop in found["hops"]} == {"no-endpoint"}


@pytest.mark.parametrize(
    ("workload", "stopped"),
    [
        (DEPLOYMENT, DEPLOYMENT.replace("spec:\n", "spec:\n  replicas: 0\n", 1)),
        (JOB, JOB.replace("spec:\n", "spec:\n  suspend: true\n", 1)),
        (CRON_JOB, CRON_JOB.replace("spec:\n", "spec:\n  suspend: true\n", 1)),
    ],
    ids=["Deployment", "Job", "CronJob"],
)
def test_workload_that_the_change_stops_has_no_pod(folder: Path, workload: str, stopped: str) -> None:
    objects = MESH.split("---")
    (folder / "all.yaml").write_text("---".join([*objects[:2], *objects[3:]]))
    (folder / "api.yaml").write_text(workload)
    result = plan(folder, "-f", "-", "-o", "json", stdin=stopped)
    assert (result.exit_code, "so no pod of the workload is considered" in result.stderr) == (1, True)
    found = json.loads(result.stdout)
    assert {(hop["effect"], hop["after"]["reason"]) for hop in found["hops"]} == {("breaks", "no-endpoint")}


def test_workload_with_running_pods_is_not_compared(folder: Path) -> None:
    """`xds plan -f` cannot know how the pods of a cluster change with their Deployment."""
    web = DEPLOYMENT.replace("name: api", "name: web")
    assert web != DEPLOYMENT
    (folder / "strict.yaml").write_text(POLICY)
    result = xds("plan", "--manifests", folder, "-f", "-", stdin=web)
    assert (result.exit_code, result.stdout) == (0, "no connection changes\n")
    assert "Pod shop/deploy/web: notice: the workload's own change is not compared" in result.stderr


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        ((), "", "xds: nothing to plan: add -f PATH or --delete KIND/NS/NAME"),
        (("-f", "-", "--manifests", "-"), "", "stdin (-) can be only one of --manifests, -f and --replay"),
        (
            ("-f", "-"),
            POLICY.replace("STRICT", "STRICKT"),
            "stdin:5: problem: PeerAuthentication shop/default",
        ),
        (
            ("-f", "-"),
            POLICY.replace("STRICT", "STRICKT"),
            "xds: cannot plan the change: repair the problems",
        ),
        (("-f", "-"), f"{POLICY}---{POLICY}", "PeerAuthentication shop/default is also defined at stdin:2"),
        (("-f", "-"), "{", "cannot be read as YAML"),
        (("-f", "/none"), "", "/none: no such file or folder"),
        (
            ("--delete", "Pod/shop/wb-1"),
            "",
            "--delete: object Pod/shop/wb-1 not found (KIND/NS/NAME); did you",
        ),
        (
            ("--delete", "Namespace/shop"),
            "",
            "--delete: Namespace/shop: cannot plan the deletion of a Namespace: delete the objects in it",
        ),
        (("--delete", "MeshPolicy/default"), "", "MeshPolicy/default not found: there is no MeshPolicy"),
        (
            ("--delete", "Pods/shop/web-1"),
            "",
            "--delete: kind Pods not found (Pods/shop/web-1); did you mean Pod",
        ),
        (("--delete", "pod/web-1"), "", "pod/web-1 is not the name of an object: write Pod/NS/NAME"),
    ],
)
def test_wrong_use_exits_with_2(folder: Path, words: tuple[str, ...], stdin: str, message: str) -> None:
    result = plan(folder, *words, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_nothing_to_check_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(POLICY)
    result = plan(tmp_path, "-f", tmp_path / "m.yaml")
    assert result.exit_code == 2
    assert result.stderr == f"xds: nothing was checked: no Pod or no Service with a TCP port in {tmp_path}\n"


ROLLOUT = """
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: batch, namespace: zoo}
spec: {template: {spec: {containers: [{name: batch, image: batch}]}}}
"""


def test_custom_workloads_are_clients(folder: Path) -> None:
    (folder / "pod.yaml").write_text("---".join(MESH.split("---")[2:3]))
    (folder / "all.yaml").write_text("---".join([*MESH.split("---")[:2], ROLLOUT]))
    (folder / "zoo.yaml").write_text("{apiVersion: v1, kind: Namespace, metadata: {name: zoo}}")
    found = plan_json(folder, "-f", folder.parent / "strict.yaml", status=1)
    [hop] = found["hops"]
    account = {"name": "default", "pods": 1, "workloads": ["rollout/batch"]}
    assert hop["clients"] == [{"namespace": "zoo", "accounts": [account]}]


def test_custom_workload_can_be_deleted(folder: Path) -> None:
    zoo = "{apiVersion: v1, kind: Namespace, metadata: {name: zoo}}"
    (folder / "batch.yaml").write_text(f"{ROLLOUT}---\n{zoo}\n")
    assert plan_json(folder, "--delete", "Rollout/zoo/batch", status=0)["hops"] == []


def test_strict_prints_what_it_exits_with(folder: Path) -> None:
    (folder / "lost.yaml").write_text(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, "
        "metadata: {name: lost, namespace: shop}, "
        "spec: {selector: {matchLabels: {app: wbe}}, mtls: {mode: STRICT}}}"
    )
    result = plan(folder, "-f", "-", "--strict", stdin=POLICY.replace("STRICT", "PERMISSIVE"))
    assert (result.exit_code, "PeerAuthentication shop/lost" in result.stderr) == (1, True)


def test_route_may_be_repeated_in_a_patch(folder: Path, tmp_path: Path) -> None:
    route = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {gateways: [public], http: [{route: [{destination: {host: web}}]}]}
"""
    (tmp_path / "change").mkdir()
    for name in ("base", "patch"):
        (tmp_path / "change" / f"{name}.yaml").write_text(route)
    assert plan(folder, "-f", tmp_path / "change").exit_code == 0


UNKNOWN = """
apiVersion: %s
kind: %s
metadata: {name: any, namespace: shop}
spec: %s
"""
PERMISSIVE = POLICY.replace("STRICT", "PERMISSIVE")
HINT = "(add their pods to the manifests, or name kinds that do neither with --ignore-kind)"


@pytest.mark.parametrize(
    ("version", "kind", "spec"),
    [
        ("acid.zalan.do/v1", "postgresql", "{numberOfInstances: 2}"),
        ("argoproj.io/v1alpha1", "Rollout", "{workloadRef: {kind: Deployment, name: gone}}"),
        ("argoproj.io/v1alpha1", "Workflow", "{templates: [{container: {image: a}}]}"),
        ("flagger.app/v1beta1", "Canary", "{targetRef: {name: web}}"),
        ("helm.toolkit.fluxcd.io/v2", "HelmRelease", "{}"),
        ("kafka.strimzi.io/v1", "Kafka", "{}"),
        ("kibana.k8s.elastic.co/v1", "Kibana", "{count: 1}"),
        ("kustomize.toolkit.fluxcd.io/v1", "Kustomization", "{}"),
        ("monitoring.coreos.com/v1", "Probe", "{targets: {}}"),
        ("monitoring.coreos.com/v1", "Prometheus", "{}"),
        ("monitoring.coreos.com/v1alpha1", "ScrapeConfig", "{}"),
        ("operators.coreos.com/v1alpha1", "ClusterServiceVersion", "{install: {spec: {deployments: []}}}"),
        ("route.openshift.io/v1", "Route", "{to: {name: web}}"),
        ("sparkoperator.k8s.io/v1beta2", "SparkApplication", "{}"),
        ("tekton.dev/v1", "Task", "{steps: [{image: a}]}"),
        ("traefik.io/v1alpha1", "IngressRoute", "{}"),
    ],
)
def test_objects_of_unknown_kinds_make_a_plan_incomplete(
    folder: Path, version: str, kind: str, spec: str
) -> None:
    (folder / "unknown.yaml").write_text(UNKNOWN % (version, kind, spec))
    result = plan(folder, "-f", "-", stdin=PERMISSIVE)
    what = f"Not considered: 1 {kind}, which may create pods or call Services {HINT}\n"
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"no connection changes among the objects that were considered\n{what}{NOT_CONSIDERED}"
    )
    assert plan(folder, "-f", "-", "--strict", stdin=PERMISSIVE).exit_code == 1
    result = plan(folder, "-f", "-", "--strict", "--ignore-kind", kind, stdin=PERMISSIVE)
    assert (result.exit_code, result.stdout) == (0, UNCHANGED)


@pytest.mark.parametrize(
    ("version", "kind"),
    [("extensions/v1beta1", "Ingress"), ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute")],
)
def test_old_versions_of_callers_make_a_plan_incomplete(folder: Path, version: str, kind: str) -> None:
    (folder / "old.yaml").write_text(UNKNOWN % (version, kind, "{}"))
    result = plan(folder, "-f", "-", "--strict", stdin=PERMISSIVE)
    assert (result.exit_code, result.stderr) == (1, "")
    assert f"Not considered: 1 {kind} of {version}, which may create pods" in result.stdout


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("v1", "ConfigMap"),
        ("cert-manager.io/v1", "Certificate"),
        ("image.openshift.io/v1", "ImageStream"),
        ("kafka.strimzi.io/v1", "KafkaTopic"),
        ("kustomize.config.k8s.io/v1", "Kustomization"),
        ("kyverno.io/v1", "ClusterPolicy"),
        ("monitoring.coreos.com/v1", "PrometheusRule"),
        ("policy/v1", "PodDisruptionBudget"),
        ("rbac.authorization.k8s.io/v1", "Role"),
    ],
)
def test_kinds_without_pods_and_calls_do_not_matter(folder: Path, version: str, kind: str) -> None:
    (folder / "other.yaml").write_text(UNKNOWN % (version, kind, "{}"))
    result = plan(folder, "-f", "-", "--strict", stdin=PERMISSIVE)
    assert (result.exit_code, result.stdout) == (0, UNCHANGED)
    assert f"notice: kind {kind} any is ignored" in result.stderr


def test_every_format_says_what_was_not_considered(folder: Path) -> None:
    kinds = {"Task": 1, "Workflow": 3, "Kafka": 2, "Kibana": 2, "Canary": 1}
    objects = [UNKNOWN % ("a.example/v1", kind, "{}") for kind, count in kinds.items() for _ in range(count)]
    (folder / "unknown.yaml").write_text("---".join(objects))
    (folder / "bad.yaml").write_text(
        MESH.split("---")[1].replace("port: 80", "port: x").replace("web,", "bad,")
    )
    phrases = [
        f"3 Workflow, 2 Kafka, 2 Kibana, 2 of other kinds, which may create pods or call Services {HINT}",
        "invalid objects (1): Service shop/bad",
    ]
    found = json.loads(plan(folder, "-f", "-", "-o", "json", stdin=PERMISSIVE).stdout)
    summary = "no connection changes among the objects that were considered"
    assert (found["notConsidered"], found["summary"]) == (phrases, summary)
    markdown = plan(folder, "-f", "-", "-o", "markdown", stdin=PERMISSIVE).stdout
    assert f"**{summary}**\n\nNot considered: {phrases[0]}\n\nNot considered: {phrases[1]}\n" in markdown
    table = xds("reach", "--manifests", folder)
    assert table.exit_code == 0
    assert table.stdout.endswith("".join(f"Not considered: {phrase}\n" for phrase in phrases))
    strict = xds("reach", "--manifests", folder, "--strict", "-o", "json")
    assert (strict.exit_code, json.loads(strict.stdout)[-1]) == (1, {"notConsidered": phrases})
    described = xds("describe", "pod", "web-1.shop", "--manifests", folder)
    assert f"Not considered: {phrases[0]}\n" in described.stderr
    validated = xds("validate", "-f", folder).stdout
    assert "kinds that are not read, and may create pods or call Services: 3 Workflow" in validated


@pytest.mark.parametrize("name", ["vs", "VirtualServise"])
def test_ignored_kind_without_objects_is_named(folder: Path, name: str) -> None:
    result = plan(folder, "-f", "-", "--ignore-kind", name, stdin=PERMISSIVE)
    assert result.exit_code == 0
    assert f"notice: --ignore-kind {name} has no effect: no object is of this kind" in result.stderr


@pytest.mark.parametrize("words", [["plan", "-f", "-"], ["reach"]])
def test_invalid_service_is_named_if_nothing_was_checked(folder: Path, words: list[str]) -> None:
    (folder / "all.yaml").write_text(MESH.replace("port: 80,", "port: x,"))
    result = xds(*words, "--manifests", folder, stdin=PERMISSIVE)
    assert result.exit_code == 2
    assert "Not considered: invalid objects (1): Service shop/web\nxds: nothing was checked" in result.stderr


ZOO = """
apiVersion: v1
kind: Namespace
metadata: {name: zoo, labels: {istio-injection: %s}}
"""


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [("disabled", "enabled", "encrypted"), ("enabled", "disabled", "plaintext")],
)
def test_changed_namespace_injects_workloads_anew(folder: Path, before: str, after: str, effect: str) -> None:
    (folder / "pod.yaml").write_text("---".join(MESH.split("---")[2:3]))
    (folder / "all.yaml").write_text("---".join([*MESH.split("---")[:2], ROLLOUT, ZOO % before]))
    found = plan_json(folder, "-f", "-", status=0, stdin=ZOO % after)
    [hop] = found["hops"]
    assert (hop["effect"], hop["clients"][0]["namespace"], found["notConsidered"]) == (effect, "zoo", [])
    words = ("-f", "-", "--delete", "Rollout/zoo/batch")
    assert plan_json(folder, *words, status=0, stdin=ZOO % after)["hops"] == []


def test_changed_namespace_does_not_inject_running_pods(folder: Path) -> None:
    result = plan(folder, "-f", "-", "--strict", stdin=ZOO % "enabled")
    what = "the label istio-injection of Namespace zoo for its running pods, which keep what they have"
    assert (result.exit_code, f"Not considered: {what}" in result.stdout) == (1, True)
    result = plan(folder, "-f", "-", "--strict", stdin=MESH.split("---", maxsplit=1)[0])
    assert (result.exit_code, result.stdout) == (0, "no connection changes\n")


def test_changed_namespace_can_make_workloads_invalid(folder: Path) -> None:
    reserved = ROLLOUT.replace("image: batch", "image: batch, ports: [{containerPort: 15006}]")
    (folder / "batch.yaml").write_text(f"{reserved}---{ZOO % 'disabled'}")
    result = plan(folder, "-f", "-", "--strict", stdin=ZOO % "enabled")
    assert (result.exit_code, "batch.yaml:5: problem: Rollout zoo/batch:" in result.stderr) == (1, True)
    assert "Not considered: invalid objects (1): Pod zoo/rollout/batch" in result.stdout


WEBHOOK = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: hooks}
webhooks: [{name: a.b.c, clientConfig: {service: {name: gone, namespace: shop}}}]
"""


def test_calls_to_unknown_pods_are_named(folder: Path) -> None:
    (folder / "webhook.yaml").write_text(WEBHOOK)
    result = plan(folder, "-f", "-", stdin=POLICY.replace("STRICT", "PERMISSIVE"))
    what = "ValidatingWebhookConfiguration hooks calls Service shop/gone, of which no pod is known"
    assert f"{folder}/webhook.yaml:2: notice: {what}, so the call is not considered" in result.stderr


MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: web, namespace: monitoring}
spec: {namespaceSelector: {any: true}, selector: {matchLabels: {app: gone}}, endpoints: [{port: http}]}
"""


def test_monitors_that_select_nothing_are_named(folder: Path) -> None:
    (folder / "monitor.yaml").write_text(MONITOR)
    result = plan(folder, "-f", "-", stdin=POLICY.replace("STRICT", "PERMISSIVE"))
    what = "an endpoint of ServiceMonitor monitoring/web selects no port of a known pod"
    assert f"{folder}/monitor.yaml:2: notice: {what}, so its scrapes are not considered" in result.stderr
