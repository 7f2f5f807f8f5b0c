"""Facts: Kubernetes objects reduced to the fields that decisions need, as immutable values.

`parse` creates facts from Kubernetes objects, `mesh` indexes them, and `policy` makes decisions from them.
This module does not depend on YAML field names or on Envoy. Two facts with the same content are equal, even
if they were read from different places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from xds.mesh.model.authorization import Action, Rule
from xds.mesh.model.families import Family, family_of
from xds.mesh.model.loadbalancer import BY_DISTANCE, LocalityLb
from xds.mesh.model.redirection import REDIRECT_ALL, Redirection
from xds.mesh.model.traffic import Subset, TrafficPolicy

CLUSTER_DOMAIN = "cluster.local"
"""DNS suffix of service names. The trust domain is a separate setting of the mesh."""

DEFAULT_TRUST_DOMAIN = "cluster.local"
"""Default of `trustDomain`. In principals of policies, it stands for the mesh's trust domains."""

TLS_MODE_LABEL = "security.istio.io/tlsMode"
"""Pod label; its value is `istio` if the pod has a sidecar."""

INTERCEPTION_MODE = "sidecar.istio.io/interceptionMode"
"""Pod annotation: `REDIRECT` (the default: iptables redirects traffic to the sidecar) or `NONE` (the
application connects to the sidecar itself)."""

APP_ADDRESS = "sidecar.xds/app-address"
"""Pod annotation: address that the application listens on in interception mode NONE."""


ADMIN_PORT = 15000
"""Port of a sidecar's Envoy admin interface."""
HEALTH_PORT = 15021
"""Port of a sidecar's readiness check."""
PROBE_PORT = 15020
"""Port on which a sidecar answers the kubelet's probes on behalf of the application."""
METRICS_PORT = 15090
"""Port of a sidecar's Prometheus metrics (`/stats/prometheus`)."""


class Mode(StrEnum):
    """What a server's listener accepts on a port (Istio's mutual TLS modes)."""

    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Protocol(StrEnum):
    """Protocol of a service port. AUTO means undeclared: the proxy detects it for each connection."""

    HTTP = "http"
    HTTP2 = "http2"
    TCP = "tcp"
    AUTO = "auto"

    @property
    def is_http(self) -> bool:
        """Whether the port is declared as HTTP of any version."""
        return self in (Protocol.HTTP, Protocol.HTTP2)


POLICY_KINDS = ("MeshPolicy", "PeerAuthentication", "Policy")
"""Kinds that decide the mode of ports."""
TRAFFIC_KINDS = (*POLICY_KINDS, "DestinationRule", "AuthorizationPolicy", "Sidecar")
"""Kinds that decide between plaintext and mutual TLS, or who may connect."""


class Interception(StrEnum):
    """How a pod's traffic reaches its sidecar."""

    REDIRECT = "REDIRECT"
    NONE = "NONE"


class Ref(NamedTuple):
    """A reference to an object. Decisions, errors and NACKs refer to objects with it."""

    kind: str
    """Kind, such as `Service`."""
    namespace: str
    """Namespace; empty for cluster-scoped kinds."""
    name: str
    """Name of the object."""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Return the reference with this text, such as `Service full/httpbin`."""
        kind, _, name = text.partition(" ")
        namespace, _, name = name.rpartition("/")
        return cls(kind, namespace, name)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self[1:]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


ENTRY = "we"
"""Prefix of the names of WorkloadEntries among Pods, as in `we/NAME`: kubectl's short name of the kind."""


def entry_ref(ref: Ref) -> Ref:
    """Return the name of a WorkloadEntry as a workload."""
    return Ref("Pod", ref.namespace, f"{ENTRY}/{ref.name}")


PodKey: TypeAlias = tuple[str, str]
"""Namespace and name of a pod."""
PortKey: TypeAlias = tuple[Ref, int]
"""A pod and one of its ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Metadata that every object has."""

    ref: Ref
    """Kind, namespace and name."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """`metadata.labels`."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """`metadata.annotations`."""
    created: datetime | None = None
    """`metadata.creationTimestamp`, with a time zone; None if the object has none."""
    uid: str = ""
    """`metadata.uid`, which differs from that of an earlier object with the same name; empty outside a
    cluster."""
    origin: str = field(default="", compare=False)
    """Place where the object was read: `FILE:LINE`, or empty."""
    version: str = field(default="", compare=False)
    """`metadata.resourceVersion`; empty outside a cluster."""

    @property
    def place(self) -> str:
        """Place where the object was read: `FILE:LINE`, or its resourceVersion; empty if neither is known."""
        return self.origin or (f"resourceVersion {self.version}" if self.version else "")

    @property
    def age_key(self) -> tuple[bool, float, str, str]:
        """Sort key, oldest first. Objects without a creation time come last."""
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
    """Metadata."""

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

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.meta.ref[1:]


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
    """Port of the Service."""
    target: int | str
    """targetPort: a number, or the name of a container port."""
    name: str = ""
    """Name; empty if the Service has a single unnamed port."""
    protocol: Protocol = Protocol.AUTO
    """Protocol, from appProtocol or the name."""
    target_by_name: bool = False
    """Whether a workload's port with the name of this port takes precedence over `target` (ServiceEntry)."""
    external: bool = False
    """Whether its servers are outside the mesh (MESH_EXTERNAL): clients send them mutual TLS only if a
    DestinationRule says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Object):
    """v1 Service of type ClusterIP, NodePort or LoadBalancer, or one host of a ServiceEntry."""

    addresses: tuple[str, ...] = ()
    """clusterIPs; empty for a headless Service, and until an address is allocated."""
    headless: bool = False
    """Whether the Service is headless: its `clusterIP` is None."""
    families: tuple[Family, ...] = ()
    """IP versions of its endpoints: ipFamilies, or else those of its addresses. Empty: the pod's first."""
    ports: tuple[ServicePort, ...] = ()
    """TCP ports."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the pods that serve it; empty if the Service has no selector."""
    publish_not_ready: bool = False
    """`publishNotReadyAddresses`."""
    service_accounts: tuple[str, ...] = ()
    """Additional SPIFFE IDs of its servers (annotation alpha.istio.io/canonical-serviceaccounts)."""
    published: bool = False
    """Whether clients outside the cluster can connect: type NodePort or LoadBalancer, or externalIPs."""
    entry_host: str = ""
    """Host of a ServiceEntry; empty for a v1 Service. It contains a dot, which the name of a v1 Service
    cannot."""
    export_to: tuple[str, ...] = ()
    """Namespaces whose clients see it; `*` for all, `~` for none, empty for the mesh's default."""

    @property
    def name(self) -> str:
        """Name of the Service, or host of the ServiceEntry; unique in the namespace."""
        return self.entry_host or self.meta.ref.name

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.meta.ref.namespace, self.name

    @property
    def host(self) -> str:
        """The full DNS name."""
        return self.entry_host or f"{self.name}.{self.namespace}.svc.{CLUSTER_DOMAIN}"

    @property
    def cluster_host(self) -> str:
        """The host in names of clusters. Several namespaces can have ServiceEntries with the same host."""
        return f"{self.entry_host}@{self.namespace}" if self.entry_host else self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownService(Object):
    """A Service with unknown pods and ports: it was rejected, or its EndpointSlices or Endpoints were."""

    service: str
    """Name of the Service. A Policy that targets it may apply to any port of any pod in the namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    """A TCP port that a container declares. A named targetPort refers to it."""

    port: int
    """Port number."""
    name: str = ""
    """Name; empty if it has none."""
    published: bool = False
    """Whether clients can connect to it at the address of the node (`hostPort`)."""


_STATEFUL_LABEL = "statefulset.kubernetes.io/pod-name"


def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    """Return the SPIFFE ID of a service account."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod(Object):
    """v1 Pod or WorkloadEntry: a workload, with or without a sidecar."""

    address: str = ""
    """status.podIP; empty until it is set."""
    more_addresses: tuple[str, ...] = ()
    """Other addresses from status.podIPs, such as the IPv6 address of a dual-stack pod."""
    service_account: str = "default"
    """Name of the service account."""
    ready: bool = True
    """Whether the pod is running, its Ready condition is not false, and it is not being deleted."""
    ended: bool = False
    """Whether status.phase is Succeeded or Failed. Another pod may already have its address."""
    ports: tuple[ContainerPort, ...] = ()
    """TCP ports that its containers declare."""
    hostname: str = ""
    """spec.hostname. If spec.subdomain is a headless service, HOSTNAME.SUBDOMAIN resolves to this pod."""
    subdomain: str = ""
    """spec.subdomain."""
    interception: Interception = Interception.REDIRECT
    """How traffic reaches its sidecar."""
    app_address: str = "127.0.0.1"
    """Address that its application listens on in interception mode NONE."""
    probe_ports: tuple[int, ...] = ()
    """Ports of the HTTP and gRPC probes, and of the HTTP hooks, that the kubelet sends to its containers."""
    host_network: bool = False
    """Whether it uses the network of its node. It cannot have a sidecar then."""
    redirection: Redirection = REDIRECT_ALL
    """Traffic that passes through its sidecar; the rest bypasses it. In mode NONE, nothing bypasses it."""
    is_template: bool = False
    """Whether it stands for the pods of a workload in manifests, such as a Deployment.

    Its name is then `KIND/NAME`, as in `deploy/web`, and its address is a placeholder, not an IP address.
    """
    is_entry: bool = False
    """Whether it is a WorkloadEntry: a workload outside the cluster. Its name is then `we/NAME`."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Current addresses of the pod; empty until it has one, and after it has ended."""
        return (self.address, *self.more_addresses) if self.address and not self.ended else ()

    @property
    def families(self) -> tuple[Family, ...]:
        """IP versions of the pod's addresses; IPv4 until it has one."""
        first = family_of(self.address)
        return (
            tuple(sorted({first, *map(family_of, self.more_addresses)})) if self.more_addresses else (first,)
        )

    @property
    def has_sidecar(self) -> bool:
        """Whether the pod has a sidecar, which can accept and send mutual TLS."""
        return self.meta.labels.get(TLS_MODE_LABEL) == "istio"

    @property
    def is_stateful(self) -> bool:
        """Whether a StatefulSet creates the pod, which then has a name of its own."""
        return self.name.startswith("sts/") or _STATEFUL_LABEL in self.meta.labels

    @property
    def is_outside(self) -> bool:
        """Whether it is outside the cluster: a WorkloadEntry, or a workload that a ServiceEntry lists."""
        return self.is_entry or self.ref.kind != "Pod"

    def identity(self, trust_domain: str) -> str:
        """Return the pod's SPIFFE ID."""
        return spiffe_id(trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """One address of an EndpointSlice or Endpoints object."""

    address: str
    """IP address."""
    ready: bool = True
    """Whether it may receive traffic. Terminating addresses never become facts."""
    pod: Ref | None = None
    """targetRef, if it names a Pod."""
    pod_uid: str = ""
    """targetRef.uid; empty if it is absent."""
    hostname: str = ""
    """Host name of the address: HOSTNAME.SERVICE resolves to it only. Empty if it has none."""
    zone: str = ""
    """Zone of the endpoint."""
    workload: Pod | None = None
    """Workload at an address that a ServiceEntry lists, unless a Pod or WorkloadEntry has the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPort:
    """A port of an EndpointSlice or Endpoints object."""

    port: int
    """Port number."""
    name: str = ""
    """Name of the corresponding service port; empty for an unnamed port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointGroup:
    """Addresses that serve the same ports."""

    addresses: tuple[EndpointAddress, ...]
    """Addresses."""
    ports: tuple[EndpointPort, ...]
    """Ports of each address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints(Object):
    """discovery.k8s.io/v1 EndpointSlice, v1 Endpoints or `endpoints` of a ServiceEntry, by `ref.kind`."""

    service: str
    """Name of the Service that the object belongs to."""
    groups: tuple[EndpointGroup, ...] = ()
    """One group for an EndpointSlice, any number for Endpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry(Object):
    """networking.istio.io ServiceEntry, as one Service per host."""

    services: tuple[Service, ...]
    """The Services, which differ only in their host."""
    endpoints: tuple[Endpoints, ...] = ()
    """The listed endpoints of each Service; empty if they come from a workloadSelector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSelector:
    """A target of a v1alpha1 Policy: a Service in the Policy's namespace."""

    service: str
    """Name or full host name of the service."""
    ports: tuple[int | str, ...] = ()
    """Numbers or names of service ports; empty for all ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePolicy(Object):
    """A policy that sets the mode of ports: a PeerAuthentication, or a v1alpha1 Policy or MeshPolicy."""

    mode: Mode | None = None
    """Mode; None (UNSET) to inherit it, which v1alpha1 policies cannot."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """spec.selector.matchLabels; empty for the whole namespace or mesh."""
    ports: Mapping[int, Mode | None] = field(default_factory=dict)
    """spec.portLevelMtls: modes by port of the workload; None (UNSET) to inherit the mode."""
    targets: tuple[TargetSelector, ...] = ()
    """Services that a v1alpha1 Policy targets; empty for the whole namespace or mesh."""
    scope_unknown: bool = False
    """Whether the selector or the targets of a rejected policy are unknown.

    The policy then applies to every port of every pod in the namespace, with the precedence of a policy for a
    workload (PeerAuthentication) or for a port (v1alpha1 Policy).
    """

    @property
    def is_peer_authentication(self) -> bool:
        """Whether it is a PeerAuthentication, which overrides every Policy and MeshPolicy."""
        return self.ref.kind == "PeerAuthentication"

    def is_mesh_wide(self, root_namespace: str) -> bool:
        """Whether it may apply to pods of every namespace."""
        return not self.namespace or (self.is_peer_authentication and self.namespace == root_namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy(Object):
    """security.istio.io AuthorizationPolicy."""

    action: Action = Action.ALLOW
    """What happens to a request that a rule matches."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """spec.selector.matchLabels; empty for the whole namespace or mesh."""
    rules: tuple[Rule, ...] = ()
    """Rules of which one must match. Without rules, the policy matches nothing."""
    dry_run: bool = False
    """Whether the policy is not enforced (annotation istio.io/dry-run)."""
    tries_deletion: bool = False
    """Whether sidecars report what would be denied without the policy (annotation sidecar.xds/dry-run)."""

    @property
    def is_enforced(self) -> bool:
        """Whether sidecars deny requests because of it."""
        return not self.dry_run and self.action is not Action.AUDIT

    @property
    def restricts(self) -> bool:
        """Whether it is an enforced ALLOW policy: a request has to match a rule of one, if there are any."""
        return self.is_enforced and self.action is Action.ALLOW

    def is_mesh_wide(self, root_namespace: str) -> bool:
        """Whether it may apply to pods of every namespace."""
        return self.namespace == root_namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule(Object):
    """networking.istio.io DestinationRule."""

    host: str
    """Resolved host: a full name, a wildcard such as `*.local`, or `*`."""
    policy: TrafficPolicy | None = None
    """spec.trafficPolicy."""
    subsets: tuple[Subset, ...] = ()
    """spec.subsets."""
    export_to: tuple[str, ...] = ()
    """spec.exportTo: names of namespaces, `.` or `*`; empty for the mesh's default."""
    selector: Mapping[str, str] | None = None
    """spec.workloadSelector.matchLabels: labels of the clients that the rule applies to; None for all."""

    def is_about(self, host: str) -> bool:
        """Whether the rule's host matches a service's full name, exactly or with a wildcard."""
        return matches_host(self.host, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar(Object):
    """networking.istio.io Sidecar: the services that its clients see, of those that are exported to them."""

    hosts: tuple[tuple[str, str], ...] = (("*", "*"),)
    """spec.egress[].hosts: namespaces (`*` for all, `.` for the client's), each with a host of services."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """spec.workloadSelector.labels of its clients; empty for the whole namespace or mesh."""
    allow_any_outbound: bool | None = None
    """True for spec.outboundTrafficPolicy ALLOW_ANY, False for REGISTRY_ONLY, None for that of the mesh."""
    scope_unknown: bool = False
    """Whether it replaces a rejected object whose selector is not known."""

    def is_mesh_wide(self, root_namespace: str) -> bool:
        """Whether it applies to namespaces without a Sidecar of their own."""
        return self.namespace == root_namespace and not self.selector


class OutsideTraffic(StrEnum):
    """Plaintext traffic, in the sense of the mesh, from clients that are not pods of the mesh."""

    KUBELET_PROBE = "kubelet-probe"
    """An HTTP or gRPC probe, or an HTTP lifecycle hook, of the kubelet."""
    API_SERVER = "api-server"
    """Calls of the API server to a webhook or to an aggregated API."""
    OUTSIDE_CLIENT = "outside-client"
    """Clients outside the cluster that connect to a Service of type NodePort or LoadBalancer, or to a
    hostPort."""
    PROMETHEUS_SCRAPE = "prometheus-scrape"
    """A scrape of Prometheus, which an annotation, a ServiceMonitor or a PodMonitor requests."""
    PROMETHEUS_TLS = "prometheus-tls"
    """A scrape of Prometheus with a client certificate. Whether it is one of the mesh is unknown."""
    GATEWAY = "gateway"
    """A gateway or ingress controller that a route leads through. Whether it has a sidecar is unknown."""
    EXTERNAL_NAME = "external-name"
    """Clients that use the name of an ExternalName Service for a Service of the mesh. Their sidecars send
    this in plaintext. Whether there are any is unknown."""
    METRICS_PORT = "metrics-port"
    """A scrape of a port whose name suggests metrics. Whether anything scrapes the port is unknown."""
    POD_ADDRESS = "pod-address"
    """Connections to the pod's address, at a port that no Service has, or no headless one if the pod has a
    name of its own. Whether there are any is unknown."""

    @property
    def is_certain(self) -> bool:
        """Whether an object proves that the traffic exists and is not mutual TLS of the mesh."""
        return self not in {
            OutsideTraffic.PROMETHEUS_TLS,
            OutsideTraffic.GATEWAY,
            OutsideTraffic.EXTERNAL_NAME,
            OutsideTraffic.METRICS_PORT,
            OutsideTraffic.POD_ADDRESS,
        }


class Requirement(NamedTuple):
    """A requirement of a Kubernetes label selector."""

    key: str
    """Key of the label."""
    operator: str
    """In, NotIn, Exists or DoesNotExist."""
    values: tuple[str, ...] = ()
    """Values for In and NotIn."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet the requirement. They do if the operator is unknown."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case _:
                return True


def selects(selector: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """Whether labels meet all requirements of a selector."""
    return all(requirement.matches(labels) for requirement in selector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Services or pods that a client outside the mesh connects to."""

    namespaces: tuple[str, ...] = ()
    """Their namespaces; empty for all."""
    service: str = ""
    """Name of the Service; empty if labels select Services or pods."""
    selector: tuple[Requirement, ...] = ()
    """Required labels."""
    selects_pods: bool = False
    """Whether the labels are those of pods, not of Services."""
    port: int | str | None = None
    """Number or name of the Service port; of the container port if `selects_pods`. None for all."""
    target: int | str | None = None
    """Number or name of the container port, instead of `port`; None if `port` decides."""
    has_certificate: bool = False
    """Whether the client presents a certificate, which may be one of the mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFact(Object):
    """An object that proves calls from outside the mesh, such as a webhook, an Ingress or a monitor.

    An ExternalName Service is one if its name stands for a Service of the mesh.
    """

    traffic: OutsideTraffic
    """Kind of client."""
    calls: tuple[Call, ...]
    """What it connects to."""

    def traffic_of(self, call: Call) -> OutsideTraffic:
        """Return the kind of client of a call."""
        return OutsideTraffic.PROMETHEUS_TLS if call.has_certificate else self.traffic

    def is_certain(self, call: Call, namespace: str) -> bool:
        """Whether it proves a call to a namespace for certain. Others may select its pods by mistake."""
        return self.traffic_of(call).is_certain and self.namespace in ("", namespace)


TrafficFact: TypeAlias = ModePolicy | DestinationRule | AuthorizationPolicy | Sidecar
"""Facts of `TRAFFIC_KINDS`."""
Fact: TypeAlias = (
    Namespace
    | ServiceAccount
    | Service
    | UnknownService
    | Pod
    | Endpoints
    | ServiceEntry
    | TrafficFact
    | CallerFact
)


class TlsSettings(NamedTuple):
    """Settings of Istio's MeshConfig for TLS."""

    min_version: str = ""
    """minProtocolVersion; empty for Envoy's default."""
    cipher_suites: tuple[str, ...] = ()
    """cipherSuites of TLS 1.2, by OpenSSL's names; empty for Envoy's default."""
    curves: tuple[str, ...] = ()
    """ecdhCurves, the preferred one first; empty for the default."""
    max_version: str = "TLSV1_3"
    """Maximum version: TLSV1_2 or TLSV1_3. MeshConfig has no field for it."""


MESH_TLS = TlsSettings(min_version="TLSV1_3")
"""Default of meshMTLS."""
TLS_DEFAULTS = TlsSettings()
"""Default of tlsDefaults."""


class PathNormalization(StrEnum):
    """How a server's sidecar changes paths before authorization and the application see them."""

    NONE = "NONE"
    BASE = "BASE"
    """As RFC 3986 says: `.` and `..` are resolved, and a backslash is a slash."""
    MERGE_SLASHES = "MERGE_SLASHES"
    """As BASE, and several slashes are one."""
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"
    """As MERGE_SLASHES, after `%2F` and `%5C` have been decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Mesh-wide settings, named as in Istio's MeshConfig. Durations are in seconds."""

    enable_auto_mtls: bool = True
    """Whether clients send mutual TLS to endpoints that accept it, by default.

    TLS settings in a DestinationRule override this.
    """
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    """Trust domain in the SPIFFE IDs of workloads."""
    trust_domain_aliases: tuple[str, ...] = ()
    """Other trust domains whose identities are accepted."""
    root_namespace: str = "istio-system"
    """Namespace of mesh-wide policies."""
    default_destination_rule_export_to: tuple[str, ...] = ("*",)
    """Default `exportTo` of DestinationRules."""
    default_service_export_to: tuple[str, ...] = ("*",)
    """Default `exportTo` of Services and ServiceEntries: names of namespaces, `.`, `*` or `~` (none)."""
    discovery_selectors: tuple[tuple[Requirement, ...], ...] = ()
    """discoverySelectors: clients see only services in namespaces that meet all requirements of one of them.

    Empty if there are none: clients then see services in all namespaces."""
    protocol_detection_timeout: float = 1.0
    """Time that a listener waits for the client's first bytes to detect the protocol.

    Never 0: Envoy would wait forever.
    """
    connect_timeout: float = 10.0
    """Timeout of TCP connections to endpoints."""
    allow_any_outbound: bool = True
    """True for outboundTrafficPolicy ALLOW_ANY, False for REGISTRY_ONLY."""
    passthrough_inbound: bool = True
    """True for inboundTrafficPolicy PASSTHROUGH, False for LOCALHOST.

    The sidecar connects to its application at the pod's address (PASSTHROUGH) or at 127.0.0.1 (LOCALHOST).
    Connections to a port that belongs to no Service always keep their original destination.
    """
    path_normalization: PathNormalization = PathNormalization.BASE
    """pathNormalization."""
    proxy_listen_port: int = 15001
    """Port to which outbound connections are redirected."""
    proxy_inbound_listen_port: int = 15006
    """Port to which inbound connections are redirected."""
    proxy_http_port: int = 15002
    """Port of a sidecar's HTTP proxy in interception mode NONE."""
    mesh_tls: TlsSettings = MESH_TLS
    """meshMTLS: TLS between sidecars. The minimum version is TLSV1_2 or TLSV1_3."""
    tls_defaults: TlsSettings = TLS_DEFAULTS
    """tlsDefaults: TLS of clients with a DestinationRule of mode SIMPLE or MUTUAL."""
    locality_lb: LocalityLb = BY_DISTANCE
    """localityLbSetting: locality load balancing of services whose DestinationRule does not set it."""
    fips: bool = False
    """Switch values.xds.compliancePolicy: whether TLS is restricted to what FIPS 140-3 approves.

    Overrides the versions, cipher suites and curves of `mesh_tls` and `tls_defaults`."""
    mtls_enabled: bool = False
    """Install switch values.global.mtls.enabled: whether mutual TLS is required and sent by default."""
    observe: bool = True
    """Switch values.xds.observe: whether sidecars report plaintext and denied requests."""
    sds_socket: str = ""
    """sdsUdsPath: Unix socket of an SDS server, such as SPIRE's; empty to use the mesh's CA."""
    own_keys: bool = True
    """Switch values.xds.ownKeys: whether injected sidecars make their private keys themselves."""
    pod_certificates: bool = True
    """Switch values.xds.podCertificates: whether kubelets keep the keys and certificates of sidecars.

    Requires `own_keys`, and nodes that support it."""
    serves_own_certificate: bool = False
    """Whether a sidecar serves its own certificate. Not a setting: each sidecar tells the control plane."""
    observe_denials: bool = True
    """Whether sidecars also report denied requests. Not a setting: it depends on their version of Envoy."""

    @property
    def intercepting_ports(self) -> frozenset[int]:
        """Ports to which connections are redirected. Direct connections to these ports are refused."""
        return frozenset((self.proxy_listen_port, self.proxy_inbound_listen_port))

    def closed_ports(self, interception: Interception) -> frozenset[int]:
        """Return the sidecar's ports that only its own pod can reach, not other pods."""
        proxy = frozenset((self.proxy_http_port,)) if interception is Interception.NONE else frozenset()
        return self.intercepting_ports | {ADMIN_PORT} | proxy

    def own_ports(self, interception: Interception) -> frozenset[int]:
        """Return all ports that the sidecar listens on itself, instead of the application."""
        return self.closed_ports(interception) | _BESIDE_SIDECAR

    def beside_sidecar(self, interception: Interception) -> frozenset[int]:
        """Return the ports of a pod that the sidecar's inbound listener does not intercept."""
        if interception is Interception.NONE:
            return self.own_ports(interception)
        # The iptables rules exclude Istio's telemetry and health ports.
        return _BESIDE_SIDECAR

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The trust domain and its aliases, without duplicates."""
        return tuple(dict.fromkeys((self.trust_domain, *self.trust_domain_aliases)))


_BESIDE_SIDECAR = frozenset((PROBE_PORT, HEALTH_PORT, METRICS_PORT))


def matches_host(pattern: str, host: str) -> bool:
    """Whether a DestinationRule's host matches a service's full name, exactly or with a wildcard."""
    return pattern == host or (pattern.startswith("*") and host.endswith(pattern[1:]))


def printable(text: str) -> str:
    """Escape control characters, to prevent log and terminal injection."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


MAX_PROBLEM_TEXT = 1000
"""Maximum length of each text of a Problem. Problems are logged and stored, and can quote very long input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem in the input. Each text is truncated to MAX_PROBLEM_TEXT characters."""

    where: str
    """`FILE:LINE`, or `KIND NAMESPACE/NAME`. Truncated at the front, to keep the line number."""
    what: str
    """Description of the problem."""
    hint: str = ""
    """How to fix the problem; empty if unknown."""
    notice: bool = False
    """Whether the problem is only a notice: the object is used nevertheless, or is ignored on purpose."""
    subject: str = field(default="", compare=False)
    """`KIND NAMESPACE/NAME` of the object; empty if it is not known."""
    served_version: str = field(default="", compare=False)
    """Earlier version of a rejected object that stays in use; empty if there is none. In a cluster, it is the
    resourceVersion. For a file, it is the time when that version of the file was written."""

    def __post_init__(self) -> None:
        if len(self.where) > MAX_PROBLEM_TEXT:
            object.__setattr__(self, "where", "..." + self.where[3 - MAX_PROBLEM_TEXT :])
        for name in ("what", "hint"):
            text = getattr(self, name)
            if len(text) > MAX_PROBLEM_TEXT:
                object.__setattr__(self, name, text[: MAX_PROBLEM_TEXT - 3] + "...")

    def __str__(self) -> str:
        return printable(f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else ""))


DRY_RUN = "istio.io/dry-run"
"""Annotation of an AuthorizationPolicy: with the value `true`, the policy is not enforced."""
TRY = "sidecar.xds/dry-run"
"""Annotation of an AuthorizationPolicy: with the value `delete`, sidecars report what would be denied without
the policy, which stays enforced."""
ROLLOUT = "sidecar.xds/rollout"
"""Annotation of a policy; with the value `immediate`, the policy applies without waiting for proxies."""

ENFORCE_PLAN = "sidecar.xds/enforce-plan"
"""Annotation of a policy or DestinationRule; with the value `false`, `xds serve --enforce-plan` admits it
even if it breaks connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowStage:
    """ALLOW policies that apply to some of the connections to a pod in transition."""

    policies: tuple[AuthorizationPolicy, ...] = field(hash=False)
    """The policies. If there are none, everything is allowed."""
    mtls: frozenset[bool]
    """To which connections they apply: with mutual TLS (True), without (False), or both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedDiff:
    """Differences between the served state and the desired state, during rollouts."""

    generation: int = 0
    """Generation of the served state; each rollout step increments it."""
    modes: Mapping[PortKey, Mode] = field(default_factory=dict)
    """Modes that listeners are served with."""
    mtls: Mapping[PortKey, bool] = field(default_factory=dict)
    """Whether clients are configured to send mutual TLS, unless a DestinationRule has TLS settings."""
    rules: Mapping[Ref, DestinationRule | None] = field(default_factory=dict)
    """Served versions of DestinationRules that changed. None: no version is served yet."""
    allow: Mapping[Ref, tuple[AllowStage, ...]] = field(default_factory=dict)
    """Served ALLOW policies of pods in transition. Each stage may allow a connection; the last is current."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of facts or settings that a source reports."""

    applied: tuple[Fact, ...] = ()
    """New or changed facts. Each replaces the fact with the same Ref."""
    removed: tuple[Ref, ...] = ()
    """Names of deleted objects."""
    config: MeshConfig | None = None
    """New mesh settings; None if they have not changed."""


def merge_changes(changes: Iterable[Change]) -> Change:
    """Merge changes into one. The last version of each object applies."""
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
