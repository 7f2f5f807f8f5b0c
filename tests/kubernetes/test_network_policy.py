"""The NetworkPolicy that is installed: a real API server says which pods its selectors select.

Nothing enforces it in these tests: that is the network plug-in's part, and there is none here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.installing import KUSTOMIZATION, SYSTEM, install, run
from xds.mesh.inject import InjectionSettings, inject
from xds.mesh.kube.api import KubeError
from xds.mesh.kube.install import control_plane
from xds.mesh.parse import dotted

PATH = f"/apis/networking.k8s.io/v1/namespaces/{SYSTEM}/networkpolicies/xds"
ANY = "any address"


@pytest.fixture
def cluster(own_cluster: Cluster) -> Cluster:
    """A cluster without our objects."""
    return own_cluster


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }


def with_sidecar(name: str, **labels: str) -> dict[str, Any]:
    """Return a pod with the labels that injection gives it."""
    injected = inject(pod(name, **labels), InjectionSettings(), namespace="shop", locate=dotted).pod
    return pod(name, **injected["metadata"]["labels"])


def query(selector: dict[str, Any]) -> str:
    """Return a selector as a query parameter."""

    def parts() -> Iterator[str]:
        for key, value in (selector.get("matchLabels") or {}).items():
            yield f"{key}={value}"
        for expression in selector.get("matchExpressions") or ():
            assert expression["operator"] == "Exists"
            yield expression["key"]

    return ",".join(parts())


async def selected(cluster: Cluster, namespaces: list[str], selector: dict[str, Any]) -> set[str]:
    """Return the pods that match a selector, according to the API server."""
    lists = [
        await cluster.api.list_all(f"/api/v1/namespaces/{namespace}/pods", labelSelector=query(selector))
        for namespace in namespaces
    ]
    return {item["metadata"]["name"] for items in lists for item in items}


async def allowed(cluster: Cluster, policy: dict[str, Any], port: int) -> set[str]:
    """Return the clients that may connect to a port: pods by name, networks, or any address."""
    who: set[str] = set()
    for rule in policy["spec"]["ingress"]:
        if not any((item["protocol"], item["port"]) == ("TCP", port) for item in rule["ports"]):
            continue
        for peer in rule.get("from") or ({"any": True},):
            if "any" in peer:
                who.add(ANY)
            elif "ipBlock" in peer:
                who.add(peer["ipBlock"]["cidr"])
            else:
                names = [SYSTEM]
                if "namespaceSelector" in peer:
                    peers = await cluster.api.list_all(
                        "/api/v1/namespaces", labelSelector=query(peer["namespaceSelector"])
                    )
                    names = [item["metadata"]["name"] for item in peers]
                who |= await selected(cluster, names, peer.get("podSelector") or {})
    return who


async def test_network_policy_admits_only_required_clients(cluster: Cluster) -> None:
    await install(cluster)
    policy = await cluster.api.get(PATH)
    [deployment] = [manifest for manifest in control_plane() if manifest["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    [job] = [
        document
        for document in yaml.safe_load_all(await cluster.kubectl("kustomize", KUSTOMIZATION))
        if document["kind"] == "Job"
    ]
    in_system = [
        pod("control-plane", **template["metadata"]["labels"]),
        pod("install-job", **job["spec"]["template"]["metadata"]["labels"]),
    ]
    in_shop = [
        with_sidecar("web", app="web"),
        with_sidecar("plaintext", **{"security.istio.io/tlsMode": "disabled"}),
        pod("legacy", app="web"),
    ]
    async with cluster.namespace() as shop:
        # This test needs no injection, and no webhook runs.
        webhook = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/xds-sidecar-injector"
        await cluster.api.delete(webhook)
        for namespace, pods in ((SYSTEM, in_system), (shop, in_shop)):
            for item in pods:
                item["spec"]["automountServiceAccountToken"] = False
                await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", item)

        chosen = await selected(cluster, [SYSTEM], policy["spec"]["podSelector"])
        everybody = {"control-plane", "install-job", "web", "plaintext", "legacy"}
        assert everybody & chosen == {"control-plane"}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert await allowed(cluster, policy, 15012) == {"web", "plaintext"}
        readers = await allowed(cluster, policy, 15013)
        assert readers >= {"web", "plaintext", "control-plane"}
        assert not readers & {"install-job", "legacy"}
        assert await allowed(cluster, policy, 15014) >= everybody
        assert await allowed(cluster, policy, 15017) == {ANY}
        assert not await allowed(cluster, policy, 15010)

    [container] = template["spec"]["containers"]
    listening = {port["containerPort"] for port in container["ports"]}
    assert listening == {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}


async def test_webhook_is_limited_to_api_server_networks(cluster: Cluster) -> None:
    networks = ("10.0.0.0/24", "fd00::/64")
    await install(cluster, *(f"--api-server-cidr={network}" for network in networks))
    assert await allowed(cluster, await cluster.api.get(PATH), 15017) == set(networks)

    await install(cluster)
    assert await allowed(cluster, await cluster.api.get(PATH), 15017) == {ANY}


async def test_network_policy_is_optional(cluster: Cluster) -> None:
    name = f"NetworkPolicy {SYSTEM}/xds"
    assert name not in await install(cluster, "--no-network-policy")
    with pytest.raises(KubeError, match="not found"):
        await cluster.api.get(PATH)

    assert (await install(cluster))[name] == "created"
    assert (await install(cluster, "--no-network-policy", "--dry-run"))[name] == "would be deleted"
    assert (await install(cluster, "--no-network-policy"))[name] == "deleted"

    _, shown, _ = await run("install", "-o", "yaml", "--only", "control-plane", "--no-network-policy")
    assert "NetworkPolicy" not in {document["kind"] for document in yaml.safe_load_all(shown)}


async def test_invalid_network_is_named() -> None:
    status, _, error = await run("install", "-o", "yaml", "--api-server-cidr", "10.0.0.1/24")
    assert status == 2
    assert "10.0.0.1/24 has host bits set" in " ".join(error.split())
