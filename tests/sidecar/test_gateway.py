"""The example gateway: traffic from outside reaches the mesh with the gateway's identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from tests.sidecar.pods import ProxyMesh
from tests.support.clients import Client
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

EXAMPLE = Path("examples/envoy/ingress/gateway.yaml")
PORT = 8000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """The gateway, a service under STRICT, and a service of which one pod of two has a sidecar."""
    directory = tmp_path_factory.mktemp("mesh")
    documents = {each["kind"]: each for each in yaml.safe_load_all(EXAMPLE.read_text())}
    config = directory / "envoy.yaml"
    config.write_text(documents["ConfigMap"]["data"]["envoy.yaml"])
    config.chmod(0o644)
    meta = documents["Deployment"]["spec"]["template"]["metadata"]
    with Cluster() as cluster:
        async with ProxyMesh(cluster, directory) as mesh:
            mesh.gateway("gateway", "ingress", config, meta["labels"], meta["annotations"])
            full, with_sidecar = mesh.pod("httpbin", "full"), mesh.pod("httpbin", "partial")
            without = mesh.pod("alone", "partial", labels={"app": "httpbin"}, sidecar=False)
            for namespace in ("full", "partial"):
                mesh.service("httpbin", namespace, {"http": (PORT, PORT)})
            mesh.service("gateway", "ingress", {"http": (80, 8080)})
            mesh.apply(peer_authentication("full", "STRICT"), peer_authentication("ingress", "STRICT"))
            await mesh.start()
            for pod in (full, with_sidecar, without):
                await mesh.serve(pod, http=(PORT,))
            yield mesh


@pytest.fixture
def ask(mesh):
    """Send requests from outside to the gateway."""

    async def request(host: str, **headers: str):
        url = f"http://{mesh['gateway.ingress'].address}:8080/anything"
        return await Client(mesh.cluster.node).get(url, headers={"host": host, **headers})

    return request


async def test_strict_service_receives_the_gateways_identity(mesh, ask):
    direct = await Client(mesh.cluster.node).get(f"http://{mesh['httpbin.full'].address}:{PORT}/")
    assert direct.code == "000"

    forged = {"X-Forwarded-Client-Cert": "URI=spiffe://cluster.local/ns/a/sa/b"}
    answer = await ask("httpbin.example.com", **forged)

    assert answer.pod == "httpbin.full"
    assert answer.identity == "spiffe://cluster.local/ns/ingress/sa/gateway"
    assert answer.certificate.count("URI=") == 1
    assert answer.echo["headers"]["X-Forwarded-For"]


async def test_each_endpoint_receives_what_it_accepts(ask):
    async def identities() -> dict[str, str]:
        answers = [await ask("partial.example.com") for _ in range(8)]
        return {answer.pod: answer.identity for answer in answers}

    async def both() -> bool:
        found = await identities()
        assert found == {
            "httpbin.partial": "spiffe://cluster.local/ns/ingress/sa/gateway",
            "alone.partial": "",
        }
        return True

    await eventually(both, what="the gateway uses both endpoints")


async def test_gateway_serves_only_its_routes(ask):
    assert (await ask("elsewhere.example.com")).code == "404"


async def test_gateway_is_predicted_as_a_client(mesh):
    outcomes = {
        (row["service"], row["outcome"]) for row in await mesh.reach() if row["client"] == "gateway.ingress"
    }
    assert {
        ("httpbin.full", "mtls"),
        ("httpbin.partial", "mtls"),
        ("httpbin.partial", "plaintext"),
    } <= outcomes
    assert "fails" not in {outcome for service, outcome in outcomes if service != "gateway.ingress"}
