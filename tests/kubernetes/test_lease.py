"""Leader election: at most one leader, always a successor, and no comparison of clocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.kubernetes.environment.cluster import Cluster
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.kube.lease import LEASE_NAME, Lease

DURATION = 1.5


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    async with cluster.namespace("lease") as name:
        yield name


async def until_held(*leases: Lease) -> Lease:
    (holder,) = await eventually(
        lambda: [lease for lease in leases if lease.held], timeout=60, what="one of them leads"
    )
    assert isinstance(holder, Lease)
    return holder


async def spec(cluster: Cluster, namespace: str) -> dict[str, Any]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE_NAME}"
    return (await cluster.api.get(path))["spec"]


def lease(cluster: Cluster, namespace: str, identity: str, duration: float = DURATION) -> Lease:
    return Lease(cluster.api, namespace, identity, duration=duration)


async def test_one_candidate_leads_and_releases_the_lease(cluster: Cluster, namespace: str) -> None:
    claims = [lease(cluster, namespace, name, 60) for name in "abc"]
    async with background(claims[0].run()) as first, background(claims[1].run()), background(claims[2].run()):
        holder = await until_held(*claims)
        others = [claim for claim in claims if claim is not holder]
        identity = (await spec(cluster, namespace))["holderIdentity"]
        assert identity == holder._identity
    assert first.done()
    found = await spec(cluster, namespace)
    assert found.get("holderIdentity", "") == ""
    assert not holder.held
    # Long before the lease duration of a minute ends.
    async with background(others[0].run()):
        assert await until_held(*others) is others[0]
        assert (await spec(cluster, namespace))["leaseTransitions"] >= 1


async def test_expired_lease_is_taken_over(cluster: Cluster, namespace: str) -> None:
    gone, next_ = lease(cluster, namespace, "gone"), lease(cluster, namespace, "next")
    await gone._try_to_hold()
    assert (await spec(cluster, namespace))["holderIdentity"] == "gone"
    async with background(next_.run()):
        assert await until_held(next_) is next_
        assert not gone.held
    assert (await spec(cluster, namespace))["leaseTransitions"] >= 1


async def test_timestamps_in_the_lease_are_ignored(cluster: Cluster, namespace: str) -> None:
    holder, other = lease(cluster, namespace, "holder", 60), lease(cluster, namespace, "other", 60)
    await holder._try_to_hold()
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE_NAME}"
    for stamp in ("2001-01-01T00:00:00.000000Z", "2101-01-01T00:00:00.000000Z"):
        await cluster.api.patch(path, {"spec": {"renewTime": stamp}})
        await other._try_to_hold()
        assert not other.held
    assert holder.held


async def test_renewed_lease_is_kept(cluster: Cluster, namespace: str) -> None:
    holder, other = lease(cluster, namespace, "holder", 60), lease(cluster, namespace, "other", 60)
    await holder._try_to_hold()
    for _ in range(3):
        await other._try_to_hold()
        assert other._observed is not None
        other._observed = (other._observed[0], float("-inf"))  # as if it had watched for ever
        await holder._try_to_hold()
        await other._try_to_hold()
        assert holder.held
        assert not other.held


async def test_disconnected_leader_stops_before_its_successor_starts(
    cluster: Cluster, namespace: str
) -> None:
    holder = lease(cluster, namespace, "holder")
    await holder._try_to_hold()
    began = asyncio.get_running_loop().time()
    assert holder._held_until < began + DURATION
    nobody = await cluster.connect("nobody")
    async with nobody:
        holder._api = nobody
        with capture_logs() as logs:
            await holder._try_to_hold()
            await holder._try_to_hold()
    assert [entry["event"] for entry in logs] == ["cannot renew the leader Lease"]
    assert "leases" in logs[0]["problem"]
    await eventually(lambda: not holder.held, timeout=30)


async def test_concurrent_candidates_do_not_both_lead(cluster: Cluster, namespace: str) -> None:
    claims = [lease(cluster, namespace, f"replica-{number}", 60) for number in range(8)]
    await asyncio.gather(*(claim._try_to_hold() for claim in claims))
    assert sum(claim.held for claim in claims) == 1
