"""What a pod is on one machine: an application and perhaps a sidecar, processes with the pod's loopback addresses."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from xds.demo.curl import curl
from xds.demo.play import Answer, Pair
from xds.demo.processes import UnavailableError
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ADMIN_PORT, HEALTH_PORT, MeshConfig, Pod, Service, ServicePort

PROXY_PORT = MeshConfig().proxy_http_port
SERVER_PORT = 8080
"""The services' targetPort: below 1024 would need root."""


def name_of(pod: Pod) -> str:
    """Return the name that the page and the commands use: `httpbin.full`."""
    return f"{pod.name}.{pod.namespace}"


def is_httpbin(pod: Pod) -> bool:
    """Whether an httpbin runs in the pod; in the others only requests are made."""
    return pod.meta.labels.get("app") == "httpbin"


def application(pod: Pod) -> tuple[str, int]:
    """Return where the pod's application listens: where the sidecar takes the pod's own address, elsewhere."""
    return (pod.app_address if pod.has_sidecar else pod.address, SERVER_PORT)


def addresses(pod: Pod) -> Iterator[tuple[str, int]]:
    """Yield all that the pod's processes will listen on."""
    if is_httpbin(pod):
        yield application(pod)
    if pod.has_sidecar:
        for port in (SERVER_PORT, ADMIN_PORT, PROXY_PORT, HEALTH_PORT):
            yield (pod.address, port)


def check_addresses_free(wanted: Mapping[tuple[str, int], str]) -> None:
    """Raise if an address (with the name of who wants it) cannot be had, before anything is started."""
    for (host, port), name in wanted.items():
        with socket.socket() as probe:
            # As servers do: the remains of closed connections are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise UnavailableError(
                    f"{name} cannot listen on {host}:{port}: {_why(error, port)}"
                ) from error


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"something else does, perhaps another demo (ss -ltnp 'sport = :{port}' shows what)"
    return f"{error.strerror} (every address in 127.0.0.0/8 must be usable, as on any Linux)"


def find_not_listening(servers: Mapping[str, tuple[str, int]]) -> str:
    """Say which of some servers, given by name, does not accept connections; empty when all do."""
    for name, where in servers.items():
        with socket.socket() as probe:
            if probe.connect_ex(where) != 0:
                return f"{name} does not listen on {where[0]}:{where[1]}"
    return ""


@dataclass(slots=True)
class Client:
    """A pod `sleep`: asks services by name, through its sidecar or without one."""

    mesh: Mesh
    pod: Pod
    _turns: dict[str, Iterator[int]] = field(default_factory=dict)

    def ask(self, server: str) -> Answer:
        """Send one request to `SERVICE.NAMESPACE`, on its first port."""
        name, namespace = server.split(".")
        service = self.mesh.service(namespace, name)
        if service is None:
            return Answer("000")
        url = f"http://{server}:{service.ports[0].port}/headers"
        if self.pod.has_sidecar:
            return curl(url, source=self.pod.address, to=(self.pod.address, PROXY_PORT), through_proxy=True)
        backend = self._next(service, service.ports[0])
        return curl(url, source=self.pod.address, to=backend) if backend else Answer("000")

    def _next(self, service: Service, port: ServicePort) -> tuple[str, int] | None:
        """Choose where a connection goes without a sidecar: as kube-proxy, one ready pod after the other."""
        ready = [(e.address, e.port) for e in self.mesh.endpoints(service, port) if e.ready]
        turn = next(self._turns.setdefault(service.host, itertools.count()))
        return ready[turn % len(ready)] if ready else None


def select_clients(mesh: Mesh, pairs: Iterator[Pair]) -> dict[str, Client]:
    """Return the pods that send requests, by name."""
    wanted = {pair.client for pair in pairs}
    return {name_of(pod): Client(mesh, pod) for pod in mesh.pods() if name_of(pod) in wanted}
