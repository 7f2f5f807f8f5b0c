"""Which custom resources may create pods that are not in the manifests."""

from __future__ import annotations

import pytest
import yaml

from xds.mesh.inject.kinds import find_creators

WORKFLOW_STEPS = """
templates:
- name: main
  dag: {tasks: [{name: a, inline: {container: {image: "app:1"}}}]}
"""


def creators(kind: str, spec: str) -> list[str]:
    """Return the names of the creators in a document with one object."""
    group, _, name = kind.rpartition("/")
    document = {
        "apiVersion": f"{group}/v1",
        "kind": name,
        "metadata": {"name": "one"},
        "spec": yaml.safe_load(spec),
    }
    return [creator for creator, _ in find_creators(document)]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("crdb.cockroachlabs.com/CrdbCluster", '{nodes: 3, image: {name: "cockroach:v24"}}'),
        ("openfaas.com/Function", '{name: echo, image: "echo:1"}'),
        ("kafka.strimzi.io/Kafka", "{kafka: {replicas: 3}}"),
        ("argoproj.io/Workflow", '{templates: [{name: main, container: {image: "app:1"}}]}'),
        ("argoproj.io/WorkflowTemplate", WORKFLOW_STEPS),
        ("tekton.dev/TaskRun", '{taskSpec: {steps: [{image: "app:1"}]}}'),
    ],
)
def test_custom_resource_may_create_pods(kind: str, spec: str) -> None:
    assert creators(kind, spec) == [f"{kind.rpartition('/')[2]} one"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("caching.internal.knative.dev/Image", '{image: "app:1"}'),
        ("image.toolkit.fluxcd.io/ImageRepository", '{image: "example.com/app", interval: 5m}'),
        ("postgresql.cnpg.io/ClusterImageCatalog", '{images: [{major: 17, image: "postgres:17"}]}'),
        ("image.openshift.io/ImageStream", '{tags: [{name: v1, from: {kind: DockerImage, name: "app:1"}}]}'),
        ("kafka.strimzi.io/KafkaTopic", "{partitions: 3, replicas: 3}"),
        (
            "kyverno.io/ClusterPolicy",
            '{rules: [{validate: {pattern: {spec: {containers: [{image: "!*:latest"}]}}}}]}',
        ),
        ("mutations.gatekeeper.sh/Assign", '{parameters: {assign: {value: {image: "app:1"}}}}'),
        ("cert-manager.io/Certificate", "{secretName: web, dnsNames: [web.example.com]}"),
    ],
)
def test_custom_resource_creates_no_pods(kind: str, spec: str) -> None:
    assert creators(kind, spec) == []
