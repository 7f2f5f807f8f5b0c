"""Two replicas of `xds serve --kubernetes`: one CA, one root publisher, a rotation, and a crash."""

from __future__ import annotations

import signal
import sys
from asyncio.subprocess import STDOUT
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.serving import Serving
from tests.support.processes import run
from xds.mesh.identity import chain
from xds.mesh.kube import crds
from xds.mesh.kube.ca_secret import SECRET, USER_SECRET
from xds.mesh.kube.root_publisher import KEY, NAME

PATIENCE = 90.0
HOME = "istio-system"


async def xds(*arguments: str) -> tuple[int, str]:
    """Run a command; return its exit status and output."""
    status, output, _ = await run(sys.executable, "-m", "xds", *arguments, stderr=STDOUT)
    return status, " ".join(output.split())


async def kept(cluster: Cluster) -> dict[str, bytes]:
    secret = await cluster.api.get(f"/api/v1/namespaces/{HOME}/secrets/{SECRET}")
    return {name: b64decode(value) for name, value in secret["data"].items()}


async def until_published(cluster: Cluster, namespace: str, *roots: bytes) -> None:
    wanted = {cert for root in roots for cert in chain.read(root)}
    await cluster.until(
        f"/api/v1/namespaces/{namespace}/configmaps/{NAME}",
        lambda found: set(chain.read(found["data"][KEY].encode())) == wanted,
        timeout=PATIENCE,
    )


@pytest.mark.timeout(300)
async def test_replicas_share_the_ca_and_replace_the_publisher(own_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_cluster
    await crds.install(cluster.api)
    kubeconfig = await cluster.kubeconfig()
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": HOME}})
    command = ("rotate-root", f"--kubeconfig={kubeconfig}")
    status, output = await xds(*command)
    assert status == 1
    assert f"no CA found: xds serve creates the Secret {HOME}/{SECRET}" in output

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    async with Serving(kubeconfig, folders[0]) as first, Serving(kubeconfig, folders[1]) as second:
        for serving in (first, second):
            await serving.until_ready()
        old = (await kept(cluster))["ca-cert.pem"]
        await until_published(cluster, "default", old)

        status, output = await xds(*command, "--status")
        assert status == 0
        assert "no rotation in progress: certificates are issued by CN=xds root" in output
        status, output = await xds(*command)
        assert status == 0
        assert "step 1 of 2" in output
        assert (await xds(*command))[1].startswith("step 1 of 2")  # once is enough
        new = (await kept(cluster))["next-ca-cert.pem"]
        await until_published(cluster, "default", old, new)

        leads = [b"became leader" in serving.log.read_bytes() for serving in (first, second)]
        assert sorted(leads) == [False, True]
        leader = (first, second)[leads.index(True)]
        leader._process.send_signal(signal.SIGKILL)
        await cluster.api.delete(f"/api/v1/namespaces/default/configmaps/{NAME}")
        await until_published(cluster, "default", old, new)

        log = b"".join(serving.log.read_bytes() for serving in (first, second))
        assert b"PRIVATE" not in log
        for name, value in (await kept(cluster)).items():
            if name.endswith("key.pem"):
                assert value.splitlines()[1] not in log


@pytest.mark.timeout(300)
async def test_overridden_policy_has_a_condition(own_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_cluster
    await crds.install(cluster.api)
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": HOME}})
    path = f"/apis/security.istio.io/v1/namespaces/{HOME}/peerauthentications"

    async def apply(name: str) -> None:
        spec = {"mtls": {"mode": "STRICT"}}
        body = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "spec": spec}
        await cluster.api.create(path, body | {"metadata": {"name": name}})

    async def until(name: str, *messages: str) -> dict[str, Any]:
        def has_messages(obj: dict[str, Any]) -> bool:
            conditions = obj.get("status", {}).get("conditions", ())
            return [condition["message"] for condition in conditions] == list(messages)

        obj: dict[str, Any] = await cluster.until(f"{path}/{name}", has_messages, timeout=PATIENCE)
        return obj

    await apply("a")
    await apply("b")
    async with cluster.namespace() as namespace, Serving(await cluster.kubeconfig(), tmp_path) as serving:
        await serving.until_ready()
        await cluster.api.create(
            f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "web"}}
        )
        pod = {
            "metadata": {"name": "web", "labels": {"security.istio.io/tlsMode": "istio"}},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "web", "image": "web"}]},
        }
        await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
        before = await until("b", f"overridden by PeerAuthentication {HOME}/a")
        # Our own writes cause no further write: this object stays unchanged while others are written.
        await apply("c")
        await until("c", f"overridden by PeerAuthentication {HOME}/a")
        assert await cluster.api.get(f"{path}/b") == before
        assert "status" not in await cluster.api.get(f"{path}/a")

        # A policy that matches nothing also has a condition while that lasts.
        selector = {"selector": {"matchLabels": {"app": "wbe"}}, "mtls": {"mode": "STRICT"}}
        lock = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "spec": selector}
        locks = path.replace(HOME, namespace)
        await cluster.api.create(locks, lock | {"metadata": {"name": "lock"}})
        path, home = locks, path
        what = f"selector app=wbe matches no pod in namespace {namespace}, so it has no effect"
        await until("lock", what)
        labels = {"metadata": {"labels": {"app": "wbe"}}}
        await cluster.api.patch(f"/api/v1/namespaces/{namespace}/pods/web", labels)
        await until("lock")
        await cluster.api.delete(f"{path}/lock")
        path = home

        await cluster.api.delete(f"{path}/a")
        await until("b")
        await until("c", f"overridden by PeerAuthentication {HOME}/b")


async def test_bad_user_ca_prevents_start_with_a_hint(own_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_cluster
    await crds.install(cluster.api)
    kubeconfig = await cluster.kubeconfig()
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": HOME}})
    body = {"metadata": {"name": USER_SECRET}, "data": {"ca-cert.pem": b64encode(b"x").decode()}}
    await cluster.api.create(f"/api/v1/namespaces/{HOME}/secrets", body)
    status, output = await xds(
        *("serve", "--kubernetes", f"--kubeconfig={kubeconfig}", "--xds-address=127.0.0.1:0"),
        "--admin-address=127.0.0.1:0",
    )
    assert status == 1
    assert f"the Secret {HOME}/{USER_SECRET} cannot be used as the mesh's CA: ca-key.pem is missing" in output
    assert "kubectl -n istio-system delete secret cacerts" in output
