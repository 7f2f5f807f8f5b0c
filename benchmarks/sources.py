"""What a server reads, and how the benchmark changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from control import Process
from manifests import Manifests, Mesh

from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.state_dir import load_or_create_token_key
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, SECRET


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of the mesh, and kind of the server."""

    source: str
    """`files`, `kubernetes`, `istiod` (on the same objects as `kubernetes`) or `library`."""
    services: int
    endpoints: int
    """Number of endpoints of each service."""
    namespaces: int
    streams: int
    at_once: int
    """Number of sidecars that connect at the same time."""
    tls: bool
    replicas: int = 1
    """Number of servers that share the sidecars."""
    policies: int = 0
    """Number of AuthorizationPolicies."""
    visible: int = 0
    """Number of services that clients see; 0 for all."""


class Source(Protocol):
    """A server's source of objects. Functions that change it return when the change was made.

    A change of files is made when the file is in its place, and a change of a Kubernetes object when the API
    server has answered. Times are of the system's monotonic clock, in seconds.
    """

    mesh: Mesh
    """The objects."""

    @property
    def types(self) -> tuple[str, ...]:
        """Types that each sidecar receives."""

    def start(self, log: Path) -> Process:
        """Start the server."""

    def credentials(self, pods: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the tokens of pods, and the file with the server's roots; both empty without TLS."""

    def set_mode(self, mode: str) -> float:
        """Change the mode of the whole mesh."""

    def move(self, number: int) -> float:
        """Change the address of a moving pod. The number of the move determines which, and the address."""

    def restart(self, pods: Sequence[tuple[int, int]]) -> float:
        """Replace pods by pods with other names and addresses."""


MESH_TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET)
SERVE = (
    "serve",
    *("--xds-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"),
    # Measure the distribution of changes without the phases of a gated rollout.
    *("--rollout", "immediate"),
)


class Files:
    """`xds serve --manifests`."""

    types = (*MESH_TYPES, EXTENSION_CONFIG)

    def __init__(self, size: Size, folder: Path) -> None:
        self._size = size
        self._state = folder / "state"
        self.mesh = self._folder = Manifests(
            root=folder / "mesh",
            services=size.services,
            endpoints=size.endpoints,
            namespaces=size.namespaces,
            visible=size.visible,
        )
        self._folder.write()
        self._folder.write_authorization(size.policies)
        for service in self.mesh.moving:
            self._folder.write_moving_pod(service)

    def start(self, log: Path) -> Process:
        """Start `xds serve`."""
        tls = ("--state-dir", str(self._state), "--xds-tls-address", "127.0.0.1:0") if self._size.tls else ()
        return Process("serve.py", *SERVE, "--manifests", str(self._folder.root), *tls, log=log)

    def credentials(self, pods: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return a token for each pod if the streams use TLS."""
        if not self._size.tls:
            return {"tokens": [], "roots": ""}
        key, now = load_or_create_token_key(self._state), datetime.now(UTC)
        callers = (
            Caller(
                namespace=node.namespace,
                service_account=self.mesh.name(service),
                pod=node.pod,
                credential=CredentialKind.TOKEN,
            )
            for service, number in pods
            for node in [self.mesh.node(service, number)]
        )
        return {
            "tokens": [key.issue(caller, now) for caller in callers],
            "roots": str(self._state / "root-cert.pem"),
        }

    def set_mode(self, mode: str) -> float:
        """Write the policy."""
        return _made(lambda: self._folder.write_policy(mode))

    def move(self, number: int) -> float:
        """Write the file of the moving pod."""
        return _made(lambda: self._folder.write_moving_pod(self.mesh.move(number)))

    def restart(self, pods: Sequence[tuple[int, int]]) -> float:
        """Write the files of the services of these pods."""
        self.mesh.restarts.update(pods)
        services = {service for service, _ in pods}
        return _made(lambda: [self._folder.write_service(service) for service in services])


class Library:
    """A server without mesh, built on the library, which serves one snapshot to all clients."""

    types = (CLUSTER, ENDPOINT)

    def __init__(self, size: Size, _: Path) -> None:
        self.mesh = Mesh(services=size.services, endpoints=size.endpoints, namespaces=1)
        self._server: Process | None = None

    def start(self, log: Path) -> Process:
        """Start the server."""
        size = str(self.mesh.services), str(self.mesh.endpoints)
        self._server = Process("library.py", *size, log=log)
        return self._server

    def credentials(self, _: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return no credentials."""
        return {"tokens": [], "roots": ""}

    def set_mode(self, _: str) -> float:
        """Change all endpoints: there are no modes."""
        return self._call("all")

    def move(self, _: int) -> float:
        """Change an endpoint of the first service."""
        return self._call("one")

    def restart(self, _: Sequence[tuple[int, int]]) -> float:
        """Do nothing: there are no pods."""
        return time.monotonic()

    def _call(self, command: str) -> float:
        return _made(lambda: self._server and self._server.call(command))


def _made(change: Callable[[], object]) -> float:
    change()
    return time.monotonic()
