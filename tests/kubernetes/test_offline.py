"""Commands that read a cluster once, with the rights of the caller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.installing import run
from tests.kubernetes.recorder import Recorder
from tests.kubernetes.shop import Shop
from xds.mesh.parse import KINDS

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {}}}
spec: {{mtls: {{mode: STRICT}}}}
"""


async def grant(cluster: Cluster, user: str, *, but: str = "") -> None:
    """Let a user (see `Cluster.kubeconfig`) list what a mesh consists of, except for one kind."""
    rules = [
        {
            "apiGroups": [kind.group],
            "resources": [kind.plural],
            "verbs": ["list"],
        }
        for kind in KINDS
        if kind.plural != but
    ]
    rules.append({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]})
    await cluster.allow(user, rules)


async def test_reader_predicts_a_running_mesh(cluster: Cluster, controllers: None, tmp_path: Path) -> None:
    async with cluster.namespace() as namespace:
        shop = Shop(cluster, namespace)
        await shop.open()
        await shop.add(1)
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await cluster.api.create(accounts, {"metadata": {"name": "reader"}})
        await grant(cluster, f"{namespace}/reader")
        async with Recorder(cluster) as recorder:
            config = await recorder.kubeconfig(f"{namespace}/reader", tmp_path)
            arguments = ("--kubernetes", "--kubeconfig", str(config))
            status, output, error = await run(
                "reach",
                *arguments,
                "--to",
                f"web.{namespace}",
                "--from",
                f"client-101.{namespace}",
                "--expand",
                "-o",
                "json",
            )
        assert status == 0, error
        [row] = json.loads(output)
        assert (row["endpoint"], row["outcome"]) == (f"web-1.{namespace}", "mtls")
        assert {call.verb for call in recorder.calls} <= {"list", "get"}
        status, output, error = await run(
            "translate",
            f"client-101.{namespace}",
            *arguments[:1],
            "--kubeconfig",
            str(await cluster.kubeconfig()),
        )
        assert status == 0, error
        assert shop.service in output


async def test_plan_names_clients_that_the_cluster_proves(
    cluster: Cluster, controllers: None, tmp_path: Path
) -> None:
    """A webhook, an aggregated API, a CRD's conversion, an Ingress and a NodePort."""
    async with cluster.namespace() as namespace:
        shop = Shop(cluster, namespace)
        await shop.open()
        await shop.add(1)
        service = {"name": "web", "namespace": namespace, "port": 80}
        name, group = f"{namespace}.example.com", f"{namespace}.example.com"
        rule = {
            "apiGroups": [group],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["things"],
        }
        webhook = {
            "name": name,
            "clientConfig": {"service": service},
            "rules": [rule],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        version = {
            "name": "v1",
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": {"type": "object"}},
        }
        conversion = {
            "strategy": "Webhook",
            "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service": service}},
        }
        definition = {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
            "conversion": conversion,
        }
        backend = {"service": {"name": "web", "port": {"name": "http"}}}
        ports = [{"port": 80, "targetPort": 8080}]
        created = {
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations": {"webhooks": [webhook]},
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations": {"webhooks": [webhook]},
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions": {"spec": definition},
            f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses": {
                "spec": {"defaultBackend": backend}
            },
            f"/api/v1/namespaces/{namespace}/services": {
                "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": ports}
            },
        }
        names = {path: f"things.{group}" if "customresource" in path else "public" for path in created}
        for path, obj in created.items():
            unique = names[path] if namespace in path or "customresource" in path else name
            await cluster.api.create(path, {"metadata": {"name": unique}, **obj})
            names[path] = unique
        try:
            policy = tmp_path / "strict.yaml"
            policy.write_text(STRICT.format(namespace))
            config = str(await cluster.kubeconfig())
            status, output, error = await run(
                "plan", "--kubernetes", "--kubeconfig", config, "-f", str(policy), "-o", "json"
            )
            assert status == 1, error
            found = {
                (item["traffic"], item["source"], item["port"]) for item in json.loads(output)["refused"]
            }
            assert found == {
                ("api-server", f"ValidatingWebhookConfiguration {name}", 8080),
                ("api-server", f"MutatingWebhookConfiguration {name}", 8080),
                ("api-server", f"CustomResourceDefinition things.{group}", 8080),
                ("outside-client", f"Service {namespace}/public", 8080),
                ("pod-address", "", 8080),  # of the client, which declares a port that no Service has
            }
        finally:
            for path, unique in names.items():
                await cluster.api.delete(f"{path}/{unique}")


async def test_missing_permission_is_named(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace:
        user = f"blind-{namespace}"
        await grant(cluster, user, but="pods")
        config = await cluster.kubeconfig(user)
        status, output, error = await run("reach", "--kubernetes", "--kubeconfig", str(config))
        assert (status, output) == (2, "")
        denied, failed = error.splitlines()
        assert denied.startswith(
            f'pods: problem: cannot be listed: pods is forbidden: User "{user}" cannot list'
        )
        assert 'apiGroups: [""], resources: ["pods"], verbs: ["list"]' in denied
        assert (
            failed == "xds: cannot read all objects of the cluster, so the result could be wrong: "
            "a policy may be missing"
        )


async def test_context_selects_the_user(cluster: Cluster) -> None:
    config = str(await cluster.kubeconfig("nobody", "admin"))
    status, _, error = await run("reach", "--kubernetes", "--kubeconfig", config)
    assert status == 2
    assert 'User "nobody" cannot list resource "pods"' in error
    _, _, error = await run("reach", "--kubernetes", "--kubeconfig", config, "--context", "admin")
    assert "cannot list" not in error


async def test_settings_come_from_the_chosen_config_map(cluster: Cluster, controllers: None) -> None:
    config = str(await cluster.kubeconfig())
    async with cluster.namespace() as namespace:
        shop = Shop(cluster, namespace)
        await shop.open()
        await shop.add(1)
        config_map = {"metadata": {"name": "istio"}, "data": {"mesh": "enableAutoMtls: false"}}
        await cluster.api.create(f"/api/v1/namespaces/{namespace}/configmaps", config_map)
        source = ("--kubernetes", "--kubeconfig", config, "--xds-namespace", namespace)
        web, client = f"web.{namespace}", f"client-101.{namespace}"

        for command in (("reach", "--from", client, "--to", web), ("explain", client, web)):
            status, output, error = await run(*command, *source, "--mesh-config-map", "istio")
            assert status == 0, error
            assert "auto-mtls-off" in output or "auto mTLS is disabled" in output

        status, output, error = await run("reach", *source, "--mesh-config-map", "absent")
        missing = f"xds: --mesh-config-map: ConfigMap {namespace}/absent does not exist\n"
        assert (status, output, error) == (2, "", missing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kubernetes", "--manifests", "."), "use either --manifests PATH or --kubernetes, not both"),
        (("--manifests", ".", "--context", "x"), "--context requires --kubernetes"),
        (("--manifests", ".", "--xds-namespace", "x"), "--xds-namespace requires --kubernetes"),
        (("--manifests", ".", "--mesh-config-map", "x"), "--mesh-config-map requires --kubernetes"),
        (("--kubernetes", "--mesh-config", "mesh.yaml"), "--mesh-config requires --manifests"),
        (("--kubernetes", "--kubeconfig", "mesh.yaml"), "Invalid kube-config file"),
    ],
)
async def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mesh.yaml").write_text("enableAutoMtls: true\n")
    status, output, error = await run("reach", *arguments)
    assert (status, output) == (2, "")
    assert message in error
