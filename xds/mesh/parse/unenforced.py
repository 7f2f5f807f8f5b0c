"""Istio kinds that this control plane does not enforce. It warns about objects of these kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xds.mesh.model.objects import Fact, Meta
from xds.mesh.parse import callers
from xds.mesh.parse.reading import Field

_DENIES = "requests that it would deny are allowed"
_WITHOUT_EFFECT = "it has no effect"


@dataclass(frozen=True, slots=True)
class Unenforced:
    """A kind whose objects are read to warn that they are not enforced."""

    name: str
    """Kind."""
    group: str
    """API group."""
    plural: str
    """Plural name in API paths."""
    versions: tuple[str, ...]
    """Versions that an API server may serve."""
    consequence: str = _WITHOUT_EFFECT
    """Consequence for traffic, as the end of the warning."""
    read: Callable[[Field, Meta], Fact | None] | None = None
    """Function that parses which clients outside the mesh an object proves, if it can prove any."""

    @property
    def is_security(self) -> bool:
        """Whether its objects would deny requests."""
        return self.consequence == _DENIES


_SECURITY = ("v1beta1", "v1")
_NETWORKING = ("v1alpha3", "v1beta1", "v1")
UNENFORCED = (
    Unenforced("AuthorizationPolicy", "security.istio.io", "authorizationpolicies", _SECURITY, _DENIES),
    Unenforced("RequestAuthentication", "security.istio.io", "requestauthentications", _SECURITY, _DENIES),
    Unenforced("Sidecar", "networking.istio.io", "sidecars", _NETWORKING),
    Unenforced(
        "VirtualService",
        "networking.istio.io",
        "virtualservices",
        _NETWORKING,
        read=callers.virtual_service,
    ),
    Unenforced("EnvoyFilter", "networking.istio.io", "envoyfilters", ("v1alpha3",)),
    Unenforced("WasmPlugin", "extensions.istio.io", "wasmplugins", ("v1alpha1",), _DENIES),
    Unenforced("ClusterRbacConfig", "rbac.istio.io", "clusterrbacconfigs", ("v1alpha1",), _DENIES),
    Unenforced("ServiceRole", "rbac.istio.io", "serviceroles", ("v1alpha1",), _DENIES),
    Unenforced("ServiceRoleBinding", "rbac.istio.io", "servicerolebindings", ("v1alpha1",), _DENIES),
)
