"""Make before break with a real Envoy: no change loses a request that should have been served."""

from __future__ import annotations

import os
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.support.changes import PATHS, Changes
from tests.support.envoy import Admin, EnvoyProcess, run_options
from tests.support.history import History
from tests.support.loopback import free_port
from tests.support.serving import OneWorld, Stream, serving
from tests.support.traffic import Connection, Target, Traffic
from tests.support.upstream import Upstream
from tests.support.waiting import eventually
from tests.support.world import Cluster, Listener, World
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, ENDPOINT
from xds.testing import bootstrap

pytestmark = pytest.mark.envoy

CHANGES = 300
WARM = 60.0
"""Time limit for a change on a busy machine, in seconds."""
DRAIN = 10
"""Seconds for which listeners drain: longer than any request takes on a slow machine."""


@dataclass
class Running:
    """A server, its Envoy, and the published worlds."""

    proxies: OneWorld
    history: History
    envoy: EnvoyProcess

    @property
    def admin(self) -> Admin:
        return self.envoy.admin

    @property
    def stream(self) -> Stream:
        """The only stream."""
        (stream,) = self.proxies.streams
        return stream

    def publish(self, world: World, what: str = "") -> None:
        self.history.publish(world, what)
        self.proxies.publish(world)

    async def settled(self) -> None:
        """Wait until the latest world is active, and nothing is warming."""
        await self.proxies.settled(WARM)
        await eventually(self._is_warm, timeout=WARM)
        self.history.settle()

    async def holds_only_its_world(self) -> None:
        """Wait until the Envoy has only the latest world."""
        world = self.history.world

        async def holds() -> bool:
            clusters = (await self.admin.json("/clusters?format=json"))["cluster_statuses"]
            listeners = (await self.admin.json("/listeners?format=json")).get("listener_statuses", ())
            assert {cluster["name"] for cluster in clusters} == {*world.clusters, "xds"}
            assert {listener["name"] for listener in listeners} == {*world.listeners}
            return True

        await eventually(holds, timeout=90)

    async def _is_warm(self) -> bool:
        return "cluster_manager.warming_clusters: 0" in await self.admin.get("/stats?filter=warming_clusters")


@asynccontextmanager
async def running(variant: Variant, world: World, directory, *, may_reject: bool = False):
    """Serve a world, and wait until the Envoy has all of it."""
    history = History(world)
    options = run_options(DRAIN)
    async with serving(world) as (proxies, port):
        config = bootstrap("envoy", port, variant=variant)
        async with EnvoyProcess("envoy", config, directory, options=options, may_reject=may_reject) as envoy:
            here = Running(proxies, history, envoy)
            await here.settled()
            yield here


def roots(count: int) -> list[str]:
    now = datetime.now(UTC)
    made = [Authority.create(PrivateKey.generate(), "cluster.local", now) for _ in range(count)]
    return [authority.certificate_pem.decode() for authority in made]


@pytest.mark.timeout(400)
async def test_r41_random_changes_lose_no_request(variant, tmp_path):
    seed = int(os.environ.get("XDS_TEST_SEED", "0"))
    described: list[str] = []
    slowest = 0.0
    async with AsyncExitStack() as stack:
        apps = [(await stack.enter_async_context(Upstream())).port for _ in range(4)]
        ports = [free_port() for _ in range(3)]
        rng = random.Random(seed)
        changes = Changes(rng, apps=apps, ports=ports, roots=roots(2))
        here = await stack.enter_async_context(running(variant, changes.world, tmp_path))
        traffic = Traffic(targets=[Target(port, path) for port in ports for path in PATHS])
        async with traffic:
            await traffic.more(20)
            while len(described) < CHANGES:
                began = time.monotonic()
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    described.append(changes.next())
                    here.publish(changes.world, described[-1])
                    await traffic.more(rng.randrange(4))
                await here.settled()
                slowest = max(slowest, time.monotonic() - began)
                await traffic.more(3)
        served = here.history.served(traffic.sent)
        faults = here.history.faults(traffic.sent)
        print(
            f"{seed=}: {len(described)} changes, {len(traffic.sent)} requests, {len(served)} to be served, "
            f"{slowest=:.3f}"
        )
        assert not faults, f"XDS_TEST_SEED={seed}: {len(faults)} of {len(served)}: \n" + "\n".join(faults[:9])
        assert len(served) > len(traffic.sent) / 2
        assert not here.stream.rejections
        assert not await here.admin.total(r"init_fetch_timeout$"), "Envoy waited 15 s for a missing resource"
        await here.holds_only_its_world()


async def test_o2_assignments_arrive_before_the_clusters_are_acked(variant, tmp_path):
    async with Upstream() as app, running(variant, World(), tmp_path) as here:
        here.publish(World().having(new=Cluster((app.port,), checked=True)))
        await here.settled()
        acked = [answer.type_url for answer in here.stream.answers if "new" in answer.names]
    assert acked == [ENDPOINT, CLUSTER]


async def test_r38_changed_cluster_gets_its_assignment_again(variant, tmp_path):
    async with Upstream() as app:
        before = World().having(one=Cluster((app.port,)), other=Cluster((app.port,)))
        async with running(variant, before, tmp_path) as here:
            stream = here.stream
            asked, start = stream.asked[ENDPOINT], len(stream.answers)
            here.publish(before.having(one=Cluster((app.port,), setting=1)))
            await here.settled()
            assigned = [answer.names for answer in stream.answers[start:] if answer.type_url == ENDPOINT]
            assert assigned == [("one",)]
            assert stream.asked[ENDPOINT] == asked
            assert await here.admin.stat("cluster.one.membership_total") == 1


async def test_o16_missing_assignment_does_not_delay_envoy(variant, tmp_path):
    async with Upstream() as app:
        port = free_port()
        listener = Listener(port, "r")
        before = World(listeners={"l": listener}).having(one=Cluster((app.port,))).routing("r", a="one")
        async with (
            running(variant, before, tmp_path) as here,
            Traffic(targets=[Target(port, "/a")]) as traffic,
        ):
            await traffic.more(5)
            here.publish(
                before.having(bare=Cluster(None), two=Cluster((app.port,)), one=None).routing("r", a="two")
            )
            await here.settled()
            await traffic.more(5)
            await traffic.stop()
            assert await here.admin.stat("cluster.bare.membership_total") == 0
            assert here.history.faults(traffic.sent) == []
            here.publish(here.history.world.having(bare=Cluster((app.port,))))
            await here.settled()
            assert await here.admin.stat("cluster.bare.membership_total") == 1


async def test_o6_empty_world_is_a_response(variant, tmp_path):
    async with running(variant, World(), tmp_path) as here:
        timeouts = await here.admin.stats(r"manager\.[cl]ds\.init_fetch_timeout$")
        assert list(timeouts.values()) == [0, 0], "Envoy waits 15 s for each type that is not answered"


@pytest.mark.parametrize("fault", ["unfit", "invalid"])
async def test_r12_rejected_cluster_is_sent_once_and_blocks_nothing(variant, fault, tmp_path):
    async with Upstream() as app, Upstream() as other:
        port = free_port()
        before = World(listeners={"l": Listener(port, "r")}).having(one=Cluster((app.port,)))
        before = before.routing("r", a="one", b="one")
        bad = before.having(bad=Cluster((app.port,), static=True, fault=fault))
        bad = bad.having(new=Cluster((other.port,))).routing("r", b="new")  # That goes on.
        async with (
            running(variant, before, tmp_path, may_reject=True) as here,
            Traffic(targets=[Target(port, "/a"), Target(port, "/b")]) as traffic,
        ):

            async def settled_but_for_the_bad_one() -> None:
                await here.proxies.until(lambda: here.proxies.lacking() == [["Cluster bad"]], WARM)
                here.history.settle()

            stream = here.stream
            here.publish(bad)
            await here.proxies.until(lambda: stream.rejections, WARM)
            await settled_but_for_the_bad_one()
            sent = stream.responses[CLUSTER]
            for apps in ((other.port,), (app.port, other.port), (app.port,)):
                here.publish(bad.having(one=Cluster(apps)))
                await settled_but_for_the_bad_one()
                await traffic.more(5)
            assert stream.responses[CLUSTER] == sent
            (rejection,) = stream.rejections
            assert [suspect.name for suspect in rejection.suspects] == ["bad"]
            here.publish(bad.having(bad=Cluster((app.port,), static=True)).routing("r", a="bad"))
            await here.settled()
            await traffic.more(5)
            await traffic.stop()
            assert here.history.faults(traffic.sent) == []
            assert await here.admin.stat("cluster_manager.cds.update_rejected") == 1


async def test_r41_draining_listener_keeps_its_clusters(variant, tmp_path):
    async with Upstream() as app:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")}).having(one=Cluster((app.port,)))
        async with running(variant, world.routing("r", a="one"), tmp_path) as here:
            connection = Connection(port)
            assert (await connection.ask("/a")).app == app.port
            here.publish(World())
            await here.settled()

            async def is_gone() -> bool:
                return not (await Connection(port).ask("/a")).code

            await eventually(is_gone, what="the listener is gone")
            last = await connection.ask("/a")
            assert (last.app, last.kept, connection.open) == (app.port, True, False)
            connection.close()
            await here.holds_only_its_world()
