"""Pods with IPv4 and IPv6 under a real kubelet."""

from __future__ import annotations

import pytest

from tests.kubernetes.environment.node import NodeCluster
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.installing import SYSTEM, install
from tests.kubernetes.player import PATIENCE
from tests.kubernetes.workloads import apply, ask, rolled_out, server, service, url
from tests.support.answers import UNANSWERED
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(600)]


async def test_both_ip_versions_use_mutual_tls(skip_without_nodes: None) -> None:
    with NodeCluster(dual_stack=True) as running:
        async with PodCluster(running) as cluster:
            await install(cluster)
            await rolled_out(cluster, SYSTEM, "deployment/xds")
            labels = {"istio-injection": "enabled"}
            outside = await cluster.new_namespace()
            await apply(cluster, outside, server("Deployment", "client"))
            [stranger] = await cluster.pods(outside, "client")
            namespace = await cluster.new_namespace(labels=labels)
            dual = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
            web = server("Deployment", "web", listen="::")
            client = server("Deployment", "client")
            strict = peer_authentication(namespace, "STRICT")
            await apply(cluster, namespace, strict, service("web", **dual), web, client)
            [web_pod] = await cluster.pods(namespace, "web")
            [pod] = await cluster.pods(namespace, "client")
            four, six = [each["ip"] for each in web_pod.object["status"]["podIPs"]]
            assert ":" in six

            async def has_identity(host: str, option: str) -> bool:
                answer = await ask(cluster, pod, host, option, container="web")
                assert answer.ok, answer
                return answer.identity == f"spiffe://cluster.local/ns/{namespace}/sa/default"

            for option in ("-4", "-6"):
                host = url(namespace)
                await eventually(lambda: has_identity(host, option), timeout=PATIENCE, every=0.2)  # noqa: B023
                refused = await ask(cluster, stranger, host, option, container="web")
                assert refused.code == UNANSWERED
            for address in (four, f"[{six}]"):
                refused = await ask(cluster, stranger, f"http://{address}:8080/", container="web")
                assert refused.code == UNANSWERED
