"""The Kubernetes source: a real API server with the objects of the mesh, of the tests' kind.

It has no controllers, so that no other program uses CPU time when an object changes: the benchmark writes the
EndpointSlices itself.
"""

from __future__ import annotations

import copy
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from control import Process
from manifests import ROOT_NAMESPACE, Mesh
from sources import MESH_TYPES, SERVE, Size

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.control_plane import ControlPlane
from xds.mesh.envoy.names import NodeId
from xds.mesh.identity import AUDIENCE
from xds.mesh.kube.root_publisher import KEY, ROOT_CONFIG_MAP
from xds.snapshot import SECRET

_THREADS = 8
"""Number of connections that create objects."""
_MAX_IDLE = 10.0
"""Seconds after which an unused connection is not used again."""
_ROOTS_TIMEOUT = 30.0
"""Seconds for the control plane to publish its roots."""
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
_POLICIES = f"/apis/security.istio.io/v1/namespaces/{ROOT_NAMESPACE}/peerauthentications"


class Kubernetes:
    """`xds serve --kubernetes`, and the API server, which runs until `stack` is closed."""

    def __init__(self, size: Size, folder: Path, stack: ExitStack) -> None:
        if problem := binaries.why_none():
            raise SystemExit(f"--source kubernetes: {problem}")
        self.mesh = Mesh(services=size.services, endpoints=size.endpoints, namespaces=size.namespaces)
        self._plane = ControlPlane()
        self._plane.has_controllers = False
        stack.enter_context(self._plane)
        self._api = _Api(self._plane)
        self._tls = size.tls
        self._roots = folder / "root-cert.pem"
        self._kubeconfig = folder / "kubeconfig"
        certificate, key = self._plane.admin
        admin = {"client-certificate": str(certificate), "client-key": str(key)}
        self._kubeconfig.write_text(json.dumps(self._plane.kubeconfig({"admin": admin}, "admin")))
        self._istiod = ""
        self._create()

    def served_by_istiod(self, program: str) -> Self:
        """Return a source with the same API server, whose server is this program of istiod."""
        other = copy.copy(self)
        other._istiod = program
        return other

    @property
    def types(self) -> tuple[str, ...]:
        """Types that each sidecar receives. Secrets of istiod come from its agent in the pod."""
        return tuple(each for each in MESH_TYPES if not (self._istiod and each == SECRET))

    def start(self, log: Path) -> Process:
        """Start `xds serve`, or istiod."""
        if self._istiod:
            return Process("istiod.py", self._istiod, str(self._kubeconfig), log=log)
        tls = ("--xds-tls-address", "127.0.0.1:0", "--xds-mtls-address", "127.0.0.1:0")
        source = ("--kubernetes", "--kubeconfig", str(self._kubeconfig))
        return Process("serve.py", *SERVE, *source, *tls, log=log)

    def credentials(self, pods: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the API server's token for each pod if the streams use TLS."""
        if not self._tls:
            return {"tokens": [], "roots": ""}
        if not self._roots.exists():
            path = f"/api/v1/namespaces/{self.mesh.namespace(0)}/configmaps/{ROOT_CONFIG_MAP}"
            roots = self._api.ask("GET", path, patience=_ROOTS_TIMEOUT)["data"][KEY]
            self._roots.write_text(roots)

        def token(pod: tuple[int, int]) -> str:
            node = self.mesh.node(*pod)
            path = f"/api/v1/namespaces/{node.namespace}/serviceaccounts/{self.mesh.name(pod[0])}/token"
            bound = {"apiVersion": "v1", "kind": "Pod", "name": node.pod}
            spec = {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
            return str(self._api.ask("POST", path, {"spec": spec})["status"]["token"])

        with ThreadPoolExecutor(_THREADS) as pool:
            return {"tokens": [*pool.map(token, pods)], "roots": str(self._roots)}

    def set_mode(self, mode: str) -> float:
        """Patch the policy."""
        return self._api.call("PATCH", f"{_POLICIES}/default", {"spec": self.mesh.policy(mode)["spec"]})

    def move(self, number: int) -> float:
        """Change the service's EndpointSlice: its first endpoint becomes unready, or ready again.

        The clients recognize the change by the zone of the last endpoint, which becomes the address after the
        move. Its address must remain its pod's, or it is not served.
        """
        service = self.mesh.move(number)
        node = self.mesh.moving_node(service)
        is_ready = number // len(self.mesh.moving) % 2 == 0
        ready = {"op": "replace", "path": "/endpoints/0/conditions/ready", "value": is_ready}
        zone = {"op": "add", "path": f"/endpoints/{self.mesh.endpoints}/zone", "value": node.address}
        return self._patch_slice(service, node.namespace, ready, zone)

    def restart(self, pods: Sequence[tuple[int, int]]) -> float:
        """Create new pods, put them into the EndpointSlices, and delete the old ones."""
        old = {pod: self.mesh.node(*pod) for pod in pods}
        self.mesh.restarts.update(pods)

        def replace(pod: tuple[int, int]) -> float:
            service, number = pod
            self._create_pod(service, self.mesh.node(*pod))
            endpoint = _endpoint(self.mesh.node(*pod))
            patch = {"op": "replace", "path": f"/endpoints/{number}", "value": endpoint}
            self._patch_slice(service, old[pod].namespace, patch)
            path = f"/api/v1/namespaces/{old[pod].namespace}/pods/{old[pod].pod}"
            return self._api.call("DELETE", path, {"gracePeriodSeconds": 0})

        with ThreadPoolExecutor(_THREADS) as pool:
            return max(pool.map(replace, pods))

    def _create(self) -> None:
        """Create everything but the moves, with several connections."""
        command = ("-m", "xds", "install-crds", "--kubeconfig", str(self._kubeconfig))
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        namespaces = {self.mesh.namespace(service) for service in range(self.mesh.services)}
        for name in (ROOT_NAMESPACE, *sorted(namespaces)):
            self._api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        self._api.call("POST", _POLICIES, self.mesh.policy("PERMISSIVE"))
        with ThreadPoolExecutor(_THREADS) as pool:
            any(pool.map(self._create_service, range(self.mesh.services)))  # Raise the first error.

    def _create_service(self, service: int) -> None:
        path = f"/api/v1/namespaces/{self.mesh.namespace(service)}"
        name = self.mesh.name(service)
        self._api.call("POST", f"{path}/serviceaccounts", {"metadata": {"name": name}})
        self._api.call("POST", f"{path}/services", self.mesh.service(service))
        nodes = self.mesh.nodes(service)
        for node in nodes:
            self._create_pod(service, node)
        slices = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [_endpoint(node) for node in nodes],
        }
        self._api.call("POST", _SLICES.format(self.mesh.namespace(service)), slices)

    def _create_pod(self, service: int, node: NodeId) -> None:
        path = f"/api/v1/namespaces/{node.namespace}/pods"
        pod = self.mesh.pod(service, node)
        self._api.call("POST", path, pod)
        ready = [{"type": "Ready", "status": "True"}]
        address = {"podIP": node.address, "podIPs": [{"ip": node.address}]}
        status = {"phase": "Running", "conditions": ready, **address}
        self._api.call("PATCH", f"{path}/{node.pod}/status", {"status": status})

    def _patch_slice(self, service: int, namespace: str, *patches: dict[str, Any]) -> float:
        return self._api.call("PATCH", f"{_SLICES.format(namespace)}/{self.mesh.name(service)}", [*patches])


class _Api:
    """Requests to the API server, on one connection for each thread."""

    def __init__(self, plane: ControlPlane) -> None:
        self._address = (plane.address, plane.port)
        self._context = ssl.create_default_context(cafile=plane.certificates.root)
        self._context.load_cert_chain(*plane.admin)
        self._thread = threading.local()

    def call(self, method: str, path: str, body: Any) -> float:
        """Send a request. Return when the response arrived. A list is a JSON patch."""
        self.ask(method, path, body)
        return time.monotonic()

    def ask(self, method: str, path: str, body: Any = None, *, patience: float = 0.0) -> Any:
        """Send a request and return the response. Wait `patience` seconds for the object to exist."""
        connection = self._connection()
        patch = "application/json-patch+json" if isinstance(body, list) else "application/merge-patch+json"
        kind = patch if method == "PATCH" else "application/json"
        end = time.monotonic() + patience
        while True:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
            response = connection.getresponse()
            answer = response.read()
            if response.status < http.HTTPStatus.BAD_REQUEST:
                return json.loads(answer)
            if response.status != http.HTTPStatus.NOT_FOUND or time.monotonic() > end:
                text = answer[:1000].decode(errors="replace")
                raise SystemExit(f"{method} {path}: {response.status} {text}")
            time.sleep(0.1)

    def _connection(self) -> http.client.HTTPSConnection:
        thread = self._thread
        if not hasattr(thread, "connection"):
            thread.connection = http.client.HTTPSConnection(*self._address, context=self._context)
            thread.used_at = 0.0
        if time.monotonic() > thread.used_at + _MAX_IDLE:
            thread.connection.close()  # The API server may have closed it. The next request reconnects.
        thread.used_at = time.monotonic()
        connection: http.client.HTTPSConnection = thread.connection
        return connection


def _endpoint(node: NodeId) -> dict[str, Any]:
    return {
        "addresses": [node.address],
        "conditions": {"ready": True},
        "targetRef": {"kind": "Pod", "name": node.pod, "namespace": node.namespace},
    }
