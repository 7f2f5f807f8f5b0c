"""A mesh in a cluster whose kinds have no schemas, and the configuration of its sidecars."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias

import aiohttp

from tests.kubernetes.bad_objects import EVIL, PEER, SHOP, SYSTEM
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.foreign_kinds import foreign
from xds.mesh.envoy.translate import translate
from xds.mesh.kube import crds
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import TLS_MODE_LABEL, Problem
from xds.mesh.sources.kubernetes import Kubernetes
from xds.mesh.sources.report import SourceUpdate
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE

PATIENCE = 30.0

PLURALS = {
    "PeerAuthentication": "peerauthentications",
    "AuthorizationPolicy": "authorizationpolicies",
    "DestinationRule": "destinationrules",
    "Policy": "policies",
    "MeshPolicy": "meshpolicies",
    "EndpointSlice": "endpointslices",
}


ENDLESS = {"ENDLESS": 5000}
"""Placeholders for deeply nested values."""

View: TypeAlias = dict[tuple[str, str, str], str]


class Watching:
    """The control plane's view of a cluster, kept up to date."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._source = Kubernetes(cluster.api, namespace=SYSTEM)
        self._reports = self._source.watch()
        self._next: asyncio.Future[SourceUpdate] | None = None
        self.mesh = Mesh()

    async def until(self, check: Callable[[], Any], what: str) -> None:
        """Follow the cluster's changes until `check` holds."""
        async with asyncio.timeout(PATIENCE):
            while not check():
                # Not cancelled by the timeout, which would end the watch for all later tests.
                self._next = self._next or asyncio.ensure_future(anext(self._reports))
                report = await asyncio.shield(self._next)
                self._next = None
                self.mesh = self.mesh.apply(report.change)
        assert check(), what

    def view(self) -> View:
        """Return the configuration of each sidecar: version by pod, type and name."""
        return {
            (f"{pod.namespace}/{pod.name}", url, resource.name): resource.version
            for pod in self.mesh.pods()
            if pod.meta.labels.get(TLS_MODE_LABEL) == "istio"
            for url in (CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE)
            for resource in translate(self.mesh, pod).of(url).values()
            # The neighbor may change its own services.
            if not resource.name.endswith(f".{EVIL}.svc.cluster.local")
        }

    def problems(self) -> list[Problem]:
        return [problem for problem in self._source.problems if not problem.notice]

    async def close(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._reports.aclose()


async def set_up(cluster: Cluster) -> None:
    for definition in crds.definitions():
        spec = definition["spec"]
        theirs = foreign(
            spec["names"]["plural"], spec["group"], spec["names"]["kind"],
            [version["name"] for version in spec["versions"]],
        )  # fmt: skip
        theirs["spec"]["scope"] = spec["scope"]
        await cluster.api.create(crds.PATH, theirs)
    await crds.install(cluster.api)
    for namespace in (SYSTEM, SHOP, EVIL):
        await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        await cluster.until(f"/api/v1/namespaces/{namespace}/serviceaccounts/default", lambda _: True)
    # Older than all objects of the shop, so that it would win by age.
    await service(cluster, EVIL, "elder")
    await service(cluster, SHOP, "web")
    await pod(cluster, SHOP, "web", "10.1.0.1")
    await pod(cluster, SHOP, "client", "10.1.0.2")
    await slice_of(cluster, SHOP, "web", "10.1.0.1", target="web")
    older = {"selector": {"matchLabels": {"app": "older"}}, "mtls": {"mode": "STRICT"}}
    await create(cluster, PEER, SHOP, "older", {"spec": older})
    await pod(cluster, SHOP, "older", "10.1.0.3")


async def service(cluster: Cluster, namespace: str, name: str) -> str:
    """Make a Service with handwritten EndpointSlices, which controllers ignore. Return its path."""
    spec = {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    path = f"/api/v1/namespaces/{namespace}/services"
    await cluster.api.create(path, {"metadata": {"name": name}, "spec": spec})
    return f"{path}/{name}"


async def slice_of(cluster: Cluster, namespace: str, owner: str, address: str, *, target: str = "") -> str:
    endpoint: dict[str, Any] = {"addresses": [address], "conditions": {"ready": True}}
    if target:
        endpoint["targetRef"] = {"kind": "Pod", "namespace": namespace, "name": target}
    body = {
        "metadata": {"name": f"{owner}-1", "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [endpoint],
    }
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    await cluster.api.create(path, body)
    return f"{path}/{owner}-1"


async def pod(
    cluster: Cluster,
    namespace: str,
    name: str,
    address: str,
    *,
    tls_mode: str = "istio",
    annotations: Any = None,
) -> str:
    """Create a running pod, with a sidecar by default; return its path."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    metadata = {"name": name, "labels": {"app": name, TLS_MODE_LABEL: tls_mode}, "annotations": annotations}
    spec = {"containers": [{"name": "app", "image": "app"}]}
    await cluster.api.create(path, {"metadata": metadata, "spec": spec})
    await cluster.run_pod(namespace, name, address)
    return f"{path}/{name}"


async def create(cluster: Cluster, kind: str, namespace: str, name: str, body: dict[str, Any]) -> str:
    """Create an object of any kind; return its path."""
    version, _, kind = kind.partition(" ")
    within = f"/namespaces/{namespace}" if namespace else ""
    path = f"/apis/{version}{within}/{PLURALS[kind]}"
    metadata = {**body.get("metadata", {}), "name": name}
    await send(cluster, "POST", path, {**body, "apiVersion": version, "kind": kind, "metadata": metadata})
    return f"{path}/{name}"


async def send(cluster: Cluster, method: str, path: str, body: dict[str, Any]) -> None:
    """Send a body that may be nested too deeply for Python's JSON module."""
    context = ssl.create_default_context(cafile=cluster.control_plane.certificates.root)
    context.load_cert_chain(*cluster.control_plane.admin)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, cluster.server + path, data=as_json(body), headers=headers, ssl=context
        ) as answer,
    ):
        assert answer.status in (200, 201), await answer.text()


def as_json(body: dict[str, Any]) -> str:
    text = json.dumps(body)
    for name, depth in ENDLESS.items():
        text = text.replace(f'"{name}"', '{"mode": ' * depth + '"STRICT"' + "}" * depth)
    return text
