"""What a sidecar and its Envoy support, and the TLS settings that it is served.

An Envoy rejects a whole listener or cluster with a curve or a field that it does not know. The control plane
therefore reads the Envoy's version and TLS library from its node, and leaves out what may not be supported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from xds.mesh.envoy.names import OWN_KEY_FEATURE, POD_CERTIFICATE_FEATURE
from xds.mesh.model.objects import MeshConfig, TlsSettings
from xds.protocol.wire import Node

POST_QUANTUM = "X25519MLKEM768"
"""Hybrid of X25519 and ML-KEM-768, which resists quantum computers."""
DEFAULT_CURVES = (POST_QUANTUM, "X25519", "P-256")
"""Curves between sidecars, the preferred one first."""

FIPS_CURVES = ("P-256", "P-384")
FIPS_CIPHER_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""Curves and TLS 1.2 cipher suites of Envoy's compliance policy FIPS_202205."""

_MIN_VERSION = (1, 34)
"""First minor version of Envoy with compliance policies. All its BoringSSL builds know X25519MLKEM768."""
_DENIALS_VERSION = (1, 37)
"""First minor version of Envoy whose documentation has tags with format strings. Older ones reject a listener
with them."""


class Features(NamedTuple):
    """Features of a sidecar and its Envoy that older versions or other builds lack."""

    post_quantum: bool
    """Whether its TLS library knows the curve X25519MLKEM768."""
    compliance_policies: bool
    """Whether it applies `compliance_policies`. Older versions ignore them."""
    denials: bool = False
    """Whether it can report what AuthorizationPolicies deny."""
    own_key: bool = False
    """Whether `xds proxy` makes its key in the pod and serves its certificate. The control plane does not."""
    pod_certificate: bool = False
    """Whether the kubelet keeps its key and certificate, in a file of the pod."""

    @property
    def has_key(self) -> bool:
        """Whether the sidecar has a key of its own, so that the control plane makes none."""
        return self.own_key or self.pod_certificate


NO_FEATURES = Features(post_quantum=False, compliance_policies=False)
ALL_FEATURES = Features(post_quantum=True, compliance_policies=True, denials=True)


def features_of(nodes: Iterable[Node]) -> Features:
    """Return the features that all Envoys among these nodes have. An unknown version or build has none.

    Other clients of a pod, such as grpcurl, do not count: they must not change what its Envoy is served.
    """
    features = [
        _features(
            node.user_agent_version,
            node.tls_library,
            OWN_KEY_FEATURE in node.client_features,
            POD_CERTIFICATE_FEATURE in node.client_features,
        )
        for node in nodes
        if node.user_agent_name == "envoy"
    ]
    return Features(*map(all, zip(*features, strict=True))) if features else NO_FEATURES


@lru_cache(maxsize=64)
def _features(user_agent_version: str, tls_library: str, own_key: bool, pod_certificate: bool) -> Features:
    version = tuple(int(part) for part in user_agent_version.split(".") if part.isdecimal())
    if version < _MIN_VERSION:
        return NO_FEATURES._replace(own_key=own_key, pod_certificate=pod_certificate)
    # A FIPS build (BoringSSL-FIPS) contains an older, certified version, and other libraries name curves
    # differently.
    return Features(
        post_quantum=tls_library == "BoringSSL",
        compliance_policies=tls_library in {"BoringSSL", "BoringSSL-FIPS"},
        denials=version >= _DENIALS_VERSION,
        own_key=own_key,
        pod_certificate=pod_certificate,
    )


@lru_cache(maxsize=64)
def served_config(config: MeshConfig, features: Features) -> MeshConfig:
    """Return the settings with the TLS settings for an Envoy with these features."""
    if features.own_key:
        config = replace(config, serves_own_certificate=True)
    if not features.denials:
        config = replace(config, observe_denials=False)
    if not config.fips:
        return replace(
            config,
            mesh_tls=_supported(config.mesh_tls, features, DEFAULT_CURVES),
            tls_defaults=_supported(config.tls_defaults, features, ()),
        )
    if features.compliance_policies:
        tls = TlsSettings("TLSV1_2", FIPS_CIPHER_SUITES, FIPS_CURVES)
        return replace(config, mesh_tls=tls, tls_defaults=tls)
    # Only a compliance policy can exclude ChaCha20 from TLS 1.3.
    tls = TlsSettings("TLSV1_2", FIPS_CIPHER_SUITES, FIPS_CURVES, max_version="TLSV1_2")
    return replace(config, mesh_tls=tls, tls_defaults=tls, fips=False)


def describe_tls(config: MeshConfig, client: Features, servers: Iterable[Features]) -> str:
    """Return the TLS versions and curves that a client shares with all servers, in words."""
    sides = [served_config(config, features).mesh_tls for features in (client, *servers)]
    versions = [
        name
        for version, name in (("TLSV1_3", "1.3"), ("TLSV1_2", "1.2"))
        if all(side.min_version <= version <= side.max_version for side in sides)
    ]
    curves = [curve for curve in sides[0].curves if all(curve in side.curves for side in sides)]
    policy = ", FIPS 140-3" if config.fips else ""
    return f"TLS {' or '.join(versions) or 'unknown'}{policy}; curves {', '.join(curves) or 'none in common'}"


def _supported(settings: TlsSettings, features: Features, default: tuple[str, ...]) -> TlsSettings:
    curves = settings.curves or default
    if not features.post_quantum:
        # Never leave a list empty: Envoy would use curves that the settings do not allow.
        curves = tuple(curve for curve in curves if curve != POST_QUANTUM) or curves
    return settings._replace(curves=curves)
