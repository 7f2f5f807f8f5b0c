"""TLS contexts: the mesh's mutual TLS, and TLS settings of DestinationRules."""

from __future__ import annotations

from functools import lru_cache

from envoy_data_plane.envoy.config.core.v3 import DataSource, TransportSocket
from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer.v3 import RawBuffer
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersCompliancePolicy,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from xds.codec import pack
from xds.mesh.envoy.common import certificate, roots
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.mesh.model.objects import MeshConfig, TlsSettings
from xds.mesh.model.traffic import ClientTls, TlsMode

MESH_ALPN = ("istio",)
"""ALPN protocol that identifies clients of the mesh."""
HTTP_ALPN = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
"""ALPN protocols for HTTP that a sidecar detected on a port without a declared protocol."""
TCP_ALPN = ("istio-peer-exchange", *MESH_ALPN)
"""ALPN protocols for connections of any protocol, also from Istio's sidecars."""

SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Path of the system's roots in Debian, Ubuntu, Alpine and Envoy images.

Envoy ignores `system_root_certs`, and would verify nothing.
"""

_TLS = "envoy.transport_sockets.tls"


def raw_buffer() -> TransportSocket:
    """Return the plaintext transport socket."""
    return TransportSocket(name="envoy.transport_sockets.raw_buffer", typed_config=pack(RawBuffer()))


@lru_cache(maxsize=1)
def unverified() -> TransportSocket:
    """Return a client's TLS socket that accepts any server certificate."""
    return TransportSocket(name=_TLS, typed_config=pack(UpstreamTlsContext()))


def uri(*, exact: str = "", prefix: str = "") -> SubjectAltNameMatcher:
    """Return a matcher for the SPIFFE ID of a certificate."""
    matcher = StringMatcher(exact=exact) if exact else StringMatcher(prefix=prefix)
    return SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.URI, matcher=matcher)


def _trust_domains(config: MeshConfig) -> list[SubjectAltNameMatcher]:
    return [uri(prefix=f"spiffe://{domain}/") for domain in config.trust_domains]


_VERSIONS = {
    "": TlsParametersTlsProtocol.TLS_AUTO,
    "TLSV1_2": TlsParametersTlsProtocol.TLSv1_2,
    "TLSV1_3": TlsParametersTlsProtocol.TLSv1_3,
}


def _parameters(settings: TlsSettings, *, fips: bool) -> TlsParameters:
    return TlsParameters(
        tls_minimum_protocol_version=_VERSIONS[settings.min_version],
        tls_maximum_protocol_version=_VERSIONS[settings.max_version],
        cipher_suites=list(settings.cipher_suites),
        ecdh_curves=list(settings.curves),
        # Envoy applies the policy last: it overrides the other parameters.
        compliance_policies=[TlsParametersCompliancePolicy.FIPS_202205] if fips else [],
    )


def _mesh_context(
    config: MeshConfig, peers: list[SubjectAltNameMatcher], alpn: tuple[str, ...]
) -> CommonTlsContext:
    return CommonTlsContext(
        tls_params=_parameters(config.mesh_tls, fips=config.fips),
        tls_certificate_sds_secret_configs=[
            SdsSecretConfig(name=CERTIFICATE, sds_config=certificate(config))
        ],
        combined_validation_context=CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=peers),
            validation_context_sds_secret_config=SdsSecretConfig(name=ROOTS, sds_config=roots(config)),
        ),
        alpn_protocols=list(alpn),
    )


@lru_cache(maxsize=4096)
def mutual(
    config: MeshConfig, sni: str, identities: tuple[str, ...], *, http2: bool = False
) -> TransportSocket:
    """Return a client's mTLS socket that accepts servers with these SPIFFE IDs.

    If `identities` is empty, it accepts any SPIFFE ID of the trust domains.
    """
    peers = [uri(exact=identity) for identity in identities] or _trust_domains(config)
    alpn = (*MESH_ALPN, "h2") if http2 else MESH_ALPN
    context = UpstreamTlsContext(common_tls_context=_mesh_context(config, peers, alpn), sni=sni)
    return TransportSocket(name=_TLS, typed_config=pack(context))


def explicit(
    config: MeshConfig, tls: ClientTls, sni: str, identities: tuple[str, ...], *, http2: bool = False
) -> TransportSocket | None:
    """Return a client's socket for a DestinationRule's TLS settings; None for DISABLE."""
    match tls.mode:
        case TlsMode.DISABLE:
            return None
        case TlsMode.ISTIO_MUTUAL:
            return mutual(config, tls.sni or sni, tls.subject_alt_names or identities, http2=http2)
    validation = None
    if not tls.insecure_skip_verify:
        validation = CertificateValidationContext(
            trusted_ca=DataSource(filename=tls.ca_certificates or SYSTEM_ROOTS),
            match_typed_subject_alt_names=[
                SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=name))
                for name in tls.subject_alt_names
                for kind in (SubjectAltNameMatcherSanType.DNS, SubjectAltNameMatcherSanType.URI)
            ],
        )
    certificates = []
    if tls.mode is TlsMode.MUTUAL:
        certificates.append(
            TlsCertificate(
                certificate_chain=DataSource(filename=tls.certificate),
                private_key=DataSource(filename=tls.private_key),
            )
        )
    context = UpstreamTlsContext(
        common_tls_context=CommonTlsContext(
            tls_params=_parameters(config.tls_defaults, fips=config.fips),
            tls_certificates=certificates,
            validation_context=validation,
            alpn_protocols=["h2"] if http2 else [],
        ),
        sni=tls.sni,
        # Without an explicit server name, SNI and the certificate must match the host of the request.
        auto_host_sni=not tls.sni,
        auto_sni_san_validation=not (tls.sni or tls.subject_alt_names or tls.insecure_skip_verify),
    )
    return TransportSocket(name=_TLS, typed_config=pack(context))


@lru_cache(maxsize=16)
def server(config: MeshConfig, *, http: bool) -> TransportSocket:
    """Return a server's TLS socket, which requires a client certificate of the trust domains."""
    alpn = ("h2", "http/1.1") if http else ()
    context = DownstreamTlsContext(
        common_tls_context=_mesh_context(config, _trust_domains(config), alpn),
        require_client_certificate=True,
    )
    return TransportSocket(name=_TLS, typed_config=pack(context))
