"""`Store.applied` with a real Envoy."""

from __future__ import annotations

import pytest

from tests.support.clients import Client
from tests.support.loopback import free_port
from tests.support.upstream import Upstream
from tests.support.world import Cluster, Listener, World
from xds.resources import CLUSTER, ROUTE
from xds.store import NackError

pytestmark = pytest.mark.envoy


async def test_when_a_change_is_applied_requests_follow_it(variant, xds_store, real_envoy):
    """Add a cluster with an assignment, move the routes to it, and remove the old one, ten times."""
    async with Upstream() as even, Upstream() as odd:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")})
        xds_store.replace([])
        await real_envoy("edge-1", variant=variant)
        for number in range(10):
            app = odd if number % 2 else even
            name = f"c{number}"
            xds_store.replace(
                world.having(**{name: Cluster((app.port,))}).routing("r", a=name).resources(), group="tests"
            )
            await xds_store.applied(group="tests", at_least=1)
            answer = await Client().get(f"http://127.0.0.1:{port}/a")
            assert (answer.code, answer.text) == ("200", str(app.port))
        (client,) = xds_store.clients
        assert (client.node.id, client.node.cluster) == ("edge-1", "tests")


async def test_node_scope_overrides_all_nodes(variant, xds_store, real_envoy):
    async with Upstream() as all_get, Upstream() as one_gets:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")}).having(
            wide=Cluster((all_get.port,)), narrow=Cluster((one_gets.port,))
        )
        client = Client()
        xds_store.set(*world.routing("r", a="wide").resources())
        routes = [one for one in world.routing("r", a="narrow").resources() if one.type_url == ROUTE]
        await real_envoy("edge-1", variant=variant)
        for scope, app in (("someone-else", all_get), ("edge-1", one_gets)):
            xds_store.set(*routes, node=scope)
            await xds_store.applied(at_least=1)
            assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
        xds_store.remove(ROUTE, "r", node="edge-1")
        await xds_store.applied(at_least=1)
        assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(all_get.port)


@pytest.mark.parametrize(
    ("fault", "words"), [("invalid", "ConnectTimeout"), ("unfit", "did not provide one")]
)
async def test_envoys_rejection_is_raised_with_its_message(variant, fault, words, xds_store, real_envoy):
    async with Upstream() as app:
        port = free_port()
        world = (
            World(listeners={"l": Listener(port, "r")})
            .having(good=Cluster((app.port,)))
            .routing("r", a="good")
        )
        client = Client()
        xds_store.replace(world.resources())
        await real_envoy("edge-1", variant=variant, may_reject=True)
        await xds_store.applied(at_least=1)
        xds_store.replace(world.having(bad=Cluster((app.port,), fault=fault)).resources())
        with pytest.raises(NackError, match=rf"(?s)edge-1 rejected Cluster bad: .*{words}") as raised:
            await xds_store.applied()
        assert (raised.value.type_url, raised.value.names) == (CLUSTER, ("bad",))
        assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
        xds_store.replace(world.having(bad=Cluster((app.port,))).routing("r", a="bad").resources())
        await xds_store.applied()
        assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)


async def test_each_rejection_of_envoy_is_shown(variant, xds_store, real_envoy):
    """Envoy rejects a second cluster, and says nothing about the first one in the delta variant."""
    world = World(listeners={})
    xds_store.replace(world.resources())
    await real_envoy("edge-1", variant=variant, may_reject=True)
    await xds_store.applied(at_least=1)
    faults = {"invalid": "ConnectTimeout", "unfit": "did not provide one"}
    for fault in faults:
        world = world.having(**{fault: Cluster((1,), fault=fault)})
        xds_store.replace(world.resources())
        with pytest.raises(NackError) as raised:
            await xds_store.applied()
    assert raised.value.names == tuple(sorted(faults))
    for fault, words in faults.items():
        assert fault in str(raised.value)
        assert words in raised.value.message


async def test_label_is_in_the_version_that_envoy_shows(variant, xds_store, real_envoy):
    store, world = xds_store, World(listeners={})
    all_get, one_more = (
        [one for one in world.having(**{name: Cluster((1,))}).resources() if one.type_url == CLUSTER]
        for name in ("wide", "narrow")
    )

    async def version(envoy) -> str:
        await store.applied(at_least=1)
        (line,) = (await envoy.admin.get("/stats?filter=cds.version_text")).splitlines()
        return line.partition(": ")[2].strip('"')

    with store.change(label="v1.0") as change:
        change.set(*all_get)
    envoy = await real_envoy("edge-1", variant=variant)
    assert (await version(envoy)).partition("+")[2] == "v1.0"
    with store.change(label="canary") as change:
        change.set(*one_more, node="edge-1")
    assert (await version(envoy)).partition("+")[2] == "v1.0+canary"
    assert store.view("other").of(CLUSTER).version.endswith("+v1.0")
    store.remove(*one_more, node="edge-1")
    assert (await version(envoy)).partition("+")[2] == "v1.0"
    store.set(*one_more)
    assert "+" not in await version(envoy)
