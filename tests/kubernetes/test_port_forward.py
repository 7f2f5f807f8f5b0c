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

from tests.kubernetes.agent.agent import Agent
from tests.kubernetes.installing import SYSTEM, install, run
from tests.support.tcp import TcpServer
from tests.support.waiting import eventually
from xds.cli.options import ClusterReference
from xds.cli.port_forward import PortForward
from xds.mesh.kube import port_forward
from xds.mesh.kube.api import Json
from xds.mesh.kube.port_forward import POD_LABELS, PortForwardError

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

PORT = 15010
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"
LABELS = {"app.kubernetes.io/name": "xds", "app.kubernetes.io/component": "control-plane"}
REFUSALS = (
    'pods is forbidden: User "reader" cannot list resource "pods" in API group "" in the namespace "default"',
    (
        'pods "xds" is forbidden: User "reader" cannot get resource "pods/portforward" in API group "" '
        'in the namespace "default"'
    ),
    'pods "xds" is forbidden',
)
"""Messages of the API server without each permission."""
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
spec: {containers: [{name: web, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: curl}]}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture
async def agent(agent: Agent) -> Agent:
    if agent.kubelet is None:
        pytest.skip("needs the kubelet of `make kubernetes`, which KUBEBUILDER_ASSETS has not")
    return agent


class Server(TcpServer):
    """Sends `size` bytes, and then everything back."""

    def __init__(self, agent: Agent, pod: str, size: int = 0) -> None:
        place = agent.pod("default", pod).place
        assert place
        super().__init__(place.listener("127.0.0.1", PORT))
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


async def start_pod(agent: Agent, name: str = "xds", probe: Json | None = None) -> None:
    """Start a pod that looks like the control plane's."""
    container = {"name": "xds", "image": "curl", **({"readinessProbe": probe} if probe else {})}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    pod = {"metadata": {"name": name, "labels": LABELS}, "spec": spec}
    await agent.cluster.api.create("/api/v1/namespaces/default/pods", pod)
    state = "Running" if probe else "Ready"

    def has_started(pod: Json) -> bool:
        status = pod.get("status", {})
        ready = [item["status"] for item in status.get("conditions", ()) if item["type"] == "Ready"]
        return status.get("phase") == "Running" and (state == "Running" or ready == ["True"])

    await agent.cluster.until(f"/api/v1/namespaces/default/pods/{name}", has_started)


@asynccontextmanager
async def forwarded(kubeconfig: Path) -> AsyncIterator[PortForward]:
    cluster = ClusterReference(kubeconfig, None, "default")
    forward = await asyncio.to_thread(PortForward, cluster, PORT)
    try:
        yield forward
    finally:
        await asyncio.to_thread(forward.close)


async def connect(forward: PortForward) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(forward.target.removeprefix("unix:"))


async def test_connections_carry_any_amount_of_data_and_have_backpressure(agent: Agent) -> None:
    await start_pod(agent)
    size = 128 << 20
    sent = bytes(range(256)) * (1 << 16)
    async with Server(agent, "xds", size) as server, forwarded(await agent.cluster.kubeconfig()) as forward:
        assert str(forward) == "pod default/xds"
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


async def test_failures_are_explained(agent: Agent) -> None:
    api, config = agent.cluster.api, await agent.cluster.kubeconfig()
    await start_pod(agent)
    async with forwarded(config) as forward:
        reader, writer = await connect(forward)
        assert await reader.read() == b""
        assert "connect: connection refused" in forward.error
        assert not forward.lost.is_set()
        writer.close()
        async with Server(agent, "xds", 1 << 16):
            reader, writer = await connect(forward)
            await reader.readexactly(1 << 16)
            assert agent.kubelet
            agent.kubelet.process.send_signal(signal.SIGKILL)
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
    await start_pod(agent, "xds-2", {"exec": {"command": ["false"]}})
    with pytest.raises(
        PortForwardError, match="none of the 1 pods of the control plane in namespace default"
    ):
        await opened(config)


async def opened(kubeconfig: Path) -> None:
    async with forwarded(kubeconfig):
        pass


async def test_port_forward_requires_three_permissions(agent: Agent) -> None:
    await start_pod(agent)
    config = await agent.cluster.kubeconfig("reader")
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create"]},
    ]
    role = {"metadata": {"name": "reader"}, "rules": rules}
    await agent.cluster.api.create(f"{RBAC}/default/roles", role)
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "reader"}],
    }
    await agent.cluster.api.create(f"{RBAC}/default/rolebindings", binding)
    async with Server(agent, "xds", 1 << 16), forwarded(config) as forward:
        reader, writer = await connect(forward)
        await reader.readexactly(1 << 16)
        writer.close()
    for missing in range(3):
        await agent.cluster.api.patch(
            f"{RBAC}/default/roles/reader", {"rules": rules[:missing] + rules[missing + 1 :]}
        )

        async def is_refused() -> str:
            with pytest.raises(PortForwardError) as caught:
                await opened(config)
            return str(caught.value)

        assert await eventually(is_refused, timeout=10, what="RBAC") == (
            f"the API server refused a port-forward: {REFUSALS[missing]} (required in namespace "
            "default: list on pods, and get and create on pods/portforward)"
        )


# --- commands ---


async def test_commands_find_the_control_plane_in_a_cluster(agent: Agent) -> None:
    cluster = agent.cluster
    pod = await start_control_plane(agent)
    config = await cluster.kubeconfig()
    await cluster.kubectl("apply", "-f", "-", stdin=MESH)

    async def has_read() -> bool:
        status, output, error = await run("status", f"--kubeconfig={config}")
        assert (status, error) == (1, f"xds: using pod {SYSTEM}/{pod} of context admin\n"), output
        assert "web.shop  -" in output
        return True

    await eventually(has_read, timeout=60, what="the status of the pod")

    for command in ("reach --to web.shop", "explain web.shop web.shop", "problems", "version"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WITHOUT_LOCAL, *command.split()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KUBECONFIG": str(config)},
        )
        output_, error_ = await process.communicate()
        assert (process.returncode, error_) == (0, b""), command
        assert output_

    _, output, _ = await run("check", f"--kubeconfig={config}", "-o", "json")
    row = next(row for row in json.loads(output) if row["name"] == "sidecars in sync")
    hint = f"run xds status --kubeconfig {config} --xds-namespace {SYSTEM}"
    assert (row["result"], row["detail"], row["hint"]) == ("fail", "not in sync: web.shop", hint)

    await dashboard_shows_the_page(config, pod)
    await watch_sees_changes_until_the_pod_ends(agent, config, pod)


async def start_control_plane(agent: Agent) -> str:
    """Install one replica, and return the name of its pod once it is ready."""
    cluster = agent.cluster
    await install(cluster, "--image=xds:latest")
    await cluster.kubectl("-n", SYSTEM, "scale", "deployment/xds", "--replicas=1")
    path = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector={POD_LABELS}"

    def is_one_ready(pods: Json) -> bool:
        return [port_forward._is_ready(pod) for pod in pods["items"]] == [True]

    pods = await cluster.until(path, is_one_ready, timeout=100)
    return str(pods["items"][0]["metadata"]["name"])


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xds", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def dashboard_shows_the_page(config: Path, pod: str) -> None:
    async with running("dashboard", "--no-browser", f"--kubeconfig={config}") as process:
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


async def watch_sees_changes_until_the_pod_ends(agent: Agent, config: Path, pod: str) -> None:
    command = ("reach", "--to=web.shop", "--watch", f"--kubeconfig={config}")
    async with running(*command) as process:
        assert process.stdout
        assert process.stderr
        await reads(process.stdout, b"plaintext")
        await agent.cluster.kubectl("apply", "-f", "-", stdin=STRICT)
        await reads(process.stdout, b"fails")
        agent.pod(SYSTEM, pod).containers[0].kill()
        assert await process.wait() == 3
        error = (await process.stderr.read()).decode()
        assert error.endswith(f"xds: the control plane at pod {SYSTEM}/{pod} closed the stream\n")


async def reads(stream: asyncio.StreamReader, text: bytes) -> None:
    """Read lines until one has the text."""
    async with asyncio.timeout(30):
        while text not in (line := await stream.readline()):
            assert line
