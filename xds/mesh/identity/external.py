"""Certificate signing requests (CSR), and checks of what an external signer returns.

Requests come from `xds proxy`, which makes its key in the pod. Pure: `xds.mesh.controlplane.signing` runs the
signer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from xds.mesh.identity import chain as chains
from xds.mesh.identity.ca import WORKLOAD_USAGES, Certificate, key_usage, subject_alternative_name
from xds.mesh.identity.keys import SUPPORTED_KEYS, IdentityError, PrivateKey, PublicKey, is_supported

MAX_REQUEST_BYTES = 16 * 1024
"""Maximum size of a request from a sidecar. A request with an RSA key of 4096 bits has 1.7 kB."""
MAX_RSA_BITS = 4096
"""Maximum size of a sidecar's RSA key. The cost of a verification grows with the square of the size."""


class NamesError(IdentityError):
    """A request is for other names than those of the caller's identity."""


def signing_request(key: PrivateKey, identity: str) -> bytes:
    """Return a PEM certificate signing request (CSR) for a workload's SPIFFE ID."""
    return key.sign_request(
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(subject_alternative_name(identity), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(WORKLOAD_USAGES), critical=False)
    )


def read_request(pem: bytes) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    """Return a sidecar's request and its public key, after checking that the sender has the private key.

    The names in it are not checked.

    Raises:
        IdentityError: the request is too large or malformed, has an unsupported key, or is not signed with
            that key.
    """
    if len(pem) > MAX_REQUEST_BYTES:
        raise IdentityError(f"the request has {len(pem)} bytes; at most {MAX_REQUEST_BYTES} are accepted")
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise IdentityError("this is not a PEM certificate signing request") from None
    if not is_supported(key) or (isinstance(key, rsa.RSAPublicKey) and key.key_size > MAX_RSA_BITS):
        raise IdentityError(
            f"the key is unsupported; supported: {SUPPORTED_KEYS}, RSA with at most {MAX_RSA_BITS} bits"
        )
    try:
        is_valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        is_valid = False
    if not is_valid:
        raise IdentityError("the request is not signed with its own key")
    return request, key  # type: ignore[return-value]  # is_supported


def require_names(request: x509.CertificateSigningRequest, identity: str) -> None:
    """Raise NamesError unless a request is for a SPIFFE ID and nothing else.

    An external signer copies names from the request, which the control plane cannot change.
    """
    try:
        names, is_named = _names(request), any(attribute.value for attribute in request.subject)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise IdentityError("the request is malformed") from None
    if names != [f"URI:{identity}"] or is_named:
        raise NamesError(
            f"the mesh's external signer needs a request for URI:{identity} alone, without a subject"
        )


def read_signed(
    pem: bytes, key: PublicKey, identity: str, roots: Sequence[x509.Certificate], now: datetime
) -> Certificate:
    """Return the certificate that a signer returned. Raise IdentityError if peers would not accept it.

    Args:
        pem: the certificate and its intermediates, in PEM form.
        key: public key that the certificate was requested for.
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
    if public_key != key:
        raise IdentityError("the first certificate is not for the requested key")
    if names != [f"URI:{identity}"]:
        raise IdentityError(f"the certificate is for {', '.join(names) or 'no name'}, not for URI:{identity}")
    if may_sign:
        raise IdentityError("the certificate is that of a CA: its owner could sign any identity")
    if not set(WORKLOAD_USAGES) <= usages:
        raise IdentityError("the certificate's extendedKeyUsage lacks serverAuth or clientAuth")
    chains.require_valid(certificate, now)
    chains.build_path(certificate, intermediates, roots, now, is_ca=False)
    return Certificate(
        identity=identity,
        chain=chains.to_pem([certificate, *(each for each in intermediates if each not in roots)]),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=start,
        not_after=end,
        # Half of the remaining lifetime: the signer may backdate certificates by much.
        renew_at=now + (end - now) / 2,
    )


def identity_of(pem: bytes) -> str:
    """Return the only name in a certificate, the SPIFFE ID of a workload; empty if it has another one."""
    try:
        names = _names(chains.read(pem)[0])
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        return ""
    return names[0].removeprefix("URI:") if len(names) == 1 and names[0].startswith("URI:") else ""


def _names(certificate: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
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
