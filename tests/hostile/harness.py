"""A real `xds serve` under attack, and the cost of the attack.

    async with Target(tmp_path) as target, target.watched() as cost:
        await attack(target)
    assert cost.memory < 64 * MIB

The attacked process has a plaintext, a TLS and an admin address on loopback. While `watched` is open, a
sidecar with a valid token fetches its configuration repeatedly. An attack must neither block nor delay it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio

from tests.server.proxies import REQUEST
from tests.support.controlplane import ControlPlane
from tests.support.loopback import free_port
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.state_dir import load_or_create_token_key, roots

MIB = 1 << 20
FETCH_CLUSTERS = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
NODE = "sidecar~127.9.0.1~web-1.shop~shop.svc.cluster.local"
MESH = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web}
status: {podIP: 127.9.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""


@dataclass
class Cost:
    """Cost of an attack for the attacked process, since the start of `watched`."""

    memory: int = 0
    """Maximum growth of the resident memory, in bytes."""
    descriptors: int = 0
    """Maximum growth of the number of open file descriptors."""
    log_lines: int = 0
    log_bytes: int = 0
    cpu: float = 0.0
    """CPU time, in seconds."""
    slowest: float = 0.0
    """Duration of the slowest request of the honest sidecar, in seconds."""
    served: int = 0
    """Number of answered requests of the honest sidecar."""
    failures: tuple[str, ...] = ()
    """Errors of its other requests."""


class Target(ControlPlane):
    """`xds serve --manifests` with a TLS port for tokens; leaving the block fails if it did not survive."""

    def __init__(self, directory: Path, *options: str, mesh: str = MESH) -> None:
        manifests = directory / "mesh"
        manifests.mkdir()
        (manifests / "mesh.yaml").write_text(mesh)
        self.tls_port = free_port()
        tls = f"--xds-tls-address=127.0.0.1:{self.tls_port}"
        super().__init__(manifests, directory, tls, "--admin-identity=ops/admin", *options)

    @property
    def pid(self) -> int:
        """Process id of the attacked process."""
        return self._process.pid

    @property
    def admin(self) -> tuple[str, int]:
        """Address of the HTTP port with /ready and /metrics."""
        host, _, port = self._admin.rpartition(":")
        return host, int(port)

    def token(self, account: str = "shop/web", pod: str = "") -> str:
        """Return a token of a service account (NAMESPACE/NAME), bound to a pod of that namespace if given."""
        namespace, _, name = account.partition("/")
        caller = Caller(
            namespace=namespace, service_account=name, pod=pod, pod_uid="", credential=CredentialKind.TOKEN
        )
        return load_or_create_token_key(self.state).issue(caller, datetime.now(UTC), timedelta(hours=1))

    def channel(self, token: str = "", *options: tuple[str, int]) -> grpc.aio.Channel:
        """Return a channel to the TLS port with its own connection, and optionally a token."""
        credentials = grpc.ssl_channel_credentials(roots(self.state))
        if token:
            call = grpc.access_token_call_credentials(token)
            credentials = grpc.composite_channel_credentials(credentials, call)
        own = ("grpc.use_local_subchannel_pool", 1)
        return grpc.aio.secure_channel(f"localhost:{self.tls_port}", credentials, options=(own, *options))

    @asynccontextmanager
    async def watched(self, *, patience: float = 30.0) -> AsyncIterator[Cost]:
        """Measure until the block ends. `patience` is the deadline of an honest request, in seconds."""
        cost = Cost()
        memory, descriptors = _memory(self.pid), _descriptors(self.pid)
        cpu, log = _cpu(self.pid), self._log_size()
        async with self.channel(self.token(pod="web-1")) as channel:
            await _fetch(channel, patience)
            watching = asyncio.create_task(self._watch(cost, memory, descriptors))
            asking = asyncio.create_task(_ask(channel, cost, patience))
            try:
                yield cost
                await _finish_one(cost, asking, patience)
            finally:
                for task in (watching, asking):
                    task.cancel()
                await asyncio.gather(watching, asking, return_exceptions=True)
        lines, size = self._log_size()
        cost.log_lines, cost.log_bytes = lines - log[0], size - log[1]
        cost.cpu = _cpu(self.pid) - cpu

    async def _watch(self, cost: Cost, memory: int, descriptors: int) -> None:
        while True:
            cost.memory = max(cost.memory, _memory(self.pid) - memory)
            cost.descriptors = max(cost.descriptors, _descriptors(self.pid) - descriptors)
            await asyncio.sleep(0.02)

    def _log_size(self) -> tuple[int, int]:
        data = self.log.read_bytes()
        return data.count(b"\n"), len(data)


async def _ask(channel: grpc.aio.Channel, cost: Cost, patience: float) -> None:
    while True:
        began = time.monotonic()
        try:
            await _fetch(channel, patience)
            cost.served += 1
        except grpc.aio.AioRpcError as error:
            cost.failures += (f"{error.code().name}: {error.details()}",)
        cost.slowest = max(cost.slowest, time.monotonic() - began)
        await asyncio.sleep(0.05)


async def _fetch(channel: grpc.aio.Channel, patience: float) -> None:
    request = REQUEST()
    request.node.id = NODE
    async with asyncio.timeout(patience):
        while True:
            try:
                await channel.unary_unary(FETCH_CLUSTERS)(request.SerializeToString(), timeout=patience)
            except grpc.aio.AioRpcError as error:
                if "try again later" not in (error.details() or ""):  # Its first snapshot is not there yet.
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def _finish_one(cost: Cost, asking: asyncio.Task[None], patience: float) -> None:
    """Wait for one more response, to count a request that hung during the attack."""
    seen = cost.served + len(cost.failures)
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * patience):
            while cost.served + len(cost.failures) == seen and not asking.done():
                await asyncio.sleep(0.02)
    if asking.done():
        asking.result()


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
