"""Certificates of injected pods that the kubelet keeps, from the request to the handshake."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.kubernetes.developing import with_mesh
from tests.kubernetes.environment.node import NodeCluster
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.installing import SYSTEM
from tests.kubernetes.kubelet import request_for
from tests.kubernetes.player import PATIENCE, URL, uses_mutual_tls
from tests.kubernetes.workloads import IMAGE, IN_TIME
from tests.support.load import Load
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually
from xds.mesh.identity import SIGNER, TRUST_BUNDLE
from xds.mesh.kube.api import Json

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(400)]

GROUP = "/apis/certificates.k8s.io/v1"
REQUESTS = f"{GROUP}/namespaces/full/podcertificaterequests"


@pytest.fixture(scope="module")
def nodes(skip_without_nodes: None) -> Iterator[NodeCluster]:
    with NodeCluster() as running:
        yield running


@pytest.fixture
async def cluster(nodes: NodeCluster) -> AsyncIterator[PodCluster]:
    """The cluster of this file, with the mesh of `make cluster`, STRICT in namespace full."""
    async with with_mesh(nodes, peer_authentication("full", "STRICT")) as cluster:
        yield cluster


async def test_envoy_uses_the_certificate_that_the_kubelet_keeps(cluster: PodCluster) -> None:
    [httpbin], [sleep] = await cluster.pods("full", "httpbin"), await cluster.pods("full", "sleep")
    await eventually(lambda: uses_mutual_tls(cluster, sleep), timeout=PATIENCE, every=0.2)
    for pod in (httpbin, sleep):
        envoy = Path(f"/proc/{pod.process('xds-proxy')}")
        assert "envoy" in (envoy / "comm").read_text()
        assert not (envoy / f"task/{envoy.name}/children").read_text()
        [request] = [each for each in await requests(cluster) if each["spec"]["podUID"] == pod.uid]
        [condition] = request["status"]["conditions"]
        assert condition["type"] == "Issued", condition
        [issued, *_] = x509.load_pem_x509_certificates(request["status"]["certificateChain"].encode())
        assert await serial_numbers(cluster, pod) == {issued.serial_number}
        names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [name] = names.get_values_for_type(x509.UniformResourceIdentifier)
        assert name == f"spiffe://cluster.local/ns/full/sa/{request['spec']['serviceAccountName']}"


async def test_new_certificates_fail_no_request(cluster: PodCluster) -> None:
    [httpbin], [sleep] = await cluster.pods("full", "httpbin"), await cluster.pods("full", "sleep")
    before = [await serial_numbers(cluster, pod) for pod in (httpbin, sleep)]

    async def are_new() -> bool:
        now = [await serial_numbers(cluster, pod) for pod in (httpbin, sleep)]
        return all(new and not new & old for old, new in zip(before, now, strict=True))

    load = Load(client=await cluster.client(sleep), url=URL, connections=2, seconds=300)
    async with load:
        await load.more(20, PATIENCE)
        # A kubelet that starts has no keys, and requests certificates for new ones at once.
        cluster.node.stop_kubelet()
        cluster.node.start_kubelet()
        await eventually(are_new, timeout=PATIENCE, every=0.2)
        await load.more(20, PATIENCE)
    load.check()
    # A new client makes a handshake with the new certificate of the server.
    await cluster.kubectl("delete", "pod", "-n", "full", sleep.name, timeout=PATIENCE)

    async def has_successor() -> bool:
        pods = [
            pod for pod in await cluster.pods("full", "sleep") if pod.object["status"]["phase"] == "Running"
        ]
        return bool(pods) and await uses_mutual_tls(cluster, pods[0])

    await eventually(has_successor, timeout=PATIENCE, every=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"podUID": "other"}, "the pod UID of pod {pod} is {uid}, not other"),
        ({"podName": "gone"}, "pod gone does not exist"),
        ({"nodeName": "other"}, "the node of pod {pod} is node1, not other"),
        ({"serviceAccountName": "other"}, "the service account of pod {pod} is httpbin, not other"),
        (
            {"unverifiedUserAnnotations": {"xds.io/name": "admin"}},
            "xds.io/workload does not support userAnnotations; remove them from the podCertificate volume",
        ),
        (
            {"key": ed25519.Ed25519PrivateKey.generate()},
            "the key is unsupported; supported: EC P-256",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_request_that_is_not_for_its_pod_is_denied(
    cluster: PodCluster, changes: dict[str, Any], message: str
) -> None:
    [pod] = await cluster.pods("full", "httpbin")
    request = request_for(pod.object, changes.pop("key", None))
    request["spec"] |= changes
    created = await cluster.api.create(REQUESTS, request)
    path = f"{REQUESTS}/{created['metadata']['name']}"
    answered = await cluster.until(path, lambda obj: (obj.get("status") or {}).get("conditions"))
    [condition] = answered["status"]["conditions"]
    assert condition["type"] == "Denied"
    assert condition["message"].startswith(message.format(pod=pod.name, uid=pod.uid))
    assert "certificateChain" not in answered["status"]


async def test_roots_are_published_as_a_cluster_trust_bundle(cluster: PodCluster) -> None:
    bundle = await cluster.api.get(f"{GROUP}/clustertrustbundles/{TRUST_BUNDLE}")
    roots = await cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/configmaps/xds-ca-root-cert")
    assert bundle["spec"]["signerName"] == SIGNER
    assert bundle["spec"]["trustBundle"] == roots["data"]["root-cert.pem"]


async def test_application_uses_the_certificates_of_the_mesh(cluster: PodCluster) -> None:
    """The volume of docs/explanation/identity.md, in a pod without a sidecar."""
    [volumes] = re.findall(
        r"```yaml\n(volumes:.*?)```", Path("docs/explanation/identity.md").read_text(), re.DOTALL
    )
    container = {
        "name": "app",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sleep", "3600"],
        "volumeMounts": [{"name": "certificate", "mountPath": "/certificate"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app", "namespace": "legacy", "labels": {"app": "app"}},
        "spec": {"containers": [container], **yaml.safe_load(volumes)},
    }
    await cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    await cluster.kubectl("wait", "-n", "legacy", "pod/app", "--for=condition=Ready", IN_TIME,
                          timeout=PATIENCE + 10)  # fmt: skip
    [app] = await cluster.pods("legacy", "app")
    bundle = "/certificate/credential-bundle.pem"

    async def is_answered() -> bool:
        # A SPIFFE ID is no host name, so curl cannot verify the server.
        command = (
            "curl",
            "-s",
            "--insecure",
            "--cert",
            bundle,
            "--key",
            bundle,
            URL.replace("http:", "https:"),
        )
        _, output, _ = await cluster.execute(app, "app", *command)
        return "URI=spiffe://cluster.local/ns/legacy/sa/default" in output

    await eventually(is_answered, timeout=PATIENCE, every=0.2)
    _, roots, _ = await cluster.execute(app, "app", "cat", "/certificate/roots.pem")
    bundle_of_cluster = await cluster.api.get(f"{GROUP}/clustertrustbundles/{TRUST_BUNDLE}")
    assert roots.split() == bundle_of_cluster["spec"]["trustBundle"].split()


async def requests(cluster: PodCluster) -> list[Json]:
    """Return the requests in namespace full."""
    listed: list[Json] = (await cluster.api.get(REQUESTS))["items"]
    return listed


async def serial_numbers(cluster: PodCluster, pod: Pod) -> set[int]:
    """Return the serial numbers of the certificates that a sidecar's Envoy uses; none without a kubelet."""
    container = pod.object["spec"]["containers"][0]["name"]
    status, output, _ = await cluster.execute(pod, container, "curl", "-s", "http://127.0.0.1:15000/certs")
    chains = [each["cert_chain"] for each in json.loads(output)["certificates"]] if not status else []
    return {int(chain[0]["serial_number"], 16) for chain in chains if chain}
