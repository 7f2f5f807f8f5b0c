"""`Store.applied` with a real Envoy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from tests.support.serving import bootstrap
from tests.support.upstream import Upstream
from tests.support.world import Cluster, Listener, World
from xds.protocol.session import Variant
from xds.resources import CLUSTER, LISTENER, ROUTE
from xds.server import XdsServer
from xds.store import NackError, Store, Subscribed

pytestmark = pytest.mark.envoy


@asynccontextmanager
async def asking(store: Store, variant: Variant, tmp_path, **options) -> AsyncIterator[EnvoyProcess]:
    """An Envoy, `edge-1` of cluster `tests`, that has subscribed to listeners."""
    server = XdsServer(store, "127.0.0.1:0", grace=0.2)
    await server.start()
    events = store.events()
    try:
        made = bootstrap("edge-1", variant, free_port(), server.port)
        async with EnvoyProcess("edge-1", made, tmp_path, **options) as envoy:
            async for client, event in events:
                if isinstance(event, Subscribed) and event.type_url == LISTENER:
                    assert (client.node.id, client.node.cluster) == ("edge-1", "tests")
                    break
            yield envoy
    finally:
        await server.stop()


async def test_when_a_change_is_applied_requests_follow_it(variant, tmp_path):
    """Add a cluster with an assignment, move the routes to it, and remove the old one, ten times."""
    async with Upstream() as even, Upstream() as odd:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")})
        store, client = Store(), Client()
        store.replace([])
        async with asking(store, variant, tmp_path):
            for number in range(10):
                app = odd if number % 2 else even
                name = f"c{number}"
                store.replace(
                    world.having(**{name: Cluster((app.port,))}).routing("r", a=name).resources(),
                    group="tests",
                )
                await store.applied(group="tests")
                answer = await client.get(f"http://127.0.0.1:{port}/a")
                assert (answer.code, answer.text) == ("200", str(app.port))


async def test_node_scope_overrides_all_nodes(variant, tmp_path):
    async with Upstream() as all_get, Upstream() as one_gets:
        port = free_port()
        world = World(listeners={"l": Listener(port, "r")}).having(
            wide=Cluster((all_get.port,)), narrow=Cluster((one_gets.port,))
        )
        store, client = Store(), Client()
        store.set(*world.routing("r", a="wide").resources())
        routes = [one for one in world.routing("r", a="narrow").resources() if one.type_url == ROUTE]
        async with asking(store, variant, tmp_path):
            for scope, app in (("someone-else", all_get), ("edge-1", one_gets)):
                store.set(*routes, node=scope)
                await store.applied()
                assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
            store.remove(ROUTE, "r", node="edge-1")
            await store.applied()
            assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(all_get.port)


@pytest.mark.parametrize(
    ("fault", "words"), [("invalid", "ConnectTimeout"), ("unfit", "did not provide one")]
)
async def test_envoys_rejection_is_raised_with_its_message(variant, fault, words, tmp_path):
    async with Upstream() as app:
        port = free_port()
        world = (
            World(listeners={"l": Listener(port, "r")})
            .having(good=Cluster((app.port,)))
            .routing("r", a="good")
        )
        store, client = Store(), Client()
        store.replace(world.resources())
        async with asking(store, variant, tmp_path, may_reject=True):
            await store.applied()
            store.replace(world.having(bad=Cluster((app.port,), fault=fault)).resources())
            with pytest.raises(NackError, match=rf"(?s)edge-1 rejected Cluster bad: .*{words}") as raised:
                await store.applied()
            assert (raised.value.type_url, raised.value.names) == (CLUSTER, ("bad",))
            assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
            store.replace(world.having(bad=Cluster((app.port,))).routing("r", a="bad").resources())
            await store.applied()
            assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)


async def test_label_is_in_the_version_that_envoy_shows(variant, tmp_path):
    store, world = Store(), World(listeners={})
    all_get, one_more = (
        [one for one in world.having(**{name: Cluster((1,))}).resources() if one.type_url == CLUSTER]
        for name in ("wide", "narrow")
    )

    async def version(envoy: EnvoyProcess) -> str:
        await store.applied()
        (line,) = (await envoy.admin.get("/stats?filter=cds.version_text")).splitlines()
        return line.partition(": ")[2].strip('"')

    with store.change(label="v1.0") as change:
        change.set(*all_get)
    async with asking(store, variant, tmp_path) as envoy:
        assert (await version(envoy)).partition("+")[2] == "v1.0"
        with store.change(label="canary") as change:
            change.set(*one_more, node="edge-1")
        assert (await version(envoy)).partition("+")[2] == "v1.0+canary"
        assert store.view("other").of(CLUSTER).version.endswith("+v1.0")
        store.remove(*one_more, node="edge-1")
        assert (await version(envoy)).partition("+")[2] == "v1.0"
        store.set(*one_more)
        assert "+" not in await version(envoy)
