"""A control plane is killed under traffic, and another takes over: proxies reconnect without disruption."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.support.envoy import EnvoyProcess
from tests.support.history import History
from tests.support.instance import Instance
from tests.support.loopback import free_port
from tests.support.traffic import Target, Traffic
from tests.support.upstream import Upstream
from tests.support.waiting import eventually
from tests.support.world import Cluster, Listener, World
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.protocol.session import Variant
from xds.testing import bootstrap

pytestmark = pytest.mark.envoy

TYPES = ("Cluster", "ClusterLoadAssignment", "Secret", "Listener", "RouteConfiguration")
CONFIGURED = (
    r"^cluster_manager\.cluster_(added|modified|removed)$|\.membership_change$"
    r"|^listener_manager\.listener_(added|modified|removed|in_place_updated)$|\.config_reload$"
)
"""Envoy's counters of real configuration changes, such as `config_reload` of a route configuration."""
TAKEN = r"(cds|lds|rds\.r|^cluster\.(one|two|three))\.update_success$"
"""Envoy's timestamps of accepted responses, with or without changes."""


WARM = 12.0
"""Time limit in seconds, below the 15 that Envoy waits for a missing assignment."""


@dataclass
class Site:
    """Instances with the same world, an Envoy that may use any of them, and traffic through it."""

    instances: list[Instance]
    envoy: EnvoyProcess
    traffic: Traffic
    history: History
    apps: list[int]

    async def active(self) -> Instance:
        """Return the instance that the Envoy is connected to."""
        waits = [asyncio.create_task(instance.event("connected")) for instance in self.instances]
        done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        return self.instances[waits.index(done.pop())]

    def other_than(self, instance: Instance) -> Instance:
        (other,) = (candidate for candidate in self.instances if candidate is not instance)
        return other

    async def resumed(self, instance: Instance) -> None:
        """Wait until the Envoy has subscribed to everything at an instance as before at the other."""
        for name in TYPES:
            await instance.event("subscribed", type=name)

    async def counts(self, pattern: str = CONFIGURED) -> dict[str, int]:
        return await self.envoy.admin.stats(pattern)

    async def publish(self, instance: Instance, world: World, *, dies_before: str = "") -> None:
        self.history.publish(world)
        await instance.publish(world, dies_before=dies_before)

    async def is_warm(self) -> bool:
        return await self.envoy.admin.stat("cluster_manager.warming_clusters") == 0

    async def is_warming(self) -> bool:
        return await self.envoy.admin.stat("cluster_manager.warming_clusters") == 1

    async def check(self) -> None:
        """Stop the traffic, and assert that no request failed."""
        await self.traffic.more(10)
        await self.traffic.stop()
        assert self.history.faults(self.traffic.sent) == []
        assert len(self.history.served(self.traffic.sent)) >= 30
        assert await self.is_warm()


@asynccontextmanager
async def site(variant: Variant, directory, *, instances: int = 1):
    async with AsyncExitStack() as stack:
        apps = [(await stack.enter_async_context(Upstream())).port for _ in range(2)]
        port = free_port()
        world = World(
            clusters={
                "one": Cluster((apps[0],)),
                "two": Cluster((apps[0],), checked=True),
                "three": Cluster(tuple(apps), secured=True),
                "fixed": Cluster((apps[1],), static=True),
            },
            listeners={"l": Listener(port, "r")},
            roots=certificate(),
        ).routing("r", a="one", b="two", c="three", d="fixed")
        running = [
            await stack.enter_async_context(Instance(f"instance-{number}", world, directory))
            for number in range(instances)
        ]
        config = bootstrap("envoy", *(instance.port for instance in running), variant=variant)
        envoy = await stack.enter_async_context(EnvoyProcess("envoy", config, directory))
        traffic = Traffic(targets=[Target(port, f"/{path}") for path in "abcd"], workers=4, pause=0.05)
        async with traffic:
            made = Site(running, envoy, traffic, History(world), apps)
            active = await made.active()
            for name in TYPES:
                await active.event("acked", type=name)
            await traffic.more(20)
            made.history.settle()
            traffic.sent.clear()
            yield made


def certificate() -> str:
    made = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
    return made.certificate_pem.decode()


async def kill(site: Site, instance: Instance) -> None:
    """Kill an instance under traffic, and verify that the Envoy keeps serving."""
    await instance.kill()
    await site.traffic.more(20)


async def test_r36_reconnected_delta_client_gets_only_changes(tmp_path):
    async with site(Variant.DELTA, tmp_path) as here:
        (instance,) = here.instances
        before, taken = await here.counts(), await here.counts(TAKEN)
        await kill(here, instance)
        await instance.start()
        await here.resumed(instance)
        # An unsolicited response would precede the one for a later change.
        await here.publish(instance, instance.world.routing("r", e="one"))
        await instance.event("acked", type="RouteConfiguration")
        here.history.settle()
        assert instance.sent == {"Secret": 1, "RouteConfiguration": 1}
        moved = {name: count for name, count in (await here.counts()).items() if count != before[name]}
        assert moved == {"http.l.rds.r.config_reload": before["http.l.rds.r.config_reload"] + 1}
        news = {name for name, count in (await here.counts(TAKEN)).items() if count != taken[name]}
        assert news == {"http.l.rds.r.update_success"}
        await here.check()


async def test_r36_changes_during_an_outage_are_sent_on_reconnect(tmp_path):
    async with site(Variant.DELTA, tmp_path) as here:
        (instance,) = here.instances
        before = await here.counts()
        await kill(here, instance)
        world = here.history.world.routing("r", a="new").having(
            one=None, new=Cluster((here.apps[1],), checked=True), three=Cluster((here.apps[1],), secured=True)
        )
        here.history.publish(world)
        instance.world = world
        await instance.start()
        # The deleted cluster is removed after its routes.
        await instance.event("acked", type="Cluster", names=[], removed=["one"])
        assert instance.sent == {
            "Cluster": 2,
            "ClusterLoadAssignment": 2,
            "Secret": 1,
            "RouteConfiguration": 1,
        }
        here.history.settle()
        after = await here.counts()
        moved = {name: count - before.get(name, 0) for name, count in after.items()}
        assert {name for name, count in moved.items() if count} == {
            "cluster_manager.cluster_added",
            "cluster_manager.cluster_removed",
            "cluster_manager.cds.config_reload",
            "cluster.new.membership_change",
            "cluster.three.membership_change",
            "http.l.rds.r.config_reload",
        }
        await here.check()


async def test_r36_equal_instance_sends_a_delta_client_nothing(tmp_path):
    async with site(Variant.DELTA, tmp_path, instances=2) as here:
        first = await here.active()
        second = here.other_than(first)
        assert not second.sent
        before = await here.counts()
        await kill(here, first)
        await here.resumed(second)
        await here.publish(second, second.world.routing("r", e="one"))
        await second.event("acked", type="RouteConfiguration")
        here.history.settle()
        assert second.sent == {"Secret": 1, "RouteConfiguration": 1}
        moved = {name for name, count in (await here.counts()).items() if count != before[name]}
        assert moved == {"http.l.rds.r.config_reload"}
        await here.check()


@pytest.mark.parametrize("instances", [1, 2], ids=["started-again", "another"])
async def test_r35_reconnected_sotw_client_changes_nothing(instances, tmp_path):
    async with site(Variant.SOTW, tmp_path, instances=instances) as here:
        first = await here.active()
        before, taken = await here.counts(), await here.counts(TAKEN)
        await kill(here, first)
        if instances == 1:
            await first.start()
        successor = await here.active() if instances == 1 else here.other_than(first)
        for name in TYPES:
            await successor.event("acked", type=name)
        everything = {
            "Cluster": 4,
            "ClusterLoadAssignment": 3,
            "Secret": 1,
            "Listener": 1,
            "RouteConfiguration": 1,
        }
        assert successor.sent == everything
        assert await here.counts() == before
        still = {name: count for name, count in (await here.counts(TAKEN)).items() if count == taken[name]}
        assert still == {}
        await here.publish(successor, here.history.world.routing("r", a="fixed"))
        await successor.event("acked", type="RouteConfiguration", times=2)
        here.history.settle()
        assert successor.sent == {**everything, "RouteConfiguration": 2}
        await here.check()


async def test_r38_warming_cluster_gets_its_assignment_after_a_crash(variant, tmp_path):
    async with site(variant, tmp_path) as here:
        (instance,) = here.instances
        world = here.history.world.having(one=Cluster((here.apps[0],), setting=1))
        await here.publish(instance, world, dies_before="ClusterLoadAssignment")
        await instance.died()
        await eventually(here.is_warming, what="the cluster waits for its assignment")
        await instance.start()
        await instance.event("connected")
        await eventually(here.is_warm, timeout=WARM)
        await here.check()


async def test_r43_routes_wait_for_warming_clusters_after_a_crash(variant, tmp_path):
    async with site(variant, tmp_path) as here:
        (instance,) = here.instances
        world = here.history.world.having(one=Cluster((here.apps[0],), setting=1))
        await here.publish(instance, world, dies_before="ClusterLoadAssignment")
        await instance.died()
        world = world.having(new=Cluster((here.apps[1],), checked=True)).routing("r", a="new")
        here.history.publish(world)
        instance.world = world
        await instance.start()
        await instance.event("acked", type="RouteConfiguration")
        here.history.settle()
        await here.check()
