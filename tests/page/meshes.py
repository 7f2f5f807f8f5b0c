"""Folders of manifests for the tests of the page, and a sidecar that connects and never ACKs."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest

from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOG_SERVICE
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.state_dir import CERTIFICATE_FILE, KEY_FILE
from xds.mesh.observe.report_reader import ACCESS_LOGS
from xds.snapshot import CLUSTER

EXAMPLES = Path(__file__).parents[2] / "examples" / "envoy" / "auto-mtls"
NODE_ID = "sidecar~127.10.1.2~sleep.full~full.svc.cluster.local"
_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: full}
spec: {mtls: {mode: STRICT}}
"""
INVALID = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: wrong, namespace: partial}
spec: {selector: {matchLabels: {app: none}}, mtls: {mode: STRICKT}}
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain, namespace: full}
spec: {host: httpbin.full.svc.cluster.local, exportTo: ["."], trafficPolicy: {tls: {mode: DISABLE}}}
"""
AUTHORIZATION = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: sleep, namespace: full}
spec:
  selector: {matchLabels: {app: sleep}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/full/sa/httpbin]}}]
    to: [{operation: {methods: [GET]}}]
"""
_SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}-0
  namespace: {namespace}
  labels: {{app: {name}{label}}}
spec: {{serviceAccountName: {name}, containers: [{{name: {name}, ports: [{{containerPort: 8080}}]}}]}}
status: {{podIP: {address}}}
---
"""


def istio_task(folder: Path) -> Path:
    """Return a folder with the workloads of the Istio task."""
    return Path(shutil.copytree(EXAMPLES / "workloads", folder))


def many_services(folder: Path, namespaces: int, services: int) -> Path:
    """Return a folder with services in several namespaces. One service in ten has no sidecar."""
    folder.mkdir()
    for number in range(namespaces):
        text = ""
        for index in range(services):
            label = "" if index % 10 == 9 else ", security.istio.io/tlsMode: istio"
            address = f"10.0.{number}.{index + 1}"
            text += _SERVICE.format(name=f"s{index}", namespace=f"ns{number}", label=label, address=address)
        (folder / f"ns{number}.yaml").write_text(text)
    return folder


def write_ca(folder: Path, *, days: int, age: int) -> Path:
    """Return a state directory with a CA that is some days old and expires in some days."""
    folder.mkdir(mode=0o700)
    key = PrivateKey.generate()
    authority = Authority.create(
        key, "cluster.local", datetime.now(UTC) - timedelta(days=age), timedelta(days=age + days)
    )
    (folder / KEY_FILE).touch(0o600)
    (folder / KEY_FILE).write_bytes(key.to_pem())
    (folder / CERTIFICATE_FILE).write_bytes(authority.certificate_pem)
    return folder


@contextmanager
def connected_sidecar(port: int, node_id: str = NODE_ID) -> Iterator[None]:
    """Keep the stream of a sidecar open that has received its clusters, and has not ACKed them."""
    requests = queue.Queue[bytes | None]()
    requests.put(bytes(DiscoveryRequest(node=Node(id=node_id, user_agent_name="envoy"), type_url=CLUSTER)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(_ADS)(iter(requests.get, None))
        try:
            next(call)
            yield
        finally:
            requests.put(None)
            call.cancel()


def report_connections(port: int, node_id: str, connections: Iterable[tuple[str, int, bool]]) -> None:
    """Send the access log of a sidecar: address of the client, port, and whether plaintext was refused."""
    message: Any = message_class(ACCESS_LOGS)()
    message.identifier.node.id = node_id
    for address, to_port, is_refused in connections:
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_direct_remote_address.socket_address.address = address
        common.downstream_local_address.socket_address.port_value = to_port
        common.response_flags.no_route_found = is_refused
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.stream_unary(f"/{LOG_SERVICE}/StreamAccessLogs")(iter([message.SerializeToString()]))
