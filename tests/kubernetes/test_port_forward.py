"""Commands find a control plane in a cluster by themselves, through a port-forward to its pod."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.kubernetes.environment.cluster import RBAC
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.installing import SYSTEM, install, run
from tests.support import processes
from tests.support.tcp import TcpServer
from tests.support.waiting import eventually
from xds.cli.options import ClusterReference
from xds.cli.port_forward import PortForward
from xds.mesh.kube import port_forward
from xds.mesh.kube.api import Json
from xds.mesh.kube.port_forward import POD_LABELS, PortForwardError

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

PORT = 15010
LABELS = {"app.kubernetes.io/name": "xds", "app.kubernetes.io/component": "control-plane"}
REFUSALS = (
    'pods is forbidden: User "reader" cannot list resource "pods" in API group "" in the namespace "{}"',
    (
        'pods "xds" is forbidden: User "reader" cannot get resource "pods/portforward" in API group "" '
        'in the namespace "{}"'
    ),
    'pods "xds" is forbidden',
)
"""Messages of the API server without each permission."""
IDLE = {
    "image": "docker.io/curlimages/curl",
    "imagePullPolicy": "Never",
    "command": ["sleep", "infinity"],
}
WITHOUT_LOCAL = """
from xds.cli import client_options, main
client_options._is_open = lambda address: False
main()
"""
"""The program, without a control plane on this machine."""
MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec:
  containers:
  - {name: web, image: docker.io/curlimages/curl, imagePullPolicy: Never, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  containers:
  - {name: client, image: docker.io/curlimages/curl, imagePullPolicy: Never, command: [sleep, infinity]}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture
async def namespace(shared_pods: PodCluster) -> AsyncIterator[str]:
    async with shared_pods.namespace() as name:
        yield name


class Server(TcpServer):
    """Sends `size` bytes, and then everything back."""

    def __init__(self, pod: Pod, size: int) -> None:
        super().__init__(pod.place().listener("127.0.0.1", PORT))
        self._size = size
        self.has_sent = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(self._size >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
        self.has_sent.set()
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def start_pod(cluster: PodCluster, namespace: str, name: str = "xds", probe: Json | None = None) -> Pod:
    """Start a pod that looks like the control plane's."""
    container = IDLE | {"name": "xds", **({"readinessProbe": probe} if probe else {})}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    pod = {"metadata": {"name": name, "labels": LABELS}, "spec": spec}
    await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    state = "Running" if probe else "Ready"

    def has_started(pod: Json) -> bool:
        status = pod.get("status", {})
        ready = [item["status"] for item in status.get("conditions", ()) if item["type"] == "Ready"]
        return status.get("phase") == "Running" and (state == "Running" or ready == ["True"])

    return Pod(await cluster.until(f"/api/v1/namespaces/{namespace}/pods/{name}", has_started))


@asynccontextmanager
async def forwarded(kubeconfig: Path, namespace: str) -> AsyncIterator[PortForward]:
    cluster = ClusterReference(kubeconfig, None, namespace)
    forward = await asyncio.to_thread(PortForward, cluster, PORT)
    try:
        yield forward
    finally:
        await asyncio.to_thread(forward.close)


async def connect(forward: PortForward) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(forward.target.removeprefix("unix:"))


async def test_connections_carry_any_amount_of_data_and_have_backpressure(
    shared_pods: PodCluster, namespace: str
) -> None:
    pod = await start_pod(shared_pods, namespace)
    size = 128 << 20
    sent = bytes(range(256)) * (1 << 16)
    config = await shared_pods.kubeconfig()
    async with Server(pod, size) as server, forwarded(config, namespace) as forward:
        assert str(forward) == f"pod {namespace}/xds"
        reader, writer = await connect(forward)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.has_sent.wait(), 3)
        for _ in range(size >> 16):
            assert await reader.readexactly(1 << 16) == bytes(1 << 16)
        sending = asyncio.create_task(send(writer, sent))
        assert await reader.readexactly(len(sent)) == sent
        await sending
        others = [await connect(forward) for _ in range(3)]
        for other, _ in others:
            assert await other.readexactly(1 << 16) == bytes(1 << 16)
        assert Path(forward.target.removeprefix("unix:")).parent.stat().st_mode & 0o77 == 0
        assert not forward.error
        for _, each in [(reader, writer), *others]:
            each.close()
    assert not Path(forward.target.removeprefix("unix:")).parent.exists()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_failures_are_explained(pod_cluster: PodCluster) -> None:
    api, config = pod_cluster.api, await pod_cluster.kubeconfig()
    pod = await start_pod(pod_cluster, "default")
    async with forwarded(config, "default") as forward:
        reader, writer = await connect(forward)
        assert await reader.read() == b""
        assert "connect: connection refused" in forward.error
        assert not forward.lost.is_set()
        writer.close()
        async with Server(pod, 1 << 16):
            reader, writer = await connect(forward)
            await reader.readexactly(1 << 16)
            pod_cluster.node.stop_kubelet()
            assert await reader.read() == b""
        assert forward.error == (
            "the port-forward to pod default/xds failed: the connection to the API server broke"
        )
        assert forward.lost.is_set()
        writer.close()
    with pytest.raises(PortForwardError, match="refused a port-forward: error dialing backend"):
        await opened(config)
    await api.delete("/api/v1/namespaces/default/pods/xds", gracePeriodSeconds=0)
    with pytest.raises(PortForwardError, match="namespace default has no pod of the control plane: run xds"):
        await opened(config)
    pod_cluster.node.start_kubelet()
    await start_pod(pod_cluster, "default", "xds-2", {"exec": {"command": ["false"]}})
    with pytest.raises(
        PortForwardError, match="none of the 1 pods of the control plane in namespace default"
    ):
        await opened(config)


async def opened(kubeconfig: Path, namespace: str = "default") -> None:
    async with forwarded(kubeconfig, namespace):
        pass


async def test_port_forward_requires_three_permissions(shared_pods: PodCluster, namespace: str) -> None:
    pod = await start_pod(shared_pods, namespace)
    config = await shared_pods.kubeconfig("reader")
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create"]},
    ]
    await shared_pods.allow("reader", rules, namespace)
    async with Server(pod, 1 << 16), forwarded(config, namespace) as forward:
        reader, writer = await connect(forward)
        await reader.readexactly(1 << 16)
        writer.close()
    for missing in range(3):
        await shared_pods.api.patch(
            f"{RBAC}/namespaces/{namespace}/roles/reader", {"rules": rules[:missing] + rules[missing + 1 :]}
        )

        async def is_refused() -> str:
            with pytest.raises(PortForwardError) as caught:
                await opened(config, namespace)
            return str(caught.value)

        assert await eventually(is_refused, timeout=10, what="RBAC") == (
            f"the API server refused a port-forward: {REFUSALS[missing].format(namespace)} (required in "
            f"namespace {namespace}: list on pods, and get and create on pods/portforward)"
        )


# --- commands ---


async def test_commands_find_the_control_plane_in_a_cluster(pod_cluster: PodCluster) -> None:
    cluster = pod_cluster
    pod = await start_control_plane(cluster)
    config = await cluster.kubeconfig()
    await cluster.kubectl("apply", "-f", "-", stdin=MESH)

    async def has_read() -> bool:
        status, output, error = await run("status", f"--kubeconfig={config}")
        assert (status, error) == (1, f"xds: using pod {SYSTEM}/{pod} of context admin\n"), output
        assert "web.shop  -" in output
        return True

    await eventually(has_read, timeout=60, what="the status of the pod")

    for command in ("reach --to web.shop", "explain web.shop web.shop", "problems", "version"):
        status, output, error = await processes.run(
            *(sys.executable, "-c", WITHOUT_LOCAL, *command.split()),
            env={**os.environ, "KUBECONFIG": str(config)},
        )
        assert (status, error) == (0, ""), command
        assert output

    _, output, _ = await run("check", f"--kubeconfig={config}", "-o", "json")
    row = next(row for row in json.loads(output) if row["name"] == "sidecars in sync")
    hint = f"run xds status --kubeconfig {config} --xds-namespace {SYSTEM}"
    assert (row["result"], row["detail"], row["hint"]) == ("fail", "not in sync: web.shop", hint)

    await dashboard_shows_the_page(config, pod)
    await watch_sees_changes_until_the_pod_ends(cluster, config, pod)


async def start_control_plane(cluster: PodCluster) -> str:
    """Install one replica, and return the name of its pod once it is ready."""
    await install(cluster, "--image=xds:latest")
    await cluster.kubectl("-n", SYSTEM, "scale", "deployment/xds", "--replicas=1")
    path = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector={POD_LABELS}"

    def is_one_ready(pods: Json) -> bool:
        return [port_forward._is_ready(pod) for pod in pods["items"]] == [True]

    pods = await cluster.until(path, is_one_ready, timeout=100)
    return str(pods["items"][0]["metadata"]["name"])


async def dashboard_shows_the_page(config: Path, pod: str) -> None:
    async with processes.started(
        *(sys.executable, "-m", "xds", "dashboard", "--no-browser", f"--kubeconfig={config}"),
        stderr=asyncio.subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        url = (await process.stdout.readline()).decode().strip()
        assert url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as session:
            for path in ("", "api/v1/proxies"):
                async with session.get(url + path) as response:
                    assert response.status == 200, path
                    assert await response.read()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        assert (await process.stderr.read()).decode() == f"xds: using pod {SYSTEM}/{pod} of context admin\n"


async def watch_sees_changes_until_the_pod_ends(cluster: PodCluster, config: Path, pod: str) -> None:
    command = (sys.executable, "-m", "xds", "reach", "--to=web.shop", "--watch", f"--kubeconfig={config}")
    async with processes.started(*command, stderr=asyncio.subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        await reads(process.stdout, b"plaintext")
        await cluster.kubectl("apply", "-f", "-", stdin=STRICT)
        await reads(process.stdout, b"fails")
        (await cluster.pod(SYSTEM, pod)).kill()
        assert await process.wait() == 3
        error = (await process.stderr.read()).decode()
        assert error.endswith(f"xds: the control plane at pod {SYSTEM}/{pod} closed the stream\n")


async def reads(stream: asyncio.StreamReader, text: bytes) -> None:
    """Read lines until one has the text."""
    async with asyncio.timeout(30):
        while text not in (line := await stream.readline()):
            assert line
