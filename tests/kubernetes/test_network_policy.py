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
    """A cluster without anything of ours."""
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
    """Write a selector as a query parameter has it."""

    def parts() -> Iterator[str]:
        for key, value in (selector.get("matchLabels") or {}).items():
            yield f"{key}={value}"
        for each in selector.get("matchExpressions") or ():
            assert each["operator"] == "Exists"
            yield each["key"]

    return ",".join(parts())


async def selected(cluster: Cluster, namespaces: list[str], selector: dict[str, Any]) -> set[str]:
    """Return the pods that a selector selects, as the API server understands it."""
    lists = [
        await cluster.api.list_all(f"/api/v1/namespaces/{each}/pods", labelSelector=query(selector))
        for each in namespaces
    ]
    return {each["metadata"]["name"] for items in lists for each in items}


async def allowed(cluster: Cluster, policy: dict[str, Any], port: int) -> set[str]:
    """Return who may connect to a port: pods by name, networks, or any address."""
    who: set[str] = set()
    for rule in policy["spec"]["ingress"]:
        if not any((each["protocol"], each["port"]) == ("TCP", port) for each in rule["ports"]):
            continue
        for peer in rule.get("from") or ({"any": True},):
            if "any" in peer:
                who.add(ANY)
            elif "ipBlock" in peer:
                who.add(peer["ipBlock"]["cidr"])
            else:
                found = await cluster.api.list_all(
                    "/api/v1/namespaces", labelSelector=query(peer["namespaceSelector"])
                )
                names = [each["metadata"]["name"] for each in found]
                who |= await selected(cluster, names, peer.get("podSelector") or {})
    return who


async def test_it_selects_the_control_plane_and_lets_in_who_has_to_get_in(cluster: Cluster) -> None:
    await install(cluster)
    policy = await cluster.api.get(PATH)
    [deployment] = [each for each in control_plane() if each["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    [job] = [
        each
        for each in yaml.safe_load_all(await cluster.kubectl("kustomize", KUSTOMIZATION))
        if each["kind"] == "Job"
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
        # Injection is not what is tried here, and nothing answers for it.
        webhook = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/xds-sidecar-injector"
        await cluster.api.delete(webhook)
        for namespace, pods in ((SYSTEM, in_system), (shop, in_shop)):
            for each in pods:
                each["spec"]["automountServiceAccountToken"] = False
                await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", each)

        chosen = await selected(cluster, [SYSTEM], policy["spec"]["podSelector"])
        everybody = {"control-plane", "install-job", "web", "plaintext", "legacy"}
        assert everybody & chosen == {"control-plane"}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for port in (15012, 15013):
            assert await allowed(cluster, policy, port) == {"web", "plaintext"}
        assert await allowed(cluster, policy, 15014) >= everybody
        assert await allowed(cluster, policy, 15017) == {ANY}
        assert not await allowed(cluster, policy, 15010)

    [container] = template["spec"]["containers"]
    listening = {each["containerPort"] for each in container["ports"]}
    assert listening == {each["port"] for rule in policy["spec"]["ingress"] for each in rule["ports"]}


async def test_the_webhook_can_be_limited_to_the_api_servers_networks(cluster: Cluster) -> None:
    networks = ("10.0.0.0/24", "fd00::/64")
    await install(cluster, *(f"--api-server-cidr={each}" for each in networks))
    assert await allowed(cluster, await cluster.api.get(PATH), 15017) == set(networks)

    await install(cluster)
    assert await allowed(cluster, await cluster.api.get(PATH), 15017) == {ANY}


async def test_it_can_be_switched_off_and_on(cluster: Cluster) -> None:
    name = f"NetworkPolicy {SYSTEM}/xds"
    assert name not in await install(cluster, "--no-network-policy")
    with pytest.raises(KubeError, match="not found"):
        await cluster.api.get(PATH)

    assert (await install(cluster))[name] == "created"
    assert (await install(cluster, "--no-network-policy", "--dry-run"))[name] == "would be deleted"
    assert (await install(cluster, "--no-network-policy"))[name] == "deleted"

    _, shown, _ = await run("install", "-o", "yaml", "--only", "control-plane", "--no-network-policy")
    assert "NetworkPolicy" not in {each["kind"] for each in yaml.safe_load_all(shown)}


async def test_a_wrong_network_is_named() -> None:
    status, _, error = await run("install", "-o", "yaml", "--api-server-cidr", "10.0.0.1/24")
    assert status == 2
    assert "10.0.0.1/24 has host bits set" in " ".join(error.split())
