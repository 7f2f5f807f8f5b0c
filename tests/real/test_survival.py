"""What goes on while something changes: no request is lost, and what may stay open stays open.

Of clients and servers there are two each, one that speaks state-of-the-world xDS and one that speaks delta.
"""

from __future__ import annotations

import asyncio
import stat
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support import controlplane, manifests
from tests.support.apps import PIECES_PER_SECOND
from tests.support.clients import Client
from tests.support.load import Load, Sent
from tests.support.local import RECONNECTED, LocalMesh, LocalPod
from tests.support.waiting import eventually

pytestmark = pytest.mark.envoy

HTTP, TCP = 8080, 9000
URL = "http://web:80/headers"
CLUSTER = "outbound|80||web.ns.svc.cluster.local"

SHORT_LIVED = """#!{python}
from datetime import timedelta
from xds.cli import main
from xds.mesh.controlplane.controller import Controller
Controller.__init__.__kwdefaults__["lifetime"] = timedelta(seconds={seconds})
main()
"""


class Pods:
    """Two clients under load, and their two servers."""

    def __init__(self, mesh: LocalMesh, stack: AsyncExitStack) -> None:
        self.mesh = mesh
        self._stack = stack
        self.clients = [mesh.pod(f"client-{variant}", "ns") for variant in ("sotw", "delta")]
        self.servers = [
            mesh.pod(f"web-{variant}", "ns", labels={"app": "web"}) for variant in ("sotw", "delta")
        ]
        self.loads: list[Load] = []

    async def start(self) -> None:
        for server in self.servers:
            await self.mesh.serve(server, http=(HTTP,), lines=(TCP,))
        self.mesh.service("web", "ns", {"http": (80, HTTP), "tcp": (90, TCP)})
        for sotw, *pods in zip((True, False), self.clients, self.servers, strict=True):
            self.mesh.sotw = sotw
            await self.mesh.start(*pods)

    async def load(self) -> None:
        for client in self.clients:
            load = Load(client=client.client, url=URL, connections=4)
            self.loads.append(await self._stack.enter_async_context(load))

    async def more(self, count: int = 50) -> list[Sent]:
        batches = await asyncio.gather(*(load.more(count) for load in self.loads))
        return [sent for batch in batches for sent in batch]

    async def stop(self) -> list[Sent]:
        """Stop the load, and assert that no request failed."""
        for load in self.loads:
            await load.stop()
            load.check()
        return [sent for load in self.loads for sent in load.sent]

    async def serials(self, pod: LocalPod) -> frozenset[str]:
        """Return the serial numbers of a sidecar's current certificates."""
        shown = (await self.mesh.sidecar(pod).admin.json("/certs"))["certificates"]
        return frozenset(cert["serial_number"] for item in shown for cert in item.get("cert_chain", ()))


@asynccontextmanager
async def running(loopback, directory):
    async with LocalMesh(loopback, directory) as mesh, AsyncExitStack() as stack:
        pods = Pods(mesh, stack)
        await pods.start()
        yield pods


def is_mtls(sent: Sent) -> bool:
    return bool(sent.answer.identity)


@pytest.mark.timeout(300)
async def test_certificate_renewal_loses_no_request(loopback, tmp_path, monkeypatch):
    command = tmp_path / "xds"
    command.write_text(SHORT_LIVED.format(python=sys.executable, seconds=20))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(controlplane, "XDS", str(command))

    async with running(loopback, tmp_path) as pods:
        everybody = [*pods.clients, *pods.servers]
        seen = {pod.full_name: {await pods.serials(pod)} for pod in everybody}
        await pods.load()
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(pod.client.tcp("web.ns", 90))
                for pod in (*pods.clients, *pods.clients)
            ]

            async def renewed() -> bool:
                # Each tunnel is a new connection, whose handshake uses the current certificates.
                for pod in pods.clients:
                    async with pod.client.tcp("web.ns", 90) as conversation:
                        assert (await conversation.ask("hello")).endswith(": hello")
                for pod in everybody:
                    seen[pod.full_name].add(await pods.serials(pod))
                return min(map(len, seen.values())) >= 4

            await eventually(renewed, timeout=100, every=0.05)
            assert all([(await item.ask("still here")).endswith(": still here") for item in opened])
        sent = await pods.stop()

    assert all(map(is_mtls, sent))
    print(f"{len(sent)} requests, {[len(item) - 1 for item in seen.values()]} renewals")


@pytest.mark.timeout(300)
async def test_traffic_continues_without_the_control_plane(loopback, tmp_path):
    async with running(loopback, tmp_path) as pods:
        await pods.load()
        await pods.more()
        for how in ("SIGTERM", "SIGKILL"):
            if how == "SIGKILL":
                pods.mesh.plane._process.kill()
            await pods.mesh.plane.stop()
            for sidecar in pods.mesh.sidecars.values():
                await eventually(lambda at=sidecar.admin: is_stat(at, "control_plane.connected_state", 0))
            await pods.more()

            strict = manifests.peer_authentication("ns", "STRICT")
            pods.mesh.apply(strict)
            restarted = time.monotonic()
            await pods.mesh.plane.start()
            await pods.mesh.settled(timeout=RECONNECTED)
            took = time.monotonic() - restarted
            await pods.more()
            pods.mesh.delete(strict)
            await pods.mesh.settled()
            await pods.more()
            print(f"{how}: all sidecars back {took:.1f} s after the start")
        sent = await pods.stop()

    assert all(map(is_mtls, sent))
    print(f"{len(sent)} requests")


async def is_stat(admin, name: str, value: int) -> bool:
    return await admin.stat(name) == value


@pytest.mark.timeout(300)
async def test_encrypted_connections_survive_mode_changes(loopback, tmp_path):
    seconds = 20
    strict = manifests.peer_authentication("ns", "STRICT")
    async with running(loopback, tmp_path) as pods:
        await pods.load()
        server = pods.servers[0]
        slow = [
            asyncio.create_task(pod.client.get(f"http://web:80/slow?seconds={seconds}", timeout=200))
            for pod in pods.clients * 3
        ]
        async with AsyncExitStack() as stack:
            encrypted = [
                await stack.enter_async_context(pod.client.tcp("web.ns", 90)) for pod in pods.clients * 3
            ]
            began, flips = time.monotonic(), 0
            while time.monotonic() < began + seconds:
                plain = await stack.enter_async_context(Client().tcp(server.address, TCP))
                assert await plain.ask("hello") == f"{server.full_name}: hello"
                pods.mesh.apply(strict)
                await pods.mesh.settled()
                # New plaintext connections are refused at once, existing ones closed after the drain time.
                assert (await Client().get(f"http://{server.address}:{HTTP}/headers")).code == "000"
                assert await plain.closed()
                await pods.mesh.drained()
                await pods.more()
                pods.mesh.delete(strict)
                await pods.mesh.settled()
                assert (await Client().get(f"http://{server.address}:{HTTP}/headers")).certificate == ""
                await pods.more()
                flips += 2
            for item in encrypted:
                assert (await item.ask("still here")).endswith(": still here")
            answers = await asyncio.gather(*slow)
        sent = await pods.stop()

    whole = "".join(f"{piece}\n" for piece in range(seconds * PIECES_PER_SECOND))
    assert [answer.text == whole for answer in answers] == [True] * len(slow), answers
    assert all(map(is_mtls, sent))
    print(f"{len(sent)} requests, {flips} flips")


async def test_requests_follow_the_sidecar_label_at_once(loopback, tmp_path):
    async with running(loopback, tmp_path) as pods:
        # One server, so that the change affects every kept connection.
        (server, other) = pods.servers
        pods.mesh.write_pod(other, sidecar=True, labels={"app": "other"})
        await pods.mesh.settled()
        await pods.load()
        assert all(map(is_mtls, await pods.more()))
        report = []
        for labelled in (False, True) * 3:
            counts = [await updates(pods, pod) for pod in pods.clients]
            written = time.monotonic()
            pods.mesh.write_pod(server, sidecar=labelled)
            acked = await asyncio.gather(
                *(acknowledged(pods, pod, count) for pod, count in zip(pods.clients, counts, strict=True))
            )
            for load, moment in zip(pods.loads, acked, strict=True):
                await eventually(lambda load=load, after=moment + 1: len(load.since(after)) > 50)
                later = load.since(moment)
                old = [sent for sent in later if is_mtls(sent) != labelled]
                lag = max((sent.began - moment for sent in old), default=0.0)
                assert lag < 1, (
                    f"{len(old)} of {len(later)} requests in the old mode, the last after {lag:.3f} s"
                )
                report.append(f"{moment - written:.3f} + {lag:.3f}")
        sent = await pods.stop()
    print(
        f"{len(sent)} requests; seconds from file to ACK, and on to the last request in the old mode: "
        f"{report}"
    )


async def updates(pods: Pods, pod: LocalPod) -> int:
    return await pods.mesh.sidecar(pod).admin.stat(f"cluster.{CLUSTER};.update_success")


async def acknowledged(pods: Pods, pod: LocalPod, before: int) -> float:
    """Wait until a client's sidecar ACKs the next assignment, and return the time."""

    async def more() -> bool:
        return await updates(pods, pod) > before

    await eventually(more, every=0.005)
    return time.monotonic()
