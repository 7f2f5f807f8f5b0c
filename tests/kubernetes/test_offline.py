"""Commands that read a cluster once, with the rights of the caller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.installing import run
from tests.kubernetes.recorder import Recorder
from tests.kubernetes.shop import Shop

LISTS = (
    ("", "namespaces serviceaccounts services pods"),
    ("discovery.k8s.io", "endpointslices"),
    ("authentication.istio.io", "policies meshpolicies"),
    ("security.istio.io", "peerauthentications"),
    ("networking.istio.io", "destinationrules serviceentries workloadentries"),
)


async def grant(cluster: Cluster, user: str, *, but: str = "") -> None:
    """Let a user (see `Cluster.kubeconfig`) list what a mesh consists of, except for one kind."""
    name = user.replace("/", ".")
    rules = [
        {
            "apiGroups": [group],
            "resources": [kind for kind in kinds.split() if kind != but],
            "verbs": ["list"],
        }
        for group, kinds in LISTS
    ]
    rules.append({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]})
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    await cluster.api.create(f"{rbac}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    namespace, _, account = user.rpartition("/")
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "namespace": namespace, "name": account}
            if namespace
            else {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        ],
    }
    await cluster.api.create(f"{rbac}/clusterrolebindings", binding)


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
