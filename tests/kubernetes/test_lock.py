"""`xds lock` and `xds unlock` on a real API server, with a control plane and sidecars that ACK."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml

from tests.controlplane.rollouts import Sidecar
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.schemaless import pod
from tests.kubernetes.serving import Serving
from tests.support.controlplane import XDS, run_xds
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOG_SERVICE
from xds.mesh.kube import crds
from xds.mesh.kube.api import Json
from xds.mesh.observe.report_reader import ACCESS_LOGS

POLICIES = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications"
OUTSIDER = "203.0.113.9"
PATIENCE = 60.0


class Shop:
    """A Deployment with a sidecar, a client with one, and a client without in another namespace."""

    def __init__(self, cluster: Cluster, serving: Serving, channel: grpc.aio.Channel) -> None:
        self.cluster, self.serving = cluster, serving
        self.channel = channel
        """The server's sidecar."""

    async def xds(self, *words: object, user: str = "admin") -> tuple[int, str, str]:
        return await run_xds(*words, *await self.options(user))

    async def options(self, user: str = "admin") -> tuple[str, ...]:
        config = await self.cluster.kubeconfig(user)
        return f"--kubeconfig={config}", f"--xds-address={self.serving.address}"

    async def policy(self, name: str = "default") -> Json | None:
        return await self.cluster.api.find(f"{POLICIES}/{name}")

    async def mode(self, name: str = "default") -> str:
        found = await self.policy(name)
        return str(found["spec"]["mtls"]["mode"]) if found else ""

    async def report_plaintext(self) -> None:
        """Report plaintext of a client outside the mesh, as the server's sidecar does."""
        message: Any = message_class(ACCESS_LOGS)()
        message.identifier.node.id = "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local"
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_direct_remote_address.socket_address.address = OUTSIDER
        common.downstream_local_address.socket_address.port_value = 8080
        common.access_log_type = 6
        call = self.channel.stream_stream(f"/{LOG_SERVICE}/StreamAccessLogs")(timeout=PATIENCE)
        await call.write(message.SerializeToString())
        await call.done_writing()
        await eventually(self._is_observed, timeout=PATIENCE)

    async def _is_observed(self) -> bool:
        status, out, _ = await run_xds("observe", f"--xds-address={self.serving.address}")
        return status == 0 and OUTSIDER in out

    async def delete_old_client(self) -> None:
        await self.cluster.api.delete("/api/v1/namespaces/legacy/pods/old", gracePeriodSeconds=0)

        async def is_read() -> bool:
            _, out, _ = await run_xds("reach", f"--xds-address={self.serving.address}")
            return "legacy/default" not in out

        await eventually(is_read, timeout=PATIENCE)


async def _create_objects(cluster: Cluster) -> None:
    await crds.install(cluster.api)
    for namespace in ("istio-system", "shop", "legacy"):
        await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        await cluster.until(f"/api/v1/namespaces/{namespace}/serviceaccounts/default", lambda _: True)
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    deployment = {"metadata": {"name": "web"}, "spec": spec}
    await cluster.api.create("/apis/apps/v1/namespaces/shop/deployments", deployment)
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    await cluster.api.create("/api/v1/namespaces/shop/services", service)
    await pod(cluster, "shop", "web", "10.1.0.1")
    await pod(cluster, "shop", "one", "10.1.0.2")
    await pod(cluster, "legacy", "old", "10.1.0.9", tls_mode="none")


@pytest.fixture
async def shop(own_cluster: Cluster, controllers: None, tmp_path: Path) -> AsyncIterator[Shop]:
    await _create_objects(own_cluster)
    async with Serving(await own_cluster.kubeconfig(), tmp_path) as serving:
        await serving.until_ready()
        async with AsyncExitStack() as stack:
            web, one = [
                await stack.enter_async_context(await _channel(own_cluster, serving, name))
                for name in ("web", "one")
            ]
            sidecars = [Sidecar(web, "web"), Sidecar(one, "one")]
            for sidecar in sidecars:
                await stack.enter_async_context(sidecar)

            async def are_synced() -> bool:
                _, out, _ = await run_xds("status", f"--xds-address={serving.address}")
                assert f"\n{len(sidecars)} synced\n" in out, out
                return True

            await eventually(are_synced, timeout=PATIENCE)
            yield Shop(own_cluster, serving, web)


async def _channel(cluster: Cluster, serving: Serving, name: str) -> grpc.aio.Channel:
    """Return a channel with a pod's token."""
    path = "/api/v1/namespaces/shop/configmaps/xds-ca-root-cert"
    published = await cluster.until(path, lambda found: found["data"])
    token = await cluster.token("shop", "default", audience="xds-ca", pod=name)
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(published["data"]["root-cert.pem"].encode()),
        grpc.access_token_call_credentials(token),
    )
    options = [("grpc.ssl_target_name_override", "xds.istio-system.svc")]
    return grpc.aio.secure_channel(serving.tls, credentials, options)


async def test_lock_and_unlock_a_namespace(shop: Shop) -> None:
    status, out, err = await shop.xds("lock", "shop", "--observed=1s", "--yes")
    assert (status, await shop.mode()) == (1, ""), err
    assert out.splitlines()[1].split()[:4] == ["breaks", "old", "(legacy/default)", "web.shop:80"]
    assert "refused to lock namespace shop; --force locks it anyway" in err

    status, out, err = await shop.xds("lock", "shop", "--observed=1s", "--yes", "--force")
    assert status == 0, err
    assert "WARNING: --force locks namespace shop although it is not safe" in err
    assert "PeerAuthentication shop/default: in force, acked by 2 of 2 sidecars" in out
    assert out.endswith("namespace shop is locked\n")
    policy = await shop.policy()
    assert policy
    assert policy["spec"] == {"mtls": {"mode": "STRICT"}}
    assert [entry["manager"] for entry in policy["metadata"]["managedFields"][:1]] == ["xds"]

    status, out, err = await shop.xds("lock", "shop", "--yes")
    assert (status, out.splitlines()[-3]) == (0, "PeerAuthentication shop/default is STRICT already"), err
    again = await shop.policy()
    assert again
    assert again["metadata"]["generation"] == policy["metadata"]["generation"]

    status, out, err = await shop.xds("unlock", "shop")
    assert (status, await shop.mode()) == (2, "STRICT")
    assert "stdin is not a terminal, so the change cannot be confirmed: add --yes" in err
    assert "port 8080 of web (shop/default): PERMISSIVE (PeerAuthentication shop/default)" in out
    status, out, err = await shop.xds("unlock", "shop", "--yes")
    assert (status, await shop.mode()) == (0, "PERMISSIVE"), err
    assert out.endswith("namespace shop is unlocked\n")
    status, out, err = await shop.xds("unlock", "shop")
    assert (status, out[:17]) == (0, "nothing to unlock"), err


async def test_lock_refuses_what_was_observed(shop: Shop) -> None:
    await shop.delete_old_client()
    await shop.report_plaintext()
    status, out, err = await shop.xds("lock", "shop", "--observed=10m", "--yes")
    assert (status, await shop.mode()) == (1, "")
    rows = [line.split()[:3] for line in out.splitlines()]
    assert [OUTSIDER, "web.shop:80", "plaintext"] in rows
    assert f"not safe to lock: plaintext traffic of {OUTSIDER} was observed" in out
    assert "xds: observed for only " in err

    async def is_safe() -> bool:
        status, out, err = await shop.xds("lock", "shop", "--observed=2s", "--dry-run")
        assert status == 0, err
        return "safe to lock: no plaintext traffic was observed for 2s" in out

    await eventually(is_safe, timeout=PATIENCE)
    assert await shop.mode() == ""
    status, out, err = await shop.xds("lock", "shop", "--observed=2s", "--dry-run", "-o", "yaml")
    assert (status, yaml.safe_load(out)["spec"]) == (0, {"mtls": {"mode": "STRICT"}}), err
    status, out, err = await shop.xds("lock", "shop", "--observed=2s", "--yes")
    assert (status, await shop.mode()) == (0, "STRICT"), err


async def test_lock_a_workload_keeps_the_fields_of_others(shop: Shop) -> None:
    await shop.delete_old_client()
    exempt = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"9090": {"mode": "DISABLE"}}},
    }
    await shop.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(exempt))
    status, out, err = await shop.xds("lock", "shop/web", "--observed=1s", "--yes")
    assert status == 0, err
    assert "port 9090 of web (shop/default): DISABLE (PeerAuthentication shop/web)" in out
    assert out.endswith("workload shop/web is locked\n")
    policy = await shop.policy("web")
    assert policy
    assert policy["spec"] == {**exempt["spec"], "mtls": {"mode": "STRICT"}}  # type: ignore[dict-item]
    status, _, err = await shop.xds("lock", "shop/wep", "--yes")
    assert (status, "shop/wep not found: there is no Deployment" in err) == (1, True)


async def test_policy_of_another_manager_is_not_overwritten(shop: Shop) -> None:
    await shop.delete_old_client()
    theirs = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop"},
        "spec": {"mtls": {"mode": "PERMISSIVE"}},
    }
    await shop.cluster.kubectl(
        "apply", "--server-side", "--field-manager=argocd", "-f", "-", stdin=json.dumps(theirs)
    )
    status, _, err = await shop.xds("lock", "shop", "--observed=1s", "--yes")
    assert (status, await shop.mode()) == (1, "PERMISSIVE")
    assert '.spec.mtls.mode (conflict with "argocd")' in err
    assert "--force-conflicts" in err
    status, _, err = await shop.xds("lock", "shop", "--observed=1s", "--yes", "--force-conflicts")
    assert (status, await shop.mode()) == (0, "STRICT"), err

    status, _, err = await shop.xds("unlock", "shop", "--yes", user="nobody")
    assert (status, await shop.mode()) == (1, "STRICT")
    assert 'User "nobody" cannot get resource "peerauthentications"' in err


async def test_lock_asks_on_a_terminal(shop: Shop) -> None:
    await shop.delete_old_client()
    terminal, side = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(XDS, "lock", "shop", "--observed=1s", *await shop.options()),
            stdin=side,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        os.write(terminal, b"n\n")
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        os.close(terminal)
        os.close(side)
    assert (process.returncode, await shop.mode()) == (1, "")
    assert b"Lock namespace shop with PeerAuthentication shop/default in context admin? [y/N]" in err
    assert b"not confirmed: nothing was changed" in err
