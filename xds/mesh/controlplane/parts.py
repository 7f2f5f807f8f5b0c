"""What a control plane is composed of: its settings, source, components and tasks."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc
from prometheus_client.registry import Collector

from xds.introspect.guard import Admit
from xds.mesh.controlplane.controller import ROLLOUT_TIMEOUT, Controller
from xds.mesh.controlplane.ineffective_objects import IneffectiveObjects
from xds.mesh.controlplane.objects_service import ReadObjects
from xds.mesh.controlplane.replica_traffic import ReplicaAccess
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.model.objects import MeshConfig, Problem
from xds.mesh.sources.report import SourceUpdate
from xds.server import Authenticate

Address: TypeAlias = tuple[str, int]
"""A host and a port."""


class WebhookSettings(NamedTuple):
    """How to inject sidecars and review policies."""

    address: Address
    """Address of the webhooks."""
    image: str
    """Image of injected sidecars."""
    pull_policy: str
    """Their image pull policy: `Always`, `IfNotPresent` or `Never`."""
    xds_address: str | None
    """xDS address that injected sidecars connect to; None for the control plane's Service."""
    enforce_plan: bool
    """Whether to refuse policies that break connections, instead of warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a control plane listens, whom it admits, and how it issues certificates and rolls out changes."""

    xds: Address
    """Address of the plaintext xDS server."""
    admin: Address
    """Address of the page, /healthz, /ready and /metrics."""
    rest: Address | None = None
    """Address of the REST server; None if it is disabled."""
    xds_tls: Address | None = None
    """Address of xDS for clients with or without a certificate; None if there is no such listener."""
    xds_mtls: Address | None = None
    """Address of xDS for clients with a certificate; None if there is no such listener."""
    names: Sequence[str] = ()
    """Additional names in the server certificate, which clients of the REST server and the page may use."""
    admin_token: str | None = field(default=None, repr=False)
    """Token that admits clients of other machines to the page; None to admit local clients only."""
    admins: Sequence[IdentityPattern] = ()
    """Identities that may use the admin services over TLS."""
    advertised_host: str = ""
    """IP address at which other replicas reach this one; empty if it is not known."""
    max_connection_age: float | None = None
    """Maximum age of a sidecar's connection, in seconds; None for no limit."""
    rollout_timeout: float | None = ROLLOUT_TIMEOUT
    """Seconds to wait for a proxy during a rollout; None not to wait."""
    external: ExternalIssuer | None = None
    """Signs certificates instead of the CA; None without one."""
    webhook: WebhookSettings | None = None
    """The admission webhooks, in a cluster; None if they are disabled."""
    collector: str = ""
    """URL of the OpenTelemetry collector that receives traces; empty for none."""

    @property
    def exposed(self) -> Mapping[str, Address]:
        """The plaintext listeners of xDS that other machines can reach."""
        addresses = {"xds": self.xds, "rest": self.rest}
        return {name: address for name, address in addresses.items() if address and not _is_loopback(address)}

    @property
    def is_loopback(self) -> bool:
        """Whether no listener of xDS can be reached from other machines.

        A loopback listener alone proves nothing: connections of a forwarded port also come from this machine.
        """
        return not self.exposed and all(map(_is_loopback, filter(None, (self.xds_tls, self.xds_mtls))))


BackgroundTask: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""A function that runs until it is cancelled. The control plane stops if the function returns earlier.

Tasks start before the mesh is known; a task that needs the mesh awaits `controller.ready`.
"""


class Source(ReadObjects, Protocol):
    """A source of objects and settings."""

    what: str
    """The kind of source, as one word for the log."""

    @property
    def problems(self) -> Collection[Problem]:
        """The current problems."""

    @property
    def unenforced(self) -> Mapping[str, int]:
        """The number of objects of each kind that the control plane does not enforce."""

    def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield the current state, then each change, until closed."""

    def pending_reason(self) -> str:
        """Return what has not been read yet, for /ready; empty once everything has been read."""

    def staleness(self) -> str:
        """Return since when changes cannot be read, and why; empty if they can."""

    def stale_seconds(self) -> float:
        """Return the number of seconds since changes could last be read; 0 if they can."""


class SecureListeners(NamedTuple):
    """The TLS listeners of the xDS server, and the clients they accept."""

    credentials: Sequence[tuple[str, grpc.ServerCredentials]]
    """Addresses to listen on, each with its gRPC credentials."""
    authenticate: Authenticate
    """Authenticates the client of a stream."""
    admit: Admit
    """Authorizes a client of the admin services."""
    admit_replicas: Admit
    """Authorizes another replica."""


class PeerLinks(NamedTuple):
    """How replicas share observed traffic."""

    access: ReplicaAccess
    """Reaches the other replicas."""
    publish: Callable[[int], None]
    """Lets other replicas connect to this one, at a port."""
    admit: Admit
    """Admits other replicas."""


class Components(NamedTuple):
    """The parts of a control plane that depend on the mesh's settings."""

    controller: Controller
    """Translates the mesh and publishes it to proxies."""
    ineffective: IneffectiveObjects
    """Finds objects without effect."""
    tasks: Sequence[BackgroundTask] = ()
    """Additional background tasks, such as leader election and the webhook."""
    listeners: SecureListeners | None = None
    """The TLS listeners; None if TLS is disabled."""
    metrics: Sequence[Collector] = ()
    """Metrics of the background tasks."""
    peers: PeerLinks | None = None
    """Links to other replicas; None if there are none, or if they do not know each other."""


BuildComponents: TypeAlias = Callable[[MeshConfig], Awaitable[Components]]
"""Creates the components once the mesh's settings are known. May take long; /ready is served meanwhile."""


def _is_loopback(address: Address) -> bool:
    """Return whether an address can be reached from this machine only."""
    host, _ = address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
