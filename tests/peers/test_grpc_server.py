"""gRPC's own server: C code that is not ours asks for its listener by the address that it listens on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.peers.certificates import Authority
from tests.peers.meshless import SERVER_LISTENER, cluster, server_listener, world
from tests.peers.programs import DEADLINE, Caller, bootstrap, end, start
from tests.support.loopback import free_port
from xds.server import XdsServer
from xds.snapshot import LISTENER
from xds.store import Nacked, Store, Subscribed

CALLER = "spiffe://cluster.local/ns/test/sa/caller"
SERVER = "spiffe://cluster.local/ns/test/sa/server"


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A control plane, and a gRPC server that has asked for its listener."""

    store: Store
    xds_port: int
    port: int
    """Of the gRPC server."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def caller(
        self, *, target: str = "", certificates: dict[str, Any] | None = None
    ) -> AsyncIterator[Caller]:
        caller = await Caller.start("sync", self.xds_port, certificates, target=target)
        try:
            yield caller
        finally:
            await end(caller.process)


@asynccontextmanager
async def running(certificates: dict[str, Any] | None = None) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        store = Store()
        store.replace([])
        server = XdsServer(store, "127.0.0.1:0", grace=0.2)
        await server.start()
        stack.push_async_callback(server.stop)
        port = free_port()
        events = store.events()
        environment = bootstrap(server.port, "server", certificates)
        process = await start("xds_server.py", "inbound", port, **environment)
        stack.push_async_callback(end, process)
        async with asyncio.timeout(DEADLINE):
            asked = await anext(event async for _, event in events if isinstance(event, Subscribed))
        assert asked.names == {SERVER_LISTENER % f"127.0.0.1:{port}"}
        yield Mesh(store=store, xds_port=server.port, port=port)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def secure(authority) -> AsyncIterator[Mesh]:
    """A server that takes calls only from callers with a certificate."""
    async with running(authority.issue(SERVER)) as mesh:
        mesh.store.set(server_listener(mesh.port, tls=True), *world("a", mesh.port))
        yield mesh


async def test_server_serves_while_it_has_a_listener(mesh):
    async with mesh.caller(target=mesh.address) as caller:
        await caller.fails()
        mesh.store.set(server_listener(mesh.port))
        await caller.heals("inbound")
        assert {await caller.answer() for _ in range(10)} == {"inbound"}
        mesh.store.remove(LISTENER, server_listener(mesh.port).name)
        await caller.fails(after="inbound")
        mesh.store.set(server_listener(mesh.port))
        await caller.heals("inbound")


async def test_server_keeps_its_listener_after_a_rejection(mesh):
    mesh.store.set(server_listener(mesh.port))
    async with mesh.caller(target=mesh.address) as caller:
        await caller.heals("inbound")
        events = mesh.store.events()
        bad = server_listener(mesh.port)
        bad.use_original_dst = True
        mesh.store.set(bad)
        async with asyncio.timeout(DEADLINE):
            nacked = await anext(event async for _, event in events if isinstance(event, Nacked))
        assert "use_original_dst" in nacked.message
        assert [resource.name for resource in nacked.suspects] == [bad.name]
        assert {await caller.answer() for _ in range(10)} == {"inbound"}


async def test_proxyless_client_calls_proxyless_server(mesh):
    mesh.store.set(server_listener(mesh.port), *world("a", mesh.port))
    async with mesh.caller() as caller:
        assert (await caller.heals("inbound"))["caller"] == []


async def test_xds_configures_mutual_tls_on_both_ends(secure, authority):
    secure.store.set(cluster("a", tls=True, peer=SERVER))
    async with secure.caller(certificates=authority.issue(CALLER)) as caller:
        assert (await caller.heals("inbound"))["caller"] == [CALLER]


async def test_server_with_another_identity_is_not_called(secure, authority):
    secure.store.set(cluster("a", tls=True, peer=CALLER))
    async with secure.caller(certificates=authority.issue(CALLER)) as caller:
        await asyncio.wait_for(secure.store.applied(), DEADLINE)
        async with asyncio.timeout(DEADLINE):  # The server may not listen yet.
            while "SANs from certificate did not match" not in await caller.fails():
                pass
        secure.store.set(cluster("a", tls=True, peer=SERVER))
        assert (await caller.heals("inbound"))["caller"] == [CALLER]


async def test_plaintext_caller_is_refused(secure, authority):
    async with secure.caller(certificates=authority.issue(CALLER)) as caller:
        await caller.fails()
        secure.store.set(cluster("a", tls=True, peer=SERVER))
        assert (await caller.heals("inbound"))["caller"] == [CALLER]
