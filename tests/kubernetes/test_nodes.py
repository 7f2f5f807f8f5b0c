"""Real nodes: pods of two nodes reach each other and Services, and nothing is left behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.kubernetes.environment.node import NodeCluster
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.support.places import run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

HTTPBIN = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: httpbin}
spec:
  selector: {matchLabels: {app: httpbin}}
  template:
    metadata: {labels: {app: httpbin}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: httpbin
        image: docker.io/kennethreitz/httpbin
        imagePullPolicy: Never
        readinessProbe: {httpGet: {path: /status/200, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec:
  selector: {app: httpbin}
  ports: [{port: 8000, targetPort: 80}]
"""


async def test_pods_of_two_nodes_reach_each_other_and_nothing_is_left(skip_without_nodes: None) -> None:
    settings = {path: path.read_text() for path in Path("/proc/sys/kernel").glob("panic*")}
    with NodeCluster(nodes=2) as running:
        folder, name = running.control_plane.folder, running.network.name
        async with PodCluster(running) as cluster, cluster.namespace() as namespace:
            await cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=HTTPBIN)
            await cluster.kubectl("-n", namespace, "rollout", "status", "daemonset/httpbin", "--timeout=60s")
            pods = await cluster.pods(namespace, "httpbin")
            assert {pod.object["spec"]["nodeName"] for pod in pods} == {"node1", "node2"}
            for pod in pods:
                for host in [*(f"{other.address}:80" for other in pods), "httpbin:8000"]:
                    await eventually(partial(answers, cluster, pod, host), timeout=30, every=0.2)

            # Pods of a node that is gone leave the endpoints.
            running.nodes[1].stop_kubelet()
            [lost] = [pod.address for pod in pods if pod.object["spec"]["nodeName"] == "node2"]

            async def is_without_lost_pod() -> bool:
                path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
                [found] = (await cluster.api.get(path))["items"]
                ready = {tuple(each["addresses"]): each["conditions"]["ready"] for each in found["endpoints"]}
                return len(ready) == 2 and not ready[lost,]

            await eventually(is_without_lost_pod, timeout=90, every=0.5)
            process = pods[0].process()
    assert not Path(f"/proc/{process}").exists()
    assert not folder.exists()
    assert not [line for line in run("ip", "netns", "list").splitlines() if line.startswith(name)]
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{name}*"))
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    assert settings == {path: path.read_text() for path in settings}
    links = json.loads(run("ip", "-j", "link", "show"))
    assert not [link for link in links if link["ifname"].startswith("node")]


async def answers(cluster: PodCluster, pod: Pod, host: str) -> bool:
    """Whether httpbin answers a pod at a host."""
    ask = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}/headers")
    return (await cluster.execute(pod, "httpbin", *ask))[:2] == (0, "200")
