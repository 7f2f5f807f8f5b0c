"""Installing into a real cluster, by `kubectl apply -k` and `xds install`: idempotent, least privilege."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.installing import KUSTOMIZATION, SYSTEM, install, installed_objects, run, unused
from tests.kubernetes.recorder import Recorder, granted
from xds.mesh.kube import crds
from xds.mesh.kube.install import control_plane, default_policies
from xds.mesh.kube.webhook import POLICIES, CaBundlePublisher
from xds.mesh.model.defaults import default_objects
from xds.mesh.model.objects import MeshConfig
from xds.mesh.parse import merged, parse

MESH_POLICIES = "/apis/authentication.istio.io/v1alpha1/meshpolicies"
RULES = f"/apis/networking.istio.io/v1/namespaces/{SYSTEM}/destinationrules"


@pytest.fixture
def cluster(own_cluster: Cluster) -> Cluster:
    """A cluster without our objects. CRDs that are recreated soon after their deletion may get stuck."""
    return own_cluster


async def spec(cluster: Cluster, path: str) -> dict:
    return (await cluster.api.get(path))["spec"]


async def policies(cluster: Cluster) -> tuple[str, list[str]]:
    """Return the mode of MeshPolicy default, and the names of the mesh's rules."""
    [peer] = (await spec(cluster, f"{MESH_POLICIES}/default"))["peers"]
    rules = (await cluster.api.get(RULES))["items"]
    return peer["mtls"]["mode"], sorted(rule["metadata"]["name"] for rule in rules)


# --- kubectl apply -k ---------------------------------------------------------------------------------------


async def test_kustomization_can_be_applied_twice(cluster: Cluster) -> None:
    first = await cluster.kubectl("apply", "-k", KUSTOMIZATION)
    outcomes = dict(line.rsplit(" ", 1) for line in first.splitlines())
    outcomes.pop(f"namespace/{SYSTEM}")
    assert set(outcomes.values()) == {"created"}
    installed_first = await _versions(cluster)
    await cluster.kubectl("apply", "-k", KUSTOMIZATION)
    assert await _versions(cluster) == installed_first, "nothing was changed"
    await cluster.kubectl(
        *("apply", "-k", KUSTOMIZATION, "--server-side", "--dry-run=server", "--force-conflicts")
    )


async def test_second_apply_keeps_fields_of_the_control_plane(cluster: Cluster) -> None:
    await cluster.kubectl("apply", "-k", KUSTOMIZATION)
    webhook = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/xds-sidecar-injector"
    roots = lambda: b"-----BEGIN CERTIFICATE-----\n"  # noqa: E731
    await CaBundlePublisher(cluster.api, roots, leads=lambda: True).reconcile()
    written = (await cluster.api.get(webhook))["webhooks"]
    assert all("caBundle" in webhook["clientConfig"] for webhook in written)
    await cluster.kubectl("apply", "-k", KUSTOMIZATION)
    await install(cluster)
    assert (await cluster.api.get(webhook))["webhooks"] == written


async def test_enforcing_webhook_does_not_refuse_the_first_policies(cluster: Cluster) -> None:
    """No control plane runs yet, so an enforcing webhook refuses all policies."""
    results = await install(cluster, "--enforce-plan")
    assert results["MeshPolicy default"] == "created"
    assert results[str(POLICIES)] == "created"
    [webhook] = (await cluster.api.get(POLICIES.path))["webhooks"]
    assert webhook["failurePolicy"] == "Fail"
    deployment = await spec(cluster, f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/xds")
    assert "--enforce-plan" in deployment["template"]["spec"]["containers"][0]["args"]
    results = await install(cluster)
    assert results[str(POLICIES)] == "changed"
    [webhook] = (await cluster.api.get(POLICIES.path))["webhooks"]
    assert webhook["failurePolicy"] == "Ignore"


async def _versions(cluster: Cluster) -> dict[str, str]:
    """Return the resourceVersion of each object of the kustomization. Some change because of their status."""
    objects = json.loads(await cluster.kubectl("get", "-k", KUSTOMIZATION, "-o", "json"))["items"]
    return {
        f"{item['kind']} {item['metadata']['name']}": item["metadata"].get(
            "generation", item["metadata"]["resourceVersion"]
        )
        for item in objects
    }


async def test_kustomization_and_install_are_equivalent(cluster: Cluster) -> None:
    shown = list(yaml.safe_load_all(await cluster.kubectl("kustomize", KUSTOMIZATION)))
    job = [item for item in shown if item["metadata"]["name"] == "xds-install" or item["kind"] == "Namespace"]
    ours = [item for item in shown if item not in job]

    def key(each: dict) -> tuple[str, str]:
        return each["kind"], each["metadata"]["name"]

    assert sorted(ours, key=key) == sorted(control_plane(), key=key)
    assert {item["kind"] for item in job} >= {"Job", "Namespace", "ServiceAccount", "ClusterRole"}


async def test_job_installs_with_its_own_rights(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.kubectl("apply", "-k", KUSTOMIZATION)
    objects = list(yaml.safe_load_all(await cluster.kubectl("kustomize", KUSTOMIZATION)))
    [job] = [item for item in objects if item["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    subcommand, *arguments = container["args"]
    assert subcommand == "install"
    async with Recorder(cluster) as recorder:
        config = await recorder.kubeconfig(f"{SYSTEM}/xds-install", tmp_path)
        results = await install(cluster, *arguments, kubeconfig=config)
        assert results["MeshPolicy default"] == "created"
        assert await policies(cluster) == ("PERMISSIVE", [])
        results = await install(cluster, *arguments, kubeconfig=config)
        assert results["MeshPolicy default"] == "unchanged"
        # A user changes the switch in the Job, and changes it back.
        strict = [argument.replace("enabled=false", "enabled=true") for argument in arguments]
        await install(cluster, *strict, kubeconfig=config)
        assert await policies(cluster) == ("STRICT", ["api-server", "default"])
        await install(cluster, *arguments, kubeconfig=config)
        assert await policies(cluster) == ("PERMISSIVE", [])
    assert not recorder.refused
    assert unused(granted(objects, "xds-install"), recorder) == set()


async def test_deletion_keeps_kinds_and_policies(
    cluster: Cluster,
) -> None:
    await install(cluster, "--set", "values.global.mtls.enabled=true")
    await cluster.kubectl("delete", "-k", "xds/mesh/kube/install", "--ignore-not-found")
    assert await policies(cluster) == ("STRICT", ["api-server", "default"])
    assert await installed_objects(cluster) == ""
    # Without the control plane, pods are created as if it had never been installed.
    pod = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "web"}]}}
    async with cluster.namespace(labels={"istio-injection": "enabled"}) as namespace:
        await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)


# --- xds install --------------------------------------------------------------------------------------------


async def test_auto_and_enabled_switches(cluster: Cluster) -> None:
    """Each installation sets both switches, regardless of the previous installation."""
    page = (
        "--set",
        "profile=demo",
        "--set",
        "values.global.mtls.auto=true",
        "--set",
        "values.global.mtls.enabled={}",
    )
    results = await install(cluster, *(argument.format("false") for argument in page))
    assert results[f"Deployment {SYSTEM}/xds"] == "created"
    assert results["policies.authentication.istio.io"] == "created"
    assert await policies(cluster) == ("PERMISSIVE", [])
    assert await _mesh(cluster) == {"enableAutoMtls": True}
    assert set((await install(cluster, *(argument.format("false") for argument in page))).values()) <= {
        *("unchanged", "exists, left untouched", "STATUS"),
    }

    results = await install(cluster, *(argument.format("true") for argument in page))
    assert (results["MeshPolicy default"], results[f"DestinationRule {SYSTEM}/default"]) == (
        "changed",
        "created",
    )
    assert await policies(cluster) == ("STRICT", ["api-server", "default"])

    results = await install(cluster, "--set", "values.global.mtls.auto=false")
    assert (results[f"ConfigMap {SYSTEM}/xds"], results[f"DestinationRule {SYSTEM}/default"]) == (
        "changed",
        "deleted",
    )
    assert await policies(cluster) == ("PERMISSIVE", [])
    assert await _mesh(cluster) == {"enableAutoMtls": False}


async def _mesh(cluster: Cluster) -> dict:
    config_map = await cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/configmaps/xds")
    return yaml.safe_load(config_map["data"]["mesh"])


async def test_user_changes_are_kept(cluster: Cluster) -> None:
    await install(cluster, "--set", "values.global.mtls.enabled=true")
    permissive = {"spec": {"peers": [{"mtls": {"mode": "PERMISSIVE"}}]}}
    await cluster.kubectl("patch", "meshpolicy", "default", "--type=merge", "-p", json.dumps(permissive))
    other = {"spec": {"host": "*.shop.svc.cluster.local"}}
    await cluster.kubectl("patch", "dr", "default", "-n", SYSTEM, "--type=merge", "-p", json.dumps(other))

    results = await install(cluster, "--set", "values.global.mtls.enabled=true")
    assert results["MeshPolicy default"].startswith(
        'left as it is: .spec.peers (conflict with "kubectl-patch"'
    )
    assert results[f"DestinationRule {SYSTEM}/default"].startswith("left as it is: .spec.host")
    assert await policies(cluster) == ("PERMISSIVE", ["api-server", "default"])

    results = await install(cluster, "--set", "values.global.mtls.enabled=false")
    assert results[f"DestinationRule {SYSTEM}/default"] == "left as it is: changed by kubectl-patch"
    assert await policies(cluster) == ("PERMISSIVE", ["default"])


async def test_dry_run_only_prints_changes(cluster: Cluster) -> None:
    await cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait")
    results = await install(cluster, "--dry-run", "--set", "values.global.mtls.enabled=true")
    assert set(results.values()) == {"would be created", "STATUS"}
    for path in ("/api/v1/namespaces", "/apis/rbac.authorization.k8s.io/v1/clusterroles", crds.PATH):
        items = (await cluster.api.get(path))["items"]
        assert not [
            item for item in items if "xds" in item["metadata"]["name"] or "istio" in item["metadata"]["name"]
        ]
    await install(cluster)
    results = await install(
        cluster, "--dry-run", "--set", "values.global.mtls.auto=false", "--image", "xds:2"
    )
    assert results[f"ConfigMap {SYSTEM}/xds"] == results[f"Deployment {SYSTEM}/xds"] == "would be changed"
    assert await _mesh(cluster) == {"enableAutoMtls": True}


async def test_printed_manifests_can_be_applied(cluster: Cluster) -> None:
    status, text, _ = await run(
        "install", "-o", "yaml", "--set", "values.global.mtls.enabled=true", "--only", "crds"
    )
    assert status == 0
    await cluster.kubectl("apply", "-f", "-", stdin=text)
    for definition in crds.definitions():
        await cluster.until(f"{crds.PATH}/{definition['metadata']['name']}", _is_served)
    status, text, _ = await run("install", "-o", "yaml", "--set", "values.global.mtls.enabled=true")
    assert status == 0
    await cluster.kubectl("apply", "-f", "-", stdin=text)
    assert await policies(cluster) == ("STRICT", ["api-server", "default"])


def test_image_option_applies_to_control_plane_and_sidecars() -> None:
    [deployment] = [
        manifest
        for manifest in control_plane(image="registry.example/xds:1")
        if manifest["kind"] == "Deployment"
    ]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/xds:1"
    assert container["args"][4] == "--sidecar-image=registry.example/xds:1"
    assert not [argument for argument in container["args"] if "latest" in argument]


def _is_served(definition: dict) -> bool:
    conditions = definition.get("status", {}).get("conditions") or ()
    return any(
        condition["type"] == "Established" and condition["status"] == "True" for condition in conditions
    )


async def test_wrong_usage_changes_nothing(cluster: Cluster) -> None:
    config = await cluster.kubeconfig()
    status, _, error = await run("install", f"--kubeconfig={config}", "--set", "values.global.mtls.atuo=true")
    assert status == 2
    assert "did you mean values.global.mtls.auto?" in error
    assert not [
        item for item in (await cluster.api.get(crds.PATH))["items"] if "istio" in item["metadata"]["name"]
    ]
    status, _, error = await run("install", f"--kubeconfig={await cluster.kubeconfig('nobody')}")
    assert status == 1
    assert 'User "nobody" cannot' in error


@pytest.mark.parametrize("enabled", [True, False])
def test_default_policies_match_the_mesh_config(enabled: bool) -> None:
    config = MeshConfig(mtls_enabled=enabled)
    read = [parse(policy, str)[0].fact for policy in default_policies(config)]
    assert [replace(policy.meta, labels={}) for policy in read if policy] == [
        policy.meta for policy in default_objects(config)
    ]
    assert [
        replace(policy, meta=fact.meta)
        for policy, fact in zip(read, default_objects(config), strict=True)
        if policy
    ] == list(default_objects(config))


def test_assignments_are_stored_in_the_settings() -> None:
    assignments = [
        "profile=demo",
        "values.global.mtls.auto=false",
        "meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY",
    ]
    document = {"outboundTrafficPolicy": {"x": 1}, "trustDomain": "a"}
    assert merged(document, [*assignments, "values.global.mtls.enabled=true"]) == {
        "outboundTrafficPolicy": {"x": 1, "mode": "REGISTRY_ONLY"},
        "trustDomain": "a",
        "enableAutoMtls": False,
    }
    assert document["outboundTrafficPolicy"] == {"x": 1}


# --- pods ----------------------------------------------------------------------------------------


async def test_pods_satisfy_profile_restricted(cluster: Cluster) -> None:
    """The pods of the control plane and the Job satisfy the Pod Security profile `restricted`."""
    objects = list(yaml.safe_load_all(await cluster.kubectl("kustomize", KUSTOMIZATION)))
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    async with cluster.namespace(labels=labels) as namespace:
        for kind in ("Deployment", "Job"):
            [workload] = [item for item in objects if item["kind"] == kind]
            template = workload["spec"]["template"]
            pod_spec = {**template["spec"], "serviceAccountName": "default"}
            body = {"metadata": {"name": "trial", "labels": template["metadata"]["labels"]}, "spec": pod_spec}
            await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", body, dryRun="All")
            for container in pod_spec["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert container["resources"].keys() == {"requests", "limits"}


def test_container_arguments_are_valid() -> None:
    """The commands know all options that the containers use."""
    [deployment] = [manifest for manifest in control_plane() if manifest["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    from typer.main import get_command

    from xds.cli import app

    command = get_command(app)
    subcommand, *arguments = container["args"]
    context = command.make_context("xds", [], resilient_parsing=True)
    serve = command.get_command(context, subcommand)  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {argument.partition("=")[0] for argument in arguments} <= known
