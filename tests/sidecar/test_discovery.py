"""The real Prometheus finds injected pods with the scrape configuration of the documentation.

Debian's Prometheus cannot discover pods in Kubernetes: the targets of a pod are listed as it would find them.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import yaml

from tests.support.loopback import free_port
from tests.support.prometheus import Prometheus, requires_prometheus
from tests.support.waiting import eventually
from xds.mesh.inject import inject
from xds.mesh.inject.settings import InjectionSettings

PAGE = Path("docs/how-to/monitor.md")
ADDRESS = "127.77.1.1"
PORTS = [{"containerPort": 8080}, {"containerPort": 9090}]
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "web",
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
    },
    "spec": {"containers": [{"name": "web", "image": "web", "ports": PORTS}]},
}


@requires_prometheus
async def test_injected_pod_has_one_target(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n( +scrape_configs:.*?)```", PAGE.read_text(), re.DOTALL)
    (job,) = yaml.safe_load(dedent(block))["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    pod = inject(POD, InjectionSettings(), locate=str).pod
    spec = pod["spec"]
    containers = [*spec["initContainers"], *spec["containers"]]
    ports = [port["containerPort"] for each in containers for port in each.get("ports", ())]
    assert ports == [15090, 15021, 8080, 9090]
    labels = {"__meta_kubernetes_namespace": "shop", "__meta_kubernetes_pod_name": "web"}
    for name, value in pod["metadata"]["annotations"].items():
        labels["__meta_kubernetes_pod_annotation_" + re.sub(r"\W", "_", name)] = value
    job["static_configs"] = [{"targets": [f"{ADDRESS}:{port}" for port in ports], "labels": labels}]
    async with Prometheus([job], tmp_path, address=f"127.0.0.1:{free_port()}") as prometheus:
        targets = await eventually(prometheus.targets, timeout=60, what="the pod is discovered")
    assert [(target["scrapeUrl"], target["labels"]) for target in targets] == [
        (
            f"http://{ADDRESS}:15020/stats/prometheus",
            {"instance": f"{ADDRESS}:15020", "job": "pods", "namespace": "shop", "pod": "web"},
        )
    ]
