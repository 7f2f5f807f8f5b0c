"""Facts: what Kubernetes objects say, reduced to what a decision needs, as immutable values.

`parse` makes facts out of kubectl-shaped dicts, `mesh` indexes them, `policy` decides from them. Nothing here knows
YAML field names or Envoy. Two facts are equal when they mean the same: where an object was read from does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from xds.mesh.model.traffic import Subset, TrafficPolicy

CLUSTER_DOMAIN = "cluster.local"
"""The DNS suffix of service names. Not the trust domain, which is the mesh's to choose."""

TLS_MODE_LABEL = "security.istio.io/tlsMode"
"""Pod label that says whether the pod has a sidecar: `istio` if so."""

INTERCEPTION_MODE = "sidecar.istio.io/interceptionMode"
"""Pod annotation: `REDIRECT` (iptables, the default) or `NONE` (the application uses the proxy by address)."""

APP_ADDRESS = "sidecar.xds/app-address"
"""Pod annotation: where the application listens in interception mode NONE."""

LOCALITY_LABEL = "istio-locality"
"""Pod label `region.zone.subzone` (or with slashes in Istio's own files) that overrides where the pod is."""


ADMIN_PORT = 15000
"""Where a sidecar's Envoy has its admin interface."""
HEALTH_PORT = 15021
"""Where a sidecar says whether it is ready."""
PROBE_PORT = 15020
"""Where a sidecar answers the kubelet's probes in the application's stead."""
METRICS_PORT = 15090
"""Where a sidecar shows its metrics to Prometheus, under `/stats/prometheus`."""


class Mode(StrEnum):
    """What a server's listener accepts on a port (Istio's mutual TLS modes)."""

    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Protocol(StrEnum):
    """What is spoken on a service port, as far as routing cares. AUTO: undeclared, detected per connection."""

    HTTP = "http"
    HTTP2 = "http2"
    TCP = "tcp"
    AUTO = "auto"

    @property
    def is_http(self) -> bool:
        """Whether the port was declared to speak HTTP of some version."""
        return self in (Protocol.HTTP, Protocol.HTTP2)


class Interception(StrEnum):
    """How traffic reaches a sidecar."""

    REDIRECT = "REDIRECT"
    NONE = "NONE"


class Ref(NamedTuple):
    """The name of an object: what a decision, an error or a NACK points at."""

    kind: str
    namespace: str
    """Empty for cluster-scoped kinds."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


PortKey: TypeAlias = tuple[Ref, int]
"""A port of a pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What every object has."""

    ref: Ref
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    """`metadata.creationTimestamp`, with a time zone; None where the object has none."""
    uid: str = ""
    """`metadata.uid`: another one for a successor of the same name; empty outside a cluster."""
    origin: str = field(default="", compare=False)
    """Where it was read: `FILE:LINE`, or empty."""

    @property
    def age_key(self) -> tuple[bool, float, str, str]:
        """Sort key, oldest first; an object without a creation time is younger than any that has one."""
        return (
            self.created is None,
            self.created.timestamp() if self.created else 0.0,
            self.ref.namespace,
            self.ref.name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """A fact with a name."""

    meta: Meta

    @property
    def ref(self) -> Ref:
        """Kind, namespace and name."""
        return self.meta.ref

    @property
    def namespace(self) -> str:
        """The object's namespace; empty for cluster-scoped kinds."""
        return self.meta.ref.namespace

    @property
    def name(self) -> str:
        """The object's name."""
        return self.meta.ref.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace(Object):
    """v1 Namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount(Object):
    """v1 ServiceAccount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One TCP port of a Service. UDP and SCTP ports never become facts."""

    port: int
    target: int | str
    """targetPort: a number, or the name of a container port."""
    name: str = ""
    protocol: Protocol = Protocol.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Object):
    """v1 Service of type ClusterIP, NodePort or LoadBalancer; headless when it has no virtual addresses."""

    addresses: tuple[str, ...] = ()
    """clusterIPs; empty for a headless service, or one whose address is not known."""
    headless: bool = False
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    publish_not_ready: bool = False
    service_accounts: tuple[str, ...] = ()
    """SPIFFE ids that may serve it besides its pods' own (annotation alpha.istio.io/canonical-serviceaccounts)."""

    @property
    def host(self) -> str:
        """The full DNS name."""
        return f"{self.name}.{self.namespace}.svc.{CLUSTER_DOMAIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownService(Object):
    """A Service, or part of its endpoints, that was refused: its pods and ports are unknown."""

    service: str
    """The Service's name; policies that target it may be about any port of the namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    """A declared TCP container port, for named target ports."""

    port: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod(Object):
    """v1 Pod: a workload, with or without a sidecar."""

    address: str = ""
    """status.podIP; empty until it has one."""
    more_addresses: tuple[str, ...] = ()
    """The other addresses in status.podIPs, such as the IPv6 address of a dual-stack pod."""
    service_account: str = "default"
    ready: bool = True
    """False when a condition says so, when it ended, or when it is being deleted."""
    ended: bool = False
    """status.phase Succeeded or Failed: its address is no longer its own."""
    ports: tuple[ContainerPort, ...] = ()
    hostname: str = ""
    """spec.hostname, when spec.subdomain names a headless service: POD.SERVICE resolves to this pod."""
    subdomain: str = ""
    interception: Interception = Interception.REDIRECT
    app_address: str = "127.0.0.1"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that are the pod's now: none before it has one, nor after it ended."""
        return (self.address, *self.more_addresses) if self.address and not self.ended else ()

    @property
    def has_sidecar(self) -> bool:
        """Whether the pod can take and send mutual TLS."""
        return self.meta.labels.get(TLS_MODE_LABEL) == "istio"

    def identity(self, trust_domain: str) -> str:
        """The pod's SPIFFE id."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """One address of an EndpointSlice or Endpoints object."""

    address: str
    ready: bool = True
    """False: listed, but not to be used now. Terminating addresses never become facts."""
    pod: Ref | None = None
    """targetRef, when it names a Pod."""
    pod_uid: str = ""
    """targetRef.uid; empty if the object does not say it."""
    hostname: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPort:
    """A port of an EndpointSlice or Endpoints object; `name` equals the service port's name."""

    port: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointGroup:
    """Addresses that all serve the same ports."""

    addresses: tuple[EndpointAddress, ...]
    ports: tuple[EndpointPort, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints(Object):
    """discovery.k8s.io/v1 EndpointSlice (one group) or v1 Endpoints (any number of groups), told apart by `ref.kind`."""

    service: str
    groups: tuple[EndpointGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target of an alpha Policy: a service of its namespace, and service ports of it (none named: all)."""

    service: str
    """A name, or a full host name."""
    ports: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationPolicy(Object):
    """authentication.istio.io/v1alpha1 Policy or MeshPolicy. A policy without an mtls peer means plaintext."""

    mode: Mode
    targets: tuple[Target, ...] = ()
    """Empty: the whole namespace (Policy `default`) or mesh (MeshPolicy `default`)."""
    scope_unknown: bool = False
    """Whether its targets could not be read: it then applies to each port of the namespace, like a policy for that port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication(Object):
    """security.istio.io PeerAuthentication. None as a mode: UNSET, inherited."""

    mode: Mode | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, Mode | None] = field(default_factory=dict)
    """portLevelMtls, keyed by the workload's own port."""
    scope_unknown: bool = False
    """Whether its selector could not be read: it then applies to each pod of the namespace, like a policy for that pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule(Object):
    """networking.istio.io DestinationRule."""

    host: str
    """Resolved: a full name, a wildcard such as `*.local`, or `*`."""
    policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    """Namespaces, `.` or `*`; empty: the mesh's default."""
    selector: Mapping[str, str] | None = None
    """workloadSelector.matchLabels: the clients it is for; None: all."""

    def is_about(self, host: str) -> bool:
        """Whether its host, exact or with a leading wildcard, covers a service's full name."""
        return self.host == host or (self.host.startswith("*") and host.endswith(self.host[1:]))


Fact: TypeAlias = (
    Namespace
    | ServiceAccount
    | Service
    | UnknownService
    | Pod
    | Endpoints
    | AuthenticationPolicy
    | PeerAuthentication
    | DestinationRule
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Mesh-wide settings, in Istio's words. Durations are seconds."""

    enable_auto_mtls: bool = True
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    root_namespace: str = "istio-system"
    default_destination_rule_export_to: tuple[str, ...] = ("*",)
    protocol_detection_timeout: float = 1.0
    """How long a listener waits for a client that speaks first; never 0, which would wait for ever."""
    connect_timeout: float = 10.0
    allow_any_outbound: bool = True
    """outboundTrafficPolicy ALLOW_ANY; False: REGISTRY_ONLY."""
    passthrough_inbound: bool = True
    """inboundTrafficPolicy PASSTHROUGH: applications are reached at the pod's address; False: LOCALHOST, at 127.0.0.1.

    Ports of no Service always go where the client meant.
    """
    proxy_listen_port: int = 15001
    proxy_inbound_listen_port: int = 15006
    proxy_http_port: int = 15002
    """Where a sidecar in interception mode NONE offers its HTTP proxy."""
    min_tls_version: str = "TLSV1_2"
    """meshMTLS.minProtocolVersion: TLSV1_2 or TLSV1_3."""
    mtls_enabled: bool = False
    """The install switch values.global.mtls.enabled: mutual TLS required, and sent, across the mesh."""
    sds_socket: str = ""
    """sdsUdsPath: the path of a Unix socket where sidecars get certificates and roots, SPIRE's say; empty: from us."""

    @property
    def intercepting_ports(self) -> frozenset[int]:
        """Where intercepted connections arrive; whoever asks a pod for these ports themselves is turned away."""
        return frozenset((self.proxy_listen_port, self.proxy_inbound_listen_port))

    def closed_ports(self, interception: Interception) -> frozenset[int]:
        """Return the ports of a sidecar that are for its own pod alone: no Service leads to them."""
        proxy = frozenset((self.proxy_http_port,)) if interception is Interception.NONE else frozenset()
        return self.intercepting_ports | {ADMIN_PORT} | proxy

    def own_ports(self, interception: Interception) -> frozenset[int]:
        """Return the ports of a pod with a sidecar that are the sidecar's: it never leads from them to the application."""
        return self.closed_ports(interception) | {PROBE_PORT, HEALTH_PORT, METRICS_PORT}

    def beside_sidecar(self, interception: Interception) -> frozenset[int]:
        """Return the ports of a pod with a sidecar at which its inbound side is not in front of the application."""
        if interception is Interception.NONE:
            return self.own_ports(interception)
        # Istio's telemetry and health ports, which its iptables rules leave alone.
        return frozenset((PROBE_PORT, HEALTH_PORT, METRICS_PORT))

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The trust domain and its aliases, without repetition."""
        return tuple(dict.fromkeys((self.trust_domain, *self.trust_domain_aliases)))


def printable(text: str) -> str:
    """Return a text in which words of the input can neither look like lines of ours nor speak to a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


MAX_PROBLEM_TEXT = 1000
"""Characters of each text of a Problem. Input may hold a value of megabytes, and problems are logged and kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in the input that cannot be used, or (`notice`) that was passed over on purpose.

    Each text is cut to MAX_PROBLEM_TEXT characters.
    """

    where: str
    """`FILE:LINE`, or `KIND NAMESPACE/NAME`. Cut at the front, to keep the line number."""
    what: str
    hint: str = ""
    """What to write instead."""
    notice: bool = False

    def __post_init__(self) -> None:
        if len(self.where) > MAX_PROBLEM_TEXT:
            object.__setattr__(self, "where", "..." + self.where[3 - MAX_PROBLEM_TEXT :])
        for name in ("what", "hint"):
            text = getattr(self, name)
            if len(text) > MAX_PROBLEM_TEXT:
                object.__setattr__(self, name, text[: MAX_PROBLEM_TEXT - 3] + "...")

    def __str__(self) -> str:
        return printable(f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else ""))


ROLLOUT = "sidecar.xds/rollout"
"""Annotation of a policy: `immediate` puts it in force at once, and waits for no proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where what is served is not yet what policy wants, because proxies are not as far; made by `xds.mesh.rollout.machine`."""

    generation: int = 0
    """Grows with each step."""
    modes: Mapping[PortKey, Mode] = field(default_factory=dict)
    """What listeners accept now."""
    mtls: Mapping[PortKey, bool] = field(default_factory=dict)
    """Whether clients without a DestinationRule of their own send mutual TLS now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a source reports: these facts are now so (replacing any of the same Ref), these objects are gone."""

    applied: tuple[Fact, ...] = ()
    removed: tuple[Ref, ...] = ()
    config: MeshConfig | None = None
    """The mesh settings, when they changed."""


def together(changes: Iterable[Change]) -> Change:
    """Make one change of several: what was said last of an object holds."""
    last: dict[Ref, Fact | None] = {}
    config = None
    for change in changes:
        last |= dict.fromkeys(change.removed)
        last |= {fact.ref: fact for fact in change.applied}
        config = change.config or config
    return Change(
        applied=tuple(fact for fact in last.values() if fact),
        removed=tuple(ref for ref, fact in last.items() if fact is None),
        config=config,
    )
