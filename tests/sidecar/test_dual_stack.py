"""`xds proxy` in pods with both IP versions, and with IPv6 only, under STRICT."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.sidecar.apps import PATH, SUCCESS, Exporter
from tests.sidecar.pods import ProxyMesh
from tests.support.clients import Client
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually
from xds.mesh.model.names import host_port

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORT = 8080
PROBES = {
    "/app-health/web/readyz": {"httpGet": {"path": "/healthz", "port": PORT}, "timeoutSeconds": 10},
    "/app-health/web/livez": {"tcpSocket": {"port": PORT}, "timeoutSeconds": 10, "periodSeconds": 1},
}

SERVICES = {"only-ipv4": (4,), "only-ipv6": (6,), "ipv6-before-ipv4": (6, 4)}
"""Services of the pod `dual`, and their IP versions."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Pods under STRICT whose applications do not run yet."""
    with Cluster() as cluster:
        async with ProxyMesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            for name, families in (("dual", (4, 6)), ("ipv6", (6,)), ("ipv6-first", (6, 4))):
                pod = mesh.pod(name, "strict", families=families)
                mesh.service(name, "strict", {"http": (80, PORT)}, families=families)
                mesh.probes[pod.address] = PROBES
                mesh.metrics[pod.address] = {"port": PORT, "path": "/metrics"}
            for name, families in SERVICES.items():
                mesh.service(
                    name, "strict", {"http": (80, PORT)}, families=families, selector={"app": "dual"}
                )
            mesh.apply(peer_authentication("strict", "STRICT"))
            await mesh.start()
            yield mesh


@pytest.mark.parametrize("name", ["dual", "ipv6", "ipv6-first"])
async def test_kubelet_and_prometheus_reach_every_address(mesh, name):
    pod = mesh[f"{name}.strict"]
    kubelet = Client(mesh.cluster.node)
    app = Exporter()
    async with app.at(pod.place, PORT, address="::"):
        for address in pod.addresses:

            async def code(path: str, port: int, address: str = address) -> str:
                return (await kubelet.get(f"http://{host_port(address, port)}{path}")).code

            async def succeeds(path: str) -> bool:
                return await code(path, 15020) == "200"

            for path in PROBES:
                await eventually(lambda path=path: succeeds(path), timeout=60, what=f"{path} succeeds")
            assert await code("/healthz/ready", 15021) == "200"
            assert await code(PATH, 15090) == "200"
            scraped = await kubelet.get(f"http://{host_port(address, 15020)}{PATH}")
            assert f"{SUCCESS} 1" in scraped.text
            assert "sales_total" in scraped.text
            # The sidecar refuses the application's port to the same client.
            assert await code("/healthz", PORT) == "000"


@pytest.mark.parametrize("name", SERVICES)
async def test_application_needs_only_the_first_version_of_the_service(mesh, name):
    server, client = mesh["dual.strict"], mesh["ipv6-first.strict"]
    [service] = [service for service in mesh.cluster.services if service.name == name]
    ipv4, ipv6 = server.addresses
    async with Exporter().at(server.place, PORT, address=ipv6 if SERVICES[name][0] == 6 else ipv4):
        for address in service.addresses:
            answer = await client.client.get(f"http://{host_port(address, 80)}/")
            assert answer.ok, (address, answer)
