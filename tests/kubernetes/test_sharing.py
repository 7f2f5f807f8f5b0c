"""Two replicas, one for the server's sidecar and one for the client's: a transition needs both."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc.aio
import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.serving import Serving, modes
from tests.kubernetes.shop import Shop, address
from tests.support.waiting import eventually
from xds.mesh.envoy.inbound import decode_modes
from xds.mesh.kube import crds
from xds.mesh.kube.replica_leases import ANNOTATION, LABEL, PLAN, PREFIX
from xds.mesh.kube.rollout_codec import decode_plan, decode_report
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.plan import StoredPlan
from xds.snapshot import ENDPOINT, LISTENER
from xds.testing import EnvoyClient

PATIENCE = 90.0
HOME = "istio-system"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases"
POLICIES = "/apis/security.istio.io/v1/namespaces/{}/peerauthentications"


class Proxy(EnvoyClient):
    """A fake sidecar with the token of its pod."""

    def __init__(self, cluster: Cluster, namespace: str, number: int, app: str) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, f"{app}-{number}"
        node = f"sidecar~{address(number)}~{self._name}.{namespace}~{namespace}.svc.cluster.local"
        super().__init__("", node=node, timeout=PATIENCE)

    @asynccontextmanager
    async def at(self, serving: Serving) -> AsyncIterator[Self]:
        """Connect to a control plane."""
        config_map = await self._cluster.until(
            f"/api/v1/namespaces/{self._namespace}/configmaps/xds-ca-root-cert",
            lambda config_map: bool(config_map["data"]["root-cert.pem"]),
        )
        root = config_map["data"]["root-cert.pem"]
        token = await self._cluster.token(self._namespace, "default", audience="xds-ca", pod=self._name)
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(root.encode()), grpc.access_token_call_credentials(token)
        )
        name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
        async with grpc.aio.secure_channel(serving.tls, credentials, [name]) as channel:
            await channel.channel_ready()
            await self.reconnect(channel)
            try:
                yield self
            finally:
                await self.disconnect()

    @property
    def mode(self) -> Mode | None:
        """The mode of its listener on port 8080."""
        return decode_modes(each.version for each in self.resources.get(LISTENER, {}).values()).get(8080)

    @property
    def sends(self) -> dict[str, Send]:
        """Address -> how it sends."""
        return {
            endpoint: Send.MTLS if mtls else Send.PLAINTEXT
            for name, assignment in self.resources.get(ENDPOINT, {}).items()
            if f".{self._namespace}." in name
            for endpoint, mtls in modes(assignment.body).items()
        }


class Shared:
    """What the replicas share, from their Leases."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._key = (Ref("Pod", namespace, "web-1"), 8080)

    async def leases(self) -> dict[str, dict[str, Any]]:
        """Return the Lease of each replica."""
        leases = await self._cluster.api.list_all(LEASES, labelSelector=f"{LABEL}=true")
        named = {lease["metadata"]["name"]: lease for lease in leases}
        assert named.pop(PLAN, None)
        return {name.removeprefix(PREFIX): lease for name, lease in named.items()}

    async def reports(self) -> list[Report]:
        return [
            decode_report(lease["metadata"]["annotations"][ANNOTATION])
            for lease in (await self.leases()).values()
        ]

    async def plan(self) -> StoredPlan:
        lease = await self._cluster.api.get(f"{LEASES}/{PLAN}")
        return decode_plan(lease["metadata"]["annotations"][ANNOTATION])

    async def is_settled(self) -> bool:
        """Whether the port is in no transition."""
        return self._key not in (await self.plan()).ports

    async def sends(self) -> set[Send]:
        """Return what clients of the port may send, according to the plan."""
        _, clients = (await self.plan()).ports[self._key]
        return set(clients.possible)

    async def is_lagging(self, clients: list[set[str]]) -> bool:
        """Return whether these are the clients that reports list as lagging."""
        lagging = [set(report.clients.named) for report in await self.reports()]
        return [names for names in lagging if names] == clients

    async def until_all_were_renewed(self) -> None:
        before = {name: lease["spec"]["renewTime"] for name, lease in (await self.leases()).items()}

        async def renewed() -> bool:
            now = await self.leases()
            return all(now[name]["spec"]["renewTime"] != stamp for name, stamp in before.items())

        await eventually(renewed, timeout=PATIENCE, every=0.2, what="all Leases were renewed")


async def set_mode(cluster: Cluster, namespace: str, mode: str) -> None:
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": mode}},
    }
    path = POLICIES.format(namespace)
    await cluster.api.patch(
        f"{path}/default", body, kind="application/apply-patch+yaml", fieldManager="test", force=True
    )


async def until(what: Any, message: str) -> None:
    await eventually(what, timeout=PATIENCE, every=0.05, what=message)


@pytest.mark.timeout(400)
async def test_strict_waits_for_clients_of_a_live_replica(
    controllers: None, own_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = own_cluster
    await crds.install(cluster.api)
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": HOME}})
    kubeconfig = await cluster.kubeconfig()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    how = ("--rollout-timeout=600",)
    async with (
        cluster.namespace() as namespace,
        Serving(kubeconfig, folders[0], *how) as a,
        Serving(kubeconfig, folders[1], *how) as b,
    ):
        await set_mode(cluster, namespace, "DISABLE")
        shop = Shop(cluster, namespace)
        await shop.open()
        await shop.add(1)
        await shop.add(102, app="client")
        for serving in (a, b):
            await serving.until_ready()
        shared, at = Shared(cluster, namespace), address(1)
        server = Proxy(cluster, namespace, 1, "web")
        near, far = (Proxy(cluster, namespace, number, "client") for number in (101, 102))
        async with server.at(a), near.at(a), far.at(b):
            await until(
                lambda: (
                    (server.mode, near.sends, far.sends)
                    == (Mode.DISABLE, {at: Send.PLAINTEXT}, {at: Send.PLAINTEXT})
                ),
                "all is plaintext",
            )
            replicas = set(await shared.leases())
            assert len(replicas) == 2
            assert (await shared.plan()).members == replicas
            assert await shared.is_settled()

            # The other replica's client is slow, so the server still accepts plaintext.
            far.hold(ENDPOINT)
            await set_mode(cluster, namespace, "STRICT")
            await until(lambda: server.mode is Mode.PERMISSIVE, "the server accepts both")
            await until(lambda: near.sends == {at: Send.MTLS}, "the near client sends mutual TLS")
            await far.wait_for(lambda: far.held(ENDPOINT))
            await shared.until_all_were_renewed()
            assert await shared.sends() == {Send.PLAINTEXT, Send.MTLS}
            late = [{f"client-102.{namespace}"}]
            await eventually(lambda: shared.is_lagging(late), timeout=PATIENCE, what="only one client lags")
            assert (server.mode, far.sends) == (Mode.PERMISSIVE, {at: Send.PLAINTEXT})
            await far.release(ENDPOINT)
            await until(lambda: server.mode is Mode.STRICT, "the server accepts only mutual TLS")
            assert far.sends == {at: Send.MTLS}
            await until(shared.is_settled, "the plan does not mention the port")

            # And back, while the other replica crashes before its client ACKs.
            far.hold(ENDPOINT)
            await set_mode(cluster, namespace, "DISABLE")
            await until(lambda: near.sends == {at: Send.PLAINTEXT}, "the near client sends plaintext")
            await far.wait_for(lambda: far.held(ENDPOINT))
            b._process.send_signal(signal.SIGKILL)
            await b._process.wait()
            assert server.mode is Mode.PERMISSIVE
            await until(
                lambda: server.mode is Mode.DISABLE, "the server does not wait for the crashed replica"
            )

            async def is_deleted() -> bool:
                return len(await shared.leases()) == 1

            await until(is_deleted, "its Lease is deleted")
        assert b"replica expired" in a.log.read_bytes()
