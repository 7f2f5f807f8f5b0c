"""`xds status --rollout` while real sidecars hang; the count of plaintext connections that STRICT closes."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

import pytest

from tests.support import manifests
from tests.support.clients import Client
from tests.support.controlplane import xds
from tests.support.local import LocalMesh
from tests.support.waiting import eventually
from xds.cli.rollout_output import FINISHED, NO_TRANSITIONS

pytestmark = pytest.mark.envoy

HTTP, TCP = 8080, 9000
CUT = "upstream_cx_destroy_local_with_active_rq"
OPEN = "still accepts plaintext"


async def test_hanging_sidecars_are_named_until_strict_is_reached(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client = mesh.pod("client", "ns")
        servers = [mesh.pod(f"web-{number}", "ns", labels={"app": "web"}) for number in (1, 2)]
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(manifests.peer_authentication("ns", "DISABLE"))
        await mesh.start(client, *servers)

        async def says(pattern: str) -> bool:
            output = await xds("status", "--rollout", f"--xds-address={mesh.plane.address}", may_be_no=True)
            assert re.match(pattern, output), output
            return True

        async def until(pattern: str) -> None:
            await eventually(lambda: says(pattern), what=pattern)

        await until(NO_TRANSITIONS)
        with mesh.sidecar(client).suspended():
            with mesh.sidecar(servers[0]).suspended():
                mesh.apply(manifests.peer_authentication("ns", "STRICT"))
                # The hanging server delays only its own transition.
                await until(
                    rf"web\.ns: 0/2 endpoints mTLS, web-1 waiting for its listener \([0-9ms]+; {OPEN}\), "
                    rf"web-2 waiting for client\.ns, web-1\.ns \([0-9ms]+; {OPEN}\)\n"
                )
            one, two = (rf"web-{number} waiting for client\.ns \([0-9ms]+; {OPEN}\)" for number in (1, 2))
            await until(rf"web\.ns: 0/2 endpoints mTLS, ({two}, {one}|{one}, {two})\n")
        await until(NO_TRANSITIONS)
        await mesh.settled()


async def test_sidecar_counts_connections_closed_by_strict(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh, AsyncExitStack() as stack:
        client, server = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(server, http=(HTTP,), lines=(TCP,))
        mesh.service("web", "ns", {"http": (80, HTTP), "tcp": (90, TCP)})
        await mesh.start(client, server)
        admin = mesh.sidecar(server).admin

        async def cut() -> dict[str, int]:
            stats = await admin.stats(rf"^cluster\.inbound\|\d+\|\|;?\.{CUT}$")
            return {name.split("|")[1]: count for name, count in stats.items()}

        # Connections that a peer closes are not counted.
        for ended in (client.client.tcp("web.ns", 90), Client().tcp(server.address, TCP)):
            async with ended as conversation:
                await conversation.ask("hello")
        assert (await Client().get(f"http://{server.address}:{HTTP}/headers")).code == "200"
        slow = [
            asyncio.create_task(who.get(f"http://{at}/slow?seconds=30", timeout=120))
            for who, at in (
                (client.client, "web:80"),
                *[(Client(), f"{server.address}:{HTTP}")] * 3,
            )
        ]
        plain = [await stack.enter_async_context(Client().tcp(server.address, TCP)) for _ in range(2)]
        encrypted = await stack.enter_async_context(client.client.tcp("web.ns", 90))
        for connection in (*plain, encrypted):
            await connection.ask("hello")

        async def all_ask() -> bool:
            return await admin.total(rf"^cluster\.inbound\|{HTTP}\|\|;?\.upstream_rq_active$") == len(slow)

        await eventually(all_ask)
        assert await cut() == {str(HTTP): 0, str(TCP): 0}
        mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        assert all([await connection.closed() for connection in plain])
        answers = await asyncio.gather(*slow)
        await mesh.drained()
        assert [answer.code for answer in answers] == ["200", "000", "000", "000"]
        assert await cut() == {str(HTTP): 3, str(TCP): 2}
        assert (await encrypted.ask("still here")).endswith(": still here")
        shown = await admin.get("/stats/prometheus")
        named = re.findall(
            rf'^envoy_cluster_{CUT}{{envoy_cluster_name="(inbound\|\d+\|\|;?)"}} (\d)$', shown, re.MULTILINE
        )
        assert {name.split("|")[1]: int(count) for name, count in named} == {str(HTTP): 3, str(TCP): 2}

        output = await xds("status", "--rollout", f"--xds-address={mesh.plane.address}")
        closed = "Ports that stopped accepting plaintext since the control plane started: 2."
        finished = r"web\.ns: 2 endpoints from PERMISSIVE to STRICT in .+, [0-9ms]+ ago"
        assert re.fullmatch(rf"{NO_TRANSITIONS}\n\n{FINISHED}\n{finished}\n\n{closed}\n", output)

        # The reverse: a server that changes to DISABLE closes encrypted connections.
        mesh.apply(manifests.peer_authentication("ns", "DISABLE"))
        assert await encrypted.closed()
        await mesh.drained()
        assert await cut() == {str(HTTP): 3, str(TCP): 3}
