"""Injection by a real API server, which calls our webhook and trusts our caBundle."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from structlog.testing import capture_logs

from tests.kubernetes.environment.cluster import RBAC, Cluster, own_address
from tests.kubernetes.serving import Serving
from tests.support.loopback import free_port
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.inject import STATUS, InjectionSettings
from xds.mesh.inject.webhook import WebhookServer
from xds.mesh.kube import crds
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.webhook import FIELD_MANAGER, INJECTION, CaBundlePublisher

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
INSTALLED = Path("xds/mesh/kube/install/webhook.yaml")
SAMPLES = Path("examples/envoy/kubernetes/samples")

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"generateName": "web-"},
    "spec": {"containers": [{"name": "web", "image": "web"}]},
}
RULES = [
    {
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": ["mutatingwebhookconfigurations"],
        "verbs": ["get", "watch", "patch"],
    }
]
"""The rights that the module documents, for one name."""


def authority() -> Authority:
    now = datetime.now(UTC)
    return Authority.create(PrivateKey.generate(), "cluster.local", now)


class Mesh:
    """A control plane's webhook in its own namespace, for namespaces that the test creates."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = f"xds-sidecar-injector-{namespace}"
        self.path = f"{CONFIGURATIONS}/{self.name}"
        self.ca = authority()
        self.trusted = [self.ca]
        self.leads = True
        self.server: WebhookServer | None = None
        self.api: KubeApi | None = None
        self._port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._install()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _install(self) -> None:
        await self.start()
        await self.cluster.service_here(self.namespace, "xds", port=443, target=self._port)
        await self.cluster.api.create(CONFIGURATIONS, self.configuration())
        self.api = await self._with_least_privileges()
        self.configured = INJECTION._replace(name=self.name)
        self.bundle = CaBundlePublisher(
            self.api, self.roots, leads=lambda: self.leads, configuration=self.configured
        )
        self._tasks.append(asyncio.create_task(self.bundle.run()))
        await self.until_trusted()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.api:
            await self.api.close()
        for path in (
            self.path,
            f"{RBAC}/clusterroles/{self.namespace}.default",
            f"{RBAC}/clusterrolebindings/{self.namespace}.default",
        ):
            with suppress(KubeError):
                await self.cluster.api.delete(path)

    def configuration(self) -> dict[str, Any]:
        """Return the installed configuration, limited to the test's namespaces (the cluster is shared)."""
        made: dict[str, Any] = yaml.safe_load(INSTALLED.read_text())
        made["metadata"]["name"] = self.name
        for webhook in made["webhooks"]:
            webhook["clientConfig"] = {
                "service": {**webhook["clientConfig"]["service"], "namespace": self.namespace}
            }
            ours = {"key": "test", "operator": "In", "values": [self.namespace]}
            expressions = webhook["namespaceSelector"]["matchExpressions"]
            webhook["namespaceSelector"] = {"matchExpressions": [*expressions, ours]}
        return made

    def roots(self) -> bytes:
        return b"".join(ca.certificate_pem for ca in self.trusted)

    async def start(self) -> None:
        """Start the server, at the previous port if there was one."""
        server = WebhookServer(InjectionSettings, self._issue, own_address(), self._port)
        self._serving = asyncio.create_task(server.run())
        async with asyncio.timeout(30):
            await server.listening.wait()
        self.server, self._port = server, server.port

    def _issue(self) -> Any:
        return self.ca.issue_server([f"xds.{self.namespace}.svc"], datetime.now(UTC))

    async def stop(self) -> None:
        if self._serving:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    async def until_trusted(self) -> None:
        """Wait until the API server has the caBundle and uses it, which takes a little longer."""
        wanted = base64.b64encode(self.roots()).decode()
        await self.cluster.until(
            self.path, lambda c: all(w["clientConfig"].get("caBundle") == wanted for w in c["webhooks"])
        )
        async with self.namespace_of("enabled") as namespace:

            async def trial() -> bool:
                try:
                    made = await self.create(namespace, dryRun="All")
                except KubeError as error:
                    raise AssertionError(error) from error
                return STATUS in made["metadata"].get("annotations", {})

            await eventually(trial, timeout=60, every=0.1, what="a pod is injected")

    def namespace_of(self, injection: str = "") -> Any:
        """Create a namespace that the test's configuration selects."""
        labels = {"test": self.namespace} | ({"istio-injection": injection} if injection else {})
        return self.cluster.namespace("webhook", labels)

    async def create(self, namespace: str, pod: Any = None, **query: Any) -> Any:
        return await self.cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod or POD, **query)

    async def _with_least_privileges(self) -> KubeApi:
        """Connect to the API server with only the rights that the module documents."""
        rules = [rule | {"resourceNames": [self.name]} for rule in RULES]
        user = f"{self.namespace}/default"
        await self.cluster.allow(user, rules)
        return await self.cluster.connect(user)


@pytest.fixture
async def mesh(cluster: Cluster) -> AsyncIterator[Mesh]:
    if not own_address():
        pytest.skip("needs an address that is not on loopback: a Service's endpoints cannot be there")
    async with AsyncExitStack() as stack:
        namespace = await stack.enter_async_context(cluster.namespace("mesh"))
        yield await stack.enter_async_context(Mesh(cluster, namespace))


def has_sidecar(pod: dict[str, Any]) -> bool:
    names = [c["name"] for c in pod["spec"].get("initContainers", ())]
    assert (names == ["xds-init", "xds-proxy"]) is (STATUS in pod["metadata"].get("annotations", {}))
    return bool(names)


async def test_pods_of_a_deployment_are_injected(controllers: None, mesh: Mesh) -> None:
    async with mesh.namespace_of("enabled") as namespace:
        await mesh.cluster.kubectl("apply", "-n", namespace, "-f", str(SAMPLES / "httpbin/httpbin.yaml"))
        pods = await mesh.cluster.until(f"/api/v1/namespaces/{namespace}/pods", lambda found: found["items"])
        (pod,) = pods["items"]
        assert has_sidecar(pod)
        assert pod["metadata"]["labels"]["security.istio.io/tlsMode"] == "istio"
        assert pod["spec"]["initContainers"][1]["restartPolicy"] == "Always"
        deployment = await mesh.cluster.api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/httpbin")
        assert [c["name"] for c in deployment["spec"]["template"]["spec"]["containers"]] == ["httpbin"]


@pytest.mark.parametrize(
    ("injection", "labels", "annotations", "gets"),
    [
        ("enabled", {}, {}, True),
        ("enabled", {"sidecar.istio.io/inject": "false"}, {}, False),
        ("enabled", {}, {"sidecar.istio.io/inject": "false"}, False),
        ("enabled", {"sidecar.istio.io/inject": "true"}, {"sidecar.istio.io/inject": "false"}, True),
        ("", {}, {}, False),
        ("", {"sidecar.istio.io/inject": "true"}, {}, True),
        ("", {}, {"sidecar.istio.io/inject": "true"}, False),
        ("disabled", {"sidecar.istio.io/inject": "true"}, {}, False),
    ],
)
async def test_labels_control_injection_as_in_istio(mesh: Mesh, injection, labels, annotations, gets) -> None:
    meta = {"generateName": "web-", "labels": labels, "annotations": annotations}
    async with mesh.namespace_of(injection) as namespace:
        assert has_sidecar(await mesh.create(namespace, POD | {"metadata": meta})) is gets


async def test_uninjectable_pod_is_refused_with_a_hint(mesh: Mesh) -> None:
    spec = {"containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 15006}]}]}
    async with mesh.namespace_of("enabled") as namespace:
        with pytest.raises(
            KubeError, match="containerPort is 15006, which is reserved for inbound interception"
        ):
            await mesh.create(namespace, POD | {"spec": spec})


async def test_server_dry_run_shows_the_sidecar(mesh: Mesh) -> None:
    async with mesh.namespace_of("enabled") as namespace:
        text = yaml.safe_dump(POD | {"metadata": {"name": "web"}})
        kubectl = (
            "-n",
            namespace,
            "--dry-run=server",
            "-o",
            "jsonpath={.spec.initContainers[*].name}",
            "-f",
            "-",
        )
        assert await mesh.cluster.kubectl("create", *kubectl, stdin=text) == "xds-init xds-proxy"
        assert not (await mesh.cluster.api.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]


async def test_only_the_ca_bundle_is_restored(mesh: Mesh) -> None:
    before = await mesh.cluster.api.get(mesh.path)
    edited = {"webhooks": before["webhooks"]}
    for webhook in edited["webhooks"]:
        webhook["clientConfig"]["caBundle"] = base64.b64encode(authority().certificate_pem).decode()
    edited["webhooks"][0]["timeoutSeconds"] = 7
    await mesh.cluster.api.patch(mesh.path, edited)
    await mesh.until_trusted()
    after = await mesh.cluster.api.get(mesh.path)
    assert [webhook["timeoutSeconds"] for webhook in after["webhooks"]] == [7, 10]
    (ours,) = [m for m in after["metadata"]["managedFields"] if m["manager"] == FIELD_MANAGER]
    assert "f:caBundle" in str(ours["fieldsV1"])
    assert "f:timeoutSeconds" not in str(ours["fieldsV1"])


async def test_injection_continues_during_a_rotation(mesh: Mesh) -> None:
    old, new = mesh.ca, authority()
    async with mesh.namespace_of("enabled") as namespace:
        for trusted, issuing in (([old, new], old), ([new, old], new), ([new], new)):
            mesh.trusted, mesh.ca = trusted, issuing
            mesh.bundle.trigger()
            assert mesh.server
            mesh.server.trigger_renewal()
            await mesh.until_trusted()
            assert has_sidecar(await mesh.create(namespace))


async def test_follower_does_not_write_the_ca_bundle(mesh: Mesh) -> None:
    asked = asyncio.Event()

    def leads() -> bool:
        asked.set()
        return False

    other = authority().certificate_pem
    publisher = CaBundlePublisher(mesh.cluster.api, lambda: other, leads=leads, configuration=mesh.configured)
    async with background(publisher.run()), asyncio.timeout(60):
        for _ in range(3):  # by the third time, two rounds are over
            await asked.wait()
            asked.clear()
    configuration = await mesh.cluster.api.get(mesh.path)
    assert {w["clientConfig"]["caBundle"] for w in configuration["webhooks"]} == {
        base64.b64encode(mesh.roots()).decode()
    }


async def test_missing_webhook_is_silent_and_forbidden_is_logged(
    mesh: Mesh,
) -> None:
    assert await CaBundlePublisher(
        mesh.cluster.api,
        mesh.roots,
        leads=lambda: True,
        configuration=INJECTION._replace(name="no-such"),
    ).reconcile()
    assert mesh.api
    forbidden = CaBundlePublisher(
        mesh.api, mesh.roots, leads=lambda: True, configuration=INJECTION._replace(name="another")
    )
    with capture_logs() as logs:
        assert not await forbidden.reconcile()
        assert not await forbidden.reconcile()
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert 'cannot get resource "mutatingwebhookconfigurations"' in warning["problem"]


async def test_pods_are_created_once_the_webhook_is_back(controllers: None, mesh: Mesh) -> None:
    async with mesh.namespace_of("enabled") as namespace, mesh.namespace_of() as elsewhere:
        await mesh.stop()
        with pytest.raises(KubeError, match=r"failed calling webhook .*sidecar-injector"):
            await mesh.create(namespace)
        assert not has_sidecar(await mesh.create(elsewhere))
        out = POD | {"metadata": {"name": "out", "labels": {"sidecar.istio.io/inject": "false"}}}
        assert not has_sidecar(await mesh.create(namespace, out))
        await mesh.cluster.kubectl("apply", "-n", namespace, "-f", str(SAMPLES / "sleep/sleep.yaml"))
        await mesh.cluster.until(
            f"/apis/apps/v1/namespaces/{namespace}/replicasets",
            lambda found: any(
                "failed calling webhook" in condition.get("message", "")
                for replicas in found["items"]
                for condition in replicas["status"].get("conditions", ())
            ),
        )
        await mesh.start()
        pods = await mesh.cluster.until(
            f"/api/v1/namespaces/{namespace}/pods?labelSelector=app=sleep",
            lambda found: found["items"],
            timeout=90,
        )
        assert has_sidecar(pods["items"][0])


async def test_sidecar_in_mode_none_satisfies_profile_restricted(mesh: Mesh) -> None:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    web = {
        "name": "web",
        "image": "web",
        "securityContext": security | {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    plain = {"generateName": "web-", "annotations": {"sidecar.istio.io/interceptionMode": "NONE"}}
    async with mesh.namespace_of("enabled") as namespace:
        enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        await mesh.cluster.api.patch(f"/api/v1/namespaces/{namespace}", enforced)
        made = await mesh.create(namespace, POD | {"metadata": plain, "spec": {"containers": [web]}})
        assert [c["name"] for c in made["spec"]["initContainers"]] == ["xds-proxy"]
        with pytest.raises(KubeError, match="NET_ADMIN"):
            await mesh.create(namespace, POD | {"spec": {"containers": [web]}})


async def test_serve_injects_with_the_installed_webhook(own_cluster: Cluster, tmp_path: Path) -> None:
    """`xds serve` with the installed configuration, in a cluster of its own."""
    if not own_address():
        pytest.skip("needs an address that is not on loopback: a Service's endpoints cannot be there")
    cluster, port = own_cluster, free_port()
    await crds.install(cluster.api)
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": "istio-system"}})
    await cluster.service_here("istio-system", "xds", port=443, target=port)
    await cluster.api.create(CONFIGURATIONS, yaml.safe_load(INSTALLED.read_text()))
    options = (f"--webhook-address={own_address()}:{port}", "--sidecar-image=registry.example/xds:9")
    async with (
        cluster.namespace("full", {"istio-injection": "enabled"}) as namespace,
        Serving(await cluster.kubeconfig(), tmp_path, *options) as serving,
    ):
        await serving.until_ready()

        async def injected() -> bool:
            try:
                made = await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", POD, dryRun="All")
            except KubeError as error:
                raise AssertionError(error) from error
            proxy = made["spec"]["initContainers"][1]
            assert proxy["image"] == "registry.example/xds:9"
            assert {"name": "XDS_ADDRESS", "value": "xds.istio-system.svc:15012"} in proxy["env"]
            return True

        await eventually(injected, timeout=90, every=0.2, what="a pod is injected")
        assert re.search(r'xds_webhook_requests_total\{result="injected"\} [1-9]', await serving.metrics())
