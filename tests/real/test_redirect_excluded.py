"""Traffic that annotations exclude from sidecars: real requests end as `xds reach` predicts."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import destination_rule, peer_authentication
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "tcp-lines": (90, 9000)}
SAME_PORTS = {"http-web": (8080, 8080), "tcp-lines": (9000, 9000)}
TRAFFIC = {80: HTTP1, 8080: HTTP1, 90: TCP, 9000: TCP}
CLIENTS = {
    "plain.apps": {},
    "no-ports.apps": {"excludeOutboundPorts": "80,8080"},
    "no-networks.apps": {"excludeOutboundIPRanges": "10.96.0.0/16"},
    "services-only.apps": {"includeOutboundIPRanges": "10.96.0.0/16", "includeOutboundPorts": "9000"},
}
SERVERS = {
    "web.strict": {"excludeInboundPorts": "8080"},
    "web.permissive": {"includeInboundPorts": "9000"},
    "web.disable": {"includeInboundPorts": ""},
    "exempt.strict": {"excludeInboundPorts": "8080"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers and clients with annotations of every kind, and a client without a sidecar."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("outsider", "outside", sidecar=False)
            for full, traffic in CLIENTS.items():
                mesh.pod(*full.split("."), traffic=traffic)
            for full, traffic in SERVERS.items():
                name, namespace = full.split(".")
                pod = mesh.pod(name, namespace, traffic=traffic)
                await mesh.serve(pod, http=(8080,), lines=(9000,))
                mesh.service(name, namespace, PORTS)
            mesh.service("headless", "strict", SAME_PORTS, selector={"app": "web"}, headless=True)
            mesh.apply(
                peer_authentication("strict", "STRICT"),
                peer_authentication("disable", "DISABLE"),
                destination_rule("exempt", "strict", "exempt", "DISABLE"),
            )
            await mesh.start()
            yield mesh


async def test_traffic_past_sidecars_matches_reach(mesh):
    predicted: dict[tuple[str, str, int], tuple[str, str]] = {}
    for row in await mesh.reach():
        if row["client"] == row["endpoint"]:
            continue  # The sidecar of a pod also intercepts the connections of the pod to itself.
        host, port = row["service"], row["port"]
        if host.startswith("headless."):
            host, _, number = row["address"].rpartition(":")
            port = int(number)
        predicted[row["client"], host, port] = (row["outcome"], row["reason"])
    assert {
        ("fails", "inbound-excluded"),
        ("fails", "outbound-excluded"),
        ("fails", "server-requires-mtls"),
        ("plaintext", "outbound-excluded"),
        ("plaintext", "client-without-sidecar"),
        ("plaintext", "destination-rule"),
        ("mtls", "auto-mtls"),
    } <= set(predicted.values())

    happened = {
        (client, host, port): (await mesh.exchange(TRAFFIC[port], client, host, port)).how
        for client, host, port in predicted
    }

    wrong = {hop: (predicted[hop], how) for hop, how in happened.items() if how != predicted[hop][0]}
    assert not wrong


@pytest.mark.parametrize(
    ("client", "host", "port", "how"),
    [
        ("outsider.outside", "web.strict", 80, PLAINTEXT),
        ("outsider.outside", "web.strict", 90, FAILS),
        ("plain.apps", "web.strict", 80, FAILS),
        ("plain.apps", "web.strict", 90, MTLS),
        ("plain.apps", "exempt.strict", 80, PLAINTEXT),
        ("no-ports.apps", "web.strict", 80, PLAINTEXT),
        ("no-networks.apps", "web.strict", 90, FAILS),
        ("web.strict", "web.strict", 80, MTLS),
    ],
)
async def test_excluded_traffic(mesh, client, host, port, how):
    assert (await mesh.exchange(TRAFFIC[port], client, host, port)).how == how
