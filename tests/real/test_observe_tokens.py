"""Reports of real sidecars that authenticate with a token, and sidecars that report nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.controlplane import xds
from tests.support.envoy import EnvoyProcess
from tests.support.local import LocalMesh, LocalPod
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import TokenFile, bootstrap

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]

WITHIN = 60.0


async def plaintext_request(server: LocalPod, client: LocalPod) -> None:
    """Send a plaintext request from a pod without a sidecar, from its own address."""
    reader, writer = await asyncio.open_connection(server.address, 8080, local_addr=(client.address, 0))
    writer.write(b"GET /headers HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
    assert b" 200 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def observed(mesh: LocalMesh) -> list[dict[str, Any]]:
    answer = json.loads(await xds("observe", f"--xds-address={mesh.plane.address}", "-o", "json"))
    return list(answer["edges"])


def tls_sidecar(mesh: LocalMesh, pod: LocalPod, port: int, folder: Path) -> EnvoyProcess:
    known = mesh.facts().pod(pod.namespace, pod.name)
    assert known
    files = TokenFile(token=str(folder / "a token"), roots=str(mesh.plane.state / "root-cert.pem"))
    begin = to_json_dict(bootstrap(known, "localhost", port, credential=files))
    return EnvoyProcess(pod.full_name, begin, folder)


async def test_sidecar_with_a_token_reports_over_tls(loopback, tmp_path):
    port = free_port()
    mesh = LocalMesh(loopback, tmp_path)
    mesh.plane._options = (f"--xds-tls-address=127.0.0.1:{port}",)
    async with mesh:
        web, cron = mesh.pod("web", "ns"), mesh.pod("cron", "ns", sidecar=False)
        await mesh.serve(web, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)})
        state = f"--state-dir={mesh.plane.state}"
        token = await xds("token", "web.ns", f"--manifests={mesh.manifests.directory}", state)
        (tmp_path / "a token").write_text(token.strip())
        sidecar = tls_sidecar(mesh, web, port, tmp_path)
        await mesh.enter(sidecar)
        mesh.sidecars[web.full_name] = sidecar
        await mesh.settled()
        await plaintext_request(web, cron)

        async def is_observed() -> bool:
            edges = [
                (edge["client"], edge["service"], edge["mode"], edge["requestsPerDay"])
                for edge in await observed(mesh)
            ]
            return edges == [("cron", "web", "PLAINTEXT", "1")]

        await eventually(is_observed, timeout=WITHIN, every=0.5)
        assert await sidecar.admin.stat("access_logs.grpc_access_log.grpc_entries_flush_failed") == 0


async def test_nothing_is_reported_if_observation_is_disabled(loopback, tmp_path):
    mesh = LocalMesh(loopback, tmp_path, settings=["values.xds.observe=false"])
    mesh.plane._options = ("--observe=false",)
    async with mesh:
        web, cron = mesh.pod("web", "ns"), mesh.pod("cron", "ns", sidecar=False)
        await mesh.serve(web, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)})
        await mesh.start(web)
        await plaintext_request(web, cron)

        envoy = mesh.sidecar(web)
        listeners = await envoy.admin.config("ListenersConfigDump")
        assert f"{web.address}_8080" in json.dumps(listeners)
        assert "access_log" not in json.dumps(listeners)
        metrics = await mesh.plane.metrics()
        assert (
            'xds_observed_reports_total{service="envoy.service.accesslog.v3.AccessLogService"} 0.0' in metrics
        )
        # The sidecar has one stream for load reports, and is never asked for any.
        assert await envoy.admin.stat("load_reporter.requests") == 0
        assert await envoy.admin.stat("load_reporter.retries") == 0
        assert not await xds("observe", f"--xds-address={mesh.plane.address}", may_be_no=True)
        assert (await Client().get(f"http://{envoy.admin.address}/ready")).ok
