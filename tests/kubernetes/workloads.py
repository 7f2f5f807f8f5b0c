"""Workloads of the tests in pods of real nodes, and requests between them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from tests.kubernetes.environment.cluster import KubectlError
from tests.kubernetes.environment.node import DOMAIN
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.player import PATIENCE
from tests.support.answers import Answer
from xds.mesh.kube.api import Json, KubeError

IMAGE = "docker.io/curlimages/curl"
PORT = 8080
IN_TIME = f"--timeout={PATIENCE}s"

_ECHO = """
import http.server, json, os, signal, socket, sys, time
busy = set()
def stop(*_):
    while busy:
        time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        busy.add(self)
        try:
            self.answer()
        finally:
            busy.discard(self)
    def answer(self):
        headers = {name.title(): value for name, value in self.headers.items()}
        content = json.dumps({"pod": os.environ["POD"], "headers": headers}).encode()
        if self.path == "/metrics":
            content = b"answers_total 1\\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
"""A server that names its pod and the request's headers, and has metrics."""
_CONTAINER = {
    "name": "web",
    "image": IMAGE,
    "imagePullPolicy": "Never",
    "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    "ports": [{"containerPort": PORT}],
    "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5},
    # The server finishes its requests when asked to end: not before clients have stopped sending new ones.
    "lifecycle": {"preStop": {"sleep": {"seconds": 10}}},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 100,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


def server(
    kind: str,
    name: str,
    *,
    replicas: int = 1,
    listen: str = "0.0.0.0",
    annotations: dict[str, str] | None = None,
    **pod: Any,
) -> Json:
    """Return a workload of servers whose answers an Answer can read. `pod` is added to their spec."""
    labels = {"app": name}
    container = _CONTAINER | {"command": ["python", "-c", _ECHO, listen, str(PORT)]}
    spec: Json = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations or {}},
            "spec": {"containers": [container], **pod},
        },
    }
    if kind != "DaemonSet":
        spec["replicas"] = replicas
    if kind == "StatefulSet":
        spec["serviceName"] = name
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def service(name: str, *, app: str = "", **spec: Any) -> Json:
    """Return a Service of servers."""
    ports = [{"name": "http", "port": PORT}]
    selector = {"app": app or name}
    spec = {"selector": selector, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def spread(app: str) -> Json:
    """Return a constraint that distributes the pods of a workload to nodes."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": app}},
    }


def disruption_budget(app: str) -> Json:
    """Return a budget that lets evictions leave one pod of a workload."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": app},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}},
    }


def url(namespace: str, host: str = "web") -> str:
    """Return the URL of a Service, or of a pod of a headless one."""
    return f"http://{host}.{namespace}.svc.{DOMAIN}:{PORT}/"


async def apply(cluster: PodCluster, namespace: str, *objects: Json) -> None:
    """Apply objects, and wait until the pods of workloads are ready."""
    content = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    await cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(content))
    for item in objects:
        if item["apiVersion"] == "apps/v1":
            await rolled_out(cluster, namespace, f"{item['kind']}/{item['metadata']['name']}")


async def rolled_out(cluster: PodCluster, namespace: str, workload: str, patience: float = PATIENCE) -> None:
    """Wait until all pods of a workload are up to date and ready."""
    in_time = f"--timeout={patience}s"
    try:
        await cluster.kubectl("rollout", "status", "-n", namespace, workload, in_time, timeout=patience + 10)
    except KubectlError as error:
        error.add_note(await cluster.kubectl("get", "pods,events", "-n", namespace, "-o", "wide"))
        raise


async def gone(cluster: PodCluster, pods: list[Pod], patience: float = PATIENCE) -> None:
    """Wait until pods are deleted."""
    for pod in pods:
        await cluster.kubectl("wait", "--for=delete", "-n", pod.namespace, f"pod/{pod.name}",
                              f"--timeout={patience}s", timeout=patience + 10)  # fmt: skip


async def restarted(cluster: PodCluster, namespace: str, app: str, patience: float = PATIENCE) -> None:
    """Replace the pods of a Deployment, and wait until the old ones are gone."""
    old = await cluster.pods(namespace, app)
    await cluster.kubectl("rollout", "restart", "-n", namespace, f"deployment/{app}")
    await rolled_out(cluster, namespace, f"deployment/{app}", patience)
    await gone(cluster, old, patience)


async def evicted(cluster: PodCluster, pod: Pod) -> bool:
    """Evict a pod, unless its PodDisruptionBudget does not allow that now."""
    about = {"name": pod.name, "namespace": pod.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
    try:
        await cluster.api.create(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/eviction", eviction)
    except KubeError as error:
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            return False
        raise
    return True


async def ask(cluster: PodCluster, pod: Pod, url: str, *options: str, container: str = "sleep") -> Answer:
    """Send a request with curl in a container of a pod."""
    curl = ("curl", "--silent", "--show-error", "--max-time", "10", "--write-out", r"\n%{http_code}")
    _, output, error = await cluster.execute(pod, container, *curl, *options, url)
    text, _, code = output.rpartition("\n")
    return Answer(code=code, text=text, error=error)


def statuses(pod: Json) -> list[Json]:
    """Return the statuses of all containers of a pod."""
    status = pod["status"]
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def restarts(pod: Pod) -> dict[str, int]:
    """Return how often each container was restarted."""
    return {each["name"]: each["restartCount"] for each in statuses(pod.object)}


def node_of(pod: Pod) -> str:
    """Return the name of a pod's node."""
    return str(pod.object["spec"]["nodeName"])
