"""Certificates from an external signer: requests for it, and checks of what it returns.

Pure: `xds.mesh.controlplane.signing` runs the signer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from xds.mesh.identity import chain as chains
from xds.mesh.identity.ca import WORKLOAD_USAGES, Leaf, key_usage, subject_alternative_name
from xds.mesh.identity.keys import IdentityError, PrivateKey


def signing_request(key: PrivateKey, identity: str) -> bytes:
    """Return a PEM certificate signing request (CSR) for a workload's SPIFFE ID."""
    return key.sign_request(
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(subject_alternative_name(identity), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(WORKLOAD_USAGES), critical=False)
    )


def read_signed(
    pem: bytes, key: PrivateKey, identity: str, roots: Sequence[x509.Certificate], now: datetime
) -> Leaf:
    """Return the certificate that a signer returned. Raise IdentityError if peers would not accept it.

    Args:
        pem: the certificate and its intermediates, in PEM form.
        key: private key that the certificate was requested for.
        identity: SPIFFE ID that the certificate was requested for.
        roots: roots that peers trust.
        now: current time.
    """
    certificate, *intermediates = chains.read(pem)
    try:
        names, usages, public_key = _names(certificate), _usages(certificate), certificate.public_key()
        may_sign = _may_sign(certificate)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise IdentityError("the certificate is malformed") from None
    if public_key != key.public_key:
        raise IdentityError("the first certificate is not for the requested key")
    if names != [f"URI:{identity}"]:
        raise IdentityError(f"the certificate is for {', '.join(names) or 'no name'}, not for URI:{identity}")
    if may_sign:
        raise IdentityError("the certificate is that of a CA: its owner could sign any identity")
    if not set(WORKLOAD_USAGES) <= usages:
        raise IdentityError("the certificate's extendedKeyUsage lacks serverAuth or clientAuth")
    chains.require_valid(certificate, now)
    chains.build_path(certificate, intermediates, roots, now, is_ca=False)
    return Leaf(
        identity=identity,
        chain=chains.to_pem([certificate, *(each for each in intermediates if each not in roots)]),
        key=key,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=start,
        not_after=end,
        # Half of the remaining lifetime: the signer may backdate certificates by much.
        renew_at=now + (end - now) / 2,
    )


def _names(certificate: x509.Certificate) -> list[str]:
    """Return the subject alternative names, such as `URI:spiffe://cluster.local/ns/shop/sa/web`."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    kinds = {x509.UniformResourceIdentifier: "URI", x509.DNSName: "DNS"}
    return [f"{kinds.get(type(name), type(name).__name__)}:{name.value}" for name in names]


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether the certificate may sign others. Without the extensions, it is that of a leaf."""
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                return True
            case x509.KeyUsage() as usage if usage.key_cert_sign or not usage.digital_signature:
                return True
    return False


def _usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set(WORKLOAD_USAGES)  # A certificate without the extension may be used for everything.
