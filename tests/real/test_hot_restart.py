"""Hot restart: during the takeover, two Envoys have streams with the same node id, served independently."""

from __future__ import annotations

import pytest

from tests.support.history import History
from tests.support.hotrestart import HotRestart
from tests.support.loopback import free_port
from tests.support.serving import serving
from tests.support.traffic import Target, Traffic
from tests.support.upstream import Upstream
from tests.support.world import Cluster, Listener, World
from xds.protocol.session import Variant
from xds.testing import bootstrap

pytestmark = pytest.mark.envoy


@pytest.mark.parametrize("variant", Variant, ids=lambda variant: variant.value)
async def test_r51_streams_of_one_node_are_independent(variant, tmp_path):
    async with Upstream() as app, Upstream() as other:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")}).having(one=Cluster((app.port,)))
        history = History(world := world.routing("r", a="one", b="one"))

        async def change(world: World) -> None:
            history.publish(world)
            proxies.publish(world)
            await proxies.settled()
            history.settle()
            await traffic.more(10)

        async with (
            serving(world) as (proxies, xds),
            HotRestart(bootstrap("envoy", xds, variant=variant, admin_port=free_port()), tmp_path) as envoys,
            Traffic(targets=[Target(port, "/a"), Target(port, "/b")]) as traffic,
        ):
            old = await envoys.start()
            await proxies.settled()
            traffic.sent.clear()
            await traffic.more(20)

            new = await envoys.start()
            assert [stream.node for stream in proxies.open.values()] == ["envoy", "envoy"]
            world = world.having(two=Cluster((other.port,))).routing("r", a="two")
            await change(world)
            before, after = proxies.open.values()
            assert before.answers[-1].names == after.answers[-1].names == ("r",)

            assert await old.ended() == 0
            await proxies.until(lambda: list(proxies.open.values()) == [after])
            await change(world.having(one=Cluster((other.port,), setting=1)))
            assert await new.admin.stat("server.hot_restart_epoch") == 1
            await traffic.stop()
            assert history.faults(traffic.sent) == []
            assert len(history.served(traffic.sent)) > 100
