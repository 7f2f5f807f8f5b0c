"""Default objects, as Istio's installation creates them. They exist in every mesh."""

from __future__ import annotations

from xds.mesh.model.objects import (
    CLUSTER_DOMAIN,
    DestinationRule,
    Fact,
    MeshConfig,
    Meta,
    Mode,
    ModePolicy,
    Ref,
)
from xds.mesh.model.traffic import ClientTls, TlsMode, TrafficPolicy

ORIGIN = "values.global.mtls.enabled"
"""Setting that decides which default objects exist. Their `origin` starts with its name."""


def default_objects(config: MeshConfig) -> tuple[Fact, ...]:
    """Return the default objects for `config`. A user's object of the same name replaces a default object.

    Istio 1.4's Helm charts create the same objects: the MeshPolicy `default` and, if
    `values.global.mtls.enabled` is true, the DestinationRules `default` (`*.local`, ISTIO_MUTUAL) and
    `api-server` (DISABLE).
    """
    origin = f"{ORIGIN}={str(config.mtls_enabled).lower()}"

    def meta(kind: str, namespace: str, name: str) -> Meta:
        return Meta(ref=Ref(kind, namespace, name), origin=origin)

    mode = Mode.STRICT if config.mtls_enabled else Mode.PERMISSIVE
    policy = ModePolicy(meta=meta("MeshPolicy", "", "default"), mode=mode)
    if not config.mtls_enabled:
        return (policy,)
    return (
        policy,
        DestinationRule(
            meta=meta("DestinationRule", config.root_namespace, "default"),
            host="*.local",
            policy=TrafficPolicy(tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL)),
        ),
        DestinationRule(
            meta=meta("DestinationRule", config.root_namespace, "api-server"),
            host=f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
            policy=TrafficPolicy(tls=ClientTls(mode=TlsMode.DISABLE)),
        ),
    )
