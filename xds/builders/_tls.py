"""TLS contexts, and the secrets that they refer to."""

from __future__ import annotations

from collections.abc import Iterable

from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    Secret,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from xds.builders._common import ads, is_ip, strings

SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Path of the system's roots in Debian, Ubuntu, Alpine and Envoy images.

Envoy ignores `system_root_certs`. The mesh has the same path, without the import of this package.
"""


def certificate(name: str, chain: bytes, key: bytes) -> Secret:
    """Return a secret with a certificate and its private key.

    Args:
        name: Name of the secret, as TLS contexts refer to it.
        chain: Certificate and intermediate certificates, in PEM.
        key: Private key, in PEM.
    """
    made = TlsCertificate(
        certificate_chain=DataSource(inline_bytes=chain), private_key=DataSource(inline_bytes=key)
    )
    return Secret(name=name, tls_certificate=made)


def roots(name: str, certificates: bytes) -> Secret:
    """Return a secret with the root certificates that verify a peer.

    Args:
        name: Name of the secret, as TLS contexts refer to it.
        certificates: Root certificates, in PEM.
    """
    trusted = CertificateValidationContext(trusted_ca=DataSource(inline_bytes=certificates))
    return Secret(name=name, validation_context=trusted)


def upstream_tls(
    server: str = "",
    *,
    names: Iterable[str] = (),
    roots: str = "",
    certificate: str = "",
    alpn: Iterable[str] = (),
) -> UpstreamTlsContext:
    """Return TLS to the endpoints of a cluster, with a verified server.

    Args:
        server: Host name of the server, which is sent as SNI and which its certificate must contain.
        names: Names of which the server's certificate must contain one, instead of `server`: DNS names, IP
            addresses, or URIs such as SPIFFE IDs.
        roots: Name of the secret with the root certificates. The default is those of Envoy's system, in
            `/etc/ssl/certs/ca-certificates.crt`. Where Envoy has no such file, as on Fedora and macOS, it
            rejects the default.
        certificate: Name of the secret with the client certificate, for mutual TLS.
        alpn: Protocols to offer, such as `h2`. Clusters with HTTP/2 offer it by default.

    Raises:
        ValueError: Neither `server` nor `names` is set, so that any server with a certificate of the roots
            would be accepted.
        TypeError: `names` or `alpn` is one str.
    """
    accepted = strings("names", names) or ((server,) if server else ())
    if not accepted:
        raise ValueError("pass the server's host name, or names= that its certificate may contain")
    common = _context(certificate, alpn)
    _verify(common, roots, accepted)
    return UpstreamTlsContext(common_tls_context=common, sni="" if is_ip(server) else server)


def downstream_tls(
    certificate: str,
    *,
    client_roots: str = "",
    client_names: Iterable[str] = (),
    alpn: Iterable[str] = ("h2", "http/1.1"),
) -> DownstreamTlsContext:
    """Return TLS for the clients of a listener, in version 1.2 or newer.

    Args:
        certificate: Name of the secret with the server's certificate.
        client_roots: Name of the secret with the root certificates of clients, for mutual TLS. Clients
            without a certificate are then refused.
        client_names: Names of which a client's certificate must contain one. The default accepts all
            certificates of the roots.
        alpn: Protocols to accept. Pass an empty list for protocols other than HTTP.

    Raises:
        ValueError: `client_names` without `client_roots`, which would verify nothing.
        TypeError: `client_names` or `alpn` is one str.
    """
    accepted = strings("client_names", client_names)
    if accepted and not client_roots:
        raise ValueError("client_names= requires client_roots=: without roots, nothing is verified")
    common = _context(certificate, alpn)
    if client_roots:
        _verify(common, client_roots, accepted)
    return DownstreamTlsContext(
        common_tls_context=common, require_client_certificate=True if client_roots else None
    )


def _context(certificate: str, alpn: Iterable[str]) -> CommonTlsContext:
    common = CommonTlsContext(alpn_protocols=[*strings("alpn", alpn)])
    if certificate:
        common.tls_certificate_sds_secret_configs = [_secret(certificate)]
    return common


def _verify(common: CommonTlsContext, roots: str, names: tuple[str, ...]) -> None:
    """Verify the peer's certificate with roots, and one of its names with `names` unless they are empty."""
    validation = CertificateValidationContext(
        match_typed_subject_alt_names=[_matcher(name) for name in names]
    )
    if roots:
        common.combined_validation_context = CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=validation, validation_context_sds_secret_config=_secret(roots)
        )
    else:
        validation.trusted_ca = DataSource(filename=SYSTEM_ROOTS)
        common.validation_context = validation


def _matcher(name: str) -> SubjectAltNameMatcher:
    san = SubjectAltNameMatcherSanType
    kind = san.URI if "://" in name else san.IP_ADDRESS if is_ip(name) else san.DNS
    return SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=name))


def _secret(name: str) -> SdsSecretConfig:
    return SdsSecretConfig(name=name, sds_config=ads())
