"""Injected pods under a real kubelet: start, completion, probes, crashes, and a restart under load."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kubernetes.developing import with_mesh
from tests.kubernetes.environment.node import NodeCluster
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.player import CAREFUL, PATIENCE, URL, uses_mutual_tls
from tests.kubernetes.workloads import IN_TIME, restarted, restarts, rolled_out, statuses
from tests.support.load import Load
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(400)]

JOB = f"""
apiVersion: batch/v1
kind: CronJob
metadata: {{name: asks}}
spec:
  schedule: "0 0 1 1 *"
  suspend: true
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          initContainers:
          - name: first
            image: docker.io/library/xds:latest
            imagePullPolicy: Never
            command: [curl, --fail, --silent, {URL}]
          containers:
          - name: asks
            image: docker.io/library/xds:latest
            imagePullPolicy: Never
            command: [curl, --fail, --silent, {URL}]
"""
HEALTH = """
import concurrent.futures, grpc, os, signal
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
servicer = health.HealthServicer()
servicer.set("store", health_pb2.HealthCheckResponse.SERVING)
server = grpc.server(concurrent.futures.ThreadPoolExecutor())
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
server.add_insecure_port("[::]:9090")
server.start()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGUSR1, lambda *_: servicer.set("store", health_pb2.HealthCheckResponse.NOT_SERVING))
while True:
    signal.pause()
"""
"""A server of gRPC's health protocol, whose service `store` stops at SIGUSR1."""
PROBED = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: probed}
spec:
  selector: {matchLabels: {app: probed}}
  template:
    metadata: {labels: {app: probed}}
    spec:
      containers:
      - name: web
        image: docker.io/kennethreitz/httpbin
        imagePullPolicy: Never
        ports: [{containerPort: 80}]
        startupProbe: {httpGet: {path: /status/200, port: 80}, periodSeconds: 1, failureThreshold: 60}
        readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        livenessProbe: {exec: {command: [curl, --fail, --silent, "http://127.0.0.1/status/200"]}, periodSeconds: 1, timeoutSeconds: 5}
      - name: grpc
        image: docker.io/curlimages/curl
        imagePullPolicy: Never
        command: [python, -c, PROGRAM]
        ports: [{containerPort: 9090}]
        startupProbe: {grpc: {port: 9090}, periodSeconds: 1, failureThreshold: 60}
        readinessProbe: {grpc: {port: 9090, service: store}, periodSeconds: 1, failureThreshold: 1}
""".replace("PROGRAM", json.dumps(HEALTH))  # noqa: E501
REPLACEABLE = f'{{"spec": {{"template": {{"spec": {{"containers": [{CAREFUL}]}}}}}}}}'


@pytest.fixture(scope="module")
def nodes(skip_without_nodes: None) -> Iterator[NodeCluster]:
    with NodeCluster() as running:
        yield running


@pytest.fixture
async def cluster(nodes: NodeCluster) -> AsyncIterator[PodCluster]:
    """The cluster of this file, with the mesh of `make cluster`, STRICT in namespace full."""
    async with with_mesh(nodes, peer_authentication("full", "STRICT")) as cluster:
        yield cluster


async def test_init_containers_use_the_mesh_and_jobs_complete(cluster: PodCluster) -> None:
    await cluster.kubectl("apply", "-n", "full", "-f", "-", stdin=JOB)
    await cluster.kubectl("create", "job", "-n", "full", "once", "--from=cronjob/asks")
    await cluster.kubectl("wait", "-n", "full", "job/once", "--for=condition=Complete", IN_TIME,
                          timeout=PATIENCE + 10)  # fmt: skip
    [pod] = (await cluster.api.get("/api/v1/namespaces/full/pods", labelSelector="job-name=once"))["items"]
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["xds-init", "xds-proxy", "first"]
    ended = {each["name"]: each["state"]["terminated"]["exitCode"] for each in statuses(pod)}
    assert ended == {"xds-init": 0, "xds-proxy": 0, "first": 0, "asks": 0}
    for container in ("first", "asks"):
        output = await cluster.kubectl("logs", "-n", "full", pod["metadata"]["name"], "-c", container)
        assert "URI=spiffe://cluster.local/ns/full/sa/default" in output


async def test_all_kinds_of_probes_work_with_strict(cluster: PodCluster) -> None:
    await cluster.kubectl("apply", "-n", "full", "-f", "-", stdin=PROBED)
    await rolled_out(cluster, "full", "deployment/probed")
    [pod] = await cluster.pods("full", "probed")
    events = await cluster.kubectl(
        "get", "events", "-n", "full", f"--field-selector=involvedObject.uid={pod.uid}"
    )
    assert "Unhealthy" not in [
        line.split()[2] for line in events.splitlines()[1:] if "spec.containers" in line
    ]
    assert all(each["restartCount"] == 0 for each in statuses(pod.object))
    pod.kill("grpc", signal.SIGUSR1)

    async def is_not_ready() -> bool:
        now = statuses((await cluster.pod("full", pod.name)).object)
        return {each["name"] for each in now if not each["ready"]} == {"grpc"}

    await eventually(is_not_ready, timeout=PATIENCE, every=0.2)
    await cluster.kubectl("delete", "-n", "full", "deployment/probed")


@pytest.mark.parametrize("container", ["xds-proxy", "httpbin"])
async def test_killed_container_is_restarted_alone(cluster: PodCluster, container: str) -> None:
    [httpbin], [sleep] = await cluster.pods("full", "httpbin"), await cluster.pods("full", "sleep")
    before = restarts(httpbin)
    httpbin.kill(container)

    async def is_back() -> bool:
        now = await cluster.pod("full", httpbin.name)
        return restarts(now) == before | {container: before[container] + 1} and all(
            each["ready"] for each in statuses(now.object) if "running" in each["state"]
        )

    await eventually(is_back, timeout=PATIENCE, every=0.2)
    await eventually(lambda: uses_mutual_tls(cluster, sleep), timeout=PATIENCE, every=0.2)


async def test_restart_of_a_deployment_and_loss_of_the_kubelet_fail_no_request(cluster: PodCluster) -> None:
    await cluster.kubectl("patch", "deployment", "-n", "full", "httpbin", "-p", REPLACEABLE)
    await restarted(cluster, "full", "httpbin")
    [sleep] = await cluster.pods("full", "sleep")
    await eventually(lambda: uses_mutual_tls(cluster, sleep), timeout=PATIENCE, every=0.2)
    load = Load(client=await cluster.client(sleep), url=URL, connections=2, seconds=300)
    async with load:
        await load.more(20, PATIENCE)
        await restarted(cluster, "full", "httpbin")
        await load.more(20, PATIENCE)
        cluster.node.stop_kubelet()
        await load.more(20, PATIENCE)
    load.check()
    # A kubelet that starts may report a ready pod as not ready for a moment, so the load has ended.
    cluster.node.start_kubelet()
    await restarted(cluster, "full", "httpbin")
    await eventually(lambda: uses_mutual_tls(cluster, sleep), timeout=PATIENCE, every=0.2)
