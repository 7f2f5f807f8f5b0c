"""Pods of the workloads in manifests that contain no Pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sources.files import place
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Interception, Namespace, Pod, Ref
from xds.mesh.sources.files import Folder, Text
from xds.mesh.sources.settings import SettingsLoader

API = {
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "ReplicationController": "v1",
    "Pod": "v1",
    "Namespace": "v1",
}
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
}


def template(labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "app", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "metadata": {"labels": {"app": "web"} if labels is None else labels},
        "spec": {"containers": [container]} | spec,
    }


def workload(kind: str, name: str = "web", pod: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API.get(kind, "apps/v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"template": pod or template()} | spec,
    }


def owned(document: dict[str, Any], kind: str, name: str, **labels: str) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": True, "uid": "1"}
    return document | {
        "metadata": document["metadata"] | {"ownerReferences": [owner], "labels": {"app": "web"} | labels}
    }


def real_pod(name: str = "web-1") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "status": {"podIP": "10.1.0.1"},
    }


def namespace(label: str | None) -> dict[str, Any]:
    labels = {} if label is None else {"istio-injection": label}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}


def read(*documents: object) -> tuple[Mesh, list[str]]:
    folder = Folder((), texts=[Text("all", yaml.safe_dump_all(documents))], reads_workloads=True)
    report = folder.load()
    assert report.complete
    pods = folder.expected_pods()
    problems = [*report.problems, *(problem for parsed in pods for problem in parsed.problems)]
    facts = [*report.change.applied, *(parsed.fact for parsed in pods if parsed.fact)]
    return Mesh(facts), [str(problem) for problem in problems]


def pods(*documents: object) -> dict[str, Pod]:
    mesh, problems = read(*documents)
    assert problems == []
    return {pod.name: pod for pod in mesh.pods()}


PROBED = {"name": "app", "image": "app", "livenessProbe": {"httpGet": {"port": 8080}}}


@pytest.mark.parametrize(
    ("label", "annotations", "ports"),
    [
        ("enabled", {}, (15020,)),
        ("enabled", {"sidecar.istio.io/rewriteAppHTTPProbers": "false"}, (8080,)),
        (None, {}, (8080,)),
    ],
)
def test_probes_are_those_after_injection(
    label: str | None, annotations: Any, ports: tuple[int, ...]
) -> None:
    deployment = workload("Deployment")
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] = annotations
    template["spec"]["containers"] = [PROBED]
    [pod] = pods(namespace(label), deployment).values()
    assert [port for port in pod.probe_ports if port != 15021] == list(ports)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "deploy/web"),
        ("StatefulSet", "sts/web"),
        ("DaemonSet", "ds/web"),
        ("ReplicaSet", "rs/web"),
        ("ReplicationController", "rc/web"),
        ("Job", "job/web"),
    ],
)
def test_workload_becomes_a_pod(kind: str, name: str) -> None:
    [pod] = pods(workload(kind)).values()
    assert (pod.name, pod.namespace, pod.is_template, pod.ready) == (name, "shop", True, True)
    assert pod.meta.labels == {"app": "web"}
    assert pod.meta.origin == "all:1"


def test_cron_job_becomes_a_pod() -> None:
    job = {"spec": {"template": template()}}
    document = workload("CronJob") | {"spec": {"jobTemplate": job}}
    assert list(pods(document)) == ["cronjob/web"]
    mesh, [notice] = read(document | {"spec": {"jobTemplate": job, "suspend": True}})
    assert list(mesh.pods()) == []
    assert "CronJob shop/web: spec.suspend is true, so no pod of the workload is considered" in notice


def test_service_selects_a_workload_and_its_named_port() -> None:
    mesh, problems = read(workload("Deployment"), SERVICE)
    [service] = mesh.services()
    [endpoint] = mesh.endpoints(service, service.ports[0])
    assert (endpoint.pod and endpoint.pod.name, endpoint.port) == ("deploy/web", 8080)
    assert endpoint.address == "deploy/web.shop"
    assert problems == []


def test_workload_scaled_to_zero_has_no_pod() -> None:
    mesh, notices = read(workload("Deployment", replicas=0), workload("Job", suspend=True))
    assert list(mesh.pods()) == []
    assert "Deployment shop/web: spec.replicas is 0, so no pod of the workload is considered" in notices[0]
    assert len(notices) == 2
    assert list(pods(workload("Deployment", replicas=3))) == ["deploy/web"]


@pytest.mark.parametrize(
    ("version", "field"),
    [("argoproj.io/v1alpha1", "workloadRef"), ("keda.sh/v1alpha1", "scaleTargetRef")],
)
def test_workload_that_another_object_runs_has_pods(version: str, field: str) -> None:
    stopped = workload("Deployment", replicas=0)
    runner = {
        "apiVersion": version,
        "kind": "Runner",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {field: {"name": "web"}},
    }
    folder = Folder((), texts=[Text("all", yaml.safe_dump_all([stopped, runner]))], reads_workloads=True)
    assert folder.load().problems == ()
    [pod] = folder.expected_pods()
    assert pod.ref == Ref("Pod", "shop", "deploy/web")
    assert (folder.stopped_pods, folder.unknown_kinds) == ((), "")
    runner["spec"] = {field: {"kind": "StatefulSet", "name": "web"}}
    mesh, _ = read(stopped, runner)
    assert list(mesh.pods()) == []


@pytest.mark.parametrize(
    "documents",
    [
        [workload("DaemonSet"), owned(real_pod(), "DaemonSet", "web")],
        [
            workload("Deployment"),
            owned(real_pod(), "ReplicaSet", "web-5d4f8", **{"pod-template-hash": "5d4f8"}),
        ],
        [
            workload("Deployment"),
            owned(workload("ReplicaSet", "web-5d4f8"), "Deployment", "web"),
            owned(real_pod(), "ReplicaSet", "web-5d4f8"),
        ],
        [
            workload("CronJob") | {"spec": {"jobTemplate": {"spec": {"template": template()}}}},
            owned(workload("Job", "web-17"), "CronJob", "web"),
            owned(real_pod(), "Job", "web-17"),
        ],
    ],
)
def test_workload_with_a_pod_in_the_manifests_is_not_doubled(documents: list[Any]) -> None:
    assert list(pods(*documents)) == ["web-1"]


def test_replica_set_of_a_deployment_is_not_doubled() -> None:
    replica_set = owned(workload("ReplicaSet", "web-5d4f8"), "Deployment", "web")
    assert list(pods(workload("Deployment"), replica_set)) == ["deploy/web"]
    assert list(pods(replica_set)) == ["rs/web-5d4f8"]


def test_pod_of_another_workload_does_not_represent_it() -> None:
    other = owned(real_pod(), "Deployment", "other")
    assert list(pods(workload("Deployment"), other, workload("StatefulSet"))) == [
        "deploy/web",
        "sts/web",
        "web-1",
    ]


INJECT = "sidecar.istio.io/inject"


@pytest.mark.parametrize(
    ("label", "pod", "has_sidecar"),
    [
        ("enabled", template(), True),
        ("enabled", template({INJECT: "false"}), False),
        ("enabled", {"metadata": {"annotations": {INJECT: "false"}}} | {"spec": template()["spec"]}, False),
        ("enabled", template(hostNetwork=True), False),
        ("disabled", template({INJECT: "true"}), False),
        (None, template(), False),
        (None, template({INJECT: "true"}), True),
        (None, {"metadata": {"annotations": {INJECT: "true"}}, "spec": template()["spec"]}, False),
        (None, template({"security.istio.io/tlsMode": "istio"}), True),
    ],
)
def test_sidecar_is_expected_where_the_webhook_injects(
    label: str | None, pod: dict[str, Any], has_sidecar: bool
) -> None:
    mesh, _ = read(namespace(label), workload("Deployment", pod=pod))
    [result] = mesh.pods()
    assert result.has_sidecar is has_sidecar


ANNOTATED = {"metadata": {"annotations": {INJECT: "true"}}} | {"spec": template()["spec"]}
AMBIENT = "istio.io/dataplane-mode"
CUSTOMISED = template(containers=[{"name": "app", "image": "a"}, {"name": "istio-proxy", "image": "auto"}])
GATEWAY = template({INJECT: "true"}, containers=[{"name": "istio-proxy", "image": "auto"}])
INJECTED = template(containers=[{"name": "app", "image": "a"}, {"name": "istio-proxy", "image": "proxyv2:1"}])


SET_LABEL = '(set the label sidecar.istio.io/inject: "true")'


@pytest.mark.parametrize(
    ("label", "pod", "reason", "remedy"),
    [
        (None, ANNOTATED, "unless the Namespace is labelled istio-injection=enabled", SET_LABEL),
        (None, template({INJECT: "yes"}), "unless the Namespace is labelled", SET_LABEL),
        (
            "disabled",
            template({INJECT: "true"}),
            "because the Namespace is labelled istio-injection=disabled",
            "(label the Namespace istio-injection=enabled)",
        ),
        (None, template({"istio.io/rev": "1-24"}), 'labels["istio.io/rev"] adds no sidecar', SET_LABEL),
        (None, template({AMBIENT: "ambient"}), f'labels["{AMBIENT}"] adds no sidecar', SET_LABEL),
        ("enabled", CUSTOMISED, "its container istio-proxy changes the sidecar", "(remove the container; "),
        (None, GATEWAY, "it runs only Istio's proxy", "(as a gateway, use a pod that runs xds proxy)"),
        (None, INJECTED, "it has Istio's container istio-proxy", "(remove the parts that Istio's"),
        ("enabled", template(hostNetwork=True), "hostNetwork is true", ""),
    ],
)
def test_pod_that_seems_to_get_a_sidecar_is_reported(
    label: str | None, pod: dict[str, Any], reason: str, remedy: str
) -> None:
    mesh, [problem] = read(namespace(label), workload("Deployment", pod=pod))
    assert problem.startswith("all:")
    assert "Deployment shop/web: " in problem
    assert reason in problem
    assert remedy in problem
    [result] = mesh.pods()
    assert not result.has_sidecar


@pytest.mark.parametrize(
    ("label", "pod"),
    [
        ("enabled", template({INJECT: "false"}, hostNetwork=True)),
        (
            "enabled",
            template(containers=[{"name": "app", "image": "a"}, {"name": "xds-proxy", "image": "x"}]),
        ),
        ("enabled", template({"istio.io/rev": "1-24"})),
        (None, template({INJECT: "false"})),
        (None, template({AMBIENT: "none"})),
        (None, template(hostNetwork=True)),
    ],
)
def test_pod_that_asks_for_nothing_is_not_reported(label: str | None, pod: dict[str, Any]) -> None:
    assert read(namespace(label), workload("Deployment", pod=pod))[1] == []


def test_request_in_the_control_planes_namespace_is_not_reported() -> None:
    text = yaml.safe_dump([namespace(None), workload("Deployment", pod=template({"istio.io/rev": "a"}))])
    assert read(*yaml.safe_load(text.replace("shop", "istio-system")))[1] == []


MODE = "sidecar.istio.io/interceptionMode"
SDS = SettingsLoader(assignments=["meshConfig.sdsUdsPath=unix:///run/spire/agent.sock"])
NEEDS_NET_ADMIN = (
    "container xds-init needs NET_ADMIN and NET_RAW (set the annotation "
    "sidecar.istio.io/interceptionMode: NONE, or label the Namespace "
    "pod-security.kubernetes.io/enforce=privileged)"
)
HOST_PATH = "volume xds-sds is a hostPath (label the Namespace pod-security.kubernetes.io/enforce=privileged)"


@pytest.mark.parametrize(
    ("level", "mode", "settings", "reason"),
    [
        ("baseline", "REDIRECT", None, NEEDS_NET_ADMIN),
        ("restricted", "REDIRECT", None, NEEDS_NET_ADMIN),
        ("privileged", "REDIRECT", None, ""),
        ("baseline", "NONE", None, ""),
        ("restricted", "NONE", None, ""),
        ("restricted", "REDIRECT", SDS, HOST_PATH),
        ("baseline", "NONE", SDS, HOST_PATH),
        ("privileged", "NONE", SDS, ""),
    ],
)
def test_pod_that_pod_security_refuses_is_a_problem(
    level: str, mode: str, settings: SettingsLoader | None, reason: str
) -> None:
    labels = {"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": level}
    pod = template()
    pod["metadata"]["annotations"] = {MODE: mode}
    documents = [namespace("") | {"metadata": {"name": "shop", "labels": labels}}, workload("Job", pod=pod)]
    text = Text("all", yaml.safe_dump_all(documents))
    folder = Folder((), settings, texts=[text], reads_workloads=True)
    assert folder.load().problems == ()
    [parsed] = folder.expected_pods()
    assert isinstance(parsed.fact, Pod)
    assert parsed.fact.has_sidecar
    assert not parsed.refused
    found = [str(problem) for problem in parsed.problems if not problem.notice]
    refused = (
        "all:9: Job shop/web: the API server refuses its pods, because "
        f"pod-security.kubernetes.io/enforce is {level} and "
        + reason.replace(" (", "; results assume that they run (", 1)
    )
    assert found == ([refused] if reason else [])


def test_control_plane_gets_no_sidecar() -> None:
    root = yaml.safe_load(
        yaml.safe_dump([namespace("enabled"), workload("Deployment")]).replace("shop", "istio-system")
    )
    [pod] = pods(*root).values()
    assert not pod.has_sidecar


def test_pod_that_the_webhook_rejects_is_a_problem() -> None:
    ports = [{"containerPort": 15001}]
    pod = template(containers=[{"name": "app", "image": "app:1", "ports": ports}])
    mesh, [problem] = read(namespace("enabled"), workload("Deployment", pod=pod))
    assert list(mesh.pods()) == []
    assert "Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort is 15001" in problem
    assert "reserved for outbound interception" in problem


def test_problems_name_the_line_of_the_template(tmp_path: Path) -> None:
    place(
        tmp_path / "web.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  template:\n"
        "    metadata:\n      labels:\n        app: 'not a label'\n    spec: {containers: []}\n",
    )
    folder = Folder(tmp_path, reads_workloads=True)
    assert folder.load().problems == ()
    [parsed] = folder.expected_pods()
    [problem] = parsed.problems
    assert parsed.fact is None
    assert problem.where == f"{tmp_path}/web.yaml:8"
    assert problem.what.startswith("Deployment shop/web: spec.template.metadata.labels.app 'not a label'")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("metadata: {namespace: shop}\nspec: {template: {spec: {}}}", "metadata.name is required"),
        ("metadata: {name: a/b}\nspec: {template: {spec: {}}}", "metadata.name 'a/b' is not a DNS name"),
        ("metadata: {name: a, namespace: X}\nspec: {template: {spec: {}}}", "metadata.namespace 'X' is not"),
        ("metadata: {name: a}\nspec: {}", "spec.template.spec is required"),
        ("metadata: {name: a}\nspec: {template: [], template: []}", "spec.template is set twice"),
        ("metadata: [1]\nspec: 3", "is required"),
    ],
)
def test_invalid_workload_has_no_pod_but_a_problem(text: str, problem: str) -> None:
    folder = Folder(
        (), texts=[Text("t", f"apiVersion: apps/v1\nkind: Deployment\n{text}")], reads_workloads=True
    )
    assert folder.load().complete
    [parsed] = folder.expected_pods()
    assert parsed.fact is None
    assert any(problem in str(found) for found in parsed.problems)


def test_duplicate_workload_is_reported() -> None:
    mesh, [problem] = read(workload("Deployment"), workload("Deployment"))
    assert [pod.name for pod in mesh.pods()] == ["deploy/web"]
    assert "Deployment shop/web: is also defined at all:1; that definition is used" in problem


def test_items_of_a_list_are_read() -> None:
    documents = {"apiVersion": "v1", "kind": "List", "items": [workload("Deployment"), SERVICE, real_pod()]}
    assert list(pods(documents)) == ["deploy/web", "web-1"]


def test_serve_ignores_workloads(tmp_path: Path) -> None:
    place(tmp_path / "all.yaml", yaml.safe_dump_all([workload("Deployment"), namespace("enabled")]))
    report = Folder(tmp_path, SettingsLoader()).load()
    assert [type(fact) for fact in report.change.applied] == [Namespace]
    [notice] = report.problems
    assert "Deployment web is ignored" in notice.what


def test_tproxy_is_redirect() -> None:
    """Once a notice of the pod, and once of its injection, would be two."""
    annotated = template()
    annotated["metadata"]["annotations"] = {"sidecar.istio.io/interceptionMode": "TPROXY"}
    mesh, problems = read(workload("Deployment", pod=annotated), namespace("enabled"))
    [pod] = mesh.pods()
    assert (pod.interception, pod.has_sidecar) == (Interception.REDIRECT, True)
    [problem] = problems
    assert "TPROXY is not supported, REDIRECT is used" in problem
