"""Sidecars are connected to different replicas, and each replica shows the traffic of all of them."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.installing import SYSTEM, install, run
from tests.kubernetes.serving import PATIENCE, Serving
from tests.kubernetes.shop import Shop, address
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOAD_SERVICE, LOG_SERVICE
from xds.mesh.observe.report_reader import ACCESS_LOGS, LOAD_REPORT

LOAD, LOGS = f"/{LOAD_SERVICE}/StreamLoadStats", f"/{LOG_SERVICE}/StreamAccessLogs"
ACCOUNT = f"{SYSTEM}/xds"
_LISTED = ("client", "service", "mode", "requestsPerDay")


class Reporter:
    """The sidecar of a pod, which reports to one replica."""

    def __init__(self, channel: grpc.aio.Channel, node: str) -> None:
        self._channel, self._node = channel, node

    async def load(self, service: str, *, mtls: int = 0, plaintext: int = 0) -> None:
        """Report requests to port 80 of a service."""
        message: Any = message_class(LOAD_REPORT)()
        message.node.id = self._node
        stats = message.cluster_stats.add(cluster_name=service)
        for sub_zone, count in (("istio", mtls), ("", plaintext)):
            if count:
                locality = stats.upstream_locality_stats.add(total_issued_requests=count)
                locality.locality.sub_zone = sub_zone
        await self._send(LOAD, message)

    async def plaintext_from(self, peer: str, count: int) -> None:
        """Report plaintext connections that were received on port 8080."""
        message: Any = message_class(ACCESS_LOGS)()
        message.identifier.node.id = self._node
        for _ in range(count):
            common = message.tcp_logs.log_entry.add().common_properties
            common.downstream_direct_remote_address.socket_address.address = peer
            common.downstream_local_address.socket_address.port_value = 8080
            common.access_log_type = 6
        await self._send(LOGS, message)

    async def _send(self, method: str, message: Any) -> None:
        call = self._channel.stream_stream(method)(timeout=PATIENCE, wait_for_ready=True)
        await call.write(message.SerializeToString())
        await call.done_writing()
        async for _ in call:
            pass
        assert await call.code() is grpc.StatusCode.OK


@asynccontextmanager
async def sidecar(
    cluster: Cluster, serving: Serving, namespace: str, app: str, number: int
) -> AsyncIterator[Reporter]:
    """Connect a pod's sidecar to a replica, with the pod's token."""
    config_map = await cluster.until(
        f"/api/v1/namespaces/{namespace}/configmaps/xds-ca-root-cert",
        lambda config_map: bool(config_map["data"]["root-cert.pem"]),
    )
    pod = f"{app}-{number}"
    token = await cluster.token(namespace, "default", audience="xds-ca", pod=pod)
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(config_map["data"]["root-cert.pem"].encode()),
        grpc.access_token_call_credentials(token),
    )
    name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
    node = f"sidecar~{address(number)}~{pod}.{namespace}~{namespace}.svc.cluster.local"
    async with grpc.aio.secure_channel(serving.tls, credentials, [name]) as channel:
        yield Reporter(channel, node)


async def observed(serving: Serving) -> tuple[set[tuple[Any, ...]], dict[str, Any]]:
    """Run `xds observe`. Return client, service, mode and count of each edge, and the other fields."""
    status, output, error = await run("observe", "-o", "json", "--xds-address", serving.xds)
    assert status == 0, output + error
    document = json.loads(output)
    edges = {tuple(edge.get(name) for name in _LISTED) for edge in document.pop("edges", ())}
    return edges, document


async def shows(serving: Serving, expected: set[tuple[Any, ...]]) -> bool:
    """Return whether a replica shows exactly these edges, and misses no replica."""
    edges, rest = await observed(serving)
    assert edges == expected
    assert not rest["mayBeOnOtherReplica"], rest
    return True


@pytest.mark.timeout(400)
async def test_replicas_show_the_traffic_of_all_sidecars(
    controllers: None, own_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = own_cluster
    await install(cluster)
    kubeconfig = await cluster.kubeconfig(ACCOUNT)

    def replica(name: str) -> Serving:
        (tmp_path / name).mkdir()
        return Serving(kubeconfig, tmp_path / name)

    async with cluster.namespace() as namespace, replica("a") as a, AsyncExitStack() as others:
        b = await others.enter_async_context(replica("b"))
        shop = Shop(cluster, namespace)
        await shop.open()
        await shop.add(1)
        await shop.add(102, app="client")
        for serving in (a, b):
            await serving.until_ready()

        def sidecar_at(serving: Serving, app: str, number: int) -> Any:
            return sidecar(cluster, serving, namespace, app, number)

        async with (
            sidecar_at(a, "client", 101) as near,
            sidecar_at(b, "client", 102) as far,
            sidecar_at(a, "web", 1) as server,
        ):
            await near.load(shop.service, mtls=5)
            await far.load(shop.service, mtls=7, plaintext=3)
            await server.plaintext_from(address(102), 4)
        expected = {("default", "web", "MTLS", "12"), ("default", "web", "PLAINTEXT", "4")}
        for serving in (a, b):
            await eventually(lambda: shows(serving, expected), timeout=PATIENCE, every=0.5)  # noqa: B023

        # What replicas have read from each other is not in their metrics.
        assert metric(await a.metrics(), namespace, "mtls") == 5
        assert metric(await b.metrics(), namespace, "mtls") == 7

        # A replica stops. Its history stays, also for a replica that starts later.
        await b.stop(signal.SIGTERM)
        c = await others.enter_async_context(replica("c"))
        await c.until_ready()
        for serving in (a, c):
            await eventually(lambda: shows(serving, expected), timeout=PATIENCE, every=0.5)  # noqa: B023

        # A replica that runs, but does not answer, is named.
        foreign = Serving(await cluster.kubeconfig(), tmp_path)
        async with foreign:
            await foreign.until_ready()
            await eventually(lambda: names_missing(foreign, "service account"), timeout=PATIENCE, every=0.5)
            edges, _ = await observed(a)
            assert edges == expected


async def names_missing(serving: Serving, reason: str) -> bool:
    """Return whether `xds observe` prints that the traffic of two replicas is missing, and why."""
    status, output, error = await run("observe", "--xds-address", serving.xds)
    assert status == 0, output + error
    notes = [line for line in error.splitlines() if "is missing" in line]
    assert len(notes) == 2, error
    assert all(reason in note for note in notes), error
    return True


def metric(text: str, namespace: str, mode: str) -> float:
    """Return the number of observed requests."""
    name = f'xds_observed_requests_total{{mode="{mode}",namespace="{namespace}"}}'
    values = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    if not values:
        name = f'xds_observed_requests_total{{namespace="{namespace}",mode="{mode}"}}'
        values = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(values[0])
