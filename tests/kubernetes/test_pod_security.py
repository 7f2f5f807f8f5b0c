"""Which pods the Pod Security Standards admit, decided by the API server's own admission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.environment.cluster import Cluster
from xds.mesh.inject import inject
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.kube.api import KubeError
from xds.mesh.model.objects import INTERCEPTION_MODE

GATEWAY = Path("examples/envoy/ingress/gateway.yaml")
APP: dict[str, Any] = {
    "name": "web",
    "image": "web",
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
"""A container that satisfies every profile."""


def injected(mode: str = "REDIRECT", **settings: Any) -> dict[str, Any]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": {INTERCEPTION_MODE: mode}},
        "spec": {"containers": [APP]},
    }
    done = inject(pod, InjectionSettings(**settings), locate=str)
    assert not done.refused
    return json.loads(json.dumps(done.pod))  # type: ignore[no-any-return]


def without_init() -> dict[str, Any]:
    """An injected pod whose traffic a CNI plug-in would redirect."""
    pod = injected()
    pod["spec"]["initContainers"] = pod["spec"]["initContainers"][1:]
    return pod


def gateway() -> dict[str, Any]:
    (deployment,) = (item for item in yaml.safe_load_all(GATEWAY.read_text()) if item["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": template["metadata"]["labels"]},
    }
    return pod | {"spec": template["spec"] | {"serviceAccountName": "default"}}


PODS = {
    "redirect": injected(),
    "redirect-without-init": without_init(),
    "none": injected("NONE"),
    "none-ordinary-container": injected("NONE", native=False),
    "none-with-sds-socket": injected("NONE", sds="unix:///run/spire/agent.sock"),
    "gateway": gateway(),
}
REFUSED = {
    ("baseline", "redirect"): ("NET_ADMIN", "NET_RAW"),
    ("baseline", "none-with-sds-socket"): ("hostPath",),
    ("restricted", "redirect"): ("NET_ADMIN", "NET_RAW", "runAsNonRoot", "runAsUser=0"),
    ("restricted", "none-with-sds-socket"): ("hostPath",),
}
"""The words of the refusal, by profile and pod. All other pods are admitted."""


@pytest.mark.parametrize("profile", ["privileged", "baseline", "restricted"])
async def test_profile_admits_pods(cluster: Cluster, profile: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": profile}
    async with cluster.namespace("security", labels) as namespace:
        for name, pod in PODS.items():
            try:
                await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")
                refusal = ""
            except KubeError as error:
                refusal = str(error)
            expected = REFUSED.get((profile, name), ())
            assert bool(refusal) is bool(expected), (name, refusal)
            assert all(word in refusal for word in expected), (name, refusal)


async def test_api_server_accepts_the_gateway(cluster: Cluster) -> None:
    objects = [item for item in yaml.safe_load_all(GATEWAY.read_text()) if item["kind"] != "Namespace"]
    async with cluster.namespace("gateway") as namespace:
        for item in objects:
            item["metadata"]["namespace"] = namespace
        text = yaml.safe_dump_all(objects)
        arguments = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
        output = await cluster.kubectl(*arguments, stdin=text)
    assert output.count("created (server dry run)") == len(objects)
