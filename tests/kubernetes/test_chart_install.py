"""The real helm installs, upgrades and uninstalls the chart in a real cluster."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.chart_values import CIDRS, VALUES
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.helm import CHART, RELEASE, Helm, HelmError, require_helm
from tests.kubernetes.installing import SYSTEM, install, installed_objects, run
from tests.kubernetes.player import PATIENCE, URL, Player
from tests.support.load import Load
from tests.support.waiting import eventually
from xds.demo.play import STEPS, Pair
from xds.mesh.kube.api import Json, KubeApi
from xds.mesh.kube.webhook import POLICIES, CaBundlePublisher

INTO = ("--namespace", SYSTEM, "--create-namespace")
PATIENT = ("--wait", f"--timeout={PATIENCE * 2}s")
DEPLOYMENT = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/xds"
POLICY = "/apis/authentication.istio.io/v1alpha1/meshpolicies/default"
STRICT = {"spec": {"peers": [{"mtls": {"mode": "STRICT"}}]}}

DEPLOY = f"""
kubectl create ns full
kubectl label ns full istio-injection=enabled
kubectl apply -n full -f samples/httpbin/httpbin.yaml -f samples/sleep/sleep.yaml
kubectl wait --for=condition=Available --timeout={PATIENCE}s -n full deployment --all
"""


async def connect(cluster: Cluster, folder: Path) -> Helm:
    """Return helm as an administrator of a cluster."""
    require_helm()
    home = folder / "helm"
    home.mkdir()
    return Helm(home, await cluster.kubeconfig())


def previous_chart(folder: Path) -> Path:
    """Copy the chart as an older version, whose pods run with other resources."""
    chart = folder / "previous"
    shutil.copytree(CHART, chart)
    description = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**description, "version": "0.0.9"}))
    values = (chart / "values.yaml").read_text()
    assert "cpu: 250m" in values
    (chart / "values.yaml").write_text(values.replace("cpu: 250m", "cpu: 200m"))
    return chart


# --- objects: no pod runs, so the Job of the hook would not end -------------------------------------------


async def test_release_is_what_xds_install_would_install(own_cluster: Cluster, tmp_path: Path) -> None:
    helm = await connect(own_cluster, tmp_path)
    await helm.run("install", RELEASE, str(CHART), *INTO, "--no-hooks")
    # The Job would create the policies.
    results = await install(own_cluster, "--dry-run", "--only=crds", "--only=control-plane")
    assert set(results.values()) == {"unchanged", "exists, left untouched", "STATUS"}


async def test_release_takes_over_from_xds_install(own_cluster: Cluster, tmp_path: Path) -> None:
    helm = await connect(own_cluster, tmp_path)
    await install(own_cluster)
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        await helm.run("install", RELEASE, str(CHART), *INTO, "--no-hooks")
    change = ("--set", "replicas=3")
    taking = ("--take-ownership", "--force-conflicts", "--no-hooks")
    await helm.run("install", RELEASE, str(CHART), *INTO, *taking, *change)
    assert (await own_cluster.api.get(DEPLOYMENT))["spec"]["replicas"] == 3


async def test_all_values_are_accepted_by_the_api_server(own_cluster: Cluster, tmp_path: Path) -> None:
    helm = await connect(own_cluster, tmp_path)
    everything: Json = {"networkPolicy": {"apiServerCidrs": CIDRS}, "policyWebhook": {"enforce": True}}
    for values, _ in VALUES:
        if not {*values} & {"injection", "policyWebhook", "meshConfig"}:
            everything |= values
    await helm.run("install", RELEASE, str(CHART), *INTO, "--no-hooks", *helm.values(everything))
    spec = (await own_cluster.api.get(DEPLOYMENT))["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == everything["priorityClassName"]
    assert spec["tolerations"] == everything["tolerations"]


async def test_upgrade_keeps_what_others_write_and_uninstall_keeps_policies(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    helm, api = await connect(own_cluster, tmp_path), own_cluster.api
    await helm.run("install", RELEASE, str(previous_chart(tmp_path)), *INTO, "--no-hooks")
    await install(own_cluster, "--only=mesh")  # as the Job does
    await api.patch(POLICY, STRICT)
    # The control plane writes the CA of its webhooks.
    roots = lambda: b"-----BEGIN CERTIFICATE-----\n"  # noqa: E731
    await CaBundlePublisher(api, roots, leads=lambda: True, configuration=POLICIES).reconcile()
    [webhook] = (await api.get(POLICIES.path))["webhooks"]

    await helm.run("upgrade", RELEASE, str(CHART), *INTO, "--no-hooks", "--set=policyWebhook.enforce=true")
    [upgraded] = (await api.get(POLICIES.path))["webhooks"]
    assert upgraded == webhook | {"failurePolicy": "Fail"}
    assert upgraded["clientConfig"]["caBundle"]

    await helm.run("uninstall", RELEASE, "--namespace", SYSTEM, "--no-hooks")
    assert (await api.get(POLICY))["spec"] == STRICT["spec"]
    assert await installed_objects(own_cluster) == ""


# --- pods: the control plane, its Job, sidecars and their requests ------------------------------------------


@pytest.mark.envoy
@pytest.mark.netns
@pytest.mark.timeout(600)
async def test_upgrade_fails_no_request(pod_cluster: PodCluster, player: Player, tmp_path: Path) -> None:
    helm, api = await connect(pod_cluster, tmp_path), pod_cluster.api
    await helm.run("install", RELEASE, str(previous_chart(tmp_path)), *INTO, *PATIENT, timeout=300)
    assert (await api.get(POLICY))["spec"]["peers"] == [{"mtls": {"mode": "PERMISSIVE"}}]
    await deploy(player)
    before = {pod.uid for pod in await pod_cluster.pods(SYSTEM, "xds")}
    (sleep,) = await pod_cluster.pods("full", "sleep")

    load = Load(client=await pod_cluster.client(sleep), url=URL, connections=2, seconds=600)
    async with load:
        await load.more(20, PATIENCE)
        # A policy of the user, which the Job of the upgrade must keep.
        await api.patch(POLICY, STRICT, fieldManager="user")
        changes = ("--set=policyWebhook.enforce=true", "--set=rollout.timeoutSeconds=20")
        upgrade = helm.run("upgrade", RELEASE, str(CHART), *INTO, *PATIENT, *changes, timeout=300)
        injected = await inject_until(upgrade, api)
        await load.more(50, PATIENCE)
        after = await pod_cluster.pods(SYSTEM, "xds")
        assert len(after) == 2
        assert not before & {pod.uid for pod in after}
        assert "--rollout-timeout=20" in after[0].object["spec"]["containers"][0]["args"]
        assert (await api.get(POLICY))["spec"] == STRICT["spec"]

        await helm.run("rollback", RELEASE, "1", "--namespace", SYSTEM, *PATIENT, timeout=300)
        await load.more(50, PATIENCE)
    load.check()
    print(f"{len(load.sent)} requests and {injected} injections, none failed")
    history = json.loads(await helm.run("history", RELEASE, "--namespace", SYSTEM, "-o", "json"))
    assert [entry["chart"] for entry in history] == ["xds-0.0.9", "xds-0.1.0", "xds-0.0.9"]
    assert history[-1]["status"] == "deployed"


@pytest.mark.envoy
@pytest.mark.netns
@pytest.mark.timeout(600)
async def test_other_namespace_serves_sidecars(
    pod_cluster: PodCluster, player: Player, tmp_path: Path
) -> None:
    helm, api = await connect(pod_cluster, tmp_path), pod_cluster.api
    into = ("--namespace", "mesh", "--create-namespace", "--set=replicas=1")
    strict = "--set=initialPolicies.strict=true"
    await helm.run("install", RELEASE, str(CHART), *into, *PATIENT, strict, timeout=300)
    await deploy(player)
    rules = await api.get("/apis/networking.istio.io/v1/namespaces/mesh/destinationrules")
    assert {rule["metadata"]["name"] for rule in rules["items"]} == {"default", "api-server"}
    config = await pod_cluster.kubeconfig()
    status, output, error = await run("check", f"--kubeconfig={config}", "--namespace=mesh")
    assert status == 0, output + error


async def deploy(player: Player) -> None:
    """Deploy a client and a server with injected sidecars, and wait until they use mutual TLS."""
    await player.types(DEPLOY)
    pair, step = Pair("sleep.full", "httpbin.full"), next(step for step in STEPS if step.name == "STRICT")
    await eventually(lambda: player.brings(pair, step.expected[pair]), timeout=PATIENCE, every=0.2)


async def inject_until(helm: Coroutine[Any, Any, str], api: KubeApi) -> int:
    """Create pods in dry runs until helm has ended. Return how many; each must get a sidecar."""
    body = {"metadata": {"generateName": "trial-"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    task, injected = asyncio.create_task(helm), 0
    try:
        while not task.done():
            pod = await api.create("/api/v1/namespaces/full/pods", body, dryRun="All")
            names = [each["name"] for each in pod["spec"].get("initContainers", ())]
            assert "xds-proxy" in names, names
            injected += 1
            await asyncio.wait([task], timeout=0.1)
    finally:
        task.cancel()
        await asyncio.wait([task])
    task.result()
    return injected
