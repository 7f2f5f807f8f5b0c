"""STRICT survives a restart: unreadable objects delay the start or count as STRICT, as seen on ADS."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from tests.cli.serve_kubernetes import ANY_PORT, TIMEOUT, Serve
from tests.server.proxies import REQUEST, RESPONSE
from tests.sources.fake_apiserver import FakeApiServer
from tests.sources.faults import status
from tests.support.loopback import free_port
from tests.support.predictions import predict
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig
from xds.mesh.policy.reach import Failure
from xds.mesh.sources.files import Folder
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

LISTENER_MESSAGE = message_class("envoy.config.listener.v3.Listener")
ASSIGNMENT = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")
CLUSTER_MESSAGE = message_class("envoy.config.cluster.v3.Cluster")
_MATCH = "envoy.transport_socket_match"
STREAM = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: NAMESPACE, labels: {{app: {name}, security.istio.io/tlsMode: {tls}}}}}
spec: {{containers: [{{name: app}}]}}
status: {{podIP: {address}, phase: Running}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: NAMESPACE}}
spec: {{clusterIP: None, selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
"""
PODS = POD.format(name="web", tls="istio", address="WEB") + POD.format(
    name="legacy", tls="none", address="LEGACY"
)
"""Pods of a tenant: a server with a sidecar, and one without."""
PEER = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: NAMESPACE}}
spec: {spec}
---
"""
PERMISSIVE = PEER.format(name="default", spec="{mtls: {mode: PERMISSIVE}}")
STRICT = PEER.format(name="default", spec="{mtls: {mode: STRICT}}")
POLICY = """
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {{name: {name}, namespace: NAMESPACE}}
spec: {spec}
---
"""
ALPHA_PERMISSIVE = POLICY.format(name="default", spec="{peers: [{mtls: {mode: PERMISSIVE}}]}")
MESH_POLICY = """
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: {name: default}
spec: {peers: [{mtls: {}}]}
---
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: legacy, namespace: NAMESPACE}
spec: {host: legacy.NAMESPACE.svc.cluster.local, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
---
"""


def tenant(number: int, *texts: str) -> str:
    """Return pods and policies, in a namespace of their own."""
    text = "".join((PODS, *texts)).replace("NAMESPACE", f"shop-{number}")
    return text.replace("WEB", f"127.9.{number}.1").replace("LEGACY", f"127.9.{number}.2")


def shop(namespace: str, text: str) -> str:
    """Put objects into a namespace."""
    return text.replace("NAMESPACE", namespace)


@dataclass(frozen=True)
class Served:
    """Configuration that the sidecar of a tenant's pod web receives."""

    takes_plaintext: bool
    """Whether its listener accepts plaintext on port 8080."""
    sends_mtls: bool
    """Whether it sends mutual TLS to the tenant's pod legacy."""


class ControlPlane(Serve):
    """`xds serve`, and the configuration of tenants' sidecars."""

    def __init__(self, folder: Path, *options: object) -> None:
        super().__init__(folder, *options)
        self.xds = f"127.0.0.1:{free_port()}"
        self._options = [*self._options[:-1], f"--xds-address={self.xds}"]

    async def served(self, tenant: int) -> Served:
        """Subscribe to clusters, endpoints and listeners on one ADS stream, and ACK everything."""
        async with asyncio.timeout(TIMEOUT), grpc.aio.insecure_channel(self.xds) as channel:
            call: Any = channel.stream_stream(STREAM)(wait_for_ready=True)
            found = {}
            names: list[str] = []
            for kind in (CLUSTER, ENDPOINT, LISTENER):
                request = REQUEST(type_url=kind, resource_names=names if kind == ENDPOINT else ())
                where = f"shop-{tenant}"
                request.node.id = f"sidecar~127.9.{tenant}.1~web.{where}~{where}.svc.cluster.local"
                await call.write(request.SerializeToString())
                response = RESPONSE.FromString(await call.read())
                found[response.type_url] = [resource.value for resource in response.resources]
                request.version_info, request.response_nonce = response.version_info, response.nonce
                await call.write(request.SerializeToString())
                if kind == CLUSTER:
                    clusters = [CLUSTER_MESSAGE.FromString(body) for body in found[CLUSTER]]
                    names = [cluster.name for cluster in clusters if cluster.HasField("eds_cluster_config")]
            call.cancel()
        listeners = [LISTENER_MESSAGE.FromString(body) for body in found[LISTENER]]
        [inbound] = [listener for listener in listeners if listener.name == "virtualInbound"]
        chains = [
            chain
            for chain in inbound.filter_chains
            if chain.filter_chain_match.destination_port.value == 8080
        ]
        assert chains
        marked = {
            endpoint.endpoint.address.socket_address.address: _MATCH in endpoint.metadata.filter_metadata
            for assignment in map(ASSIGNMENT.FromString, found[ENDPOINT])
            for locality in assignment.endpoints
            for endpoint in locality.lb_endpoints
        }
        return Served(
            takes_plaintext=not all(chain.HasField("transport_socket") for chain in chains),
            sends_mtls=marked[f"127.9.{tenant}.2"],
        )

    async def has_been_told_nothing(self) -> bool:
        """Whether a kind was unreadable for more than 10 s.

        After this time, earlier versions assumed that the kind was absent.
        """
        _, metrics = await self.get("/metrics")
        [behind] = [line for line in metrics.splitlines() if line.startswith("xds_source_stale_seconds ")]
        return float(behind.split()[1]) > 12

    async def listens(self) -> bool:
        """Whether the xDS address accepts connections."""
        host, _, port = self.xds.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        writer.close()
        return True


def place(path: Path, content: str | bytes) -> None:
    """Replace a file atomically."""
    new = path.with_name(f".{path.name}")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.rename(path)


# --- a policy with an error -----------------------------------------------------------------------

WORKLOAD = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"
PORT = (
    "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}"
)
TARGET = "{targets: [{name: web}], peers: [{mtls: {}}]}"
TARGET_PORT = "{targets: [{name: web, ports: [{number: 80}]}], peers: [{mtls: {}}]}"
FRONT = """
apiVersion: v1
kind: Service
metadata: {name: front, namespace: NAMESPACE}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
"""
OF_WEB = PERMISSIVE + PEER.format(name="web", spec=WORKLOAD)
ALPHA_OF_WEB = ALPHA_PERMISSIVE + POLICY.format(name="web", spec=TARGET)
MISTAKES = {
    "mode": (STRICT, "STRICT", "STRICTT"),
    "field": (STRICT, "mtls", "mtsl"),
    "unknown field": (STRICT, "{mtls", "{mtsl: {}, mtls"),
    "selector": (OF_WEB, "matchLabels", "matchLabel"),
    "name of the selector": (OF_WEB, "selector", "selectr"),
    "mode of a workload": (OF_WEB, "mode: STRICT", "mode: STRIC"),
    "mode of a port": (PEER.format(name="web", spec=PORT), "mode: STRICT", "mode: STRIC"),
    "age": (
        PERMISSIVE.replace("name: default", "name: a")
        + STRICT.replace("NAMESPACE", "NAMESPACE, creationTimestamp: 2020-01-01T00:00:00Z"),
        "2020-01-01T00:00:00Z",
        "yesterday",
    ),
    "peers of a Policy": (ALPHA_OF_WEB, "[{mtls: {}}]", "{mtls: {}}"),
    "targets of a Policy": (ALPHA_OF_WEB, "targets", "target"),
    "Service of a Policy": (
        ALPHA_PERMISSIVE + POLICY.format(name="front", spec=TARGET.replace("web", "front")) + FRONT,
        "port: 80,",
        "port: http,",
    ),
    "port of a target": (
        ALPHA_PERMISSIVE
        + POLICY.format(name="other", spec=TARGET_PORT.replace("mtls: {}", "mtls: {mode: PERMISSIVE}"))
        .replace("80", "81")
        + POLICY.format(name="web", spec=TARGET_PORT),
        "number: 80}",
        "number: http}",
    ),
}  # fmt: skip
"""Policies that lock pod web, what is right in the last of them, and what is written instead."""


async def test_refused_policies_are_strict_after_a_restart(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    tenants = dict(enumerate(MISTAKES.values(), 1))
    open_tenant = len(tenants) + 1
    place(manifests / "open.yaml", tenant(open_tenant, PERMISSIVE))
    for number, (good, _, _) in tenants.items():
        place(manifests / f"{number}.yaml", tenant(number, good))
    async with ControlPlane(tmp_path, "--manifests", manifests) as running:
        await running.wait_ready(200)
        assert [number for number in tenants if (await running.served(number)).takes_plaintext] == []
    for number, (good, old, new) in tenants.items():
        place(manifests / f"{number}.yaml", tenant(number, new.join(good.rsplit(old, 1))))
    async with ControlPlane(tmp_path, "--manifests", manifests) as restarted:
        await restarted.wait_ready(200)
        assert [number for number in tenants if (await restarted.served(number)).takes_plaintext] == []
        assert (await restarted.served(open_tenant)).takes_plaintext
        said = restarted.logged('event="problem found"', "until it is repaired")
        assert {int(number) for line in said for number in re.findall(r"STRICT .+ shop-(\d+)", line)} == {
            *tenants
        }
    reasons = reached(manifests)
    assert {number: reasons[number] for number in tenants} == dict.fromkeys(
        tenants, Failure.SERVER_REQUIRES_MTLS
    )
    assert reasons[open_tenant] not in set(Failure)


def reached(manifests: Path, config: MeshConfig | None = None) -> dict[int, object]:
    """Return by tenant what happens to plaintext from pod legacy to pod web."""
    mesh = Mesh(Folder(manifests).load().change.applied, config)
    legacy = [pod for pod in mesh.pods() if pod.name == "legacy"]
    return {
        int(hop.service.namespace.removeprefix("shop-")): hop.reason
        for hop in predict(mesh, legacy)
        if hop.service.name == "web" and hop.client.namespace == hop.service.namespace
    }


@pytest.mark.parametrize(
    "good", [shop("istio-system", STRICT), MESH_POLICY], ids=["PeerAuthentication", "MeshPolicy"]
)
async def test_refused_policy_of_the_mesh_is_strict_after_a_restart(tmp_path: Path, good: str) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    place(manifests / "pods.yaml", tenant(1))
    place(manifests / "policy.yaml", good)
    assert reached(manifests) == {1: Failure.SERVER_REQUIRES_MTLS}
    place(manifests / "policy.yaml", good.replace("mtls", "mtsl"))
    assert reached(manifests) == {1: Failure.SERVER_REQUIRES_MTLS}
    async with ControlPlane(tmp_path, "--manifests", manifests) as restarted:
        await restarted.wait_ready(200)
        assert not (await restarted.served(1)).takes_plaintext


async def test_refused_rules_send_no_plaintext_after_a_restart(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    mistakes = {
        1: ("ISTIO_MUTUAL", "ISTIO_MUTAL"),
        2: ("tls:", "tsl:"),
        3: ("legacy.shop-3.svc.cluster.local", "17"),
        4: ("{tls:", "{connectionPool: {tcp: {connectTimeout: soon}}, tls:"),
        5: ("{tls:", "{tls: {mode: DISABLE}, tls:"),
    }
    place(manifests / "6.yaml", tenant(6))
    for number, (old, new) in mistakes.items():
        text = tenant(number, RULE)
        assert text.count(old)
        place(manifests / f"{number}.yaml", text.replace(old, new))
    async with ControlPlane(tmp_path, "--manifests", manifests) as restarted:
        await restarted.wait_ready(200)
        sends = {number: (await restarted.served(number)).sends_mtls for number in (*mistakes, 6)}
        assert sends == {**dict.fromkeys(mistakes, True), 6: False}


# --- files with unknown objects -------------------------------------------------------------------


async def test_unreadable_documents_are_waited_for_at_start(tmp_path: Path) -> None:
    manifests, config = tmp_path / "manifests", tmp_path / "mesh-config.yaml"
    manifests.mkdir()
    good = shop("locked", STRICT)
    hiding: dict[str, str | bytes] = {
        "cannot be read as YAML": good + "{\n",
        "PeerAuthenticaton does not exist": good.replace("PeerAuthentication", "PeerAuthenticaton"),
        "metadata.name is required": good.replace("name: default, ", ""),
        "is not UTF-8": good.encode() + b"# caf\xe9\n",
    }
    policies = manifests / "policies.yaml"
    place(manifests / "pods.yaml", tenant(1))
    place(config, "rootNamespace: locked\nenableAutoMtls: maybe\n")
    async with ControlPlane(tmp_path, "--manifests", manifests, "--mesh-config", config) as waiting:
        for what, content in hiding.items():
            place(policies, content)
            await waiting.wait_ready(503, f"waiting for the manifests to be repaired: {policies}:", what)
            # What is waited for is known a moment before it is logged.
            await eventually(
                lambda: waiting.logged('event="problem found"', "policies.yaml"), timeout=TIMEOUT
            )
            assert 'xds_problems{severity="problem"} 0.0' not in (await waiting.get("/metrics"))[1]
        place(policies, good)
        await waiting.wait_ready(503, f"waiting for the manifests to be repaired: {config}:2")
        assert not await waiting.listens()
        place(config, "rootNamespace: locked\n")
        await waiting.wait_ready(200)
        assert not (await waiting.served(1)).takes_plaintext
        place(policies, hiding["cannot be read as YAML"])
        place(config, "rootNamespace: [locked]\n")
        await eventually(lambda: waiting.logged('event="problem found"', "rootNamespace"), timeout=TIMEOUT)
        assert not (await waiting.served(1)).takes_plaintext
        assert (await waiting.get("/ready"))[0] == 200
    place(policies, good)
    assert reached(manifests, MeshConfig(root_namespace="locked")) == {1: Failure.SERVER_REQUIRES_MTLS}


# --- unreadable API resources ---------------------------------------------------------------------

KINDS = {
    "Pod": ("pods", ""),
    "Service": ("services", ""),
    "PeerAuthentication": ("peerauthentications", "security.istio.io"),
    "Policy": ("policies", "authentication.istio.io"),
}
PEERS, POLICIES = "peerauthentications.security.istio.io", "policies.authentication.istio.io"
KUBERNETES = ("--kubernetes", *ANY_PORT, "--kubeconfig")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path) as server:
        server.serve_istio()
        strict = POLICY.format(name="default", spec="{peers: [{mtls: {}}]}")
        for text in (tenant(1, STRICT), tenant(2, strict)):
            for obj in filter(None, yaml.safe_load_all(text)):
                plural, group = KINDS[obj["kind"]]
                await server.put(plural, obj, group)
        yield server


def settings(mesh: str) -> dict[str, Any]:
    return {"metadata": {"name": "xds", "namespace": "istio-system"}, "data": {"mesh": mesh}}


def deny(server: FakeApiServer, plural: str) -> None:
    """Answer 403 to requests for a resource."""
    for verb in ("list", "watch"):
        server.fail(f"{verb} {plural}", *(status(403, "Forbidden") for _ in range(10_000)))


def allow(server: FakeApiServer, plural: str) -> None:
    for verb in ("list", "watch"):
        server.faults.pop(f"{verb} {plural}")


async def test_unreadable_resources_are_waited_for_at_start(server: FakeApiServer, tmp_path: Path) -> None:
    for plural in ("pods", "configmaps", "peerauthentications"):
        deny(server, plural)
    server.serve("peerauthentications", "security.istio.io")
    async with ControlPlane(tmp_path, *KUBERNETES, server.kubeconfig()) as waiting:
        said = await waiting.wait_ready(
            503, "waiting for pods: ", "waiting for configmaps: ", f"waiting for {PEERS}: "
        )
        assert 'resources: ["pods"], verbs: ["get", "list", "watch"]}' in said
        assert 'resourceNames: ["xds"], verbs: ["get", "list", "watch"]}' in said
        assert "the cluster has no such kind; run xds install-crds" in said
        allow(server, "pods")
        server.serve("peerauthentications", "security.istio.io", "v9")
        said = await waiting.wait_ready(503, "serves v9, but xds supports only", "waiting for configmaps: ")
        server.serve("peerauthentications", "security.istio.io", "v1")
        said = await waiting.wait_ready(503, 'resources: ["peerauthentications"], verbs:')
        assert "waiting for pods" not in said
        await server.put("configmaps", settings("trustDomain: [\n"))
        allow(server, "configmaps")
        allow(server, "peerauthentications")
        await waiting.wait_ready(503, "waiting for ConfigMap istio-system/xds: ")
        for kind in ("pods", "configmaps", PEERS, "ConfigMap"):
            await eventually(
                lambda kind=kind: waiting.logged('event="problem found"', kind),  # type: ignore[misc]
                timeout=TIMEOUT,
            )

        async def has_one_problem() -> bool:
            return 'xds_problems{severity="problem"} 1.0' in (await waiting.get("/metrics"))[1]

        await eventually(has_one_problem, timeout=TIMEOUT)
        assert not await waiting.listens()
        await server.put("configmaps", settings("{}"))
        await waiting.wait_ready(200)
        assert not (await waiting.served(1)).takes_plaintext
        await server.put("configmaps", settings("trustDomain: [\n"))
        await eventually(
            lambda: len(waiting.logged('event="problem found"', "ConfigMap")) > 1, timeout=TIMEOUT
        )
        assert (await waiting.get("/ready"))[0] == 200


async def test_kinds_that_become_unreadable_keep_their_policies(
    server: FakeApiServer, tmp_path: Path
) -> None:
    async with ControlPlane(tmp_path, *KUBERNETES, server.kubeconfig()) as running:
        await running.wait_ready(200)
        deny(server, "policies")
        server.serve("peerauthentications", "security.istio.io")
        await server.cut()
        await eventually(running.has_been_told_nothing, timeout=TIMEOUT)
        for number in (1, 2):
            assert not (await running.served(number)).takes_plaintext
        await running.wait_ready(
            200, f"ready: {POLICIES}, {PEERS} have been unreadable since", "stays in use"
        )
        allow(server, "policies")
        server.serve("peerauthentications", "security.istio.io", "v1")
        await running.wait_ready(200, "ready\n")
        await server.remove("peerauthentications", "shop-1", "default", "security.istio.io")

        async def open_again() -> bool:
            return (await running.served(1)).takes_plaintext

        await eventually(open_again, timeout=TIMEOUT)
        assert not (await running.served(2)).takes_plaintext


# --- kinds that are not enforced ------------------------------------------------------------------

DENY = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: deny-all, namespace: shop-1}
spec: {}
"""
NOT_ENFORCED = "NOT enforced: requests that it would deny are allowed"


async def test_unenforced_kinds_are_warnings_at_every_start(server: FakeApiServer, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    place(manifests / "pods.yaml", tenant(1))
    place(manifests / "deny.yaml", DENY)
    server.add("security.istio.io", "v1", "requestauthentications", "RequestAuthentication")
    await server.put("requestauthentications", yaml.safe_load(DENY), "security.istio.io")
    cluster = (*KUBERNETES, server.kubeconfig())
    for options in (("--manifests", manifests), ("--manifests", manifests), cluster):
        async with ControlPlane(tmp_path, *options) as serving:
            await serving.wait_ready(200)
            words = ("level=warning", "RequestAuthentication shop-1/deny-all", NOT_ENFORCED)
            await eventually(lambda: serving.logged(*words), timeout=TIMEOUT)  # noqa: B023
            _, metrics = await serving.get("/metrics")
            assert 'xds_unenforced_objects{kind="RequestAuthentication"} 1.0' in metrics
