"""Canaries and rollback with real Envoys under load."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.library.clients import roll_out
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.load import Load
from tests.support.loopback import free_port
from tests.support.upstream import Upstream
from tests.support.world import Cluster, Listener, World
from xds.server import XdsServer
from xds.store import NackError, Store
from xds.testing import bootstrap

pytestmark = [pytest.mark.envoy, pytest.mark.real]


async def test_a_change_that_a_canary_rejects_is_rolled_back_without_a_failed_request(tmp_path):
    """A change moves the requests to another application. Envoy rejects a part of it."""
    async with AsyncExitStack() as stack:
        old, new = [await stack.enter_async_context(Upstream()) for _ in range(2)]
        world = World().having(old=Cluster((old.port,))).routing("r", a="old")
        moved = world.having(new=Cluster((new.port,))).routing("r", a="new")
        store = Store(group=lambda node: node.id.partition("-")[0])
        store.set(*world.resources())
        server = await stack.enter_async_context(XdsServer(store, "127.0.0.1:0", grace=0.2))
        loads: dict[str, Load] = {}
        for name in ("canary-1", "edge-1", "edge-2"):
            port = free_port()
            store.set(*World(listeners={"l": Listener(port, "r")}).resources(), node=name)
            envoy = EnvoyProcess(
                name,
                bootstrap(name, server.port),
                tmp_path,
                may_reject=name == "canary-1",
            )
            await stack.enter_async_context(envoy)
            await store.applied(node=name, at_least=1)
            loads[name] = Load(client=Client(), url=f"http://127.0.0.1:{port}/a", connections=4)
        for load in loads.values():
            await stack.enter_async_context(load)
            await load.more(20)

        with pytest.raises(NackError, match="canary-1 rejected Cluster bad: "):
            await roll_out(store, *moved.having(bad=Cluster((new.port,), fault="unfit")).resources())
        await store.applied()
        for load in loads.values():
            answers = await load.more(20)
            assert {sent.answer.text for sent in answers} == {str(old.port)}
        assert all(sent.answer.text == str(old.port) for sent in loads["edge-1"].sent)

        await roll_out(store, *moved.resources())
        assert len(await store.applied()) == 3
        for load in loads.values():
            answers = await load.more(20)
            assert {sent.answer.text for sent in answers} == {str(new.port)}
            await load.stop()
            load.check()
