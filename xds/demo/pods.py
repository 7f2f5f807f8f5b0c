"""Pods as local processes: an application, and optionally a sidecar, on loopback addresses of the pod."""

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
"""The targetPort of the services. Ports below 1024 would require root privileges."""


def name_of(pod: Pod) -> str:
    """Return the pod's POD.NAMESPACE, as the Istio task and the commands write it, such as `httpbin.full`."""
    return f"{pod.name}.{pod.namespace}"


def is_httpbin(pod: Pod) -> bool:
    """Whether httpbin runs in the pod; the other pods only send requests."""
    return pod.meta.labels.get("app") == "httpbin"


def application(pod: Pod) -> tuple[str, int]:
    """Return the address that the pod's application listens on: `app_address` if the pod has a sidecar."""
    return (pod.app_address if pod.has_sidecar else pod.address, SERVER_PORT)


def addresses(pod: Pod) -> Iterator[tuple[str, int]]:
    """Yield the addresses that the pod's processes listen on."""
    if is_httpbin(pod):
        yield application(pod)
    if pod.has_sidecar:
        for port in (SERVER_PORT, ADMIN_PORT, PROXY_PORT, HEALTH_PORT):
            yield (pod.address, port)


def check_addresses_free(names: Mapping[tuple[str, int], str]) -> None:
    """Raise UnavailableError if it is not possible to listen on an address.

    Args:
        names: for each address, the name of the pod that needs it.
    """
    for (host, port), name in names.items():
        with socket.socket() as probe:
            # Ignore connections in TIME_WAIT, as the servers do.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise UnavailableError(
                    f"{name} cannot listen on {host}:{port}: {_explain(error, port)}"
                ) from error


def _explain(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"address in use, perhaps by another demo (find the process with: ss -ltnp 'sport = :{port}')"
    return f"{error.strerror} (the demo needs all addresses in 127.0.0.0/8, as Linux provides them)"


def find_not_listening(servers: Mapping[str, tuple[str, int]]) -> str:
    """Return which of the named servers does not accept connections; empty if all do."""
    for name, (host, port) in servers.items():
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) != 0:
                return f"{name} does not listen on {host}:{port}"
    return ""


@dataclass(slots=True)
class ClientPod:
    """A pod that sends requests to services by name, through its sidecar if it has one."""

    mesh: Mesh
    pod: Pod
    _turns: dict[str, Iterator[int]] = field(default_factory=dict)

    def request(self, server: str) -> Answer:
        """Send one request to the first port of `SERVICE.NAMESPACE`."""
        name, namespace = server.split(".")
        service = self.mesh.service(namespace, name)
        if service is None:
            return Answer("000")
        url = f"http://{server}:{service.ports[0].port}/headers"
        if self.pod.has_sidecar:
            return curl(url, source=self.pod.address, to=(self.pod.address, PROXY_PORT), through_proxy=True)
        endpoint = self._next_endpoint(service, service.ports[0])
        return curl(url, source=self.pod.address, to=endpoint) if endpoint else Answer("000")

    def _next_endpoint(self, service: Service, port: ServicePort) -> tuple[str, int] | None:
        """Choose an endpoint for a client without a sidecar: ready pods in turn, like kube-proxy."""
        ready = [(e.address, e.port) for e in self.mesh.endpoints(service, port) if e.ready]
        turn = next(self._turns.setdefault(service.host, itertools.count()))
        return ready[turn % len(ready)] if ready else None


def select_clients(mesh: Mesh, pairs: Iterator[Pair]) -> dict[str, ClientPod]:
    """Return the client pods of the pairs, by name."""
    names = {pair.client for pair in pairs}
    return {name_of(pod): ClientPod(mesh, pod) for pod in mesh.pods() if name_of(pod) in names}
