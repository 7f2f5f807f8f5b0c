"""A test's view of a Kubernetes cluster: API calls as any user, kubectl, and its own namespaces."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tests.kubernetes.environment.control_plane import ControlPlane
from tests.support.processes import run
from tests.support.waiting import eventually
from xds.mesh.kube.api import KubeApi, KubeError

RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATIENCE = 30.0
"""Time limit for reactions of controllers on a busy machine, in seconds."""


class KubectlError(Exception):
    """kubectl exited with a status other than 0."""

    def __init__(self, arguments: tuple[str, ...], status: int, output: str, error: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: exit status {status}: {error}")
        self.status, self.output, self.error = status, output, error


class Cluster:
    """One test's view of a control plane. Enter it in the test's own event loop."""

    api: KubeApi
    """The API server, as an administrator."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self.server = control_plane.server

    async def __aenter__(self) -> Self:
        self.api = await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.api.close()

    async def connect(self, user: str = "admin") -> KubeApi:
        """Connect to the API server as a user (see `kubeconfig`); the caller closes the connection."""
        return await KubeApi.connect(await self.kubeconfig(user))

    async def kubeconfig(
        self,
        *users: str,
        namespace: str = "default",
        audience: str = "",
        server: str = "",
    ) -> Path:
        """Write a kubeconfig with a context of the same name for each user.

        `admin` may do everything. `NAMESPACE/NAME` is a service account, with a token for `audience` if one
        is given. Any other name is a user with the rights that RBAC grants to that name. The first user's
        context is current. `server` is another URL of the API server.
        """
        users = users or ("admin",)
        entries = {user: await self._credentials(user, audience) for user in users}
        document = self.control_plane.kubeconfig(entries, users[0], namespace, server)
        path = self._new_file("kubeconfig.json")
        path.write_text(json.dumps(document))
        return path

    async def allow(self, user: str, rules: Sequence[Any], namespace: str = "") -> None:
        """Grant rules to a user (see `kubeconfig`) in one namespace or in all, in a role of the same name."""
        scope, kind = (f"/namespaces/{namespace}", "Role") if namespace else ("", "ClusterRole")
        home, _, account = user.rpartition("/")
        name, group = user.replace("/", "."), "rbac.authorization.k8s.io"
        subject = {"kind": "User", "name": user, "apiGroup": group}
        if home:
            subject = {"kind": "ServiceAccount", "name": account, "namespace": home}
        binding = {
            "metadata": {"name": name},
            "roleRef": {"kind": kind, "name": name, "apiGroup": group},
            "subjects": [subject],
        }
        path = f"{RBAC}{scope}/{kind.lower()}"
        await self.api.create(f"{path}s", {"metadata": {"name": name}, "rules": rules})
        await self.api.create(f"{path}bindings", binding)

    async def token(
        self,
        namespace: str,
        service_account: str,
        *,
        audience: str = "",
        pod: str = "",
        seconds: int = 3600,
    ) -> str:
        """Request a service account's token, bound to `pod` if given; valid for 600 seconds at least."""
        spec: dict[str, Any] = {"audiences": [audience] if audience else [], "expirationSeconds": seconds}
        if pod:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str((await self.api.create(path, request))["status"]["token"])

    async def kubectl(
        self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None, timeout: float = 60
    ) -> str:
        """Run kubectl and return its output. Raises KubectlError."""
        output, _ = await self.kubectl_with_warnings(
            *arguments, stdin=stdin, kubeconfig=kubeconfig, timeout=timeout
        )
        return output

    async def kubectl_with_warnings(
        self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None, timeout: float = 60
    ) -> tuple[str, str]:
        """Run kubectl and return its output, and its warnings. Raises KubectlError."""
        home = self.control_plane.folder / "home"
        home.mkdir(exist_ok=True)
        status, output, error = await run(
            self.control_plane.kubectl,
            *arguments,
            stdin=stdin,
            timeout=timeout,
            env={**os.environ, "HOME": str(home), "KUBECONFIG": str(kubeconfig or await self.kubeconfig())},
        )
        if status:
            raise KubectlError(arguments, status, output, error)
        return output, error

    @asynccontextmanager
    async def namespace(
        self, prefix: str = "test", labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[str]:
        """Create a namespace with a unique name, ready for pods. Leaving the block starts its deletion."""
        name = await self.new_namespace(prefix, labels)
        try:
            yield name
        finally:
            await self.delete_namespace(name)

    async def new_namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> str:
        """Create a permanent namespace with a unique name, ready for pods; return its name."""
        metadata = {"generateName": f"{prefix}-", "labels": dict(labels or {})}
        made = await self.api.create("/api/v1/namespaces", {"metadata": metadata})
        name = str(made["metadata"]["name"])
        await self._until_pods_may_come(name)
        return name

    async def delete_namespace(self, name: str) -> None:
        """Delete a namespace. Its pods are force-deleted: without nodes, nobody reports their end."""
        await self.api.delete(f"/api/v1/namespaces/{name}")
        await self.api.delete(f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)

    async def node(self, name: str) -> None:
        """Create the node if it does not exist: a pod on a missing node has no endpoints."""
        try:
            await self.api.create("/api/v1/nodes", {"metadata": {"name": name}})
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise

    async def run_pod(self, namespace: str, name: str, address: str, *, node: str = "node") -> None:
        """Report a pod as the scheduler and a kubelet would: its node, its address, and that it is ready."""
        await self.node(node)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        binding = {"target": {"kind": "Node", "name": node}, "metadata": {"name": name}}
        await self.api.create(f"{path}/binding", binding)
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self.api.patch(f"{path}/status", {"status": status})

    async def service_here(self, namespace: str, name: str, *, port: int, target: int) -> None:
        """Make a Service whose one endpoint is this machine, at `own_address()` and port `target`.

        With it, the API server reaches a test's webhook by `clientConfig.service`: endpoints cannot be on
        loopback, and this API server calls a Service's endpoints, not its address. (By `clientConfig.url` it
        calls any address.)
        """
        path = f"/api/v1/namespaces/{namespace}/services"
        await self.api.create(path, {"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}})
        slices = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"port": target}],
            "endpoints": [{"addresses": [own_address()], "conditions": {"ready": True}}],
        }
        await self.api.create(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", slices)

    async def until(self, path: str, check: Any, *, timeout: float = PATIENCE) -> Any:
        """Read an object or list until `check` accepts it, and return it. Raises AssertionError."""

        async def read() -> Any:
            try:
                result = await self.api.get(path)
            except KubeError as error:
                raise AssertionError(error) from error
            assert check(result), result
            return result

        return await eventually(read, timeout=timeout, every=0.05, what=f"{path} in the expected state")

    async def compact(self) -> None:
        """Expire all earlier resourceVersions: the API server answers 410 from now on.

        etcd is compacted, and the API server, which has its own cache, is killed and started again.
        """
        self.stop_api_server()
        self.control_plane.compact()
        await self.start_api_server()

    def stop_api_server(self) -> None:
        """Kill the API server. Not for the shared cluster."""
        self.control_plane.stop_api_server()

    async def start_api_server(self) -> None:
        """Restart the API server with the same address and data, and wait until it is ready."""
        plane = self.control_plane
        plane.start_api_server()
        await asyncio.to_thread(plane.until_ready)
        plane.start_controllers()
        await asyncio.to_thread(plane.until_controllers)

    def freeze_api_server(self) -> None:
        """Stop (SIGSTOP) the API server: its connections stay open and silent. Not for the shared cluster."""
        self.control_plane.freeze_api_server()

    def thaw_api_server(self) -> None:
        """Continue the API server (SIGCONT)."""
        self.control_plane.thaw_api_server()

    async def _credentials(self, user: str, audience: str) -> dict[str, str]:
        if "/" in user:
            return {"token": await self.token(*user.split("/"), audience=audience)}
        plane = self.control_plane
        certificate, key = plane.admin if user == "admin" else plane.certificates.client(user)
        return {"client-certificate": str(certificate), "client-key": str(key)}

    async def _until_pods_may_come(self, namespace: str) -> None:
        """Wait for the default service account, or create it if there are no controllers."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        if self.control_plane.has_controllers:
            await self.until(f"{accounts}/default", lambda _: True)
        else:
            await self.api.create(accounts, {"metadata": {"name": "default"}})

    def _new_file(self, name: str) -> Path:
        return self.control_plane.folder / f"{uuid4().hex}-{name}"


def own_address() -> str:
    """Return an address of this machine outside loopback, or an empty string."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("192.0.2.1", 9))  # sends nothing, but selects the local address
        except OSError:
            return ""
        return str(trial.getsockname()[0])
