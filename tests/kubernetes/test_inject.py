"""A real API server accepts the output of `xds inject` from kubectl."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.kubernetes.environment.cluster import Cluster, KubectlError
from xds.cli import app

SAMPLES = Path("examples/envoy/kubernetes/samples")
CASES = Path("tests/inject/cases")


@pytest.mark.parametrize(
    "file", [*sorted(SAMPLES.rglob("*.yaml")), CASES / "probes.yaml", CASES / "annotations.yaml"]
)
@pytest.mark.parametrize("native", ["--native-sidecar", "--no-native-sidecar"])
async def test_api_server_accepts_injected_manifests(cluster: Cluster, file: Path, native: str) -> None:
    injected = CliRunner().invoke(
        app, ["inject", "-f", str(file), native, "--sds", "unix:///run/spire/agent.sock"]
    )
    async with cluster.namespace("inject") as namespace:
        output = await cluster.kubectl(
            "create",
            "-n",
            namespace,
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
            stdin=injected.stdout,
        )
    assert output.count("created (server dry run)") == injected.stdout.count("apiVersion: ")


async def test_job_with_a_native_sidecar_is_accepted(cluster: Cluster) -> None:
    """A native sidecar is no obstacle: the API server tells restartable init containers from others."""
    text = (CASES / "kinds.yaml").read_text()
    (job,) = [part for part in text.split("---") if "kind: Job" in part]
    injected = CliRunner().invoke(app, ["inject", "-f", "-"], input=job)
    async with cluster.namespace("inject") as namespace:
        made = await cluster.kubectl(
            "create", "-n", namespace, "-o", "json", "-f", "-", stdin=injected.stdout
        )
    template = yaml.safe_load(made)["spec"]["template"]["spec"]
    assert [c["name"] for c in template["containers"]] == ["work"]
    assert template["initContainers"][1]["restartPolicy"] == "Always"


async def test_refused_file_leaves_kubectl_without_input(cluster: Cluster) -> None:
    bad = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n"
        "spec: {containers: [{name: x, ports: [{containerPort: 15001}]}]}\n"
    )
    injected = CliRunner().invoke(app, ["inject", "-f", "-"], input=bad)
    assert (injected.exit_code, injected.stdout) == (1, "")
    with pytest.raises(KubectlError, match="no objects passed"):
        await cluster.kubectl("apply", "-f", "-", stdin=injected.stdout)
