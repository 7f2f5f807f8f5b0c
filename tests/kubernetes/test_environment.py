"""The cluster of the tests is a real one: controllers, tokens, compaction, an API server that dies and comes back."""

from __future__ import annotations

import json

import pytest

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import Cluster, KubectlError
from xds.kube.api import KubeError

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


async def test_is_the_version_that_was_built(cluster: Cluster) -> None:
    assert (await cluster.api.get("/version"))["gitVersion"] == f"v{binaries.version()}"


@pytest.mark.usefixtures("controllers")
async def test_controllers_make_pods_and_endpoints(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace:
        await cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=DEPLOYMENT)
        pods = f"/api/v1/namespaces/{namespace}/pods"
        found = await cluster.until(pods, lambda pods: len(pods["items"]) == 2)
        for number, pod in enumerate(found["items"], 1):
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


async def test_a_token_is_for_its_audience(cluster: Cluster) -> None:
    async def review(token: str, audience: str) -> dict:
        body = {"spec": {"token": token, "audiences": [audience]}}
        return (await cluster.api.create("/apis/authentication.k8s.io/v1/tokenreviews", body))["status"]

    async with cluster.namespace() as namespace:
        token = await cluster.token(namespace, "default", audience="xds-ca")
        accepted = await review(token, "xds-ca")
        assert accepted["authenticated"]
        assert accepted["user"]["username"] == f"system:serviceaccount:{namespace}:default"
        assert not (await review(token, "another")).get("authenticated")


async def test_users_may_do_what_they_were_granted(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace:
        account = f"{namespace}/default"
        kubeconfig = await cluster.kubeconfig("nobody", account, namespace=namespace)
        with pytest.raises(KubectlError, match=r'Forbidden.*User "nobody" cannot list'):
            await cluster.kubectl("get", "pods", kubeconfig=kubeconfig)
        grant = ("create", "rolebinding", "view", "-n", namespace, "--clusterrole=view")
        await cluster.kubectl(*grant, f"--serviceaccount={namespace}:default")
        assert not await cluster.kubectl("--context", account, "get", "pods", kubeconfig=kubeconfig)


async def test_a_restarted_api_server_knows_what_it_knew_and_compaction_makes_it_forget_the_past(
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
