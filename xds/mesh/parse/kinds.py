"""The kinds that are read: one entry for each says how objects are parsed and watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias

from xds.mesh.model.objects import Fact, Meta
from xds.mesh.parse import (
    authentication,
    authorization,
    callers,
    core,
    destinationrule,
    endpoints,
    entries,
    names,
    sidecar,
)
from xds.mesh.parse.fail_closed import FailClosed
from xds.mesh.parse.reading import Field, Log

_BUILT_IN = frozenset(
    {
        *("", "discovery.k8s.io", "networking.k8s.io", "admissionregistration.k8s.io"),
        *("apiregistration.k8s.io", "apiextensions.k8s.io"),
    }
)
"""API groups of Kubernetes itself."""


_MakeReplacement: TypeAlias = Callable[[Meta, "Fact | None", Log], FailClosed | None]


class Watch(Enum):
    """How the control plane watches a kind in a cluster."""

    REQUIRED = auto()
    """No sidecar gets configuration before all objects are listed: they may be policies."""
    SERVED = auto()
    """As REQUIRED, but a cluster that does not serve the kind has no objects."""
    ADVISORY = auto()
    """Objects affect only predictions. If they cannot be listed, a notice says so."""
    UNENFORCED = auto()
    """As ADVISORY, and each object is reported, because the kind is not enforced."""
    NEVER = auto()
    """Objects are read only from files."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How to parse and watch a kind of object."""

    name: str
    """Kind, such as `Service`."""
    group: str
    """API group; empty for the core group of Kubernetes."""
    versions: tuple[str, ...]
    """Accepted versions."""
    read: Callable[[Field, Meta], Fact | None] | None
    """Function that parses an object. It returns None for a valid object that is ignored. A kind that is not
    enforced needs none."""
    check_name: Callable[[str], str] = names.subdomain
    """Function that returns what is wrong with an object's name, or an empty string."""
    namespaced: bool = True
    """Whether objects of the kind are in a namespace."""
    watch: Watch = Watch.REQUIRED
    """How the control plane watches the kind."""
    has_status: bool = False
    """Whether the control plane publishes problems in the status of objects."""
    make_replacement: _MakeReplacement | None = None
    """Function that makes the replacement for a rejected object, from its metadata, fact and log."""
    used: type[Any] | None = None
    """TypedDict of the fields that affect an object's fact; None for all. A caller need not decode the others
    of an object that an API server has accepted."""
    consequence: str = ""
    """Consequence of not enforcing the kind, as the end of a warning; empty if it is enforced."""

    @property
    def plural(self) -> str:
        """Plural name in API paths."""
        return plural_of(self.name)

    @property
    def is_unenforced_security(self) -> bool:
        """Whether the kind is not enforced, and would deny requests if it were."""
        return self.consequence == _DENIES

    @property
    def built_in(self) -> bool:
        """Whether the kind is built into Kubernetes."""
        return self.group in _BUILT_IN

    @property
    def api_versions(self) -> tuple[str, ...]:
        """Accepted values of apiVersion."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)


def _caller(
    name: str,
    group: str,
    versions: tuple[str, ...],
    read: Callable[[Field, Meta], Fact | None],
    **options: Any,
) -> Kind:
    """Return a kind of objects that prove calls from outside the mesh."""
    return Kind(name, group, versions, read, watch=Watch.ADVISORY, **options)


def _unenforced(
    name: str,
    group: str,
    versions: tuple[str, ...],
    consequence: str = "it has no effect",
    *,
    read: Callable[[Field, Meta], Fact | None] | None = None,
) -> Kind:
    """Return a kind whose objects are read to warn that they are not enforced."""
    return Kind(name, group, versions, read, watch=Watch.UNENFORCED, consequence=consequence)


_DENIES = "requests that it would deny are allowed"
_ISTIO = ("v1alpha3", "v1beta1", "v1")
_OLD = ("v1beta1", "v1")
_ROUTES = ("v1alpha2", "v1alpha3", "v1")
_GATEWAY_API = "gateway.networking.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
KINDS = (
    Kind("Namespace", "", ("v1",), core.namespace, names.label, namespaced=False),
    Kind("ServiceAccount", "", ("v1",), core.service_account),
    Kind(
        "Service",
        "",
        ("v1",),
        core.service,
        names.service,
        make_replacement=core.service_fail_closed,
    ),
    Kind("Pod", "", ("v1",), core.pod, used=core.UsedPod),
    Kind(
        "Endpoints",
        "",
        ("v1",),
        endpoints.endpoints,
        watch=Watch.NEVER,  # Kubernetes mirrors them to EndpointSlices.
        make_replacement=endpoints.endpoints_fail_closed,
    ),
    Kind(
        "EndpointSlice",
        "discovery.k8s.io",
        ("v1",),
        endpoints.endpoint_slice,
        make_replacement=endpoints.endpoints_fail_closed,
    ),
    Kind(
        "Policy",
        "authentication.istio.io",
        ("v1alpha1",),
        authentication.policy,
        has_status=True,
        make_replacement=authentication.policy_fail_closed,
    ),
    Kind(
        "MeshPolicy",
        "authentication.istio.io",
        ("v1alpha1",),
        authentication.mesh_policy,
        namespaced=False,
        has_status=True,
        make_replacement=authentication.mesh_policy_fail_closed,
    ),
    Kind(
        "PeerAuthentication",
        "security.istio.io",
        _OLD,
        authentication.peer_authentication,
        has_status=True,
        make_replacement=authentication.peer_authentication_fail_closed,
    ),
    Kind(
        "AuthorizationPolicy",
        "security.istio.io",
        _OLD,
        authorization.authorization_policy,
        watch=Watch.SERVED,
        has_status=True,
        make_replacement=authorization.authorization_policy_fail_closed,
    ),
    Kind(
        "DestinationRule",
        "networking.istio.io",
        _ISTIO,
        destinationrule.destination_rule,
        has_status=True,
        make_replacement=destinationrule.destination_rule_fail_closed,
    ),
    Kind(
        "ServiceEntry",
        "networking.istio.io",
        _ISTIO,
        entries.service_entry,
        watch=Watch.SERVED,
        has_status=True,
    ),
    Kind(
        "WorkloadEntry",
        "networking.istio.io",
        _ISTIO,
        entries.workload_entry,
        watch=Watch.SERVED,
        has_status=True,
    ),
    Kind(
        "Sidecar",
        "networking.istio.io",
        _ISTIO,
        sidecar.sidecar,
        watch=Watch.SERVED,
        has_status=True,
        make_replacement=sidecar.sidecar_fail_closed,
    ),
    _caller("Ingress", "networking.k8s.io", _OLD, callers.ingress),
    _caller("HTTPRoute", _GATEWAY_API, _OLD, callers.route),
    _caller("GRPCRoute", _GATEWAY_API, _ROUTES, callers.route),
    _caller("TLSRoute", _GATEWAY_API, _ROUTES, callers.route),
    _caller("TCPRoute", _GATEWAY_API, _ROUTES, callers.route),
    _caller("ServiceMonitor", "monitoring.coreos.com", ("v1",), callers.service_monitor),
    _caller("PodMonitor", "monitoring.coreos.com", ("v1",), callers.pod_monitor),
    _caller(
        "ValidatingWebhookConfiguration",
        _ADMISSION,
        _OLD,
        callers.webhooks,
        namespaced=False,
    ),
    _caller(
        "MutatingWebhookConfiguration",
        _ADMISSION,
        _OLD,
        callers.webhooks,
        namespaced=False,
    ),
    _caller(
        "APIService",
        "apiregistration.k8s.io",
        _OLD,
        callers.api_service,
        check_name=names.api_service,
        namespaced=False,
    ),
    _caller(
        "CustomResourceDefinition",
        "apiextensions.k8s.io",
        _OLD,
        callers.custom_resource_definition,
        namespaced=False,
        used=callers.UsedDefinition,
    ),
    _unenforced("RequestAuthentication", "security.istio.io", _OLD, _DENIES),
    _unenforced(
        "VirtualService",
        "networking.istio.io",
        _ISTIO,
        read=callers.virtual_service,
    ),
    _unenforced("EnvoyFilter", "networking.istio.io", ("v1alpha3",)),
    _unenforced("WasmPlugin", "extensions.istio.io", ("v1alpha1",), _DENIES),
    _unenforced("ClusterRbacConfig", "rbac.istio.io", ("v1alpha1",), _DENIES),
    _unenforced("ServiceRole", "rbac.istio.io", ("v1alpha1",), _DENIES),
    _unenforced("ServiceRoleBinding", "rbac.istio.io", ("v1alpha1",), _DENIES),
)
"""All kinds that are read."""

UNENFORCED = tuple(kind for kind in KINDS if kind.consequence)
"""Kinds that are not enforced. Objects are reported with a warning."""
CALLER_KINDS = frozenset(
    kind.name for kind in KINDS if kind.watch in (Watch.ADVISORY, Watch.UNENFORCED) and kind.read
)
"""Kinds whose objects prove clients outside the mesh."""


_UNRELATED_GROUPS = frozenset(
    {
        # Kubernetes
        *("admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "app.k8s.io"),
        *("audit.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling.k8s.io"),
        *("certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io"),
        *("flowcontrol.apiserver.k8s.io", "gateway.networking.k8s.io", "groupsnapshot.storage.k8s.io"),
        *("kind.x-k8s.io", "kubeadm.k8s.io", "kueue.x-k8s.io", "metrics.k8s.io", "networking.k8s.io"),
        *("node.k8s.io", "policy.networking.k8s.io", "rbac.authorization.k8s.io", "resource.k8s.io"),
        *("scheduling.k8s.io", "snapshot.storage.k8s.io", "storage.k8s.io", "storagemigration.k8s.io"),
        "wgpolicyk8s.io",
        # Istio
        *("authentication.istio.io", "config.istio.io", "extensions.istio.io", "rbac.istio.io"),
        *("security.istio.io", "telemetry.istio.io"),
        # policies, certificates and identities
        *("cert-manager.io", "trust.cert-manager.io", "spire.spiffe.io", "kyverno.io", "policies.kyverno.io"),
        *("config.gatekeeper.sh", "constraints.gatekeeper.sh", "mutations.gatekeeper.sh"),
        *("templates.gatekeeper.sh", "crd.projectcalico.org", "projectcalico.org", "security.openshift.io"),
        # others
        *("caching.internal.knative.dev", "image.toolkit.fluxcd.io", "source.toolkit.fluxcd.io"),
        *("karpenter.k8s.aws", "karpenter.sh"),
    }
)
"""API groups of which no kind creates pods or calls Services, unless a kind of its name is read."""
_UNRELATED_KINDS = {
    "argoproj.io": ("AppProject",),
    "bitnami.com": ("SealedSecret",),
    "cilium.io": ("CiliumClusterwideNetworkPolicy", "CiliumNetworkPolicy"),
    "cloud.google.com": ("BackendConfig", "ComputeClass"),
    "dapr.io": ("Component", "Configuration", "Resiliency", "Subscription"),
    "external-secrets.io": ("ClusterExternalSecret", "ClusterSecretStore", "ExternalSecret", "SecretStore"),
    "grafana.integreatly.org": ("GrafanaDashboard", "GrafanaFolder"),
    "image.openshift.io": ("ImageStream",),
    "kafka.strimzi.io": ("KafkaTopic", "KafkaUser"),
    "k8s.cni.cncf.io": ("NetworkAttachmentDefinition",),
    "k8s.nginx.org": ("GlobalConfiguration", "Policy"),
    "keda.sh": ("ClusterTriggerAuthentication", "TriggerAuthentication"),
    "metallb.io": (
        *("AddressPool", "BFDProfile", "BGPAdvertisement", "BGPPeer", "Community", "IPAddressPool"),
        "L2Advertisement",
    ),
    "monitoring.coreos.com": ("AlertmanagerConfig", "PrometheusRule"),
    "monitoring.googleapis.com": ("ClusterRules", "Rules"),
    "networking.gke.io": ("FrontendConfig", "ManagedCertificate"),
    "networking.istio.io": ("Gateway", "ProxyConfig", "WorkloadGroup"),
    "networking.internal.knative.dev": ("Certificate",),
    "operators.coreos.com": ("OperatorGroup",),
    "postgresql.cnpg.io": ("ClusterImageCatalog", "ImageCatalog"),
    "projectcontour.io": ("TLSCertificateDelegation",),
    "secrets-store.csi.x-k8s.io": ("SecretProviderClass",),
    "traefik.io": ("TLSOption", "TLSStore"),
}
"""Kinds of other API groups that do neither."""


def may_matter(group: str, name: str) -> bool:
    """Whether objects of a kind that is not read may create pods or call Services."""
    if name in CALLER_KINDS:
        return True  # Another version or group of a kind that proves callers.
    is_unrelated = "." not in group or group.endswith(".config.k8s.io") or group in _UNRELATED_GROUPS
    return not is_unrelated and name not in _UNRELATED_KINDS.get(group, ())


def plural_of(kind: str) -> str:
    """Return the plural of a kind in API paths."""
    singular = kind.lower()
    if singular == "endpoints":
        return singular
    return f"{singular[:-1]}ies" if singular[-1:] == "y" else f"{singular}{'e' * (singular[-1:] == 's')}s"


def is_kind(name: str, group: str, kind: str) -> bool:
    """Whether a name means a kind, as for kubectl: KIND, its plural, PLURAL.GROUP, or GROUP/KIND.

    Upper and lower case are equal.
    """
    group_before, _, word = name.lower().rpartition("/")
    word, _, group_after = word.partition(".")
    return word in {kind.lower(), plural_of(kind)} and (group_before or group_after) in {"", group}
