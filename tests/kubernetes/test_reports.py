"""Replicas share reports and one plan by Leases, even if Leases are deleted or overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.kube.replica_leases import ANNOTATION, LABEL, PLAN, PREFIX, ReplicaLeases, replica_name
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.observation import Ask, Generations, Report
from xds.mesh.rollout.plan import Plan, StoredPlan, Transition
from xds.mesh.rollout.reports import Reports
from xds.mesh.rollout.rollout import NextPlan
from xds.mesh.rollout.stages import Staged
from xds.mesh.rollout.sync import ReplicaSync

POD = Ref("Pod", "ns", "web")
KEY = (POD, 8080)
REPORT = Report(
    generation=7,
    servers=Generations({POD: 6}, 7),
    clients=Generations({"client.ns": 5}, 7),
    asks={KEY: Ask(Mode.PERMISSIVE, Send.MTLS, is_from_server=True)},
    unplanned_rules=frozenset({Ref("DestinationRule", "ns", "web")}),
)
TRANSITION = Transition(
    Staged(Mode.PERMISSIVE, 2, (Mode.DISABLE, Mode.PERMISSIVE)), Staged(Send.PLAINTEXT, 0, (Send.PLAINTEXT,))
)
PROPOSAL = NextPlan(Plan(2, {KEY: TRANSITION}))


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    async with cluster.namespace("reports") as name:
        yield name


@dataclass
class Replica:
    sync: ReplicaSync
    lease: str
    """The path of its Lease."""
    plan: str
    """The path of the Lease with the plan."""
    changes: int = 0
    """Number of times that something may have changed."""

    def changed(self) -> None:
        self.changes += 1

    def peers(self) -> list[Report]:
        return list(self.sync.reports.peers(asyncio.get_running_loop().time()).values())

    def propose(self, proposal: NextPlan) -> None:
        """Propose a plan that replaces the one that was read last."""
        self.sync.propose(self.sync.share(0.0).version, proposal)

    @property
    def members(self) -> set[str]:
        return set(self.sync.stored.members) if self.sync.stored else set()


@asynccontextmanager
async def replica(
    cluster: Cluster, namespace: str, name: str, *, leads: bool = False
) -> AsyncIterator[Replica]:
    """Run a replica, and wait until it has joined the plan and written its report."""
    sync = ReplicaSync(replica_name(name), lambda: leads, Reports(6.0))
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    this = Replica(sync, f"{path}/{PREFIX}{sync.name}", f"{path}/{PLAN}")
    leases = ReplicaLeases(cluster.api, namespace, sync, this.changed)
    async with background(leases.run()):
        await until(lambda: sync.has_joined, "it joins the plan")
        clock = asyncio.get_running_loop().time
        await until(lambda: not sync.reports.is_isolated(clock()), "it writes its report")
        yield this


async def until(check: Callable[[], object], message: str) -> None:
    await eventually(check, timeout=60, every=0.05, what=message)


async def test_reports_reach_the_peer(cluster: Cluster, namespace: str) -> None:
    async with (
        replica(cluster, namespace, "One_1") as one,
        replica(cluster, namespace, "two_2") as two,
    ):
        await until(
            lambda: one.sync.reports.names == {"two-2"} and two.sync.reports.names == {"one-1"},
            "they read reports",
        )
        await until(lambda: one.members == two.members == {"one-1", "two-2"}, "both are members of the plan")
        one.sync.publish(REPORT)
        before = two.changes
        await until(lambda: two.peers() == [REPORT], "two reads it")
        assert two.changes > before


async def test_new_replicas_join_the_plan_at_the_same_time(cluster: Cluster, namespace: str) -> None:
    """None removes another one from the members."""
    names = {f"replica-{number}" for number in range(5)}
    async with asyncio.TaskGroup() as tasks:
        all_joined = asyncio.Barrier(len(names))

        async def run(name: str) -> None:
            async with replica(cluster, namespace, name) as this:
                await all_joined.wait()
                await until(lambda: this.members == names, "all are members")
                await all_joined.wait()

        for name in names:
            tasks.create_task(run(name))


async def test_plan_of_the_leader_reaches_the_peer(cluster: Cluster, namespace: str) -> None:
    async with (
        replica(cluster, namespace, "one", leads=True) as one,
        replica(cluster, namespace, "two") as two,
    ):
        await until(lambda: one.members == {"one", "two"}, "the leader reads that both joined")
        two.propose(PROPOSAL)  # It does not lead.
        one.propose(PROPOSAL)
        stored = PROPOSAL.plan.stored({"one", "two"})
        await until(lambda: one.sync.stored_proposal is PROPOSAL, "the API server has stored it")
        await until(lambda: one.sync.stored == two.sync.stored == stored, "both read it")
        assert two.sync.stored_proposal is None

        # Somebody who reads it later gets all of it.
        async with replica(cluster, namespace, "three") as three:
            assert three.sync.stored == stored._replace(members=frozenset({"one", "two", "three"}))


async def test_only_one_of_two_leaders_stores_its_plan(cluster: Cluster, namespace: str) -> None:
    other = NextPlan(Plan(3, {(POD, 9090): TRANSITION}))
    async with (
        replica(cluster, namespace, "one", leads=True) as one,
        replica(cluster, namespace, "two", leads=True) as two,
    ):
        await until(lambda: one.members == two.members == {"one", "two"}, "both read the same")
        one.propose(PROPOSAL)
        two.propose(other)
        await until(lambda: one.sync.stored_proposal or two.sync.stored_proposal, "one plan is stored")
        [winner] = [each.sync.stored_proposal for each in (one, two) if each.sync.stored_proposal]
        stored = winner.plan.stored({"one", "two"})
        await until(lambda: one.sync.stored == two.sync.stored == stored, "both read it")

        # The other one does not store a plan that it made before it read this one.
        one.sync.publish(REPORT)
        two.sync.publish(REPORT)
        await until(lambda: one.peers() == two.peers() == [REPORT], "both go on")
        assert one.sync.stored == two.sync.stored == stored


@pytest.mark.parametrize("deleted", [True, False])
async def test_foreign_write_or_deletion_of_a_report_is_repaired(
    cluster: Cluster, namespace: str, deleted: bool
) -> None:
    async with (
        replica(cluster, namespace, "one") as one,
        replica(cluster, namespace, "two") as two,
    ):
        one.sync.publish(REPORT)
        await until(lambda: two.peers() == [REPORT], "two reads what one writes")
        if deleted:
            await cluster.api.delete(one.lease)
        else:
            await cluster.api.patch(one.lease, {"metadata": {"annotations": {ANNOTATION: "nonsense"}}})
            await until(
                lambda: two.peers() == [Report().without_progress()], "two reads nothing that it understands"
            )
        one.sync.publish(Report(generation=8))
        await until(lambda: two.peers() == [Report(generation=8)], "two reads what one writes")


@pytest.mark.parametrize("deleted", [True, False])
async def test_all_replicas_join_again_if_the_plan_is_deleted_or_overwritten(
    cluster: Cluster, namespace: str, deleted: bool
) -> None:
    async with (
        replica(cluster, namespace, "one", leads=True) as one,
        replica(cluster, namespace, "two") as two,
    ):
        await until(lambda: one.members == {"one", "two"}, "both are members")
        one.propose(PROPOSAL)
        await until(lambda: two.sync.stored == PROPOSAL.plan.stored({"one", "two"}), "two reads the plan")
        before = await cluster.api.get(one.plan)
        if deleted:
            await cluster.api.delete(one.plan)
        else:
            await cluster.api.patch(one.plan, {"metadata": {"annotations": {ANNOTATION: "nonsense"}}})
        empty = StoredPlan(members=frozenset({"one", "two"}))
        await until(lambda: one.sync.stored == two.sync.stored == empty, "both join an empty plan")
        one.propose(PROPOSAL)
        await until(lambda: two.sync.stored == PROPOSAL.plan.stored({"one", "two"}), "two reads the plan")
        after = await cluster.api.get(one.plan)
        assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
        assert after["metadata"]["labels"] == {LABEL: "true"}


async def test_expired_peer_and_its_lease_are_removed(cluster: Cluster, namespace: str) -> None:
    async with replica(cluster, namespace, "one", leads=True) as one:
        async with replica(cluster, namespace, "two") as two:
            two.sync.publish(REPORT)
            await until(lambda: one.peers() == [REPORT], "one reads it")
        # It counts while its sidecars may still be reconnecting.
        assert one.peers() == [REPORT]
        await until(lambda: not one.peers(), "its report expires")
        await until(lambda: not one.sync.reports.names, "it is forgotten")
        assert await cluster.api.find(two.lease) is None
        # The next plan does not consider it.
        one.propose(PROPOSAL)
        await until(lambda: one.sync.stored == PROPOSAL.plan.stored({"one"}), "its plan is stored")


async def test_member_that_crashed_before_it_reported_is_forgotten(cluster: Cluster, namespace: str) -> None:
    """The leader waits for it as long as for any other replica."""
    async with replica(cluster, namespace, "one", leads=True) as one:
        stored = await cluster.api.get(one.plan)
        joined = stored["metadata"]["annotations"][ANNOTATION].replace('["one"]', '["one","two"]')
        await cluster.api.patch(one.plan, {"metadata": {"annotations": {ANNOTATION: joined}}})
        await until(lambda: one.members == {"one", "two"}, "one reads that two has joined")
        assert one.peers() == [Report().without_progress()]
        assert not one.sync.reports.names
        await until(lambda: not one.peers(), "it is forgotten")
        one.propose(PROPOSAL)
        await until(lambda: one.sync.stored == PROPOSAL.plan.stored({"one"}), "its plan is stored")
        assert not one.peers()


async def test_replica_that_was_taken_for_dead_comes_back(cluster: Cluster, namespace: str) -> None:
    """Its Lease is deleted, and it is no member of the next plan, until it writes again."""
    async with replica(cluster, namespace, "one", leads=True) as one:
        sync = ReplicaSync("two", lambda: False, Reports(6.0))
        leases = ReplicaLeases(cluster.api, namespace, sync, lambda: None)
        async with background(leases.run()):
            await until(lambda: "two" in one.sync.reports.names and "two" in one.members, "one knows of two")
        # It hangs.
        await until(lambda: not one.sync.reports.names, "it is forgotten")
        one.propose(PROPOSAL)
        await until(lambda: one.sync.stored == PROPOSAL.plan.stored({"one"}), "a plan without it is stored")
        async with background(leases.run()):
            await until(lambda: one.sync.stored == PROPOSAL.plan.stored({"one", "two"}), "it joins again")
            await until(lambda: one.sync.reports.names == {"two"}, "its report is read again")
            assert sync.has_joined
