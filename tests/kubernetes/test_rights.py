"""The control plane has the rights it needs and no others, according to a real API server and its audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.foreign_kinds import foreign
from tests.kubernetes.installing import SYSTEM, install, unused
from tests.kubernetes.kubelet import request_for
from tests.kubernetes.recorder import Recorder, granted
from tests.kubernetes.serving import Serving
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.pod_certificates import PodCertificates
from xds.mesh.identity.rotation import Authorities
from xds.mesh.kube import crds
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.ca_secret import CaSecrets, load_or_create_authorities
from xds.mesh.kube.conditions import ConditionPublisher, desired_conditions
from xds.mesh.kube.install import control_plane
from xds.mesh.kube.lease import Lease
from xds.mesh.kube.replica_leases import PLAN, ReplicaLeases
from xds.mesh.kube.root_publisher import RootPublisher, TrustBundlePublisher
from xds.mesh.kube.tokens import TokenReviewer
from xds.mesh.kube.webhook import INJECTION, POLICIES, CaBundlePublisher
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Problem, Ref
from xds.mesh.parse import KINDS, UNENFORCED, Watch
from xds.mesh.rollout.reports import Reports
from xds.mesh.rollout.sync import ReplicaSync
from xds.mesh.sources.kubernetes import Kubernetes


@pytest.fixture
def cluster(own_cluster: Cluster) -> Cluster:
    """A cluster without our objects. CRDs that are recreated soon after their deletion may get stuck."""
    return own_cluster


async def test_granted_rights_are_exactly_those_used(cluster: Cluster, tmp_path: Path) -> None:
    await install(cluster)
    async with Recorder(cluster) as recorder:
        config = await recorder.kubeconfig(f"{SYSTEM}/xds", tmp_path)
        async with await KubeApi.connect(config) as api:
            await _do_all_that_needs_the_server(cluster, api, recorder)
    assert not recorder.refused
    rights = granted(control_plane(), "xds")
    assert not {call for call in recorder.calls if not any(right.covers(call) for right in rights)}
    # The API server asks for these two when a certificate is issued, and when the trust bundle is written.
    assert {(right.verb, right.resource) for right in unused(rights, recorder)} == {
        ("sign", "signers"),
        ("attest", "signers"),
    }


async def test_installed_process_is_forbidden_nothing(cluster: Cluster, tmp_path: Path) -> None:
    await install(cluster)
    [deployment] = [manifest for manifest in control_plane() if manifest["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    # Here the pod's addresses are on this machine's loopback.
    options = [
        arg.partition("=")[0] + "=127.0.0.1:0" if "[::]:" in arg else arg.replace("$(POD_IP)", "127.0.0.1")
        for arg in container["args"][2:]
        if "--admin-address" not in arg
    ]
    async with Recorder(cluster) as recorder:
        config = await recorder.kubeconfig(f"{SYSTEM}/xds", tmp_path)
        async with Serving(config, tmp_path, f"--namespace={SYSTEM}", *options) as serving:
            await serving.until_ready()
            # It leads, creates a CA, publishes its roots, and updates the webhooks.
            for path in (
                f"namespaces/{SYSTEM}/secrets/xds-ca-secret",
                "namespaces/default/configmaps/xds-ca-root-cert",
            ):
                await cluster.until(f"/api/v1/{path}", lambda _: True)
            for configuration in (INJECTION, POLICIES):
                await cluster.until(
                    configuration.path,
                    lambda obj: all("caBundle" in webhook["clientConfig"] for webhook in obj["webhooks"]),
                )
            assert "Traceback" not in serving.log.read_text()
    assert not recorder.refused
    rights = granted(control_plane(), "xds")
    assert not {call for call in recorder.calls if not any(right.covers(call) for right in rights)}


LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"


def lease(name: str) -> Json:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {"holderIdentity": "somebody"},
    }


def secret(name: str, kind: str) -> Json:
    annotations = {"kubernetes.io/service-account.name": "xds-install"}
    return {"metadata": {"name": name, "annotations": annotations}, "type": kind}


async def test_only_own_leases_and_secrets_are_writable(cluster: Cluster) -> None:
    await install(cluster)
    istios = await cluster.api.create(LEASES, lease("istio-leader"))
    await cluster.api.create(
        f"/api/v1/namespaces/{SYSTEM}/serviceaccounts", {"metadata": {"name": "xds-install"}}
    )
    async with await cluster.connect(f"{SYSTEM}/xds") as api:

        async def is_forbidden(call: Awaitable[object]) -> bool:
            try:
                await call
            except KubeError as error:
                if error.status != 403:
                    raise
                return True
            return False

        async def is_in_force() -> bool:
            return await is_forbidden(api.create(LEASES, lease("other"), dryRun="All"))

        # The API server takes a moment to compile the policy.
        await eventually(is_in_force, timeout=30, what="the policy is in force")
        assert await is_forbidden(api.create(LEASES, lease("other")))
        assert await is_forbidden(api.create(LEASES, {"metadata": {"generateName": "other-"}, "spec": {}}))
        assert await is_forbidden(api.replace(f"{LEASES}/istio-leader", istios))
        assert await is_forbidden(api.delete(f"{LEASES}/istio-leader"))
        token = "kubernetes.io/service-account-token"
        for name, kind in (("cacerts", token), ("xds-ca-secret", token), ("other", "Opaque")):
            assert await is_forbidden(api.create(SECRETS, secret(name, kind)))

        for name in ("xds-leader", PLAN, "xds-replica-a"):
            body = await api.create(LEASES, lease(name))
            await api.replace(f"{LEASES}/{name}", body)
            await api.delete(f"{LEASES}/{name}")
        assert await api.create(SECRETS, secret("xds-ca-secret", "istio.io/ca-root"))
    # Other accounts are not restricted.
    await cluster.api.replace(f"{LEASES}/istio-leader", istios)
    await cluster.api.delete(f"{LEASES}/istio-leader")


async def _do_all_that_needs_the_server(cluster: Cluster, api: KubeApi, recorder: Recorder) -> None:
    """Run each part of a control plane once."""
    monitors_and_routes = [
        kind for kind in KINDS if kind.watch is Watch.ADVISORY and kind.namespaced and kind.name != "Ingress"
    ]
    for kind in (*monitors_and_routes, *UNENFORCED):
        definition = foreign(kind.plural, kind.group, kind.name, list(kind.versions))
        await cluster.api.create(crds.PATH, definition)
    source = Kubernetes(api, namespace=SYSTEM)
    async with _first(source):
        assert source.complete
        assert not [problem for problem in source.problems if not problem.notice]

        expected = {"configmaps", *(kind.plural for kind in KINDS if kind.watch is not Watch.NEVER)}

        def watched() -> bool:
            return {call.resource for call in recorder.calls if call.verb == "watch"} == expected

        await eventually(watched, timeout=30, what="everything is watched")
    now = datetime.now(UTC)
    first = await load_or_create_authorities(api, SYSTEM, "cluster.local", now)
    secrets = CaSecrets(api, SYSTEM)
    kept = await secrets.read(now)
    assert kept
    assert await secrets.replace(kept, first)

    lease = Lease(api, SYSTEM, "test", duration=1.0)
    leading = asyncio.create_task(lease.run())
    await eventually(lambda: lease.held, what="it leads")

    await _tell_other_replicas(api)

    bundle, policy_bundle, roots, trust_bundle = (
        kind(api, lambda: first.trusted_pem, leads=lambda: True)
        for kind in (
            CaBundlePublisher,
            partial(CaBundlePublisher, configuration=POLICIES),
            RootPublisher,
            TrustBundlePublisher,
        )
    )
    working = [asyncio.create_task(publisher.run()) for publisher in (bundle, policy_bundle, roots)]
    await cluster.until("/api/v1/namespaces/default/configmaps/xds-ca-root-cert", lambda _: True)

    def kept_right() -> bool:
        watches = {call.name for call in recorder.calls if call.verb == "watch"}
        return {"xds-sidecar-injector", "xds-policies", "xds-ca-root-cert"} <= watches

    await eventually(kept_right, timeout=30, what="the webhooks and the roots are watched")
    assert await roots.reconcile()
    assert await trust_bundle.reconcile()
    await bundle.reconcile()
    await policy_bundle.reconcile()

    await _sign_for_a_kubelet(cluster, api, first)
    await _say_what_is_wrong(cluster, api)
    token = await cluster.token(SYSTEM, "xds", audience="xds-ca")
    assert (await TokenReviewer(api)(token, "ipv4:127.0.0.1:1")).service_account == "xds"
    for task in (leading, *working):
        task.cancel()
    await asyncio.gather(leading, *working, return_exceptions=True)


async def _tell_other_replicas(api: KubeApi) -> None:
    """Join the plan together with another replica, which then crashes."""
    ours, others = (ReplicaSync(name, lambda: False, Reports(3.0)) for name in ("here", "there"))
    here, there = (ReplicaLeases(api, SYSTEM, sync, lambda: None) for sync in (ours, others))
    both = {"here", "there"}
    async with background(here.run()):
        async with background(there.run()):
            await eventually(
                lambda: ours.reports.names and ours.stored and ours.stored.members == both,
                timeout=30,
                what="they know of each other",
            )
        await eventually(lambda: not ours.reports.names, timeout=30, what="the other one is forgotten")


async def _sign_for_a_kubelet(cluster: Cluster, api: KubeApi, authorities: Authorities) -> None:
    """Answer the request of a kubelet that the cluster does not have."""
    container = {"name": "web", "image": "web"}
    await cluster.api.create(
        f"/api/v1/namespaces/{SYSTEM}/pods",
        {"metadata": {"name": "web"}, "spec": {"containers": [container]}},
    )
    await cluster.run_pod(SYSTEM, "web", "10.0.0.1")
    path = f"/apis/certificates.k8s.io/v1/namespaces/{SYSTEM}/podcertificaterequests"
    bound = await cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/pods/web")
    created = await cluster.api.create(path, request_for(bound))
    controller = Controller(authorities.authority)
    controller.change(Change())
    signer = PodCertificates(api, controller, lambda: True)
    tasks = [asyncio.create_task(task()) for task in (controller.run, signer.run)]
    answered = await cluster.until(
        f"{path}/{created['metadata']['name']}", lambda obj: (obj.get("status") or {}).get("conditions")
    )
    assert answered["status"]["conditions"][0]["type"] == "Issued"
    await eventually(lambda: "node" in signer.problem, timeout=30, what="the nodes are checked")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _say_what_is_wrong(cluster: Cluster, api: KubeApi) -> None:
    objects = {
        "Policy": ("authentication.istio.io/v1alpha1", f"namespaces/{SYSTEM}/policies", {}),
        "MeshPolicy": ("authentication.istio.io/v1alpha1", "meshpolicies", None),
        "PeerAuthentication": ("security.istio.io/v1", f"namespaces/{SYSTEM}/peerauthentications", {}),
        "AuthorizationPolicy": ("security.istio.io/v1", f"namespaces/{SYSTEM}/authorizationpolicies", {}),
        "DestinationRule": ("networking.istio.io/v1", f"namespaces/{SYSTEM}/destinationrules", {"host": "a"}),
        "ServiceEntry": (
            "networking.istio.io/v1",
            f"namespaces/{SYSTEM}/serviceentries",
            {"hosts": ["a.com"], "ports": [{"number": 80, "name": "http"}], "addresses": ["10.0.0.1"]},
        ),
        "WorkloadEntry": (
            "networking.istio.io/v1",
            f"namespaces/{SYSTEM}/workloadentries",
            {"address": "10.0.0.1"},
        ),
        "Sidecar": ("networking.istio.io/v1", f"namespaces/{SYSTEM}/sidecars", {}),
    }
    problems = [Problem(where=f"Namespace {SYSTEM}", what="is only said to be wrong")]
    for kind, (version, path, its_spec) in objects.items():
        if its_spec is not None:
            body = {"apiVersion": version, "kind": kind, "metadata": {"name": "default"}, "spec": its_spec}
            await cluster.api.create(f"/apis/{version}/{path}", body)
        ref = Ref(kind, "" if its_spec is None else SYSTEM, "default")
        problems.append(Problem(where=str(ref), what="is only said to be wrong"))
    assert await ConditionPublisher(api, lambda: (), Mesh, leads=lambda: True).reconcile(
        desired_conditions(Mesh(), problems)
    )
    for version, path, _ in objects.values():
        obj = await cluster.api.get(f"/apis/{version}/{path}/default")
        assert [condition["type"] for condition in obj["status"]["conditions"]] == ["Accepted"]


@asynccontextmanager
async def _first(source: Kubernetes) -> AsyncIterator[None]:
    """Follow a source until its first complete report."""
    watching = source.watch()
    try:
        async for report in watching:
            if report.complete:
                break
        yield
    finally:
        await watching.aclose()
