"""The test node: pods run, answer behind their Service, are probed and restarted, and leave no trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from tests.kubernetes.agent.agent import Agent
from tests.kubernetes.environment.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("controllers"), pytest.mark.timeout(400)]

HTTPBIN = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin}
spec:
  replicas: 2
  selector: {matchLabels: {app: httpbin}}
  template:
    metadata: {labels: {app: httpbin}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: httpbin
        image: docker.io/kennethreitz/httpbin
        ports: [{name: web, containerPort: 80}]
        readinessProbe: {httpGet: {path: /status/200, port: web}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec:
  selector: {app: httpbin}
  ports: [{name: http, port: 8000, targetPort: 80}]
"""

SLEEP = """
apiVersion: v1
kind: Pod
metadata: {name: sleep, labels: {app: sleep, a: b}}
spec:
  terminationGracePeriodSeconds: 2
  securityContext: {runAsUser: 1337, runAsGroup: 1337, fsGroup: 1337}
  initContainers:
  - name: told
    image: xds
    command: [sh, -c, 'echo "$WHO" > /var/run/told/who']
    volumeMounts: [{name: told, mountPath: /var/run/told}]
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: WHO, value: "$(NAME) of $(NAME)"}
  containers:
  - name: sleep
    image: curlimages/curl:8
    env:
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: PLAIN, valueFrom: {configMapKeyRef: {name: settings, key: mesh}}}
    securityContext:
      {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: told, mountPath: /var/run/told}
    - {name: tokens, mountPath: /var/run/secrets/tokens}
    - {name: settings, mountPath: /run/settings, readOnly: true}
    - {name: about, mountPath: /etc/xds-tests/about}
  volumes:
  - {name: told, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - name: tokens
    projected: {sources: [{serviceAccountToken: {path: xds-token, audience: xds-ca, expirationSeconds: 600}}]}
"""


async def test_agent_runs_pods_behind_services(agent: Agent) -> None:
    cluster = agent.cluster
    async with cluster.namespace() as namespace:

        async def kubectl(*arguments: str, stdin: str = "") -> str:
            return await cluster.kubectl("-n", namespace, *arguments, stdin=stdin)

        await kubectl("apply", "-f", "-", stdin=HTTPBIN)
        await kubectl("create", "configmap", "settings", "--from-literal=mesh=first")
        await kubectl("apply", "-f", "-", stdin=SLEEP)
        await kubectl("wait", "--for=condition=Available", "--timeout=60s", "deployment/httpbin")
        await kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/sleep")
        rows = [line.split()[1:4] for line in (await kubectl("get", "pods", "--no-headers")).splitlines()]
        assert rows == [["1/1", "Running", "0"]] * 3

        # The downward API and volumes have the right content.
        sleep = agent.pod(namespace, "sleep")

        async def shell(command: str) -> str:
            status, output, error = await sleep.execute("sleep", "sh", "-c", command)
            assert status == 0, error
            return output

        assert await shell("cat /var/run/told/who") == "sleep of sleep\n"
        assert await shell("echo $ADDRESS $PLAIN; hostname; id -u") == f"{sleep.address} first\nsleep\n1337\n"
        assert await shell("cat /run/settings/mesh /etc/xds-tests/about/labels") == 'firsta="b"\napp="sleep"'
        # It has no capabilities, except one to read files below a private home directory, where necessary.
        assert await shell("grep CapBnd /proc/self/status | tr 4 0") == f"CapBnd:\t{0:016x}\n"
        assert "Read-only" in (await sleep.execute("sleep", "touch", "/forbidden"))[2]
        review = {
            "spec": {"token": await shell("cat /var/run/secrets/tokens/xds-token"), "audiences": ["xds-ca"]}
        }
        status = (await cluster.api.create("/apis/authentication.k8s.io/v1/tokenreviews", review))["status"]
        assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["sleep"]

        # ConfigMaps and labels may change.
        await kubectl("create", "configmap", "other", "--from-literal=x=y")
        await kubectl("patch", "configmap", "settings", "-p", '{"data": {"mesh": "second"}}')
        await kubectl("label", "pod", "sleep", "a-", "c=d")

        async def rewritten() -> bool:
            return (
                await shell("cat /run/settings/mesh /etc/xds-tests/about/labels")
                == 'secondapp="sleep"\nc="d"'
            )

        await eventually(rewritten, timeout=30)

        # All forms of the Service's name reach its pods, and pods find the API server.
        for name in ("httpbin", f"httpbin.{namespace}", f"httpbin.{namespace}.svc.cluster.local"):
            assert (
                await shell(f"curl -s -o /dev/null -w '%{{http_code}}' http://{name}:8000/headers") == "200"
            )
        ca = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
        code = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {ca}"
        assert await shell(f"{code} https://kubernetes.default.svc/readyz") == "200"
        assert (
            await shell(f"{code} https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/readyz") == "200"
        )

        # A crashed container is restarted and counted.
        victim, other = agent.pods(namespace, "httpbin")
        (container,) = victim.containers
        container.kill(signal.SIGKILL)
        await kubectl("wait", f"pod/{victim.object['metadata']['name']}", "--timeout=60s",
                      "--for=jsonpath={.status.containerStatuses[0].restartCount}=1")  # fmt: skip
        await kubectl(
            "wait", "--for=condition=Ready", "--timeout=60s", f"pod/{victim.object['metadata']['name']}"
        )

        # A hanging container leaves its Service and is killed.
        assert container.pid
        os.kill(container.pid, signal.SIGSTOP)

        async def endpoints() -> set[str]:
            path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
            return {
                address
                for item in (await cluster.api.get(path))["items"]
                for endpoint in item["endpoints"]
                if endpoint["conditions"]["ready"]
                for address in endpoint["addresses"]
            }

        async def alone() -> bool:
            return await endpoints() == {other.address}

        await eventually(alone, timeout=60)

        # A deleted pod ends and leaves nothing behind.
        await kubectl("delete", "deployment", "httpbin", "--timeout=60s")
        await kubectl("wait", "--for=delete", "pod", "-l", "app=httpbin", "--timeout=60s")
        await eventually(lambda: not agent.pods(namespace, "httpbin"), timeout=30)
        assert container.pid is None


async def test_agent_leaves_nothing_behind(own_cluster: Cluster, tmp_path) -> None:
    async with own_cluster.namespace() as namespace:
        async with Agent(own_cluster, tmp_path) as agent:
            await own_cluster.kubectl(
                "-n", namespace, "create", "configmap", "settings", "--from-literal=mesh=a"
            )
            await own_cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=SLEEP)
            await own_cluster.kubectl(
                "-n", namespace, "wait", "--for=condition=Ready", "--timeout=60s", "pod/sleep"
            )
            container = agent.pod(namespace, "sleep").containers[0]
            assert container.pid
        assert container.pid is None
        listed = await asyncio.create_subprocess_exec(
            "ip", "-j", "netns", "list", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await listed.communicate()
        assert not [link for link in json.loads(output or "[]") if link["name"].startswith(f"{agent.name}-")]
