"""The test cluster is real: controllers, tokens, compaction, and an API server that crashes and restarts."""

from __future__ import annotations

import base64
import json
import ssl

import pytest
from aiohttp import web

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import PATIENCE, Cluster, KubectlError, own_address
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.support.waiting import eventually
from xds.mesh.kube.api import KubeError

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin}
spec:
  replicas: 2
  selector: {matchLabels: {app: httpbin}}
  template:
    metadata: {labels: {app: httpbin}}
    spec:
      containers: [{name: httpbin, image: httpbin}]
---
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec:
  selector: {app: httpbin}
  ports: [{name: http, port: 8000, targetPort: 80}]
"""


async def test_cluster_has_the_built_version(cluster: Cluster) -> None:
    assert (await cluster.api.get("/version"))["gitVersion"] == f"v{binaries.version()}"


@pytest.mark.usefixtures("controllers")
async def test_controllers_create_pods_and_endpoints(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace:
        await cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=DEPLOYMENT)
        pods = f"/api/v1/namespaces/{namespace}/pods"
        created = await cluster.until(pods, lambda pods: len(pods["items"]) == 2)
        for number, pod in enumerate(created["items"], 1):
            await cluster.run_pod(namespace, pod["metadata"]["name"], f"10.244.0.{number}")

        def addresses(slices):
            return {
                address
                for item in slices["items"]
                for endpoint in item["endpoints"] or ()
                if endpoint["conditions"]["ready"]
                for address in endpoint["addresses"]
            }

        await cluster.until(
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            lambda slices: addresses(slices) == {"10.244.0.1", "10.244.0.2"},
        )


async def test_token_is_bound_to_its_audience(cluster: Cluster) -> None:
    async def review(token: str, audience: str) -> dict:
        body = {"spec": {"token": token, "audiences": [audience]}}
        return (await cluster.api.create("/apis/authentication.k8s.io/v1/tokenreviews", body))["status"]

    async with cluster.namespace() as namespace:
        token = await cluster.token(namespace, "default", audience="xds-ca")
        accepted = await review(token, "xds-ca")
        assert accepted["authenticated"]
        assert accepted["user"]["username"] == f"system:serviceaccount:{namespace}:default"
        assert not (await review(token, "another")).get("authenticated")


async def test_users_have_granted_rights_only(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace:
        account = f"{namespace}/default"
        kubeconfig = await cluster.kubeconfig("nobody", account, namespace=namespace)
        with pytest.raises(KubectlError, match=r'Forbidden.*User "nobody" cannot list'):
            await cluster.kubectl("get", "pods", kubeconfig=kubeconfig)
        await cluster.kubectl("create", "role", "-n", namespace, "reader", "--verb=list", "--resource=pods")
        grant = ("create", "rolebinding", "-n", namespace, "reader", "--role=reader")
        await cluster.kubectl(*grant, f"--serviceaccount={namespace}:default")

        async def granted() -> bool:
            try:
                printed = await cluster.kubectl("--context", account, "get", "pods", kubeconfig=kubeconfig)
            except KubectlError as error:  # the API server learns of it a little later
                raise AssertionError(error) from error
            return not printed

        await eventually(granted, timeout=PATIENCE)


@pytest.mark.parametrize("way", ["url", "service"])
async def test_webhook_of_the_test_is_called(cluster: Cluster, way: str) -> None:
    address = own_address()
    if not address:
        pytest.skip("this machine has no address but loopback's, where endpoints cannot be")

    async def admit(request: web.Request) -> web.Response:
        review = await request.json()
        patch = [{"op": "add", "path": "/data", "value": {"seen": "yes"}}]
        review["response"] = {
            "uid": review["request"]["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(patch).encode()).decode(),
        }
        return web.json_response(review)

    async with cluster.namespace() as namespace:
        host = f"hook.{namespace}.svc"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*cluster.control_plane.certificates.server([host], [address]))
        application = web.Application()
        application.router.add_post("/admit", admit)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, address, 0, ssl_context=context).start()
            port = runner.addresses[0][1]
            await cluster.service_here(namespace, "hook", port=443, target=port)
            service = {"namespace": namespace, "name": "hook", "path": "/admit"}
            where = {"url": f"https://{address}:{port}/admit"} if way == "url" else {"service": service}
            root = cluster.control_plane.certificates.root.read_bytes()
            hook = {
                "name": "hook.test.xds",
                "clientConfig": {**where, "caBundle": base64.b64encode(root).decode()},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [
                    {
                        "operations": ["CREATE"],
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["configmaps"],
                    }
                ],
            }
            hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
            await cluster.api.create(hooks, {"metadata": {"name": namespace}, "webhooks": [hook]})
            try:
                await eventually(lambda: _is_admitted(cluster, namespace), timeout=PATIENCE)
            finally:
                await cluster.api.delete(f"{hooks}/{namespace}")
        finally:
            await runner.cleanup()


async def _is_admitted(cluster: Cluster, namespace: str) -> bool:
    """Whether the webhook has seen a new object; the API server calls it after a short delay."""
    body = {"metadata": {"generateName": "seen-"}}
    made = await cluster.api.create(f"/api/v1/namespaces/{namespace}/configmaps", body)
    return made.get("data") == {"seen": "yes"}


async def test_api_server_off_loopback_is_published() -> None:
    address = own_address()
    if binaries.why_none() or not address:
        pytest.skip(binaries.why_none() or "this machine has no address but loopback's")
    with ControlPlane(address) as plane:
        async with Cluster(plane) as cluster:
            slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
            endpoint_slice = await cluster.until(slices, lambda endpoint_slice: endpoint_slice["endpoints"])
            assert endpoint_slice["endpoints"][0]["addresses"] == [address]
            assert endpoint_slice["ports"][0]["port"] == plane.port


async def test_restart_keeps_data_and_compaction_expires_versions(
    own_cluster: Cluster,
) -> None:
    api = own_cluster.api
    path = "/api/v1/namespaces/default/configmaps"
    old = (await api.get(path))["metadata"]["resourceVersion"]
    await api.create(path, {"metadata": {"name": "kept"}})
    own_cluster.stop_api_server()
    with pytest.raises(KubeError) as unreachable:
        await api.get(path)
    assert unreachable.value.status == 0
    await own_cluster.start_api_server()
    await api.get(f"{path}/kept")

    await own_cluster.compact()
    await api.get(f"{path}/kept")
    async with api.stream(path, idle=30, watch=True, resourceVersion=old) as lines:
        event = json.loads(await lines.readline())
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
