"""Control-plane replicas or the API server crash at any time: no request notices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import grpc.aio
import pytest

from tests.kubernetes import page
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.player import CAREFUL, PATIENCE, URL, Player
from tests.server.proxies import REQUEST, RESPONSE
from tests.support.clients import Client
from tests.support.envoy import Admin
from tests.support.load import Load
from tests.support.places import HERE
from tests.support.tcp import Relay
from tests.support.waiting import eventually
from xds.demo.play import STEPS, Pair
from xds.mesh.v1 import traffic_pb2

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(600)]

SERVICES = {
    service: f"/envoy.service.{service}.v3.{name}DiscoveryService/Fetch{name}s"
    for service, name in {
        "cluster": "Cluster",
        "endpoint": "Endpoint",
        "listener": "Listener",
        "route": "Route",
    }.items()
}

ROOT, TOKEN = "/run/secrets/xds/root-cert.pem", "/run/secrets/tokens/xds-token"

WEBHOOK = "mutatingwebhookconfiguration/xds-sidecar-injector"
DEPLOY = f"""
kubectl apply -k .
kubectl wait --for=condition=Complete --timeout={PATIENCE}s -n istio-system job/xds-install
kubectl wait --for=jsonpath='{{.webhooks[0].clientConfig.caBundle}}' --timeout={PATIENCE}s {WEBHOOK}
kubectl wait --for=condition=Available --timeout={PATIENCE}s -n istio-system deployment --all
kubectl create ns legacy
kubectl create ns full
kubectl label ns full istio-injection=enabled
kubectl apply -n legacy -f samples/sleep/sleep.yaml
kubectl apply -n full -f samples/httpbin/httpbin.yaml -f samples/sleep/sleep.yaml
kubectl patch deployment httpbin -n full -p '{{"spec": {{"template": {{"spec": {{"containers": [{CAREFUL}]}}}}}}}}'
kubectl rollout status -n full deployment/httpbin --timeout={PATIENCE}s
kubectl wait --for=condition=Available --timeout={PATIENCE}s -n full deployment --all
kubectl wait --for=condition=Available --timeout={PATIENCE}s -n legacy deployment --all
"""  # noqa: E501
REPLACE = f"""
kubectl rollout restart -n full deployment/httpbin
kubectl rollout status -n full deployment/httpbin --timeout={PATIENCE}s
kubectl wait --for=delete --timeout={PATIENCE}s -n full pod/{{}}
"""
FULL_FULL, LEGACY_FULL = Pair("sleep.full", "httpbin.full"), Pair("sleep.legacy", "httpbin.full")


async def test_killed_replica_or_api_server_fails_no_request(player: Player) -> None:
    cluster = player.cluster
    expected = {step.name: step.expected for step in STEPS}
    await player.types(DEPLOY)
    await eventually(lambda: has_sidecars(player), timeout=PATIENCE, every=0.3)
    permissive = expected["PERMISSIVE"][FULL_FULL]
    await eventually(lambda: player.brings(FULL_FULL, permissive), timeout=PATIENCE, every=0.2)

    (sleep,), (httpbin,) = await cluster.pods("full", "sleep"), await cluster.pods("full", "httpbin")
    # Each replica learns of new pods independently.
    await eventually(lambda: is_the_same(cluster, sleep), timeout=PATIENCE, every=0.2)

    load = Load(client=await cluster.client(sleep), url=URL, connections=2, seconds=600)
    async with load:
        await load.more(20, PATIENCE)
        for replica in await replicas(cluster):
            await killed(cluster, replica)
            await until_connected(sleep, httpbin)
            await load.more(20, PATIENCE)

        # Pods and their sidecars are replaced.
        await player.types(REPLACE.format(httpbin.object["metadata"]["name"]))
        (httpbin,) = await cluster.pods("full", "httpbin")
        await load.more(20, PATIENCE)

        cluster.stop_api_server()
        await load.more(50, PATIENCE)
        await until_connected(sleep, httpbin)
        await cluster.start_api_server()
        await load.more(20, PATIENCE)

        # Restarted and surviving replicas all see later changes.
        await player.types(page.STRICT)
        strict = expected["STRICT"][LEGACY_FULL]
        await eventually(lambda: player.brings(LEGACY_FULL, strict), timeout=PATIENCE, every=0.2)
        await load.more(20, PATIENCE)
        await eventually(lambda: is_the_same(cluster, sleep), timeout=PATIENCE, every=0.2)
    load.check()
    await eventually(lambda: shows_the_same_traffic(cluster), timeout=PATIENCE, every=0.5)


async def has_sidecars(player: Player) -> bool:
    """Whether the API server called the webhook by its Service. AssertionError shows the actual result."""
    output = await player.types("kubectl get pods -n full --no-headers")
    assert [line.split()[1:4] for line in output.splitlines()] == [["2/2", "Running", "0"]] * 2, output
    return True


async def is_the_same(cluster: PodCluster, pod: Pod) -> bool:
    """Whether all replicas send a pod's sidecar the same bytes. AssertionError shows the difference."""
    one, other = [await everything(cluster, replica, pod) for replica in await replicas(cluster)]
    assert all(one.values()), one.keys()
    assert one == other
    return True


async def shows_the_same_traffic(cluster: PodCluster) -> bool:
    """Whether all replicas show the same observed traffic, also from before they were killed."""
    one, other = [await observed(cluster, replica) for replica in await replicas(cluster)]
    assert one == other
    requests = {(edge[0], edge[2]): edge[3] for edge in one if edge[1] == "httpbin"}
    assert requests["sleep", traffic_pb2.TrafficEdge.MTLS] > 100, requests
    return True


async def observed(cluster: PodCluster, replica: Pod) -> set[tuple[str, str, int, int]]:
    """Return the client, service, mode and requests of each edge that a replica shows."""
    client = Client(replica.place())
    relay = Relay(HERE.listener("127.0.0.1", 0), lambda: client.connect("127.0.0.1", 15010))
    async with relay, grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as open_channel:
        response = await open_channel.unary_unary(
            "/xds.mesh.v1.Traffic/List",
            traffic_pb2.ListTrafficRequest.SerializeToString,
            traffic_pb2.ListTrafficResponse.FromString,
        )(traffic_pb2.ListTrafficRequest(namespace="full"), timeout=10)
    assert not response.missing_replicas, response.missing_replicas
    return {(edge.client, edge.service, edge.mode, edge.requests_per_day) for edge in response.edges}


async def replicas(cluster: PodCluster) -> list[Pod]:
    pods = await cluster.pods("istio-system", "xds")
    assert len(pods) == 2
    return pods


async def killed(cluster: PodCluster, replica: Pod) -> None:
    """Kill a replica, and wait until it is back."""
    replica.kill()

    async def is_back() -> bool:
        now = await cluster.pod(replica.namespace, replica.name)
        (before,), (after,) = (pod.object["status"]["containerStatuses"] for pod in (replica, now))
        return after["restartCount"] > before["restartCount"] and after["ready"]

    await eventually(is_back, timeout=PATIENCE, every=0.1)


async def until_connected(*pods: Pod) -> None:
    """Wait until each pod's sidecar has a stream to a control plane."""
    for pod in pods:
        admin = Admin(Client(pod.place()), "127.0.0.1", 15000)
        await eventually(partial(admin.stat, "control_plane.connected_state"), timeout=PATIENCE)


async def everything(cluster: PodCluster, replica: Pod, pod: Pod) -> dict[str, dict[bytes, bytes]]:
    """Fetch all resources of a pod's sidecar from a replica, as that sidecar."""
    request = REQUEST()
    name, namespace = pod.object["metadata"]["name"], pod.object["metadata"]["namespace"]
    request.node.id = f"sidecar~{pod.address}~{name}.{namespace}~{namespace}.svc.cluster.local"
    # TLS settings depend on the version of Envoy.
    request.node.user_agent_name = "envoy"
    build = request.node.user_agent_build_version
    build.version.major_number, build.version.minor_number = 1, 40
    build.metadata.fields["ssl.version"].string_value = "BoringSSL"
    given: dict[str, dict[bytes, bytes]] = {}
    async with channel(cluster, replica, pod) as open_channel:
        for service, method in SERVICES.items():
            answer = await open_channel.unary_unary(method)(request.SerializeToString(), timeout=10)
            given[service] = {
                resource.value: resource.type_url.encode()
                for resource in RESPONSE.FromString(answer).resources
            }
    return given


@asynccontextmanager
async def channel(cluster: PodCluster, replica: Pod, pod: Pod) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a replica with a pod's credentials."""
    root = pod.file("xds-proxy", ROOT).read_bytes()
    token = pod.file("xds-proxy", TOKEN).read_text()
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(root), grpc.access_token_call_credentials(token)
    )
    to_replica = Relay(
        HERE.listener("127.0.0.1", 0), lambda: Client(cluster.node.place).connect(replica.address, 15012)
    )
    name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
    async with (
        to_replica,
        grpc.aio.secure_channel(f"127.0.0.1:{to_replica.port}", credentials, [name]) as made,
    ):
        yield made
