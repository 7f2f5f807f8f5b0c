"""Replicas exchange reports by Leases, even if Leases are deleted or overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.support.waiting import eventually
from xds.mesh.kube.replica_leases import ANNOTATION, ReplicaLeases
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import PortReport
from xds.mesh.rollout.replica_sync import ReplicaSync

KEY = (Ref("Pod", "ns", "web"), 8080)
STAND = PortReport(in_transition=True, modes=frozenset({Mode.PERMISSIVE}), sends=frozenset({Send.MTLS}))


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    async with cluster.namespace("reports") as name:
        yield name


@asynccontextmanager
async def replica(cluster: Cluster, namespace: str, name: str) -> AsyncIterator[tuple[ReplicaSync, str]]:
    """Run a replica until it has read back its report; yield it and the path of its Lease."""
    exchange = ReplicaSync(duration=6.0)
    reports = ReplicaLeases(cluster.api, namespace, name, exchange, lambda: None)
    task = asyncio.create_task(reports.run())
    try:
        await until(lambda: exchange.is_synced, "it reads itself")
        yield exchange, f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{reports.name}"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(what: object, message: str) -> None:
    await eventually(what, timeout=60, every=0.05, what=message)


def heard_of(exchange: ReplicaSync) -> list[object]:
    view = exchange.peer_view(asyncio.get_running_loop().time())
    return [stands.get(KEY) for stands in view.peers.values() if stands is not None]


def is_known_by_all(exchange: ReplicaSync) -> bool:
    return exchange.peer_view(asyncio.get_running_loop().time()).knows_send(KEY, Send.MTLS)


async def test_reports_reach_the_peer(cluster: Cluster, namespace: str) -> None:
    async with (
        replica(cluster, namespace, "One_1") as (one, _),
        replica(cluster, namespace, "two_2") as (two, _),
    ):
        await until(lambda: (one.names, two.names) == ({"two-2"}, {"one-1"}), "they know of each other")
        assert heard_of(two) == [None]
        one.publish("", {KEY: STAND})
        await until(lambda: heard_of(two) == [STAND], "two hears it")
        await until(lambda: is_known_by_all(one), "one knows that two can know")


@pytest.mark.parametrize("deleted", [True, False])
async def test_foreign_write_or_deletion_of_a_lease_is_repaired(
    cluster: Cluster, namespace: str, deleted: bool
) -> None:
    async with (
        replica(cluster, namespace, "one") as (one, lease),
        replica(cluster, namespace, "two") as (two, _),
    ):
        if deleted:
            await cluster.api.delete(lease)
        else:
            await cluster.api.patch(lease, {"metadata": {"annotations": {ANNOTATION: "nonsense"}}})
            await until(lambda: heard_of(two) == [], "two hears nothing that it understands")
        one.publish("", {KEY: STAND})
        await until(lambda: heard_of(two) == [STAND], "two hears what one says")
        await until(lambda: is_known_by_all(one), "one knows that two can know")


async def test_dead_peer_and_its_lease_are_removed(cluster: Cluster, namespace: str) -> None:
    async with replica(cluster, namespace, "one") as (one, _):
        async with replica(cluster, namespace, "two") as (two, lease):
            two.publish("", {KEY: STAND})
            await until(lambda: heard_of(one) == [STAND], "one hears it")
        # It counts as a peer while its sidecars may still be reconnecting.
        assert heard_of(one) == [STAND]
        await until(lambda: not one.names, "it is forgotten")
        assert await cluster.api.find(lease) is None
