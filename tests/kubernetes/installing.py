"""Run `xds install` in a cluster of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.recorder import Grant, Recorder
from tests.support import processes

KUSTOMIZATION = "examples/envoy/kubernetes"
SYSTEM = "istio-system"


async def install(cluster: Cluster, *arguments: str, kubeconfig: Path | None = None) -> dict[str, str]:
    """Run `xds install`; return its result for each object."""
    config = kubeconfig or await cluster.kubeconfig()
    status, output, error = await run("install", f"--kubeconfig={config}", *arguments)
    assert status == 0, output + error
    rows = (line.split("  ") for line in output.splitlines() if "  " in line)
    return {first: rest[-1].strip() for first, *rest in rows}


async def installed_objects(cluster: Cluster) -> str:
    """Return the names of the objects of an installation; empty if it left nothing."""
    return await cluster.kubectl(
        "get",
        "all,roles,rolebindings,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,"
        "validatingwebhookconfigurations,configmaps,pdb,"
        "networkpolicies,validatingadmissionpolicies,validatingadmissionpolicybindings",
        "-A", "-l", "app.kubernetes.io/name=xds", "-o", "name",
    )  # fmt: skip


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run `xds`; return its exit status, standard output and standard error."""
    return await processes.run(sys.executable, "-m", "xds", *arguments)


def unused(rights: set[Grant], recorder: Recorder) -> set[Grant]:
    return {right for right in rights if not any(right.covers(call) for call in recorder.calls)}
