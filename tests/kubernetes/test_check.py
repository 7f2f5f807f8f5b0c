"""`xds check` in a real cluster: each check fails when the thing that it checks is broken."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.cli.serve_process import serving
from tests.kubernetes.environment.cluster import RBAC, Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.installing import SYSTEM, install, run
from tests.kubernetes.serving import Serving
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.cli import cluster_checks
from xds.cli.cluster_checks import ClusterChecks
from xds.cli.findings import CheckResult, Finding, run_checks
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities
from xds.mesh.kube import crds
from xds.mesh.kube.api import Json, KubeError
from xds.mesh.kube.ca_secret import SECRET, load_or_create_authorities
from xds.mesh.kube.lease import LEASE_NAME, Lease
from xds.mesh.kube.replica_leases import ANNOTATION, LABEL, PLAN, PREFIX, ReplicaLeases
from xds.mesh.kube.rollout_codec import encode_plan, encode_report
from xds.mesh.kube.root_publisher import NAME as ROOTS
from xds.mesh.kube.root_publisher import RootPublisher
from xds.mesh.kube.webhook import INJECTION, POLICIES, CaBundlePublisher, Configuration
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.sync import ReplicaSync

CORE = f"/api/v1/namespaces/{SYSTEM}"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/xds"
BUNDLES = {"webhook CA bundle", "policy webhook CA bundle"}
PEER = f"{crds.PATH}/peerauthentications.security.istio.io"
COMPONENT = "app.kubernetes.io/component=control-plane"
SIDECAR = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {security.istio.io/tlsMode: istio}}
status: {phase: Running, podIP: 127.9.0.1}
"""
NODE_INFO = dict.fromkeys(
    (
        *(
            "architecture",
            "bootID",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "machineID",
        ),
        *("operatingSystem", "osImage", "systemUUID"),
    ),
    "",
)
POD = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "containers": [
            {"name": "web", "image": "web:1"},
            {"name": "xds-proxy", "image": "xds:latest"},
        ]
    },
}


@pytest.fixture
async def cluster(bare: ControlPlane) -> AsyncIterator[Cluster]:
    """The cluster of this file's tests, with a healthy installation, which each test may break."""
    async with Cluster(bare) as entered, healthy(entered):
        yield entered


@asynccontextmanager
async def healthy(cluster: Cluster) -> AsyncIterator[None]:
    """Install the control plane, and do the work of its replicas, kubelet and controllers."""
    api = cluster.api
    await install(cluster, "--image=xds:latest")
    if not await api.find("/api/v1/nodes/node"):
        await api.create("/api/v1/nodes", {"metadata": {"name": "node"}})
    await start_pods(cluster)
    authorities = await load_or_create_authorities(api, SYSTEM, "cluster.local", datetime.now(UTC))
    policies = partial(CaBundlePublisher, configuration=POLICIES)
    for publisher in (CaBundlePublisher, policies, RootPublisher):
        kind = publisher(api, lambda: authorities.trusted_pem, leads=lambda: True)
        assert await kind.reconcile()
    await until_endpoints(cluster, 2)
    await replace(cluster, "/api/v1/namespaces/default/pods", POD)
    running = {"status": {"phase": "Running"}}
    await api.patch("/api/v1/namespaces/default/pods/web/status", running)
    for lease in (await api.get(LEASES))["items"]:
        await api.delete(f"{LEASES}/{lease['metadata']['name']}")
    async with replicas(cluster):
        yield


async def replace(cluster: Cluster, path: str, body: Json) -> None:
    name = f"{path}/{body['metadata']['name']}"
    if await cluster.api.find(name):
        await cluster.api.delete(name, gracePeriodSeconds=0)
    await cluster.api.create(path, body)


async def start_pods(cluster: Cluster) -> None:
    """Report the control plane's pods as ready, until the Deployment is."""

    async def are_ready() -> bool:
        pods = (await cluster.api.get(f"{CORE}/pods", labelSelector=COMPONENT))["items"]
        for number, pod in enumerate(pods):
            if not pod["spec"].get("nodeName"):
                binding = {"metadata": pod["metadata"], "target": {"kind": "Node", "name": "node"}}
                await cluster.api.create(f"{CORE}/pods/{pod['metadata']['name']}/binding", binding)
            await set_ready(cluster, pod["metadata"]["name"], f"10.9.0.{number + 1}")
        deployment = await cluster.api.get(DEPLOYMENT)
        status = deployment.get("status") or {}
        counts = [status.get(name) for name in ("replicas", "readyReplicas", "updatedReplicas")]
        is_seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
        return counts == [2, 2, 2] and is_seen

    await eventually(are_ready, timeout=60, what="the Deployment is ready")


async def set_ready(cluster: Cluster, pod: str, address: str, *, ready: bool = True) -> None:
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    with suppress(KubeError):  # the pod has been replaced
        await cluster.api.patch(f"{CORE}/pods/{pod}/status", {"status": status})


async def until_endpoints(cluster: Cluster, count: int) -> None:
    """Wait until the Service has this number of ready endpoints."""

    async def are_there() -> bool:
        slices = await cluster.api.get(SLICES, labelSelector="kubernetes.io/service-name=xds")
        endpoints = [one for item in slices["items"] for one in item.get("endpoints") or ()]
        return sum(one["conditions"]["ready"] for one in endpoints) == count

    await eventually(are_there, timeout=60, what="the endpoints are ready")


@asynccontextmanager
async def replicas(cluster: Cluster) -> AsyncIterator[None]:
    """Run the leader election and the plan of two replicas."""
    leader = Lease(cluster.api, SYSTEM, "xds-1")
    syncs = [ReplicaSync("xds-1", lambda: True), ReplicaSync("xds-2", lambda: False)]
    tasks = [asyncio.create_task(leader.run())]
    tasks += [
        asyncio.create_task(ReplicaLeases(cluster.api, SYSTEM, sync, lambda: None).run()) for sync in syncs
    ]
    await eventually(
        lambda: leader.held and all(sync.has_joined for sync in syncs), timeout=30, what="the replicas agree"
    )
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def check(cluster: Cluster, *, now: datetime | None = None, pre: bool = False) -> dict[str, Finding]:
    checks = ClusterChecks(cluster.api, SYSTEM, now)
    found = await run_checks(checks.before_installation() if pre else checks.of_installation())
    return {finding.name: finding for finding in found}


def of(result: CheckResult, findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.result is result}


async def test_healthy_installation_passes_every_check(cluster: Cluster) -> None:
    findings = await check(cluster)
    assert of(CheckResult.PASS, findings) == set(findings), findings
    assert len(findings) == 22
    assert findings["replicas agree"].detail == "2 serve generation 0; xds-1 leads"


# --- one broken thing each ---


async def without_a_role_binding(cluster: Cluster) -> None:
    await cluster.api.delete(f"{RBAC}/namespaces/{SYSTEM}/rolebindings/xds")


async def without_a_verb(cluster: Cluster) -> None:
    role = await cluster.api.get(f"{RBAC}/clusterroles/xds")
    role["rules"] = [rule for rule in role["rules"] if "tokenreviews" not in rule["resources"]]
    await cluster.api.replace(f"{RBAC}/clusterroles/xds", role)


async def with_one_ready_pod(cluster: Cluster) -> None:
    [pod, *_] = (await cluster.api.get(f"{CORE}/pods", labelSelector=COMPONENT))["items"]
    await set_ready(cluster, pod["metadata"]["name"], pod["status"]["podIP"], ready=False)
    await cluster.until(DEPLOYMENT, lambda deployment: deployment["status"].get("readyReplicas") == 1)


async def with_an_old_pod(cluster: Cluster) -> None:
    template = {"metadata": {"annotations": {"restarted": str(datetime.now(UTC))}}}
    await cluster.api.patch(DEPLOYMENT, {"spec": {"template": template}})
    await cluster.until(DEPLOYMENT, lambda deployment: deployment["status"].get("updatedReplicas") == 1)


async def without_a_root_in_a_namespace(cluster: Cluster) -> None:
    await cluster.api.delete(f"/api/v1/namespaces/default/configmaps/{ROOTS}")


async def with_an_old_root_in_a_namespace(cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/default/configmaps/{ROOTS}"
    await cluster.api.patch(path, {"data": {"root-cert.pem": "old"}})


async def without_a_ready_endpoint(cluster: Cluster) -> None:
    await cluster.api.patch(f"{CORE}/services/xds", {"spec": {"selector": {"app": "other"}}})
    await until_endpoints(cluster, 0)


async def with_an_old_bundle(cluster: Cluster, of: Configuration = INJECTION) -> None:
    configuration = await cluster.api.get(of.path)
    other = Authority.create(PrivateKey.generate(), "x", datetime.now(UTC)).root_pem
    configuration["webhooks"][-1]["clientConfig"]["caBundle"] = b64encode(other).decode()
    await cluster.api.replace(of.path, configuration)


async def with_an_old_bundle_for_policies(cluster: Cluster) -> None:
    await with_an_old_bundle(cluster, POLICIES)


async def without_a_leader(cluster: Cluster) -> None:
    await put_lease(cluster, LEASE_NAME, "xds-9", renewed=datetime.now(UTC) - timedelta(minutes=10))


async def with_a_replica_outside_the_plan(cluster: Cluster) -> None:
    await put_lease(cluster, f"{PREFIX}xds-3", "xds-3", encode_report(Report()))


async def with_a_replica_that_follows_its_own_plan(cluster: Cluster) -> None:
    await put_lease(cluster, f"{PREFIX}xds-3", "xds-3", encode_report(Report(is_alone=True)))


async def with_a_replica_of_another_version(cluster: Cluster) -> None:
    await put_lease(cluster, f"{PREFIX}xds-3", "xds-3", "another format")


async def with_a_sidecar_of_another_version(cluster: Cluster) -> None:
    body = {"spec": {"containers": [{"name": "xds-proxy", "image": "xds:0.0.1"}]}}
    await cluster.api.patch(
        "/api/v1/namespaces/default/pods/web", body, kind="application/strategic-merge-patch+json"
    )


async def with_a_kind_of_other_versions(cluster: Cluster) -> None:
    definition = await cluster.api.get(PEER)
    for version in definition["spec"]["versions"]:
        version["served"] = False
    other = definition["spec"]["versions"][0] | {"name": "v9", "served": True, "storage": False}
    definition["spec"]["versions"].append(other)
    await cluster.api.replace(PEER, definition)


async def with_a_schema_that_drops_the_mode(cluster: Cluster) -> None:
    definition = await cluster.api.get(PEER)
    for version in definition["spec"]["versions"]:
        empty = {"type": "object", "properties": {}}
        schema = {"type": "object", "properties": {"spec": empty, "status": empty}}
        version["schema"] = {"openAPIV3Schema": schema}
    await cluster.api.replace(PEER, definition)


async def put_lease(
    cluster: Cluster,
    name: str,
    holder: str,
    report: str = "",
    *,
    renewed: datetime | None = None,
    namespace: str = SYSTEM,
) -> None:
    stamp = (renewed or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    body = {
        "metadata": {"name": name, "labels": {LABEL: "true"}, "annotations": {ANNOTATION: report}},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": stamp},
    }
    await replace(cluster, LEASES.replace(SYSTEM, namespace), body)


PEER_KIND = "kind peerauthentications.security.istio.io"


@pytest.mark.parametrize(
    ("break_", "name", "detail"),
    [
        (without_a_role_binding, "control plane permissions", "lacks create leases.coordination.k8s.io in"),
        (without_a_verb, "control plane permissions", "lacks create tokenreviews.authentication.k8s.io"),
        (with_one_ready_pod, "control plane pods", "1 of 2 replicas"),
        (with_an_old_pod, "control plane pods", "1 of 2 replicas"),
        (without_a_root_in_a_namespace, "root certificates in namespaces", "outdated in default"),
        (with_an_old_root_in_a_namespace, "root certificates in namespaces", "outdated in default"),
        (without_a_ready_endpoint, "webhook configuration", "istio-system/xds has no ready endpoint"),
        (with_an_old_bundle, "webhook CA bundle", "caBundle of object.sidecar-injector.xds.io is not"),
        (with_an_old_bundle_for_policies, "policy webhook CA bundle", "caBundle of policies.xds.io is not"),
        (without_a_leader, "replicas agree", "no replica leads"),
        (with_a_replica_outside_the_plan, "replicas agree", "the plan does not include xds-3"),
        (with_a_replica_that_follows_its_own_plan, "replicas agree", "xds-3 follows its own plan"),
        (with_a_replica_of_another_version, "replicas agree", "xds-3 cannot be read"),
        (with_a_sidecar_of_another_version, "sidecar versions", "1 of 1 do not run xds:latest: web.default"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_broken_thing_fails_its_check(
    cluster: Cluster, break_: Callable[[Cluster], Awaitable[None]], name: str, detail: str
) -> None:
    await break_(cluster)
    findings = await check(cluster)
    alike = {f"policy {name}"} if break_ is without_a_ready_endpoint else set()
    assert of(CheckResult.FAIL, findings) == {name} | alike, findings
    assert detail in findings[name].detail
    assert findings[name].hint


@pytest.mark.parametrize(
    ("break_", "detail"),
    [
        (with_a_kind_of_other_versions, "serves v9"),
        (with_a_schema_that_drops_the_mode, "its schema drops spec.selector, spec.mtls"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_unusable_kind_fails_its_check(
    own_cluster: Cluster, break_: Callable[[Cluster], Awaitable[None]], detail: str
) -> None:
    await crds.install(own_cluster.api)
    await break_(own_cluster)
    findings = await check(own_cluster, pre=True)
    assert of(CheckResult.FAIL, findings) == {PEER_KIND}, findings
    assert detail in findings[PEER_KIND].detail


async def test_replicas_that_serve_different_generations_fail(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_checks, "AGREEMENT_TIMEOUT", 0.0)
    plan = encode_plan(StoredPlan(members=frozenset({"a", "b"})))
    async with cluster.namespace() as namespace:
        await put_lease(cluster, PLAN, "", plan, namespace=namespace)
        await put_lease(cluster, LEASE_NAME, "a", namespace=namespace)
        for name, generation in (("a", 5), ("b", 4)):
            report = encode_report(Report(generation=generation))
            await put_lease(cluster, PREFIX + name, name, report, namespace=namespace)
        found = await run_checks(ClusterChecks(cluster.api, namespace).of_installation())
        [finding] = [finding for finding in found if finding.name == "replicas agree"]
        assert finding.result is CheckResult.FAIL
        assert "different generations (a: 5, b: 4)" in finding.detail


async def test_ca_that_expires_soon_fails(cluster: Cluster) -> None:
    created = datetime.now(UTC) - timedelta(days=336)
    async with stored_ca(cluster, lifetime=timedelta(days=365), created=created):
        findings = await check(cluster)
    assert findings["CA certificate"].result is CheckResult.FAIL
    assert "expires on" in findings["CA certificate"].detail
    # Other roots are published than those of this CA.
    assert of(CheckResult.FAIL, findings) >= BUNDLES


async def test_expired_ca_fails_and_nothing_is_compared_with_it(cluster: Cluster) -> None:
    async with stored_ca(cluster, lifetime=timedelta(days=1), created=datetime.now(UTC) - timedelta(days=9)):
        findings = await check(cluster)
    assert of(CheckResult.FAIL, findings) == {"CA certificate"}
    assert "expired" in findings["CA certificate"].detail
    assert of(CheckResult.SKIP, findings) == {"root certificates in namespaces"} | BUNDLES


async def test_missing_ca_fails(cluster: Cluster) -> None:
    async with without_ca(cluster):
        findings = await check(cluster)
    assert of(CheckResult.FAIL, findings) == {"CA certificate"}
    assert findings["CA certificate"].detail == "Secret istio-system/xds-ca-secret does not exist"


@asynccontextmanager
async def without_ca(cluster: Cluster) -> AsyncIterator[Json]:
    """Delete the CA, and restore it afterwards."""
    path = f"{CORE}/secrets/{SECRET}"
    secret = await cluster.api.get(path)
    await cluster.api.delete(path)
    secret["metadata"] = {"name": SECRET}
    try:
        yield secret
    finally:
        if await cluster.api.find(path):
            await cluster.api.delete(path)
        await cluster.api.create(f"{CORE}/secrets", secret)


@asynccontextmanager
async def stored_ca(
    cluster: Cluster, *, lifetime: timedelta, created: datetime | None = None
) -> AsyncIterator[None]:
    """Store another CA in place of the mesh's."""
    async with without_ca(cluster) as secret:
        authority = Authority.create(
            PrivateKey.generate(), "cluster.local", created or datetime.now(UTC), lifetime
        )
        data = Authorities(authority=authority).to_data()
        encoded = {name: b64encode(pem).decode() for name, pem in data.items()}
        await cluster.api.create(f"{CORE}/secrets", secret | {"data": encoded})
        yield


async def test_wrong_clock_fails(cluster: Cluster) -> None:
    for minutes, words in ((7, "ahead of"), (-7, "behind")):
        findings = await check(cluster, now=datetime.now(UTC) + timedelta(minutes=minutes))
        assert of(CheckResult.FAIL, findings) == {"clock"}, findings
        assert words in findings["clock"].detail
    findings = await check(cluster, now=datetime.now(UTC) + timedelta(minutes=3))
    assert not of(CheckResult.FAIL, findings)


async def test_old_kubernetes_fails(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_checks, "MIN_VERSION", (1, 999))
    findings = await check(cluster)
    assert of(CheckResult.FAIL, findings) == {"Kubernetes version"}
    assert "is older than 1.999" in findings["Kubernetes version"].detail


@pytest.mark.parametrize(
    ("configuration", "prefix", "detail"),
    [
        (INJECTION, "", "only xds inject adds sidecars"),
        (POLICIES, "policy ", "kubectl apply does not print what a policy breaks"),
    ],
)
async def test_missing_webhook_is_skipped(
    cluster: Cluster, configuration: Configuration, prefix: str, detail: str
) -> None:
    await cluster.api.delete(configuration.path)
    findings = await check(cluster)
    assert of(CheckResult.FAIL, findings) == set()
    assert of(CheckResult.SKIP, findings) == {f"{prefix}webhook configuration", f"{prefix}webhook CA bundle"}
    assert findings[f"{prefix}webhook configuration"].detail.endswith(f"does not exist: {detail}")


async def test_sidecar_with_an_image_of_its_own_is_not_outdated(cluster: Cluster) -> None:
    own = {"annotations": {"sidecar.istio.io/proxyImage": "xds:other"}}
    await cluster.api.patch("/api/v1/namespaces/default/pods/web", {"metadata": own})
    findings = await check(cluster)
    assert findings["sidecar versions"].result is CheckResult.SKIP
    assert findings["sidecar versions"].detail == "no running pod has an injected sidecar"


async def test_check_says_who_keeps_certificates(cluster: Cluster) -> None:
    findings = await check(cluster)
    assert findings["sidecar certificates"].result is CheckResult.PASS
    assert findings["sidecar certificates"].detail == (
        "kubelets keep the certificates of 0 of 1 sidecars: nodes older than Kubernetes 1.37: node (unknown)"
    )
    for version, why in (("v1.36.9", "1.37: node (v1.36.9)"), ("v1.38.0-rc.1", "the others are older")):
        status = {"nodeInfo": NODE_INFO | {"kubeletVersion": version}}
        await cluster.api.patch("/api/v1/nodes/node/status", {"status": status})
        assert why in (await check(cluster))["sidecar certificates"].detail


async def test_user_without_permissions_passes_only_what_was_checked(cluster: Cluster) -> None:
    async with await cluster.connect("nobody") as api:
        found = await run_checks(ClusterChecks(api, SYSTEM).of_installation())
    results = {finding.name: finding for finding in found}
    assert of(CheckResult.PASS, results) == {"API server", "Kubernetes version", "clock"}
    assert of(CheckResult.FAIL, results) == set()
    for name in of(CheckResult.SKIP, results) - {"root certificates in namespaces"} - BUNDLES:
        assert results[name].detail.startswith("not permitted: "), name


# --- before the installation ---


async def test_empty_cluster_is_ready_for_installation(own_cluster: Cluster) -> None:
    config = await own_cluster.kubeconfig()
    status, output, error = await run("check", "--pre", f"--kubeconfig={config}")
    assert (status, error) == (0, ""), output
    assert output.endswith("\n12 passed, 0 failed, 0 skipped\n")
    findings = await check(own_cluster, pre=True)
    assert findings[PEER_KIND].detail == "does not exist; xds install creates it"
    # The same cluster has no control plane.
    findings = await check(own_cluster)
    assert of(CheckResult.PASS, findings) == {"API server", "Kubernetes version", "clock"}
    assert findings[PEER_KIND].detail == "is missing"
    assert findings["control plane pods"].detail == "Deployment istio-system/xds does not exist"


async def test_permissions_to_install_name_what_the_caller_lacks(cluster: Cluster) -> None:
    async with await cluster.connect("nobody") as api:
        found = await run_checks(ClusterChecks(api, SYSTEM).before_installation())
    [finding] = [finding for finding in found if finding.name == "permissions to install"]
    assert finding.result is CheckResult.FAIL
    assert finding.detail.startswith("you lack ")
    assert ", create clusterroles.rbac.authorization.k8s.io and " in finding.detail


# --- the command ---


async def test_exit_status_and_output_of_the_command(cluster: Cluster) -> None:
    config = await cluster.kubeconfig()
    status, output, error = await run("check", f"--kubeconfig={config}")
    assert (status, error) == (0, ""), output
    assert re.search(r"^✓ pass  control plane pods +2 of 2 are ready$", output, re.MULTILINE)
    assert re.search(
        r"^- skip  sidecars in sync +no control plane found: the API server refused", output, re.MULTILINE
    )
    assert output.endswith("\n22 passed, 0 failed, 1 skipped\n")
    await without_a_role_binding(cluster)
    status, output, error = await run("check", f"--kubeconfig={config}", "-o", "json")
    assert (status, error) == (1, ""), output
    [failed] = [row for row in json.loads(output) if row["result"] == "fail"]
    assert failed["name"] == "control plane permissions"
    assert failed["hint"] == "run xds install to restore its roles"


async def test_unreachable_api_server_exits_with_3(cluster: Cluster) -> None:
    config = await cluster.kubeconfig(server=f"https://127.0.0.1:{free_port()}")
    status, output, error = await run("check", f"--kubeconfig={config}")
    assert (status, output) == (3, "")
    assert "cannot be reached" in error


async def test_sidecars_of_a_control_plane_are_checked(cluster: Cluster, tmp_path: Path) -> None:
    """A control plane from a folder: its sidecar is expected, but not connected."""
    config = await cluster.kubeconfig()
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pod.yaml").write_text(SIDECAR)

    async def sidecars(address: str) -> Json:
        _, output, error = await run(
            "check", f"--kubeconfig={config}", "--output=json", f"--xds-address={address}"
        )
        assert not error
        return next(row for row in json.loads(output) if row["name"] == "sidecars in sync")

    with serving(tmp_path / "m") as process:
        address = f"127.0.0.1:{process.xds}"
        row = await sidecars(address)
        assert (row["result"], row["detail"]) == ("fail", "not in sync: web-1.shop")
    row = await sidecars(address)
    assert row["result"] == "skip"
    assert "cannot connect to a control plane" in row["detail"]


async def test_rejected_credentials_fail(cluster: Cluster, tmp_path: Path) -> None:
    config = json.loads((await cluster.kubeconfig("default/default")).read_text())
    config["users"] = [{"name": user["name"], "user": {"token": "wrong"}} for user in config["users"]]
    (tmp_path / "config").write_text(json.dumps(config))
    status, output, _ = await run("check", "--pre", f"--kubeconfig={tmp_path / 'config'}")
    assert status == 1
    assert re.search(r"^✗ fail  API server +Unauthorized", output, re.MULTILINE)
    assert "✓" not in output


async def test_running_control_plane_passes_the_checks_of_its_work(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    """Two real processes do what `healthy` does for the other tests."""
    await install(own_cluster)
    config = await own_cluster.kubeconfig(f"{SYSTEM}/xds")
    expected = {"CA certificate", "root certificates in namespaces", "replicas agree"} | BUNDLES
    options = (f"--namespace={SYSTEM}", "--webhook-address=127.0.0.1:0")
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    async with Serving(config, folders[0], *options) as one, Serving(config, folders[1], *options) as two:
        await one.until_ready()
        await two.until_ready()

        async def pass_() -> bool:
            findings = await check(own_cluster)
            missing = expected - of(CheckResult.PASS, findings)
            assert not missing, [findings[name] for name in missing]
            return findings["replicas agree"].detail.startswith("2 serve generation ")

        await eventually(pass_, timeout=60, what="the checks pass")
