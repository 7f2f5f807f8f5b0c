"""A sidecar without interception: it listens on the pod's address, and the application on another."""

from __future__ import annotations

import json

import pytest

from tests.sidecar.pods import Process
from tests.support.clients import Client
from tests.support.local import LocalMesh
from tests.support.loopback import Loopback
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually

PROBES = {
    "/app-health/web/readyz": {"httpGet": {"path": "/ready", "port": 8080}, "timeoutSeconds": 10},
    "/app-health/web/livez": {"tcpSocket": {"port": 8080}, "timeoutSeconds": 10, "periodSeconds": 1},
}


@pytest.mark.envoy
async def test_probes_and_metrics_need_no_control_plane(tmp_path):
    with Loopback() as loopback:
        mesh = LocalMesh(loopback, tmp_path)
        pod = mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, 8080)})
        mesh.apply(peer_authentication("ns", "STRICT"))
        variables = {
            "POD_NAME": "web",
            "POD_NAMESPACE": "ns",
            "INSTANCE_IP": pod.address,
            "XDS_ADDRESS": mesh.plane.address,
            "XDS_ROOT_FILE": "",
            "XDS_INTERCEPTION_MODE": "NONE",
            "XDS_APP_ADDRESS": pod.app_address,
            "XDS_APP_PROBES": json.dumps(PROBES),
            "XDS_CONCURRENCY": "1",
        }

        async def code(path: str, port: int = 15020) -> str:
            return (await Client().get(f"http://{pod.address}:{port}{path}")).code

        async def codes() -> list[str]:
            return [await code(path) for path in PROBES]

        async def are(*expected: str) -> bool:
            actual = await codes()
            assert actual == list(expected), actual
            return True

        async with mesh, Process(variables, tmp_path / "log"):
            await eventually(lambda: are("503", "503"), timeout=60, what="Envoy answers probes")
            assert await code("/ready", 8080) == "000"
            assert (await code("/stats/prometheus", 15090), await code("/healthz/ready", 15021)) == (
                "200",
                "200",
            )

            await mesh.serve(pod, http=(8080,))
            await eventually(lambda: are("200", "200"), timeout=60, what="the application is up")

            assert await mesh.plane.stop() == 0
            assert await codes() == ["200", "200"]
            await mesh.plane.start()
