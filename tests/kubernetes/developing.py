"""`make cluster`: Kubernetes with a real node, the control plane and the workloads of the Istio task."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.compose.environment import MissingError
from tests.kubernetes.environment.images import ROOT
from tests.kubernetes.environment.node import NodeCluster, why_no_nodes
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.installing import install
from xds.demo.processes import DemoError
from xds.mesh.kube.api import Json

KUBECONFIG = ROOT / ".cache/cluster.kubeconfig"
SAMPLES = ROOT / "examples/envoy/kubernetes/samples"
NAMESPACES = {"full": "enabled", "partial": "enabled", "legacy": "disabled"}
"""Namespace of the task -> value of its label istio-injection."""
_SHOWN = """
Ready. In another shell:

export KUBECONFIG={kubeconfig} PATH={tools}:$PATH
kubectl get pods -A
kubectl exec -n full deploy/sleep -c sleep -- curl -s http://httpbin.full:8000/headers
xds dashboard

Ctrl-C ends the cluster.
"""


@asynccontextmanager
async def with_mesh(running: NodeCluster, policy: Json | None = None) -> AsyncIterator[PodCluster]:
    """Yield a cluster with the control plane and the workloads of the Istio task, which are deployed once.

    Prints the logs of the API server at the end, which pytest shows if the test failed.

    Args:
        running: the cluster.
        policy: an object to apply after that.
    """
    async with PodCluster(running) as cluster:
        if "full" not in await cluster.kubectl("get", "namespaces", "-o", "name"):
            await deployed(cluster)
            if policy:
                await cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
        yield cluster
        print(cluster.control_plane.logs())


async def deployed(cluster: PodCluster) -> None:
    """Install the control plane, and deploy the workloads of the Istio task with the samples."""
    await install(cluster)
    await cluster.kubectl("wait", "--for=condition=Available", "--timeout=90s", "-n", "istio-system",
                          "deployment/xds", timeout=100)  # fmt: skip
    for namespace, injection in NAMESPACES.items():
        await cluster.kubectl("create", "namespace", namespace)
        await cluster.kubectl("label", "namespace", namespace, f"istio-injection={injection}")
        samples = ("httpbin", "sleep") if namespace != "partial" else ("httpbin",)
        for name in samples:
            await cluster.kubectl("apply", "-n", namespace, "-f", str(SAMPLES / name / f"{name}.yaml"))
    await cluster.kubectl("apply", "-n", "partial", "-f", "-", stdin=_without_sidecar())
    for namespace in NAMESPACES:
        await cluster.kubectl("wait", "--for=condition=Available", "--timeout=90s", "-n", namespace,
                              "deployment", "--all", timeout=100)  # fmt: skip


def _without_sidecar() -> str:
    """Return a second Deployment of httpbin, whose pods opt out of injection."""
    labels = {"app": "httpbin", "version": "nosidecar"}
    container = {
        "name": "httpbin",
        "image": "docker.io/kennethreitz/httpbin",
        "imagePullPolicy": "IfNotPresent",
    }
    template = {
        "metadata": {"labels": labels | {"sidecar.istio.io/inject": "false"}},
        "spec": {"containers": [container]},
    }
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "httpbin-nosidecar"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
    )


async def _run(running: NodeCluster, kubeconfig: Path) -> None:
    async with PodCluster(running) as cluster:
        print("Installing the control plane and the workloads of the Istio task", flush=True)
        await deployed(cluster)
        kubeconfig.touch(0o600)
        shutil.copyfile(await cluster.kubeconfig(), kubeconfig)
        tools = Path(cluster.control_plane.kubectl).parent
        print(
            _SHOWN.format(kubeconfig=kubeconfig, tools=f"{tools}:{Path(sys.executable).parent}"), flush=True
        )
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
        print("Ending the cluster", flush=True)


def main(kubeconfig: Path = KUBECONFIG) -> int:
    """Run the cluster until Ctrl-C, and write its kubeconfig meanwhile; return an exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if kubeconfig.exists():
        print(f"Another `make cluster` runs here. If not, delete {kubeconfig}", file=sys.stderr)
        return 2
    if reason := why_no_nodes():
        print(reason, file=sys.stderr)
        return 2
    print("Starting Kubernetes and a node: about 15 seconds", flush=True)
    try:
        with NodeCluster() as running:
            asyncio.run(_run(running, kubeconfig))
    except (MissingError, DemoError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        kubeconfig.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
